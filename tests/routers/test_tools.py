"""Tool calls over HTTP, in OpenAI's shape, whole and streamed, whole and cut."""

import json

import pytest

from app.engines.fake import Script
from tests.routers import responding
from tests.routers.reading import asking, events
from tests.routers.test_messages import read as read_message

CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALLS = (
    'Let me see. <tool_call> {"name": "f", "arguments": {"a": "b"}} </tool_call> '
    '<tool_call> {"name": "f", "arguments": {}} </tool_call>'
)


@pytest.fixture
async def talks(serve, fake):
    """Asks of a model that says this, in words."""
    house = await serve()

    async def ask(says=CALLS, **fields):
        fake.scripts["large"] = Script(says.split(), structured=True)
        body = asking(**{"tools": TOOLS, **fields})
        answer = await house.visitor.post(CHAT, json=body, headers={"X-Debug": "1"})
        assert answer.status_code == 200, answer.text
        return answer

    return ask


def gathered(chunks):
    """The message that a stream's deltas add up to."""
    content, calls = "", []
    for delta in (choice["delta"] for chunk in chunks for choice in chunk["choices"]):
        content += delta.get("content") or ""
        for piece in delta.get("tool_calls", ()):
            if piece["index"] == len(calls):  # the first of a call
                calls.append(
                    {"id": piece["id"], "type": piece["type"], "function": {**piece["function"]}}
                )
            else:
                assert "id" not in piece and "name" not in piece["function"]
                calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    return content, calls


async def test_calls_are_told_as_calls(talks):
    choice = (await talks()).json()["choices"][0]
    message, calls = choice["message"], choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == "Let me see."
    assert [(call["type"], call["function"]) for call in calls] == [
        ("function", {"name": "f", "arguments": '{"a": "b"}'}),
        ("function", {"name": "f", "arguments": "{}"}),
    ]
    assert len({call["id"] for call in calls}) == 2 and "index" not in calls[0]


async def test_without_words_the_content_is_null(talks):
    message = (await talks(CALLS.split(". ")[1])).json()["choices"][0]["message"]
    assert message["content"] is None and len(message["tool_calls"]) == 2


async def test_a_stream_says_the_same(talks):
    chunks = events((await talks(stream=True, logprobs=True)).text)
    content, calls = gathered(chunks)
    assert content == "Let me see."
    assert [call["function"]["arguments"] for call in calls] == ['{"a": "b"}', "{}"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    scores = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert sum(len(score["content"]) for score in scores if score) == len(CALLS.split())
    assert all(chunk["farthing"]["model"] == "large" for chunk in chunks[1:-1])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_is_cut_says_so(talks, stream):
    answer = await talks(stream=stream, max_tokens=8)
    if stream:
        chunks = events(answer.text)
        content, calls = gathered(chunks)
        end = chunks[-1]["choices"][0]
    else:
        end = answer.json()["choices"][0]
        content, calls = end["message"]["content"], end["message"]["tool_calls"]
    assert (content, end["finish_reason"]) == ("Let me see.", "length")
    assert calls[0]["function"] == {"name": "f", "arguments": '{"a": '}


async def test_of_several_choices_each_has_its_own_calls(talks):
    choices = (await talks(n=2)).json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls"] * 2
    ids = [call["id"] for choice in choices for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 4


@pytest.mark.parametrize("fields", [{"tools": None}, {"tool_choice": "none"}])
async def test_who_offers_no_tools_gets_the_words(talks, fields):
    choice = (await talks(**fields)).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": CALLS + " ", "refusal": None}
    assert choice["finish_reason"] == "stop"


async def test_text_beside_tools_is_text(talks):
    message = (await talks("Hello <b> there")).json()["choices"][0]["message"]
    assert message["content"].strip() == "Hello <b> there" and "tool_calls" not in message
    assert json.dumps(message)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_whole_answer_says_who_gave_it(serve, fake, stream):
    """Where what is asked for would not last through a hand-over."""
    house = await serve()
    for name in ("small", "large"):
        fake.scripts[name] = Script([f"{name}'s"], native=True)
    answer = await house.ask(model="economy", tools=TOOLS, stream=stream)
    assert answer.headers["x-farthing-fidelity"] == "exact"
    body = events(answer.text)[-1] if stream else answer.json()
    farthing = body["farthing"]
    assert (farthing["whole"], farthing["policy"], farthing["fidelity"]) == (
        "large",
        "economy",
        "exact",
    )
    assert "large's" in answer.text


NEWER = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
ANTHROPICS = [{"name": "f", "input_schema": {"type": "object"}}]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_tells_calls_as_items(serve, fake, stream):
    house = await serve()
    fake.scripts["large"] = Script(CALLS.split(), structured=True)
    body = responding.asking(tools=NEWER, stream=stream, tool_choice="auto")
    answer = await house.visitor.post(responding.URL, json=body)
    response = responding.final(answer.text) if stream else answer.json()
    message, *calls = response["output"]
    assert message["content"][0]["text"] == "Let me see."
    assert [json.loads(call["arguments"]) for call in calls] == [{"a": "b"}, {}]
    assert all(call["name"] == "f" and call["status"] == "completed" for call in calls)
    assert len({call["call_id"] for call in calls}) == 2
    kept = (await house.get(f"{responding.URL}/{response['id']}")).json()
    assert kept["output"] == response["output"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_message_tells_calls_as_blocks(serve, fake, stream):
    house = await serve()
    fake.scripts["large"] = Script(CALLS.split(), structured=True)
    body = asking(tools=ANTHROPICS, stream=stream, max_tokens=100)
    answer = await house.visitor.post("/v1/messages", json=body)
    message = read_message(answer.text)[0].to_dict() if stream else answer.json()
    text, *calls = message["content"]
    assert text["text"] == "Let me see." and message["stop_reason"] == "tool_use"
    assert [(call["name"], call["input"]) for call in calls] == [("f", {"a": "b"}), ("f", {})]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_was_cut_is_incomplete(serve, fake, stream):
    house = await serve()
    fake.scripts["large"] = Script(CALLS.split(), structured=True)
    body = responding.asking(tools=NEWER, stream=stream, max_output_tokens=8)
    answer = await house.visitor.post(responding.URL, json=body)
    response = responding.final(answer.text) if stream else answer.json()
    assert response["status"] == response["output"][-1]["status"] == "incomplete"
    assert response["output"][-1]["arguments"].startswith("{")
    body = asking(tools=ANTHROPICS, stream=stream, max_tokens=8)
    answer = await house.visitor.post("/v1/messages", json=body)
    message = read_message(answer.text)[0].to_dict() if stream else answer.json()
    assert message["stop_reason"] == "max_tokens"
    assert message["content"][-1]["type"] == "tool_use"
