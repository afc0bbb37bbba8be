"""What a key may spend, how often it may ask, and which models it may name."""

import asyncio
import json
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from app.accounts import account
from app.catalog import Preset
from app.engines.fake import Script
from app.storage.ledger import milliseconds
from tests.conftest import LARGE
from tests.routers.conftest import CHAT, bearer
from tests.routers.reading import asking, events
from tests.routers.test_bad_input import refused

WORDS = len(LARGE.split())
# Of `large`: five tokens in, one out. What was read before costs a tenth.
FIRST, LATER = 70, 34  # millionths of a USD


def micro(answer):
    return round(json.loads(answer.text)["usage"]["cost"] * 1e6)


def budget(answer):
    """In millionths of a USD; None: none was told."""
    told = answer.headers.get("x-farthing-budget-usd")
    return None if told is None else round(float(told) * 1e6)


def usd(micro):
    return f"{micro}e-6"


@pytest.mark.parametrize(
    ("key", "named", "granted"),
    [
        ({}, None, None),
        ({}, 5000, 5000),
        ({"default_budget_usd": usd(1000)}, None, 1000),
        ({"default_budget_usd": usd(1000)}, 800, 800),
        ({"default_budget_usd": usd(1000)}, 5000, 5000),
        ({"max_budget_usd": usd(1000)}, None, 1000),
        ({"max_budget_usd": usd(1000)}, 800, 800),
        ({"max_budget_usd": usd(1000)}, 5000, 1000),
        ({"default_budget_usd": usd(800), "max_budget_usd": usd(1000)}, None, 800),
        ({"default_budget_usd": usd(800), "max_budget_usd": usd(1000)}, 900, 900),
        ({"default_budget_usd": usd(800), "max_budget_usd": usd(1000)}, 5000, 1000),
    ],
)
@pytest.mark.parametrize("where", ["header", "body"])
async def test_a_request_s_budget_is_its_own_its_key_s_default_or_the_greatest(
    house, key, named, granted, where
):
    token = await house.token(**key)
    headers = {"X-Budget-Usd": usd(named)} if named and where == "header" else {}
    fields = {"budget": {"usd": usd(named)}} if named and where == "body" else {}
    answer = await house.ask(token, "large", headers, **fields)
    assert answer.status_code == 200
    assert budget(answer) == granted


async def test_the_greatest_budget_is_never_passed(house, fake):
    token = await house.token(max_budget_usd=usd(200))
    fake.scripts = {**fake.scripts, "large": Script(["a"] * 1000)}
    for named in (None, usd(150), usd(200), "1", "999999999"):
        headers = {"X-Budget-Usd": named} if named else {}
        answer = await house.ask(token, "large", headers)
        assert answer.json()["choices"][0]["finish_details"] == {"reason": "budget"}
        assert micro(answer) <= (150 if named == usd(150) else 200)


