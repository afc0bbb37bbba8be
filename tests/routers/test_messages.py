"""Messages in Anthropic's shape: asked, streamed, paid for like a chat."""

import json
from types import SimpleNamespace

import pytest
from anthropic import NOT_GIVEN
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from app.bill import Bill
from app.shown import Shown
from app.types import Call, Chunk, Sampling
from routers.messages_scribe import MessageScribe
from routers.messages_wire import MessagesRequest
from tests.routers.conftest import bearer
from tests.routers.reading import QUESTION

URL = "/v1/messages"
_EVENT = TypeAdapter(RawMessageStreamEvent)


def ask(house, token=None, headers=None, url=URL, **fields):
    headers = ({} if token is None else {"X-Api-Key": token}) | (headers or {})
    body = {"model": "large", "max_tokens": 100, "messages": QUESTION, **fields}
    return house.visitor.post(url, json=body, headers=headers)


def read(text):
    """The message that the official client assembles, and its events."""
    snapshot, bufs, events = None, {}, []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
        if event["type"] in ("ping", "error"):
            continue
        known = _EVENT.validate_python(event)
        snapshot = accumulate_event(
            event=known, current_snapshot=snapshot, json_bufs=bufs, output_format=NOT_GIVEN
        )
    return snapshot, events


async def message(house, stream=False, **fields):
    answer = await ask(house, stream=stream, **fields)
    assert answer.status_code == 200, answer.text
    if stream:
        return read(answer.text)[0].to_dict() | {"headers": answer.headers}
    Message.model_validate(answer.json())
    return answer.json()


def text(message):
    return "".join(block["text"] for block in message["content"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["large", "economy"])
async def test_a_message_says_what_a_chat_says(house, model, stream):
    found = await message(house, model=model, stream=stream)
    chat = (await house.ask(model=model, max_tokens=100)).json()
    assert text(found) == chat["choices"][0]["message"]["content"]
    assert (found["role"], found["stop_reason"]) == ("assistant", "end_turn")
    usage = found["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == 5
    assert usage["output_tokens"] == chat["usage"]["completion_tokens"]


async def test_it_is_settled_once_and_says_what_it_cost(house):
    found = await message(house)
    rows = await house.accounts.usage(())
    assert rows[0].requests == 1 and rows[0].cost == await house.spent()
    assert found["usage"]["cost"] == rows[0].cost / 10**12
    assert found["farthing"]["models"] == {"large": found["usage"]["output_tokens"]}
    assert found["id"].startswith("msg_")


async def test_a_stream_has_anthropics_events_in_order(house):
    answer = await ask(house, stream=True)
    _, events = read(answer.text)
    types = [event["type"] for event in events]
    assert types[:4] == ["message_start", "ping", "content_block_start", "content_block_delta"]
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["usage"]["input_tokens"] == 5
    assert events[-2]["usage"]["cost"] > 0 and events[-2]["farthing"]["policy"] == "direct"
    assert answer.headers["x-farthing-policy"] == "direct"


@pytest.mark.parametrize("stream", [False, True])
async def test_why_it_ended(house, stream):
    cut = await message(house, stream, max_tokens=3)
    assert (text(cut), cut["stop_reason"]) == ("the sky is ", "max_tokens")
    budget = {"X-Budget-Usd": "0.00011"}
    answer = await ask(house, headers=budget, stream=stream)
    found = read(answer.text)[1][-2]["delta"] if stream else answer.json()
    assert found["stop_reason"] == "max_tokens"
    assert found["finish_details"] == {"reason": "budget"}


async def test_what_is_said_reaches_the_chat(house, fake):
    await message(
        house,
        system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "b"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"é": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "c"},
                    {"type": "text", "text": "d"},
                ],
            },
        ],
        temperature=0.5,
        top_k=7,
        metadata={"user_id": "u"},
    )
    call = fake.calls[-1]
    function = {"name": "f", "arguments": '{"é": 1}'}
    assert [dict(message) for message in call.messages] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "b",
            "reasoning": "hm",
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    assert (call.sampling.temperature, call.sampling.top_k) == (0.5, 7)
    assert call.max_tokens == 100 and call.extra["user"] == "u"


