"""Why answers came out as they did: told to whose they are, and to nobody else."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, select

from app import gateway
from app.bill import Bill, Receipt
from app.engines.fake import Script
from app.gateway import Order
from app.storage.tables import explanations
from tests.conftest import LARGE, UNSURE
from tests.policies.scripts import SPECULATES, call
from tests.routers.conftest import CHAT, bearer
from tests.routers.reading import asking, events
from tests.routers.test_bad_input import refused

URL = "/v1/decisions"


async def explained(house: Any, token: str | None, id: str, **more: Any) -> dict[str, Any]:
    answer = await house.get(f"{URL}/{id}", token, **more)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    assert document["object"] == "decisions"
    return document


async def none(house: Any, token: str | None, id: str, **more: Any) -> None:
    refused(await house.get(f"{URL}/{id}", token, **more), 404, "id", "answer_not_found")


async def kept(house: Any) -> int:
    query = select(func.count()).select_from(explanations)
    found: int = await house.accounts.ledger.database.read(lambda c: c.execute(query).scalar_one())
    return found


async def written(house: Any) -> None:
    """What waits is in the ledger when this returns."""
    await house.accounts.explanations._write()


async def test_an_answer_is_explained_as_its_client_was_told(house: Any) -> None:
    key, token = await house.key()
    headers = {"X-Debug": "1", "X-Budget-Usd": "0.01", "X-Budget-Latency-Ms": "60000"}
    answer = await house.ask(token, "economy", headers, max_tokens=30)
    told = answer.json()
    document = await explained(house, token, told["id"])
    assert (document["id"], document["key"], document["outcome"]) == (told["id"], key, "kept")
    assert document["request_id"] == answer.headers["x-request-id"]
    assert document["request"] == {
        "model": "economy",
        "kind": "chat",
        "stream": False,
        "prompts": 1,
        "choices": 1,
        "structured": False,
        "max_tokens": 30,
        "best_of": None,
        "fallback": "cheapest",
        "deadline_s": 60.0,
        "first_token_s": None,
        "quality": None,
    }
    plan = document["plan"]
    assert (plan["policy"], plan["preset"], plan["target"]) == (
        "entropy_switch",
        "economy",
        "large",
    )
    assert (plan["models"], plan["fidelity"]) == (["large", "small"], "approximate")
    assert (plan["options"]["raise_at"], plan["options"]["small"]) == (2.5, "small")
    decided = [{k: v for k, v in one.items() if v is not None} for one in document["decisions"]]
    shown = [
        {k: v for k, v in one.items() if v is not None} for one in told["farthing"]["switches"]
    ]
    assert [
        {k: v for k, v in one.items() if k not in ("at_s", "choice")} for one in decided
    ] == shown
    assert shown
    assert document["cost"]["usd"] == told["usage"]["cost"]
    details = told["usage"]["cost_details"]
    assert document["cost"]["price_version"] == details["price_version"]
    assert {n: one["usd"] for n, one in document["cost"]["models"].items()} == {
        n: one["cost"] for n, one in details["models"].items()
    }
    assert document["estimate"]["budget_usd"] == 0.01
    assert document["estimate"]["prompt_tokens"] == 5
    assert f"{document['estimate']['held_usd']:.6f}" == answer.headers["x-farthing-estimate-usd"]
    assert [call["model"] for call in document["calls"]] == ["small", "large"]
    assert sum(call["usd"] for call in document["calls"]) == pytest.approx(told["usage"]["cost"])
    times = [0.0, *(call["began_s"] for call in document["calls"])]
    assert times == sorted(times) and times[-1] <= document["times"]["duration_s"]
    assert 0 < document["times"]["first_token_s"] <= document["times"]["duration_s"]


async def test_each_model_alone_stands_beside_the_plan_with_its_worst_case(house: Any) -> None:
    token = await house.token()
    answer = await house.ask(token, "economy", {"X-Budget-Usd": "0.0005"}, max_tokens=30)
    document = await explained(house, token, answer.json()["id"])
    plan, large, small = document["alternatives"]
    assert (plan["name"], plan["kind"], plan["chosen"]) == ("economy", "plan", True)
    assert plan["usd"] == document["estimate"]["worst_usd"] > 0.0005
    assert (large["name"], large["usd"], large["fits"]) == ("large", 0.00065, False)
    assert (small["name"], small["usd"], small["fits"]) == ("small", 0.000065, True)
    assert not large["chosen"] and "above the budget" in large["reason"]
    assert not small["chosen"] and "above" not in small["reason"]


async def test_a_model_that_was_named_has_no_alternative(house: Any) -> None:
    token = await house.token()
    document = await explained(house, token, (await house.ask(token, "big")).json()["id"])
    (only,) = document["alternatives"]
    assert (only["name"], only["kind"], only["chosen"]) == ("large", "model", True)
    assert "fits" not in only  # there is no budget
    assert document["request"]["model"] == "big"
    assert document["decisions"] == []


async def test_guesses_stand_with_the_call_that_made_them(house: Any, fake: Any) -> None:
    script = Script(LARGE.split(), speculates=SPECULATES, guesses=[(4, 2), (3, 0)])
    fake.scripts = {**fake.scripts, "large": script}
    token = await house.token()
    answer = await house.ask(token, "large", {"X-Policy": "speculative"})
    document = await explained(house, token, answer.json()["id"])
    (call,) = document["calls"]
    assert (call["drafted_tokens"], call["accepted_tokens"]) == (7, 2)
    assert document["cost"]["models"]["large"]["drafted_tokens"] == 7
    assert [way["name"] for way in document["alternatives"]] == ["speculative", "large"]


async def test_a_stream_is_explained_once_its_end_has_come(house: Any) -> None:
    token = await house.token()
    answer = await house.ask(token, "economy", {"X-Request-Id": "mine"}, stream=True)
    document = await explained(house, token, "mine")
    assert document["id"] == events(answer.text)[0]["id"]
    assert document["request"]["stream"]


async def test_of_several_choices_each_decision_says_whose_it_is(house: Any) -> None:
    token = await house.token()
    answer = await house.ask(token, "economy", n=3, max_tokens=30)
    document = await explained(house, token, answer.json()["id"])
    assert sorted(one["choice"] for one in document["decisions"]) == [0, 1, 2]
    assert document["request"]["choices"] == 3 and len(document["calls"]) == 6
    assert document["estimate"]["prompt_tokens"] == 5
    assert [way["name"] for way in document["alternatives"]] == ["economy", "large", "small"]


async def test_the_newest_of_one_request_id_is_shown_and_our_own_id_comes_first(house: Any) -> None:
    token = await house.token()
    first, second = [
        (await house.ask(token, headers={"X-Request-Id": "again and/again"})).json()["id"]
        for _ in range(2)
    ]
    assert (await explained(house, token, "again%20and%2Fagain"))["id"] == second
    await house.ask(token, headers={"X-Request-Id": first})
    assert (await explained(house, token, first))["id"] == first


async def test_nobody_sees_another_key_s_and_an_administrator_all(house: Any) -> None:
    ann, bob = await house.token(name="ann"), await house.token(name="bob")
    root = await house.token(name="root", admin=True)
    same = {"X-Request-Id": "shared"}
    anns = (await house.ask(ann, headers=same)).json()["id"]
    bobs = (await house.ask(bob, headers=same)).json()["id"]
    assert (await explained(house, ann, "shared"))["id"] == anns
    for id, token in ((anns, bob), (bobs, ann)):
        strange = (await house.get(f"{URL}/nothing", token)).json()
        assert (await house.get(f"{URL}/{id}", token)).json() == strange
        assert (await explained(house, root, id))["id"] == id
    assert (await explained(house, root, "shared"))["id"] == bobs
    refused(await house.get(f"{URL}/{anns}"), 401, code="invalid_api_key")


async def test_a_tenant_sees_its_own(serve: Any) -> None:
    house = await serve(trusted_peers="127.0.0.1")
    token = await house.token()
    root = await house.token(name="root", admin=True)
    a, b = {"X-Tenant-Id": "a"}, {"X-Tenant-Id": "b"}
    id = (await house.ask(token, headers=a)).json()["id"]
    assert (await explained(house, token, id, headers=a))["tenant"] == "a"
    await none(house, token, id, headers=b)
    await none(house, token, id)
    await explained(house, root, id)


@pytest.mark.parametrize("id", ["nope", "%00", "%C3%A9", "", "x" * 129, "' OR '1'='1", "%25"])
async def test_an_id_that_there_is_not(house: Any, id: str) -> None:
    token = await house.token()
    await house.ask(token)
    await none(house, token, id)


async def test_without_a_ledger_nothing_is_kept(client: Any) -> None:
    refused(await client.get(f"{URL}/x"), 403, code="not_allowed")


async def test_nothing_is_made_or_kept_where_it_is_kept_for_no_time(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(gateway, "explained", lambda *_: made.append(1))
    house = await serve(decisions_keep_s=0)
    key, token = await house.key(max_budget_usd="0.001")
    id = (await house.ask(token)).json()["id"]
    strict = {"X-Budget-Fallback": "strict"}
    assert (await house.ask(token, "large", strict, max_tokens=900)).status_code == 402
    await written(house)
    await none(house, token, id)
    assert (made, await kept(house)) == ([], 0) and await house.spent(key) > 0


async def test_it_is_gone_when_its_time_is_over(house: Any) -> None:
    token, store = await house.token(), house.accounts.explanations._store
    id = (await house.ask(token)).json()["id"]
    await explained(house, token, id)
    now = store._clock()
    store._clock = lambda: now + 7 * 86_400_000 - 10_000
    await explained(house, token, id)
    store._clock = lambda: now + 7 * 86_400_000 + 10_000
    await none(house, token, id)
    assert await store.sweep(None) == 1 and await kept(house) == 0


async def test_what_a_budget_refuses_is_explained_too(house: Any) -> None:
    token = await house.token(max_budget_usd="0.001")
    strict = {"X-Budget-Fallback": "strict", "X-Request-Id": "strict"}
    assert (await house.ask(token, "economy", strict, max_tokens=900)).status_code == 402
    await written(house)
    document = await explained(house, token, "strict")
    assert document["outcome"] == "refused" and document["cost"]["usd"] == 0
    error = {"type": "BudgetExceeded", "code": "budget_exceeded", "param": "X-Budget-Usd"}
    assert document["error"] == error
    assert document["estimate"]["worst_usd"] > document["estimate"]["budget_usd"] == 0.001
    assert [(w["name"], w["fits"]) for w in document["alternatives"]][1:] == [
        ("large", False),
        ("small", False),
    ]
    assert document["calls"] == []


async def test_what_a_limit_of_the_key_refuses_names_the_limit(house: Any) -> None:
    spent = await house.token(usd_per_day="0")
    hasty = await house.token(requests_per_minute=1)
    await house.ask(hasty)
    for token, status, code, param in (
        (spent, 402, "budget_exceeded", "usd_per_day"),
        (hasty, 429, "rate_limit_exceeded", "requests_per_minute"),
    ):
        answer = await house.ask(token, headers={"X-Request-Id": "it"})
        assert answer.status_code == status
        await written(house)
        document = await explained(house, token, "it")
        assert (document["error"]["code"], document["error"]["param"]) == (code, param)


async def test_refused_ones_are_written_by_themselves_and_no_more_than_can_wait(
    house: Any,
) -> None:
    key, token = await house.key()
    account = house.accounts.of(await house.accounts.keyring.authenticate(token))
    bill = Bill(0, 0, 0, (), 0, "v", 0.0)
    for number in range(300):  # at once: nobody writes meanwhile
        content = partial(json.dumps, {"outcome": "refused", "number": number})
        account.refused(Receipt(bill, "refused", f"id{number}", f"theirs{number}", content))
    async with asyncio.timeout(20):
        while not await kept(house):
            await asyncio.sleep(0.05)
    assert await kept(house) == 256
    document = await explained(house, token, "theirs255")
    assert (document["id"], document["key"], document["number"]) == ("id255", key, 255)
    await none(house, token, "theirs256")


async def test_one_that_failed_says_after_what(house: Any, fake: Any) -> None:
    fake.scripts = {**fake.scripts, "large": Script(LARGE.split(), fails_after=2)}
    token = await house.token()
    await house.visitor.post(
        CHAT, json=asking(stream=True), headers=bearer(token) | {"X-Request-Id": "it"}
    )
    document = await explained(house, token, "it")
    assert (document["outcome"], document["error"]["type"]) == ("failed", "EngineError")
    (call,) = document["calls"]
    assert (call["outcome"], call["why"], call["completion_tokens"]) == ("failed", "EngineError", 2)
    assert document["cost"]["usd"] > 0


async def test_one_that_the_budget_cut_or_steered_says_so(house: Any, fake: Any) -> None:
    token = await house.token()
    answer = await house.ask(token, "large", {"X-Budget-Usd": "0.0001"})
    document = await explained(house, token, answer.json()["id"])
    assert (document["outcome"], document["calls"][-1]["why"]) == ("cut", "budget")
    assert document["alternatives"][0]["fits"] is False


async def test_a_bug_in_explaining_costs_nobody_a_settlement(
    house: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(gateway, "explained", broken)
    key, token = await house.key()
    with caplog.at_level(logging.ERROR):
        answer = await house.ask(token)
    assert answer.status_code == 200 and "cannot be explained" in caplog.text
    assert await house.spent(key) == round(answer.json()["usage"]["cost"] * 10**12)
    await none(house, token, answer.json()["id"])


async def test_a_document_stays_small_and_counts_what_it_leaves_out(house: Any, fake: Any) -> None:
    fake.scripts = {
        "small": Script(["s"] * 900, [*UNSURE[:11], 9.0] * 80),
        "large": Script(["l"] * 900),
    }
    token = await house.token()
    policy = {"name": "entropy_switch", "switch_at": list(range(1, 900))}
    answer = await house.ask(token, "large", {"X-Debug": "1"}, policy=policy, max_tokens=900)
    told = answer.json()["farthing"]["switches"]
    got = await house.get(f"{URL}/{answer.json()['id']}", token)
    document = got.json()
    assert len(got.content) < 70_000
    left = document["left_out"]
    assert len(document["decisions"]) + left["decisions"] == len(told) == 899
    assert len(document["calls"]) + left["calls"] == 900
    assert document["plan"]["options"]["switch_at"][-1] == "..."


async def test_embeddings_and_completions_are_explained_too(serve: Any, fake: Any) -> None:
    fake.scripts = {**fake.scripts, "large": Script(LARGE.split(), vector=(0.6, -0.8))}
    house = await serve()
    token = await house.token()
    for url, body, kind in (
        ("/v1/embeddings", {"model": "large", "input": ["a b", "c"]}, "embedding"),
        ("/v1/completions", {"model": "small", "prompt": ["a b", "c"]}, "completion"),
        ("/v1/responses", {"model": "small", "input": "a b"}, "chat"),
        ("/v1/messages", {"model": "small", "max_tokens": 3, **asking()}, "chat"),
    ):
        answer = await house.visitor.post(
            url, json={**body, "model": body["model"]}, headers=bearer(token)
        )
        assert answer.status_code == 200, answer.text
        document = await explained(house, token, answer.headers["x-request-id"])
        assert document["request"]["kind"] == kind
        assert document["request"]["prompts"] == (1 if kind == "chat" else 2)


async def test_it_is_in_json_that_any_reader_takes(house: Any) -> None:
    token = await house.token()
    policy = {"name": "entropy_switch", "raise_at": "inf", "lower_at": "-inf"}
    answer = await house.ask(token, "large", policy=policy)
    assert answer.status_code == 200, answer.text
    got = await house.get(f"{URL}/{answer.json()['id']}", token)

    def strict(word: str) -> None:
        raise AssertionError(word)

    options = json.loads(got.text, parse_constant=strict)["plan"]["options"]
    assert (options["raise_at"], options["lower_at"]) == ("inf", "-inf")


async def test_a_client_that_left_can_see_what_it_paid_for(house: Any) -> None:
    key, token = await house.key()
    account = house.accounts.of(await house.accounts.keyring.authenticate(token))
    order = Order(call("large", id="chatcmpl-left"), request_id="theirs")
    answer = house.app.state.front.gateway.answer(order, account)
    await anext(answer)
    await answer.aclose()
    document = await explained(house, token, "theirs")
    assert (document["id"], document["outcome"]) == ("chatcmpl-left", "closed")
    assert [(each["outcome"], each["why"]) for each in document["calls"]] == [("closed", "")]
    assert round(document["cost"]["usd"] * 10**12) == await house.spent(key) > 0
