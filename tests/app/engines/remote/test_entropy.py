"""Bounds of the entropy from the likeliest tokens: never wrong, exact where all are seen."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engines.remote.entropy import interval

ROUNDING = 1e-9
weights = st.lists(st.floats(0, 1) | st.just(1.0), min_size=1, max_size=60).filter(any)
shares = st.floats(0, 1)  # of the tokens that are seen


def normal(weights: list[float]) -> list[float]:
    total = math.fsum(weights)
    return sorted((weight / total for weight in weights), reverse=True)


def seen_of(distribution: list[float], share: float) -> list[float]:
    return distribution[: 1 + round(share * (len(distribution) - 1))]


def exact(distribution: list[float]) -> float:
    return -math.fsum(p * math.log2(p) for p in distribution if p > 0)


def logs(probabilities: list[float]) -> list[float]:
    return [math.log(p) if p > 0 else -9999.0 for p in probabilities]


@given(weights, shares)
def test_the_entropy_lies_within(weights: list[float], share: float) -> None:
    distribution = normal(weights)
    low, high = interval(logs(seen_of(distribution, share)), len(distribution))
    assert low - ROUNDING <= exact(distribution) <= high + ROUNDING
    assert 0.0 <= low <= high <= math.log2(len(distribution)) + ROUNDING


@given(weights)
def test_it_is_exact_where_all_tokens_are_seen(weights: list[float]) -> None:
    distribution = normal(weights)
    found = interval(logs(distribution), len(distribution))
    assert found == pytest.approx((exact(distribution),) * 2, abs=ROUNDING)


@given(weights, shares)
def test_the_low_end_is_the_tail_estimate(weights: list[float], share: float) -> None:
    """The missing mass spread over R = min(p_r / p_k, V - k) tokens, as the papers have it."""
    distribution = normal(weights)
    seen, vocabulary = seen_of(distribution, share), len(distribution)
    missing = 1.0 - math.fsum(p for p in seen)
    if missing <= 1e-6 or seen[-1] == 0.0:
        return  # nothing to estimate but rounding errors
    spread = min(missing / seen[-1], vocabulary - len(seen))
    estimate = exact(seen) * math.log(2) - missing * math.log(missing) + missing * math.log(spread)
    assert interval(logs(seen), vocabulary)[0] == pytest.approx(estimate / math.log(2), abs=1e-7)


@given(weights, shares)
def test_one_more_token_never_widens_the_interval(weights: list[float], share: float) -> None:
    distribution = normal(weights)
    k = len(seen_of(distribution, share))
    wide = interval(logs(distribution[:k]), len(distribution))
    narrow = interval(logs(distribution[: k + 1]), len(distribution))
    assert wide[0] - ROUNDING <= narrow[0] and narrow[1] <= wide[1] + ROUNDING


def test_the_order_does_not_matter() -> None:
    seen = [math.log(p) for p in (0.1, 0.5, 0.2)]
    assert interval(seen, 9) == interval(seen[::-1], 9)


def test_ties_are_known_exactly_where_they_are_all_there_is() -> None:
    low, high = interval([math.log(0.25)] * 3, 4)
    assert (low, high) == (pytest.approx(2.0), pytest.approx(2.0))


def test_one_of_many() -> None:
    """p_1 = 1/2: the rest is one more such token at least, all others alike at most."""
    low, high = interval([math.log(0.5)], 1 + 1024)
    assert (low, high) == (pytest.approx(1.0), pytest.approx(0.5 + 0.5 * 11))


@pytest.mark.parametrize("certain", [[0.0], [0.0, -9999.0], [1e-7], [0.0, -1e-9]])
def test_a_certain_token_has_no_entropy(certain: list[float]) -> None:
    """Also where rounding makes its probability a little more than 1."""
    low, high = interval(certain, 50_000)
    assert math.copysign(1, low) == 1.0  # not even -0.0, which a client would see
    assert 0.0 <= low <= high < 1e-6


def test_mass_that_rounds_to_above_one_leaves_none_for_others() -> None:
    seen = [math.log(0.5) + 1e-8] * 2
    low, high = interval(seen, 50_000)
    assert low == high == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("lie", [math.inf, 1e308, 5.0])
def test_a_logprob_that_cannot_be_breaks_nothing(lie: float) -> None:
    assert interval([lie], 100) == (0.0, 0.0)


def test_nothing_known_is_anything() -> None:
    assert interval([], 1024) == (0.0, 10.0)
    assert interval([-9999.0, math.nan, -math.inf], 1024) == (0.0, 10.0)


def test_more_tokens_than_there_should_be() -> None:
    low, high = interval([math.log(0.4)] * 2, 1)
    assert low == high > 0