CALL = [
    {"id": "c", "function": {"name": "f", "arguments": '{"a": 1'}},
    {"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}},
]


@pytest.mark.parametrize(
    ("calls", "reason", "stop", "told"),
    [
        ([], "stop", None, ("end_turn", None)),
        ([], "stop", "x", ("stop_sequence", "x")),
        ([], "stop", "other", ("end_turn", None)),
        ([], "content_filter", None, ("refusal", None)),
        (CALL[:1], "length", None, ("max_tokens", None)),
        (CALL[:1], "stop", "x", ("stop_sequence", "x")),
        (CALL[1:], "stop", "x", ("tool_use", None)),
        (CALL[1:], "tool_calls", None, ("tool_use", None)),
    ],
)
async def test_why_an_engine_stopped(calls, reason, stop, told):
    """A call that a stop string cut short must not run."""
    call = Call("m", whole=True, sampling=Sampling(stop=("x",)), id="msg_1")
    choice = {"message": {"tool_calls": calls}, "finish_reason": reason, "stop_reason": stop}
    finish = Chunk(
        raw=json.dumps({"choices": [choice]}).encode(),
        finish="length" if reason == "length" else "stop",
    )
    bill = Bill(prompt=1, cached=0, completion=1, lines=(), cost=0, prices="", overhead=0.0)
    answer = SimpleNamespace(
        model="m",
        policy="p",
        fidelity="exact",
        bill=bill,
        decisions=[],
        promise=None,
        notes=SimpleNamespace(shortened={}),
        shown=Shown(1),
    )
    scribe = MessageScribe(answer, SimpleNamespace(order=SimpleNamespace(call=call), debug=False))
    scribe.gather(finish)
    message = await scribe.whole(finish)
    assert (message["stop_reason"], message["stop_sequence"]) == told


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, None),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"output_config": {"effort": "high"}}, "high"),
    ],
)
async def test_how_much_is_thought_reaches_the_chat(house, fake, fields, effort):
    await message(house, **fields)
    assert fake.calls[-1].extra.get("reasoning_effort") == effort
    assert "thinking" not in fake.calls[-1].extra


async def test_tokens_are_counted_and_nothing_is_spent(house):
    counted = await ask(house, url=f"{URL}/count_tokens")
    assert counted.json() == {"input_tokens": 5}
    assert await house.spent() == 0
    with_system = await ask(house, url=f"{URL}/count_tokens", system="be brief", model="economy")
    assert with_system.json() == {"input_tokens": 7}


async def test_a_key_counts_only_for_models_that_it_may_use(house):
    token = await house.token(models=["small"])
    assert (await ask(house, token, url=f"{URL}/count_tokens")).status_code == 403
    allowed = await ask(house, token, url=f"{URL}/count_tokens", model="small")
    assert allowed.status_code == 200
    assert (await ask(house, url=f"{URL}/count_tokens")).status_code == 401


def refused(answer, status, kind):
    assert answer.status_code == status
    body = answer.json()
    assert body["type"] == "error" and set(body["error"]) == {"type", "message"}
    assert body["error"]["type"] == kind
    return body["error"]["message"]


async def test_errors_have_anthropics_shape(house, fake):
    token = await house.token(models=["large"])
    refused(await ask(house), 401, "authentication_error")
    refused(await ask(house, "nonsense"), 401, "authentication_error")
    refused(await ask(house, token, model="small"), 403, "permission_error")
    refused(await ask(house, token, model="nope"), 404, "not_found_error")
    tiny = {"X-Budget-Usd": "0.0000001"}
    answer = await ask(house, token, headers=tiny)
    refused(answer, 402, "billing_error")
    assert answer.headers["x-should-retry"] == "false"
    bearer_too = await ask(house, headers=bearer(token))
    assert bearer_too.status_code == 200
    refused(await house.get(URL), 405, "invalid_request_error")
    refused(await house.get(f"{URL}/nowhere"), 404, "invalid_request_error")
    long = {"X-Long": "x" * 100_000}
    refused(await ask(house, token, headers=long), 431, "invalid_request_error")
    del fake.scripts
    refused(await ask(house, token), 500, "api_error")


async def test_a_bug_and_a_failure_in_mid_stream_are_error_events(house, fake):
    fake.scripts["large"] = type(fake.scripts["large"])(["a"] * 9, fails_after=3)
    _, events = read((await ask(house, stream=True)).text)
    assert events[-1]["type"] == "error" and events[-1]["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "messages.0.content.0.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages.0.content.0.source.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            "messages.0.content.0.tool_use_id",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}]},
            "messages.0.content.0.input",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "redacted_thinking"}]}]},
            "messages.0.content.0.type",
        ),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "it is"}]}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "sometimes"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
            "output_config.format",
        ),
        ({"container": "c"}, "container"),
        ({"n": 2}, "n"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"temperature": 3}, "temperature"),
    ],
)
async def test_bad_input_is_named_as_its_client_knows_it(house, fields, name):
    message = refused(await ask(house, **fields), 400, "invalid_request_error")
    assert message.startswith(f"{name}: ")


def test_an_image_and_a_document_become_a_chats():
    png = {"type": "base64", "media_type": "image/png", "data": "AA"}
    said = [
        {"type": "image", "source": png},
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "document", "source": {"type": "text", "data": "words"}},
        {"type": "document", "source": {**png, "media_type": "application/pdf"}},
    ]
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": said}]}
    (message,) = MessagesRequest.model_validate(body).chat(body)["messages"]
    assert message["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "text", "text": "words"},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA"}},
    ]
