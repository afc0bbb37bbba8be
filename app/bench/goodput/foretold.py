"""What the planner expected of the ways that it chose, beside what came."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.bench.calibrate.frontier import PRICES, Price
from app.bench.calibrate.predicted import Pair
from app.bench.goodput.outcomes import Outcome
from app.tariffs import PICO

_EXPECTED: Mapping[Price, tuple[str, str]] = {
    "cost": ("expected_usd", "high_usd"),
    "seconds": ("expected_latency_s", "high_latency_s"),
    "first_s": ("expected_first_token_s", "high_first_token_s"),
}


@dataclass(frozen=True)
class Error:
    """Of one amount, in USD or seconds, over answers that are whole."""

    answers: int
    expected: float  # mean
    actual: float  # mean
    absolute: float  # mean absolute error
    relative: float | None  # mean of the absolute error by the actual amount; None: it is 0
    below: float | None  # share that is no more than what 98 of 100 should not pass


def pairs(found: Sequence[Outcome], what: Price) -> list[Pair]:
    """Of the whole answers whose way the log tells: a preset stands for its policy."""
    told = []
    for one in found:
        actual = _actual(one, what)
        if one.promise is not None and one.whole and actual is not None:
            expected = float(one.promise[_EXPECTED[what][0]])
            told.append(
                Pair(one.promise["name"], one.promise["preset"], expected, expected, actual)
            )
    return told


def errors(found: Sequence[Outcome]) -> dict[Price, Error]:
    """By amount; nothing where no answer has a promise."""
    return {what: error for what in PRICES if (error := _error(found, what)) is not None}


def _error(found: Sequence[Outcome], what: Price) -> Error | None:
    told = pairs(found, what)
    if not told:
        return None
    gaps = [abs(pair.actual - pair.expected) for pair in told]
    relative = [gap / pair.actual for gap, pair in zip(gaps, told, strict=True) if pair.actual]
    highs = [
        (actual, float(high))
        for one in found
        if one.promise is not None
        and one.whole
        and (actual := _actual(one, what)) is not None
        and (high := one.promise.get(_EXPECTED[what][1])) is not None
    ]
    return Error(
        answers=len(told),
        expected=statistics.fmean(pair.expected for pair in told),
        actual=statistics.fmean(pair.actual for pair in told),
        absolute=statistics.fmean(gaps),
        relative=statistics.fmean(relative) if relative else None,
        below=statistics.fmean(a <= high for a, high in highs) if highs else None,
    )


def _actual(one: Outcome, what: Price) -> float | None:
    if what == "cost":
        return None if one.cost is None else one.cost / PICO
    return one.seconds if what == "seconds" else one.first
