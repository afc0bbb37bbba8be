"""Who answers where a precision cannot, or costs too much, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

import policies
from app.engines.fake import Script
from app.errors import BadRequest, BudgetExceeded, EngineError
from app.types import Decision, Load
from tests.policies.precisions import BUSY, SOLO, answer, card, decided, engine, fleet, pair
from tests.policies.scripts import LENGTH, price, read, usd

PROMPT = 5  # tokens


async def test_one_that_is_not_healthy_is_passed_over() -> None:
    fake = engine()
    fake.loads["w4"] = Load(healthy=False)
    found = answer(fake)
    await read(found)
    assert [d.model for d in found.decisions] == ["w8"]
    reasons = {way.name: way.reason for way in found.notes.considered[0]}
    assert reasons["w4"].endswith("; it is not healthy")


async def test_where_none_is_healthy_they_are_asked_all_the_same() -> None:
    fake = engine()
    fake.loads = dict.fromkeys(("w4", "w8"), Load(healthy=False))
    assert await decided(fake) == "w4"


@pytest.mark.parametrize("native", [False, True])
async def test_the_next_answers_for_one_that_fails_before_its_first_word(native: bool) -> None:
    fake = engine(native)
    fake.scripts = {**fake.scripts, "w4": Script(["x"], native=native, fails_after=0)}
    found = answer(fake)
    await read(found)
    assert [made.model for made in fake.calls] == ["w4", "w8"]
    assert [d.model for d in found.decisions] == ["w8"] and found.fidelity == "approximate"
    reasons = {way.name: way.reason for way in found.notes.considered[0]}
    assert reasons["w4"] == "it failed before its first word (EngineError)"
    assert fake.open == 0


async def test_one_that_fails_later_ends_the_answer() -> None:
    fake = engine()
    fake.scripts = {**fake.scripts, "w4": Script(["x", "y"], fails_after=1)}
    with pytest.raises(EngineError):
        await read(answer(fake))
    assert [made.model for made in fake.calls] == ["w4"] and fake.open == 0


async def test_a_server_makes_all_choices_itself_and_each_of_them_counts() -> None:
    fake = engine(native=True)
    found = answer(fake, call={"choices": 4})
    await read(found)
    assert [(made.model, made.choices) for made in fake.calls] == [("w8", 4)]
    assert "of 4 calls together" in found.decisions[0].detail
    assert found.notes.considered[0][0].latency == pytest.approx(LENGTH / (208 / 4))


DEAR = {"a": card("w4", "w4a16", SOLO, price=price(10, 20)), "b": card("w8", "w8a8", BUSY)}
MOST = 10 * PROMPT + 20 * LENGTH  # micro-dollars


@pytest.mark.parametrize(
    ("budget", "chosen", "fidelity"),
    [
        (None, "w4", "exact"),
        (MOST, "w4", "exact"),
        (MOST - 20, "w8", "approximate"),
        (20, "w8", "approximate"),  # none pays for all of it: more of the cheaper one
    ],
)
async def test_one_whose_answer_the_budget_cannot_pay_is_passed_over(
    budget: int | None, chosen: str, fidelity: str
) -> None:
    found = answer(engine(), fleet(**DEAR), usd=None if budget is None else usd(budget))
    await read(found)
    assert [d.model for d in found.decisions] == [chosen]
    assert found.fidelity == fidelity
    assert budget is None or found.spent <= usd(budget)
    by_name = {way.name: way for way in found.notes.considered[0]}
    assert by_name["w4"].fits == (None if budget is None else budget == MOST)
    assert ("does not pay" in by_name["w4"].reason) == (chosen == "w8")


async def test_one_that_is_not_healthy_comes_last_however_cheap() -> None:
    fake = engine()
    fake.loads["w8"] = Load(healthy=False)
    found = answer(fake, fleet(**DEAR), usd=usd(MOST - 20))
    await read(found)
    assert [d.model for d in found.decisions] == ["w4"]


async def test_strict_asks_no_more_than_the_dearest_may_cost() -> None:
    found = answer(engine(), fleet(**DEAR), usd=usd(MOST), strict=True)
    await read(found)
    assert found.estimate == usd(MOST)
    with pytest.raises(BudgetExceeded):
        await anext(answer(engine(), fleet(**DEAR), usd=usd(MOST - 1), strict=True))


@pytest.mark.parametrize(("model", "fidelity"), [("w4", "approximate"), ("w8", "exact")])
async def test_an_answer_is_exact_where_it_is_the_named_model_s(model: str, fidelity: str) -> None:
    found = answer(engine(w4=7), model=model)
    await read(found)
    assert [d.model for d in found.decisions] == ["w8"] and found.fidelity == fidelity


async def test_it_says_what_it_expected_of_each() -> None:
    found = answer(engine(w4=7))
    chunks = await read(found)
    said: Decision = found.decisions[0]
    assert said.detail == "w8a8: 405.3 tokens/s of 8 calls together"
    assert [bool(chunk.decision) for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    quick, slow = found.notes.considered[0]
    assert (quick.name, quick.chosen, quick.kind) == ("w8", True, "model")
    assert quick.latency == pytest.approx(LENGTH / (405.333 / 8), rel=1e-4)
    assert (slow.name, slow.chosen) == ("w4", False)
    assert slow.reason == "240 tokens/s of 8 calls together; w8 answers"
    found = answer(engine(w4=2))
    await read(found)
    stays, better = found.notes.considered[0]
    assert stays.reason == "140 tokens/s of 3 calls together; most calls run on it"
    assert better.reason == (
        "158.7 tokens/s of 3 calls together; not better by 15%, and most calls run on w4"
    )


def test_by_default_they_are_those_with_the_same_weights() -> None:
    server = {"engine": "vllm", "weights": "", "urls": ("http://a",)}
    catalog = fleet(
        a=card("other", "fp32", weights="y.gguf"),
        b=card("draft", "int8", base="w4"),
        c=card("w4", "int8", aliases=("four",)),
        d=card("w8", "fp32"),
        e=card("theirs", "fp32", family="g"),
        f=card("served", "w8a8", served="m", **server),
        g=card("served-too", "fp8", served="m", **server),
        h=card("vectors", "fp8", served="m", embeds="only", **server),
        i=card("unsaid", "fp8", **server),
    )
    for named, models in (
        ("w8", ("w8", "w4")),
        ("four", ("w4", "w8")),
        ("served", ("served", "served-too")),
    ):
        assert policies.load("precision", {}).fit(catalog, named).best_first(named) == models
    for alone in ("other", "theirs", "unsaid"):
        with pytest.raises(BadRequest, match=f"no other with the weights of {alone}; name two"):
            policies.load("precision", {}).fit(catalog, alone)


def test_models_that_are_named_are_asked_the_client_s_first() -> None:
    catalog = pair()
    assert policies.load("precision", {"models": "w4, w8"}).models == ("w4", "w8")
    named = policies.load("precision", {"models": ["w4", "w8"]})
    assert named.fit(catalog, None).best_first("") == ("w4", "w8")
    assert named.fit(catalog, "w8").best_first("w8") == ("w8", "w4")


@pytest.mark.parametrize(
    ("options", "model", "said"),
    [
        ({}, None, "models: name two at least"),
        ({"models": ["w4"]}, None, "models: name two at least"),
        ({"models": ["w4", "w4"]}, "w4", "models: farthing.toml has no other"),
        ({"models": ["w4", "third"]}, None, "models: they are of several families: f, g"),
        ({"models": ["w4", "nobody"]}, None, "'nobody' does not exist"),
    ],
)
def test_what_cannot_be_is_refused(options: Any, model: str | None, said: str) -> None:
    catalog = fleet(**pair().models, c=card("third", "fp32", family="g"))
    with pytest.raises(Exception, match=said) as raised:
        policies.load("precision", options).fit(catalog, model)
    assert getattr(raised.value, "status", 0) in (400, 404)


@pytest.mark.parametrize(
    "option",
    [{"margin": -0.1}, {"margin": float("nan")}, {"hardware": "low"}, {"models": ["a"] * 9}],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(option: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=f"policy precision: {next(iter(option))}"):
        policies.load("precision", option)
