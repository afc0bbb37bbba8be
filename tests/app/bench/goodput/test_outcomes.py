"""What counts as in time, within budget and right; and what the figures make of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.bench import items
from app.bench.goodput.demands import Slo, Wanted
from app.bench.goodput.figures import Figure, figures
from app.bench.goodput.foretold import errors, pairs
from app.bench.goodput.outcomes import Outcome, outcomes
from app.bench.goodput.replays import Kept
from app.bench.ways import Answered

QUESTION = next(one for one in items.shipped() if one.task.name == "math")
RIGHT = str(QUESTION.line["reference"])
SLO = Slo("quick", first_token=0.5, latency=2.0, usd=10_000_000)


async def outcome(explained: dict[str, Any] | None = None, **said: Any) -> Outcome:
    answer = Answered("math", 0, 0, "auto", "", 0, texts=[RIGHT], cost=4e-6, first_s=0.2)
    answer.seconds = 1.0
    kept = Kept(7, 0, "replay", "digest", 0.01, replace(answer, **said), explained)
    window = [Wanted(0, 0.0, QUESTION, SLO)]
    (found,) = await outcomes({(7, "auto"): [kept]}, {7: window}, right=0.5)
    return found


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, ""),
        ({"first_s": 0.51}, "late"),
        ({"seconds": 2.01}, "slow"),
        ({"cost": 10.000001e-6}, "over"),
        ({"cost": 10e-6}, ""),
        ({"cut": "budget"}, "budget"),
        ({"cut": "deadline"}, "deadline"),
        ({"failed": "504: deadline", "cost": None}, "deadline"),
        ({"failed": "503: no engine", "cost": None}, "refused"),
        ({"failed": "402: budget", "cost": None}, "refused"),
        ({"failed": "ReadError: it broke off", "cost": None}, "failed"),
        ({"scarce": True}, ""),  # steered, for want of money: as it should be
    ],
)
async def test_why_a_request_was_not_served(said: dict[str, Any], why: str) -> None:
    found = await outcome(**said)
    assert (found.why, found.met, found.over) == (why, not why, why == "over")
    assert found.right == (not why)


async def test_an_empty_answer_begins_at_its_end() -> None:
    found = await outcome(texts=[""], first_s=None, seconds=0.6)
    assert (found.why, found.worth, found.first) == ("late", 0.0, 0.6)


async def test_a_wrong_answer_in_time_is_goodput_and_not_right() -> None:
    found = await outcome(texts=["no idea"])
    assert found.met and not found.right and found.worth == 0


async def test_what_a_failure_cost_the_log_tells() -> None:
    broken = {"failed": "ReadError", "cost": None}
    logged = {"usd": 3e-6, "way": None}
    assert (await outcome(logged, **broken)).cost == 3_000_000
    assert (await outcome(**broken)).cost is None
    assert (await outcome(**{**broken, "failed": "402: too little"})).cost == 0


def made(way: str, number: int, why: str = "", **said: Any) -> Outcome:
    given: dict[str, Any] = {
        "seed": number % 2,
        "kind": "math",
        "slo": "quick",
        "worth": 1.0,
        "right": not why,
        "cost": 5_000_000,
        "budget": 10_000_000,
        "first": 0.1,
        "seconds": 1.0,
        "lag": 0.0,
        "chosen": "small",
        "promise": None,
    }
    return Outcome(number=number, way=way, why=why, **{**given, **said})  # type: ignore[arg-type]


def by_way(found: list[Outcome]) -> dict[str, Figure]:
    return {row.way: row for row in figures(found, "auto")}


def test_figures_and_paired_differences() -> None:
    found = [made("auto", n, seconds=1.0 + n) for n in range(10)]
    found += [made("small", n, right=n >= 8, worth=float(n >= 8)) for n in range(10)]
    found += [made("large", n, "deadline" if n < 4 else "", seconds=9.0) for n in range(10)]
    rows = by_way(found)
    assert list(rows) == ["auto", "large", "small"]
    auto, small, large = rows["auto"], rows["small"], rows["large"]
    assert auto.against is None and auto.met.mean == auto.right.mean == 1
    assert (small.met.mean, small.right.mean, small.value.mean) == (1.0, 0.2, 0.2)
    assert (large.met.mean, large.quality.mean, large.value.mean) == (0.6, 1.0, 0.6)
    assert large.why_not == {"deadline": 4} and auto.used and auto.used.mean == 0.5
    assert large.against and large.against.met.difference.mean == pytest.approx(0.4)
    assert (large.against.met.better, large.against.met.p) == (4, 0.125)
    assert small.against and small.against.right.p == pytest.approx(2 / 2**8)
    assert auto.seconds and (auto.seconds.p50, auto.seconds.p95) == (5.5, pytest.approx(9.55))
    assert auto.by_seed == {0: 1.0, 1: 1.0} and auto.classes["quick"].requests == 10
    assert sum(auto.over for auto in rows.values()) == 0


def test_what_was_over_its_budget_is_counted() -> None:
    rows = by_way([made("auto", 0), made("auto", 1, "over", cost=20_000_000)])
    assert (rows["auto"].over, rows["auto"].met.mean) == (1, 0.5)
    assert rows["auto"].used and rows["auto"].used.mean == 1.25


def promise(usd: float, latency: float) -> dict[str, Any]:
    return {
        "name": "small",
        "preset": "small",
        "expected_usd": usd,
        "high_usd": 2 * usd,
        "expected_latency_s": latency,
        "high_latency_s": 1.5 * latency,
        "expected_first_token_s": 0.1,
        "high_first_token_s": None,
    }


def test_expected_beside_actual() -> None:
    found = [
        made("auto", 0, promise=promise(4e-6, 0.5)),
        made("auto", 1, promise=promise(8e-6, 1.5)),
        made("auto", 2, "late", promise=promise(5e-6, 1.0)),
        made("auto", 3, "deadline", promise=promise(5e-6, 99.0)),  # not whole: it took less
        made("auto", 4),
    ]
    told = errors(found)
    cost, seconds, first = told["cost"], told["seconds"], told["first_s"]
    assert cost.answers == 3 and cost.absolute == pytest.approx(4e-6 / 3)
    assert cost.relative == pytest.approx((0.2 + 0.6 + 0) / 3) and cost.below == 1
    assert (seconds.expected, seconds.actual) == (1.0, 1.0)
    assert seconds.absolute == pytest.approx(1 / 3) and seconds.below == pytest.approx(2 / 3)
    assert (first.absolute, first.below) == (0, None)
    assert [pair.expected for pair in pairs(found, "seconds")] == [0.5, 1.5, 1.0]
    assert errors([made("auto", 0)]) == {}
