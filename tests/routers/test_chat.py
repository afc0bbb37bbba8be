"""A chat over HTTP: OpenAI's fields, what it cost, and who wrote it."""

import asyncio
import json
import re

import pytest

from app.catalog import PICO
from app.engines.fake import Script
from tests.conftest import LARGE, SMALL, UNSURE
from tests.routers.reading import QUESTION, asking, events, said

CHAT = "/v1/chat/completions"
ANSWER = LARGE + " "


async def whole(client, headers=None, **fields):
    answer = await client.post(CHAT, json=asking(**fields), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def streamed(client, headers=None, **fields):
    answer = await whole(client, headers, stream=True, **fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    return answer, events(answer.text)


async def test_a_whole_answer_has_openai_s_shape(client):
    body = (await whole(client)).json()
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", body["id"])
    assert (body["object"], body["model"]) == ("chat.completion", "large")
    assert isinstance(body["created"], int)
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


async def test_a_whole_answer_says_what_it_cost(client):
    answer = await whole(client)
    usage = answer.json()["usage"]
    tokens = len(LARGE.split())
    assert usage["prompt_tokens"] == 5
    assert usage["completion_tokens"] == tokens
    assert usage["total_tokens"] == 5 + tokens
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    cost = 5 * 10 + tokens * 20  # millionths of a USD
    assert usage["cost"] == pytest.approx(cost / 1e6, rel=1e-12)
    details = usage["cost_details"]
    assert details["currency"] == "USD"
    assert details["price_version"]
    assert details["models"] == {
        "large": {
            "prompt_tokens": 5,
            "cached_tokens": 0,
            "completion_tokens": tokens,
            "discarded_tokens": 0,
            "cost": usage["cost"],
        }
    }
    assert answer.headers["x-farthing-cost-usd"] == f"{cost / 1e6:.12f}".rstrip("0")
    assert float(answer.headers["x-farthing-overhead-ms"]) >= 0


async def test_a_cached_prompt_is_cheaper_and_says_so(client):
    first, second = [(await whole(client)).json()["usage"] for _ in range(2)]
    assert second["prompt_tokens_details"] == {"cached_tokens": 4}
    assert first["cost"] - second["cost"] == pytest.approx(4 * 9 / 1e6)


@pytest.mark.parametrize("streams", [False, True])
async def test_headers_tell_the_terms(client, streams):
    answer = await whole(client, {"X-Budget-Usd": "0.05"}, stream=streams, max_tokens=3)
    assert answer.headers["x-farthing-policy"] == "direct"
    assert answer.headers["x-farthing-fidelity"] == "exact"
    assert answer.headers["x-farthing-budget-usd"] == "0.05"
    assert answer.headers["x-farthing-estimate-usd"] == "0.00011"
    assert ("x-farthing-cost-usd" in answer.headers) is not streams


async def test_without_a_budget_none_is_told(client):
    assert "x-farthing-budget-usd" not in (await whole(client)).headers


async def test_a_stream_says_the_same_as_a_whole_answer(client):
    body = (await whole(client)).json()
    _, chunks = await streamed(client)
    assert said(chunks) == body["choices"][0]["message"]["content"]
    assert chunks[-1]["farthing"] == body["farthing"]


async def test_a_stream_has_openai_s_shape(client):
    _, chunks = await streamed(client)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert chunks[1]["choices"][0] == {
        "index": 0,
        "delta": {"content": "the "},
        "logprobs": None,
        "finish_reason": None,
    }
    assert chunks[-1]["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    ]
    assert not any("usage" in chunk for chunk in chunks)
    assert not any("farthing" in chunk for chunk in chunks[:-1])


async def test_usage_follows_where_it_was_asked_for(client):
    body = (await whole(client, model="small")).json()
    _, chunks = await streamed(client, stream_options={"include_usage": True})
    *before, last = chunks
    assert all(chunk["usage"] is None for chunk in before)
    assert last["choices"] == []
    assert set(last["usage"]) == set(body["usage"])
    assert last["usage"]["completion_tokens"] == len(LARGE.split())
    assert "farthing" in before[-1]


async def test_who_wrote_what_is_told_always(client):
    body = (await whole(client, model="economy")).json()
    farthing = body["farthing"]
    assert (farthing["policy"], farthing["fidelity"]) == ("economy", "approximate")
    assert set(farthing["models"]) == {"small", "large"}
    assert sum(farthing["models"].values()) == body["usage"]["completion_tokens"]
    assert "switches" not in farthing


async def test_the_bill_of_several_models_adds_up(client):
    usage = (await whole(client, model="economy")).json()["usage"]
    lines = usage["cost_details"]["models"]
    assert sum(line["cost"] for line in lines.values()) == pytest.approx(usage["cost"], rel=1e-12)
    # The token at which the small model was at a loss was paid for and thrown away.
    assert lines["small"]["discarded_tokens"] == 1
    assert lines["large"]["prompt_tokens"] > usage["prompt_tokens"]
    assert lines["large"]["discarded_tokens"] == 0


async def test_debug_shows_the_switches(client):
    headers = {"X-Debug": "1", "X-Budget-Usd": "0.05"}
    body = (await whole(client, headers, model="economy")).json()
    (switch,) = body["farthing"]["switches"]
    assert (switch["kind"], switch["model"]) == ("switch", "large")
    assert switch["token"] == body["farthing"]["models"]["small"]
    assert switch["entropy"] >= switch["threshold"] == 2.5
    assert 0 < switch["rest_usd"] < 0.05


async def test_debug_tells_of_each_chunk_who_wrote_it_and_how_sure(client):
    _, chunks = await streamed(client, {"X-Debug": "1"}, model="economy")
    spoken = [chunk for chunk in chunks if chunk["choices"][0]["delta"].get("content")]
    assert [c["farthing"]["entropy"] for c in spoken[:11]] == [0.1] * 11
    assert {c["farthing"]["model"] for c in spoken} == {"small", "large"}
    switching = [c["farthing"]["switch"] for c in chunks if "switch" in c.get("farthing", {})]
    assert switching == chunks[-1]["farthing"]["switches"]


async def test_no_debug_is_the_same_as_none(client):
    body = (await whole(client, {"X-Debug": "0"}, model="economy")).json()
    assert "switches" not in body["farthing"]


@pytest.mark.parametrize("streams", [False, True])
async def test_a_budget_that_ends_cuts_the_answer_and_says_so(client, fake, streams):
    budget = {"X-Budget-Usd": "0.00011"}  # five tokens in, three out
    answer = await whole(client, budget, stream=streams)
    if streams:
        chunks = events(answer.text)
        choice, text = chunks[-1]["choices"][0], said(chunks)
    else:
        choice = answer.json()["choices"][0]
        text = choice["message"]["content"]
        assert answer.headers["x-farthing-cost-usd"] == "0.00011"
    assert text == "the sky is "
    assert choice["finish_reason"] == "length"
    assert choice["finish_details"] == {"reason": "budget"}
    assert fake.produced["large"] == 3


async def test_max_tokens_is_no_budget(client):
    choice = (await whole(client, max_tokens=3)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert "finish_details" not in choice


async def test_body_and_header_budgets_meet_at_the_smaller(client):
    answer = await whole(client, {"X-Budget-Usd": "0.05"}, budget={"usd": 0.02})
    assert answer.headers["x-farthing-budget-usd"] == "0.02"


async def test_a_policy_s_options_come_from_the_header(client):
    headers = {"X-Policy": 'entropy_switch;start="large";raise_at=60;lower_at="-inf"'}
    body = (await whole(client, headers)).json()
    assert body["farthing"]["policy"] == "entropy_switch"
    assert set(body["farthing"]["models"]) == {"large"}


async def test_a_policy_s_options_come_from_the_body(client):
    policy = {"name": "entropy_switch", "switch_at": [2, 4]}
    body = (await whole(client, {"X-Debug": "1"}, policy=policy)).json()
    assert [switch["token"] for switch in body["farthing"]["switches"]] == [2, 4]


async def test_logprobs_have_openai_s_shape(client):
    body = (await whole(client, logprobs=True, top_logprobs=1, max_tokens=2)).json()
    logprobs = body["choices"][0]["logprobs"]
    entry = {"token": "the ", "logprob": -0.1, "bytes": [116, 104, 101, 32]}
    assert logprobs["content"][0] == {**entry, "top_logprobs": [entry]}
    assert len(logprobs["content"]) == 2


async def test_logprobs_stream_with_their_tokens(client):
    body = (await whole(client, logprobs=True)).json()
    _, chunks = await streamed(client, logprobs=True)
    scored = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    content = [entry for logprobs in scored if logprobs for entry in logprobs["content"]]
    assert content == body["choices"][0]["logprobs"]["content"]


async def test_text_goes_out_as_it_is(client, fake):
    # Two of them end lines for Python's str.splitlines, though not in the standard of events.
    words = ["naïve", "日本", "\U0001f600", "a\u2028b\x85c", 'q"\\', "\n\n", "data:"]
    fake.scripts = {"large": Script(words), "small": Script(words)}
    answer, chunks = await streamed(client)
    assert said(chunks) == "".join(word + " " for word in words)
    assert "naïve" in answer.text
    assert [line for line in answer.text.splitlines() if line and line[:6] != "data: "] == []


async def test_an_engine_s_failure_in_mid_stream_is_an_event(client, fake):
    fake.scripts = {**fake.scripts, "large": Script(LARGE.split(), fails_after=2)}
    answer, chunks = await streamed(client)
    assert said(chunks[:-1]) == "the sky "
    assert chunks[-1]["error"]["type"] == "engine_error"
    assert fake.open == 0
    assert (await client.post(CHAT, json=asking())).status_code == 502


async def test_a_bug_in_mid_stream_is_an_event_that_tells_nothing(client, fake, monkeypatch):
    monkeypatch.setattr("routers.scribe.ChatScribe._delta", lambda *_: 1 / 0)
    _, chunks = await streamed(client)
    assert chunks[-1]["error"]["message"] == "Internal server error"
    assert fake.open == 0


@pytest.mark.parametrize("streams", [False, True])
async def test_a_deadline_before_the_first_token_is_504(client, fake, streams):
    fake.scripts = {**fake.scripts, "large": Script(LARGE.split(), delay=5)}
    headers = {"X-Budget-Latency-Ms": "50"}
    answer = await client.post(CHAT, json=asking(stream=streams), headers=headers)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert answer.headers["x-should-retry"] == "false"
    assert fake.open == 0


async def test_a_deadline_in_mid_answer_cuts_a_stream_and_ends_a_whole_one(client, fake):
    fake.scripts = {**fake.scripts, "large": Script(["a"] * 1000, delay=0.01)}
    headers = {"X-Budget-Latency-Ms": "200"}
    _, chunks = await streamed(client, headers)
    choice = chunks[-1]["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["finish_details"] == {"reason": "deadline"}
    assert (await client.post(CHAT, json=asking(), headers=headers)).status_code == 504
    assert fake.open == 0


async def test_a_deadline_counts_from_when_the_request_came(client, fake):
    """Reading the body takes from the answer's time."""
    fake.scripts = {**fake.scripts, "large": Script(["a"], delay=0.05)}

    async def slowly():
        yield json.dumps(asking(budget={"latency_ms": 200})).encode()
        await asyncio.sleep(0.25)

    assert (await client.post(CHAT, content=slowly())).status_code == 504


async def test_a_client_s_request_id_comes_back_and_ours_stays(client):
    answer = await whole(client, {"X-Request-Id": "job 17/a"})
    assert answer.headers["x-request-id"] == "job 17/a"
    assert answer.json()["id"].startswith("chatcmpl-")


@pytest.mark.parametrize("sent", [None, "", "x" * 129, "a\x7fb", "é", " "])
async def test_without_a_sane_one_the_request_id_is_ours(client, sent):
    headers = {} if sent is None else [(b"x-request-id", sent.encode("latin-1"))]
    answers = [await whole(client, headers) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    assert all(re.fullmatch("req-[0-9a-f]{32}", id) for id in ids)


async def test_two_request_ids_are_none(client):
    headers = [(b"x-request-id", b"a"), (b"x-request-id", b"b")]
    assert (await whole(client, headers)).headers["x-request-id"].startswith("req-")


async def test_an_alias_is_answered_under_the_name_that_was_used(client):
    body = (await whole(client, model="big")).json()
    assert body["model"] == "big"
    assert body["farthing"]["models"] == {"large": len(LARGE.split())}


async def test_the_budget_is_never_passed(client, fake):
    for micro in range(60, 1500, 45):
        fake.scripts = {"small": Script(SMALL.split(), UNSURE), "large": Script(LARGE.split())}
        headers = {"X-Budget-Usd": f"{micro}e-6"}
        answer = await client.post(CHAT, json=asking("economy"), headers=headers)
        assert answer.status_code == 200
        assert round(answer.json()["usage"]["cost"] * PICO) <= micro * 10**6


async def test_the_messages_reach_the_engine(client, fake):
    await whole(client, tools=[], user="ann")
    assert list(fake.calls[0].messages) == QUESTION
    assert fake.calls[0].extra == {"tools": [], "user": "ann"}
