"""The prompt before its answer: as text, with log-probabilities, and alone."""

import pytest

from app.engines.fake import Script
from tests.routers.reading import events
from tests.routers.test_choices import by_choice

URL = "/v1/completions"


@pytest.fixture(autouse=True)
def short(fake):
    fake.scripts = {"large": Script(["x", "y"], context=50), "small": Script(["s"] * 9)}


async def ask(client, headers=None, **fields):
    body = {"model": "large", "prompt": "why is the", "echo": True, **fields}
    return await client.post(URL, json=body, headers=headers)


async def ok(client, **fields):
    answer = await ask(client, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_prompt_stands_before_the_answer_and_costs_no_more(client):
    body = await ok(client)
    assert body["choices"][0]["text"] == "why is thex y "
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (3, 2)
    assert body["usage"]["cost"] == pytest.approx((3 * 10 + 2 * 20) / 1e6)


async def test_ids_are_shown_as_text(client, fake):
    ids = [fake.token_id(word) for word in ("one", "two")]
    assert (await ok(client, prompt=ids))["choices"][0]["text"] == "one twox y "


async def test_with_logprobs_the_prompt_is_read_once_more_for_all_its_choices(client):
    body = await ok(client, logprobs=1, n=2)
    for choice in body["choices"]:
        scored = choice["logprobs"]
        assert scored["tokens"] == ["why ", "is ", "the ", "x ", "y "]
        assert scored["token_logprobs"] == [None, -0.2, -0.2, -0.1, -0.1]
        assert scored["top_logprobs"][0] is None
        assert scored["text_offset"] == [0, 4, 7, 11, 13]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (3, 4)
    used = body["usage"]["cost_details"]["models"]["large"]
    assert (used["prompt_tokens"], used["completion_tokens"]) == (9, 4)


async def test_scoring_writes_nothing(client):
    body = await ok(client, prompt=["a b", "c d e"], logprobs=1, max_tokens=0)
    assert [choice["text"] for choice in body["choices"]] == ["a b", "c d e"]
    assert [len(choice["logprobs"]["tokens"]) for choice in body["choices"]] == [2, 3]
    assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (5, 0)
    assert body["usage"]["cost"] == pytest.approx(50e-6)


async def test_a_stream_says_the_same(client):
    answer = await ask(client, stream=True, n=2, prompt=["a", "b c"], logprobs=0)
    choices = by_choice(events(answer.text))
    texts = ["".join(each["text"] for each in found) for found in choices.values()]
    assert texts == ["ax y ", "ax y ", "b cx y ", "b cx y "]
    assert all(found[-1]["finish_reason"] for found in choices.values())


@pytest.mark.parametrize("model", ["economy", "speculative/large"])
async def test_every_policy_echoes(client, fake, model):
    fake.scripts["large"] = Script(["s"] * 9)
    text = (await ok(client, model=model, logprobs=0))["choices"][0]["text"]
    assert text == "why is the" + "s " * 9


async def test_the_budget_pays_for_reading_twice(client, fake):
    """Twice three tokens read, and one written for each of two choices."""
    least = 3 * 10 + 2 * (3 * 10 + 20)
    fields = {"logprobs": 0, "n": 2}
    answer = await ask(client, {"X-Budget-Usd": f"{least / 1e6:.6f}"}, **fields)
    assert answer.status_code == 200
    assert [choice["finish_reason"] for choice in answer.json()["choices"]] == ["length"] * 2
    for stream in (False, True):
        headers = {"X-Budget-Usd": f"{(least - 1) / 1e6:.6f}"}
        assert (await ask(client, headers, **fields, stream=stream)).status_code == 402
    strict = {"X-Budget-Usd": "0.000180", "X-Budget-Fallback": "strict"}
    assert (await ask(client, strict, **fields, max_tokens=2)).status_code == 200
    strict["X-Budget-Usd"] = "0.000169"
    assert (await ask(client, strict, **fields, max_tokens=2)).status_code == 402


async def test_what_an_engine_cannot_do_is_refused_by_its_name(client):
    answer = await ask(client, suffix="end")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "suffix")
