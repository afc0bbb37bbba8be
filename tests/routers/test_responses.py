"""Responses: asked, streamed, paid for like a chat, and named again by whoever made them."""

import asyncio

import pytest
from openai.types.responses import Response

from app.engines.fake import Script
from app.errors import LedgerUnavailable
from tests.conftest import LARGE
from tests.routers.conftest import bearer
from tests.routers.responding import URL, asking, final, read


def ask(house, token=None, headers=None, **fields):
    headers = bearer(token) | (headers or {})
    return house.visitor.post(URL, json=asking(**fields), headers=headers)


async def made(house, token=None, **fields):
    answer = await ask(house, token, **fields)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    Response.model_validate(body)
    return body


def text(response):
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def param(answer):
    return answer.json()["error"]["param"]


async def test_a_response_says_what_a_chat_says_and_costs_what_it_costs(house):
    response = await made(house, max_output_tokens=100, metadata={"a": "b"}, temperature=0)
    chat = (await house.ask(model="large", max_tokens=100)).json()
    assert text(response) == chat["choices"][0]["message"]["content"] == f"{LARGE} "
    assert (response["status"], response["incomplete_details"]) == ("completed", None)
    assert response["metadata"] == {"a": "b"} and response["temperature"] == 0
    assert response["usage"]["input_tokens"] == 5
    assert response["usage"]["output_tokens"] == len(LARGE.split())
    assert response["usage"]["cost"] > 0 and response["farthing"]["policy"] == "direct"
    cost = chat["usage"]["cost_details"]["models"]["large"]["completion_tokens"]
    assert response["usage"]["cost_details"]["models"]["large"]["completion_tokens"] == cost


async def test_a_request_is_settled_once_under_the_responses_own_id(house):
    response = await made(house)
    rows = await house.accounts.usage(())
    assert rows[0].requests == 1 and rows[0].cost == await house.spent()
    assert response["id"].startswith("resp_")