@pytest.mark.parametrize("streamed", [False, True])
async def test_strict_with_more_than_the_greatest_budget_is_402(house, streamed):
    token = await house.token(max_budget_usd=usd(100))
    headers = {"X-Budget-Usd": "1", "X-Budget-Fallback": "strict"}
    answer = await house.ask(token, "large", headers, stream=streamed)
    refused(answer, 402, "X-Budget-Usd", "budget_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    assert (await house.ask(token, "large", headers, max_tokens=2)).status_code == 200


async def test_a_default_budget_can_be_too_little(house):
    token = await house.token(default_budget_usd=0)
    refused(await house.ask(token), 402, "X-Budget-Usd", "budget_exceeded")
    assert (await house.ask(token, headers={"X-Budget-Usd": "0.01"})).status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("limit", ["usd_per_day", "usd_per_month", "usd_total"])
async def test_a_key_that_is_spent_is_402_by_its_limit_s_name(house, limit, streamed):
    id, token = await house.key(**{limit: usd(FIRST + LATER)})
    for cost in (FIRST, LATER):
        # The second worst case, 70, is more than is left: what is left is its budget then.
        answer = await house.ask(token, "large", max_tokens=1)
        if cost == LATER:
            refused(answer, 402, limit, "budget_exceeded")
        else:
            assert micro(answer) == cost
    answer = await house.ask(token, "large", max_tokens=1, stream=streamed)
    error = refused(answer, 402, limit, "budget_exceeded")
    assert error["type"] == "budget_exceeded"
    assert "0.000034 USD" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert await house.spent(id) == FIRST * 10**6
    await house.accounts.keyring.change(id, {limit: usd(2 * FIRST)})
    assert (await house.ask(token, "large", max_tokens=1)).status_code == 200


async def test_where_a_key_has_less_left_that_is_the_budget(house):
    id, token = await house.key(usd_total=usd(150))
    answer = await house.ask(token, "large")
    assert answer.json()["choices"][0]["finish_details"] == {"reason": "budget"}
    assert (budget(answer), micro(answer)) == (150, 150)
    assert await house.spent(id) == 150 * 10**6
    refused(await house.ask(token, "large"), 402, "usd_total", "budget_exceeded")


async def test_strict_refuses_what_the_key_s_rest_might_cut(house):
    id, token = await house.key(usd_total=usd(150))
    strict = {"X-Budget-Fallback": "strict"}
    answer = await house.ask(token, "large", strict)
    refused(answer, 402, "usd_total", "budget_exceeded")
    assert await house.spent(id) == 0
    assert (await house.ask(token, "large", strict, max_tokens=5)).status_code == 200


async def test_a_minute_s_limit_is_429_with_a_true_retry_after(house, monkeypatch):
    now = milliseconds() // 60_000 * 60 + 47.5  # seconds; 12.5 before the minute ends
    monkeypatch.setattr(account, "time", SimpleNamespace(time=lambda: now))
    house.accounts.ledger._clock = lambda: int(now * 1000)
    token = await house.token(usd_per_minute=usd(FIRST + LATER), usd_total=usd(10_000))
    assert (await house.ask(token, "large", max_tokens=1)).status_code == 200
    for wait in (13, 1):
        answer = await house.ask(token, "large", max_tokens=1)
        refused(answer, 429, "usd_per_minute", "rate_limit_exceeded")
        assert "x-should-retry" not in answer.headers
        assert answer.headers["retry-after"] == str(wait)
        now += 12
    now += 1 - 12
    assert (await house.ask(token, "large", max_tokens=1)).status_code == 200


async def test_what_no_minute_s_limit_pays_for_is_402(house):
    token = await house.token(usd_per_minute=usd(FIRST - 1))
    answer = await house.ask(token, "large", max_tokens=1)
    refused(answer, 402, "usd_per_minute", "budget_exceeded")
    assert answer.headers["x-should-retry"] == "false"


def told(answer, kind):
    names = [f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset")]
    limit, remaining, reset = (answer.headers[name] for name in names)
    assert reset.endswith("s")
    return int(limit), int(remaining), float(reset[:-1])


@pytest.mark.parametrize("streamed", [False, True])
async def test_requests_per_minute(house, streamed):
    token = await house.token(requests_per_minute=2)
    for left in (1, 0):
        answer = await house.ask(token, stream=streamed)
        assert answer.status_code == 200
        assert told(answer, "requests")[:2] == (2, left)
        assert "x-ratelimit-limit-tokens" not in answer.headers
    began = time.monotonic()
    answer = await house.ask(token, stream=streamed)
    refused(answer, 429, "requests_per_minute", "rate_limit_exceeded")
    limit, left, reset = told(answer, "requests")
    assert (limit, left) == (2, 0)
    assert 55 - (time.monotonic() - began) < reset <= 60
    assert answer.headers["retry-after"] == str(math.ceil(reset))
    assert "x-should-retry" not in answer.headers
    assert (await house.get("/v1/models", token)).status_code == 200  # only answers count


@pytest.mark.parametrize("place", ["ledger", pytest.param("redis", marks=pytest.mark.redis)])
async def test_gateways_on_one_ledger_may_count_rates_together(serve, request, place):
    store = request.getfixturevalue("redis_url") if place == "redis" else place
    here, there = [await serve(rate_store=store) for _ in range(2)]
    token = await here.token(requests_per_minute=3)
    answers = [await house.ask(token) for house in (here, there, here, there)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [told(answer, "requests")[1] for answer in answers] == [2, 1, 0, 0]


async def test_a_key_without_rates_is_told_none(house):
    answer = await house.ask(await house.token())
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_tokens_per_minute_count_the_prompt_and_max_tokens_before(house, fake):
    token = await house.token(tokens_per_minute=40)
    answer = await house.ask(token, max_tokens=15)
    assert told(answer, "tokens")[:2] == (40, 20)
    answer = await house.ask(token, max_tokens=16)
    refused(answer, 429, "tokens_per_minute", "rate_limit_exceeded")
    limit, left, reset = told(answer, "tokens")
    assert (limit, left) == (40, 20)
    assert answer.headers["retry-after"] == str(math.ceil(reset))
    assert fake.produced["small"] == 15
    assert told(await house.ask(token, max_tokens=15), "tokens")[1] == 0


async def test_what_was_written_without_max_tokens_is_counted_after(house):
    token = await house.token(tokens_per_minute=5 + WORDS)
    answer = await house.ask(token, "large")
    assert answer.status_code == 200
    assert told(answer, "tokens")[:2] == (5 + WORDS, WORDS)
    await asyncio.gather(*house.accounts.rates._adding)
    answer = await house.ask(token, "large")
    refused(answer, 429, "tokens_per_minute", "rate_limit_exceeded")
    assert told(answer, "tokens")[1] == 0


async def test_a_request_that_no_minute_holds_is_not_to_be_retried(house):
    token = await house.token(tokens_per_minute=20)
    answer = await house.ask(token, max_tokens=16)
    refused(answer, 429, "max_tokens", "rate_limit_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert (await house.ask(token, max_tokens=15)).status_code == 200


async def test_requests_at_once(house, fake):
    fake.scripts = {"large": Script(["a"] * 20, delay=0.02)}
    id, token = await house.key(concurrency=2)
    answers = await asyncio.gather(*(house.ask(token, "large") for _ in range(10)))
    came = [answer for answer in answers if answer.status_code == 200]
    assert len(came) == 2
    for answer in answers:
        if answer not in came:
            refused(answer, 429, "concurrency", "rate_limit_exceeded")
            assert answer.headers["retry-after"] == "1"
    assert (await house.ask(token, "large", max_tokens=1)).status_code == 200
    assert await house.spent(id) == sum(map(micro, [*came])) * 10**6 + LATER * 10**6


async def test_money_that_running_requests_hold_is_429_and_soon_free(house, fake):
    fake.scripts = {"large": Script(["a"] * 20, delay=0.02)}
    token = await house.token(usd_total=usd(500))
    running = asyncio.create_task(house.ask(token, "large", max_tokens=20))  # 450 at most
    while not fake.open:
        await asyncio.sleep(0.01)
    answer = await house.ask(token, "large", max_tokens=1)
    refused(answer, 429, "usd_total", "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "1"
    assert (await running).status_code == 200


async def test_a_client_that_leaves_pays_what_was_written_and_no_more(house, fake):
    fake.scripts = {"large": Script(["a"] * 1000, delay=0.01)}
    id, token = await house.key(usd_total="1", concurrency=1)
    asked = asyncio.create_task(house.ask(token, "large"))
    while fake.produced.get("large", 0) < 3:
        await asyncio.sleep(0.01)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    for _ in range(100):
        left = await house.accounts.ledger.account(id)
        if not left.running:
            break
        await asyncio.sleep(0.02)
    assert (left.running, left.held["total"]) == (0, 0)
    assert left.spent["total"] == (50 + 20 * fake.produced["large"]) * 10**6


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_model_that_a_key_may_not_name_is_403(house, fake, streamed):
    token = await house.token(models=["small"])
    assert (await house.ask(token, "small", stream=streamed)).status_code == 200
    for model in ("large", "big", "economy", "direct/large", "entropy_switch/large"):
        answer = await house.ask(token, model, stream=streamed)
        refused(answer, 403, "model", "not_allowed")
    refused(await house.ask(token, "nope"), 404, "model", "model_not_found")
    assert "large" not in fake.produced


async def test_an_alias_stands_for_its_model_and_the_model_for_its_alias(house):
    for allowed in ("big", "large"):
        token = await house.token(models=[allowed])
        for model in ("big", "large", "direct/big"):
            assert (await house.ask(token, model)).status_code == 200
        refused(await house.ask(token, "small"), 403, "model", "not_allowed")


async def test_a_preset_brings_its_own_models_along_and_no_others(house):
    token = await house.token(models=["economy"])
    assert (await house.ask(token, "economy")).status_code == 200
    for model in ("small", "large", "direct/small", "entropy_switch/large"):
        refused(await house.ask(token, model), 403, "model", "not_allowed")


@pytest.mark.parametrize("policy", ["entropy_switch;large=big", "economy;d_min=20"])
async def test_options_on_a_preset_are_refused_where_its_models_are_not_allowed(house, policy):
    token = await house.token(models=["economy", "small"])
    answer = await house.ask(token, "economy", {"X-Policy": policy})
    refused(answer, 403, "model", "not_allowed")
    both = await house.token(models=["economy", "small", "large"])
    assert (await house.ask(both, "economy", {"X-Policy": policy})).status_code == 200


async def test_a_policy_beside_a_model_needs_all_its_models(house):
    token = await house.token(models=["large"])
    for headers in ({"X-Policy": "entropy_switch"}, {"X-Policy": "economy"}):
        refused(await house.ask(token, "large", headers), 403, "model", "not_allowed")
        both = await house.token(models=["large", "small"])
        assert (await house.ask(both, "large", headers)).status_code == 200


@pytest.fixture
def catalog(catalog):
    """With a second preset, whose models are the other way round."""
    economy = catalog.presets["economy"]
    dear = Preset(**{**economy.model_dump(), "name": "dear", "start": "large"})
    return replace(catalog, presets={**catalog.presets, "dear": dear})


async def test_another_preset_beside_an_allowed_one_needs_to_be_allowed(house):
    token = await house.token(models=["economy"])
    answer = await house.ask(token, "economy", {"X-Policy": "dear"})
    refused(answer, 403, "model", "not_allowed")


async def test_only_what_a_key_may_name_is_shown(house):
    async def shown(token):
        listed = (await house.get("/v1/models", token)).json()["data"]
        one_by_one = set()
        for name in ("small", "large", "big", "economy", "dear"):
            answer = await house.get(f"/v1/models/{name}", token)
            if answer.status_code == 200:
                one_by_one.add(answer.json()["id"])
            else:
                refused(answer, 404, "model", "model_not_found")
        assert one_by_one == {entry["id"] for entry in listed}
        return one_by_one

    assert await shown(None) == {"small", "large", "economy", "dear"}
    for models in (["small"], ["economy"], ["small", "economy"], ["large", "dear"]):
        assert await shown(await house.token(models=models)) == set(models)
    assert await shown(await house.token(models=["big"])) == {"large"}
    assert await shown(await house.token(models=[])) == set()
    assert await shown(await house.token(models=["gone"])) == set()


async def test_a_stream_is_paid_for_like_a_whole_answer(house):
    id, token = await house.key(usd_total="1")
    headers = bearer(token)
    body = asking(stream=True, stream_options={"include_usage": True})
    answer = await house.visitor.post(CHAT, json=body, headers=headers)
    cost = events(answer.text)[-1]["usage"]["cost"]
    assert await house.spent(id) == round(cost * 10**12) > 0