@pytest.mark.parametrize("model", ["large", "economy", "entropy_switch/large"])
async def test_a_stream_assembles_to_the_whole_answer(house, model):
    response = await made(house, model=model)
    answer = await ask(house, model=model, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-farthing-policy"] == response["farthing"]["policy"]
    last = final(answer.text)
    assert text(last) == text(response) and last["status"] == "completed"
    assert last["usage"]["output_tokens"] == response["usage"]["output_tokens"]
    types = [event["type"].removeprefix("response.") for event in read(answer.text)]
    assert types[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert types[-4:] == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_limit_of_tokens_leaves_it_incomplete(house, stream):
    answer = await ask(house, max_output_tokens=3, stream=stream)
    response = final(answer.text) if stream else answer.json()
    assert response["status"] == response["output"][0]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert text(response) == "the sky is " and response["max_output_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_a_budget_cuts_it_as_it_cuts_a_chat_and_says_so(house, stream):
    budget = {"X-Budget-Usd": "0.00011"}
    answer = await ask(house, headers=budget, stream=stream)
    response = final(answer.text) if stream else answer.json()
    chat = (await house.ask(model="large", headers=budget)).json()["choices"][0]
    assert chat["finish_details"] == {"reason": "budget"}
    assert text(response) == chat["message"]["content"]
    assert response["incomplete_details"]["finish_details"] == {"reason": "budget"}
    assert 0 < response["usage"]["cost"] <= 0.00011


async def test_a_budget_that_pays_for_nothing_is_refused(house):
    answer = await ask(house, headers={"X-Budget-Usd": "0.0000001"})
    assert answer.status_code == 402 and answer.json()["error"]["code"] == "budget_exceeded"


async def test_an_engine_that_fails_in_mid_answer_leaves_a_failed_response(house, fake):
    fake.scripts["large"] = type(fake.scripts["large"])(["a"] * 9, fails_after=3)
    answer = await ask(house, stream=True)
    events = read(answer.text)
    assert events[-1]["type"] == "response.failed"
    failed = events[-1]["response"]
    assert failed["status"] == "failed" and failed["error"]["code"] == "server_error"
    assert failed["usage"]["output_tokens"] == 3 and failed["usage"]["cost"] > 0
    assert (await house.get(f"{URL}/{failed['id']}")).json()["status"] == "failed"
    again = await ask(house, previous_response_id=failed["id"])
    assert (again.status_code, param(again)) == (400, "previous_response_id")


async def test_logprobs_come_where_they_are_asked_for(house):
    answer = await ask(
        house, include=["message.output_text.logprobs"], top_logprobs=2, stream=True, model="small"
    )
    response = final(answer.text)
    scored = response["output"][0]["content"][0]["logprobs"]
    assert len(scored) == response["usage"]["output_tokens"] and "logprob" in scored[0]
    plain = await made(house)
    assert plain["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_goes_on_from_a_response_without_its_instructions(house, fake, stream):
    first = await made(house, instructions="be brief", max_output_tokens=2)
    answer = await ask(house, previous_response_id=first["id"], input="and then", stream=stream)
    second = final(answer.text) if stream else answer.json()
    assert second["previous_response_id"] == first["id"]
    assert fake.calls[-2].messages[0] == {"role": "system", "content": "be brief"}
    said = [(m["role"], m["content"]) for m in fake.calls[-1].messages]
    before = [("user", "why is the sky blue"), ("assistant", "the sky ")]
    assert said == [*before, ("user", "and then")]
    await made(house, previous_response_id=second["id"], input="third", instructions="new")
    said = [m["content"] for m in fake.calls[-1].messages]
    assert said == ["new", *(text for _, text in before), "and then", f"{LARGE} ", "third"]


async def test_what_is_kept_can_be_read_listed_and_deleted(house):
    first = await made(house)
    second = await made(house, previous_response_id=first["id"], input="and then")
    assert (await house.get(f"{URL}/{second['id']}")).json() == second
    listed = (await house.get(f"{URL}/{second['id']}/input_items")).json()
    assert [item["role"] for item in listed["data"]] == ["user", "assistant", "user"]
    assert listed["data"][0]["content"] == [{"type": "input_text", "text": "and then"}]
    assert len({item["id"] for item in listed["data"]}) == 3 and not listed["has_more"]
    page = {"limit": 1, "order": "asc", "after": listed["data"][2]["id"]}
    url = f"{URL}/{second['id']}/input_items"
    one = (await house.visitor.get(url, params=page)).json()
    assert one["data"] == [first["output"][0]] and one["has_more"]
    gone = await house.visitor.delete(f"{URL}/{first['id']}")
    assert gone.json() == {"id": first["id"], "object": "response", "deleted": True}
    assert (await house.get(f"{URL}/{first['id']}")).status_code == 404
    assert (await house.visitor.delete(f"{URL}/{first['id']}")).status_code == 404
    # What goes on from it holds its own copy.
    await made(house, previous_response_id=second["id"])


@pytest.mark.parametrize(
    "query",
    [
        {"order": "up"},
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "0001" + "9" * 5000},
        {"limit": "x"},
        {"after": "x"},
    ],
)
async def test_a_page_that_cannot_be_is_refused(house, query):
    made_one = await made(house)
    answer = await house.visitor.get(f"{URL}/{made_one['id']}/input_items", params=query)
    assert (answer.status_code, param(answer)) == (400, next(iter(query)))


async def test_nobody_else_can_name_it(house):
    ours, theirs = await house.token(), await house.token()
    response = await made(house, ours)
    url = f"{URL}/{response['id']}"
    for token, status in ((theirs, 404), (None, 401)):
        headers = bearer(token)
        assert (await house.get(url, token)).status_code == status
        assert (await house.get(f"{url}/input_items", token)).status_code == status
        assert (await house.visitor.delete(url, headers=headers)).status_code == status
        assert (await house.visitor.post(f"{url}/cancel", headers=headers)).status_code == status
        answer = await ask(house, token, previous_response_id=response["id"])
        assert answer.status_code == status
    assert (await house.get(url, ours)).status_code == 200


async def test_nor_can_another_tenant_of_its_key(serve):
    house = await serve(trusted_peers="127.0.0.1")
    token = await house.token()
    one, other = {"X-Tenant-Id": "acme"}, {"X-Tenant-Id": "other"}
    id = (await ask(house, token, headers=one)).json()["id"]
    assert (await house.get(f"{URL}/{id}", token, headers=other)).status_code == 404
    assert (await house.get(f"{URL}/{id}", token, headers=one)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_what_shall_not_be_stored_is_not(house, stream):
    answer = await ask(house, store=False, stream=stream)
    response = final(answer.text) if stream else answer.json()
    assert response["store"] is False
    assert (await house.get(f"{URL}/{response['id']}")).status_code == 404


@pytest.mark.parametrize("settings", [{"ledger": "off"}, {"responses_keep_s": 0}])
async def test_where_nothing_is_kept_a_response_says_so_and_none_can_be_named(serve, settings):
    house = await serve_off(serve, **settings)
    response = (await house.post(URL, json=asking(store=True))).json()
    assert response["store"] is False and response["status"] == "completed"
    named = asking(previous_response_id=response["id"])
    for answer in (
        await house.post(URL, json=named),
        await house.get(f"{URL}/{response['id']}"),
        await house.delete(f"{URL}/{response['id']}"),
        await house.post(f"{URL}/{response['id']}/cancel"),
        await house.get(f"{URL}/{response['id']}/input_items"),
        await house.post(URL, json=asking(input=[{"type": "item_reference", "id": "msg_1"}])),
    ):
        assert answer.status_code == 400
        assert "FARTHING_RESPONSES_KEEP_S" in answer.json()["error"]["message"]


async def serve_off(serve, **settings):
    house = await serve(**settings)
    return house.visitor


@pytest.mark.parametrize("stream", [False, True])
async def test_a_store_that_is_away_costs_no_answer(house, monkeypatch, stream):
    async def away(*_, **__):
        raise LedgerUnavailable

    monkeypatch.setattr(house.accounts.responses, "keep", away)
    monkeypatch.setattr(house.accounts.responses, "begin", away)
    answer = await ask(house, stream=stream)
    response = final(answer.text) if stream else answer.json()
    assert text(response).strip() == LARGE and response["store"] is False


async def test_one_that_is_streamed_can_be_cancelled(house, fake):
    script = type(fake.scripts["large"])
    fake.scripts["large"] = script(["a "] * 1000, delay=0.01)
    token = await house.token()
    work = asyncio.create_task(ask(house, token, stream=True))
    while not (running := house.accounts.responses._running):
        await asyncio.sleep(0.01)
    (id,) = running
    await asyncio.sleep(0.1)
    assert (await house.get(f"{URL}/{id}", token)).json()["status"] == "in_progress"
    other = bearer(await house.token())
    assert (await house.visitor.post(f"{URL}/{id}/cancel", headers=other)).status_code == 404
    cancelled = await house.visitor.post(f"{URL}/{id}/cancel", headers=bearer(token))
    response = final((await work).text)
    assert cancelled.json() == response and response["status"] == "cancelled"
    assert not fake.open and 0 < response["usage"]["output_tokens"] < 1000
    again = await house.visitor.post(f"{URL}/{id}/cancel", headers=bearer(token))
    assert again.json() == response


async def test_items_may_be_named_by_their_ids(house, fake):
    first = await made(house, max_output_tokens=2)
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    await made(house, input=[reference, {"role": "user", "content": "go on"}])
    said = [(m["role"], m["content"]) for m in fake.calls[-1].messages]
    assert said == [("assistant", "the sky "), ("user", "go on")]
    for id, status in ((first["output"][0]["id"][:-2] + "07", 404), ("msg_1", 400), (3, 400)):
        answer = await ask(house, input=[{"type": "item_reference", "id": id}])
        assert (answer.status_code, param(answer)) == (status, "input.0.id")


async def test_names_of_items_may_not_stand_for_more_than_a_body(serve, fake):
    house = await serve(max_body_bytes=4000)
    fake.scripts = {"large": Script(["x" * 150])}
    first = await made(house)
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    await made(house, input=[reference] * 5)
    answer = await ask(house, input=[reference] * 30)
    assert answer.status_code == 413 and param(answer).startswith("input.")


async def test_many_names_of_one_response_s_items_are_one_look_at_it(house, monkeypatch):
    looks, first = [], await made(house)
    find = house.accounts.responses.find
    monkeypatch.setattr(
        house.accounts.responses, "find", lambda *asked: looks.append(asked) or find(*asked)
    )
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    await made(house, input=[reference] * 5)
    assert len(looks) == 1


async def test_a_conversation_may_not_outgrow_a_body(serve):
    house = await serve(max_body_bytes=4000)
    first = await made(house, input="x" * 3000)
    second = await made(house, input="y" * 700, previous_response_id=first["id"])
    answer = await ask(house, previous_response_id=second["id"])
    assert (answer.status_code, param(answer)) == (413, "previous_response_id")


async def test_nor_a_request_s_number_of_messages(serve):
    house = await serve(max_messages=4)
    first = await made(house)
    second = await made(house, previous_response_id=first["id"])
    answer = await ask(house, previous_response_id=second["id"])
    assert (answer.status_code, param(answer)) == (400, "input")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"n": 2}, "n"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input.0.type"),
        ({"input": [{"content": "x"}]}, "input.0.type"),
        ({"input": [{"type": ["message"]}]}, "input.0.type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input.0.content.0.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input.0.content.0.type",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input.0.content.0.image_url",
        ),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0.arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
            "input.0.encrypted_content",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"previous_response_id": "resp_nope"}, "previous_response_id"),
        ({"previous_response_id": "x" * 97}, "previous_response_id"),
        ({"top_k": -5}, "top_k"),
        ({"budget": {"usd": "x"}}, "budget.usd"),
    ],
)
async def test_bad_input_is_refused_by_the_name_that_its_client_knows(house, fields, name):
    answer = await ask(house, **fields)
    assert (answer.status_code // 100, param(answer)) == (4, name)
    assert name.split(".")[0] in answer.json()["error"]["message"]


async def test_an_engines_refusal_names_the_field_of_the_response(house):
    schema = {"type": "json_schema", "name": "s", "schema": {"type": "object"}}
    answer = await ask(house, text={"format": schema})
    assert (answer.status_code, param(answer)) == (400, "text.format")
    assert answer.json()["error"]["message"].startswith("text.format: ")
    image = [{"type": "input_image", "image_url": "data:image/png;base64,AA"}]
    answer = await ask(house, input=[{"role": "user", "content": image}])
    assert (answer.status_code, param(answer)) == (400, "input")
