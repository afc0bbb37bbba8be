"""Tests of paired differences, beside values known from elsewhere."""

from __future__ import annotations

import random

import pytest

from app.bench.paired import bootstrap, compared, mcnemar, signs


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 0.0625),
        (10, 2, 158 / 4096),  # 2 * (1 + 12 + 66) / 2**12
        (2, 10, 158 / 4096),
        (7, 7, 1.0),
    ],
)
def test_mcnemar_is_the_binomial(better: int, worse: int, p: float) -> None:
    assert mcnemar(better, worse) == pytest.approx(p)


def test_right_or_wrong_is_compared_by_mcnemar() -> None:
    found = compared([1.0] * 12 + [0.0] * 4, [1.0] * 2 + [0.0] * 12 + [1.0] * 2)
    assert (found.test, found.better, found.worse) == ("McNemar, exact", 10, 2)
    assert found.p == pytest.approx(158 / 4096) and found.difference.mean == pytest.approx(0.5)


def test_scores_are_compared_by_a_bootstrap() -> None:
    found = compared([0.5, 0.6, 0.7, 0.9], [0.4, 0.5, 0.6, 0.8])
    assert found.test == "paired bootstrap" and found.p < 0.001
    assert found.difference.low == pytest.approx(0.1) == found.difference.high


def test_the_bootstrap_rejects_as_often_as_it_says() -> None:
    seeded = random.Random(3)
    rejected = sum(
        bootstrap([seeded.gauss(0, 1) for _ in range(40)], seed=at) < 0.05 for at in range(200)
    )
    assert 2 <= rejected <= 20  # 10 expected, 3 standard deviations


def test_no_difference_is_no_evidence() -> None:
    assert bootstrap([0.0, 0.0, 0.0]) == 1.0
    assert bootstrap([0.3, -0.3]) == 1.0
    assert bootstrap([0.3]) == 1.0


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        compared([1.0], [1.0, 0.0])


def test_signs_of_few_differences_are_all_tried() -> None:
    assert signs([0.3, 1.0, 0.6, 0.17, 0.0, 0.0]) == 2 / 16  # only all plus, and all minus
    assert signs([1.0, -1.0]) == 1.0 and signs([]) == signs([0.0]) == 1.0
    # As rarely as McNemar's where all are alike.
    assert signs([1.0] * 9 + [-1.0]) == pytest.approx(mcnemar(9, 1))
    with pytest.raises(ValueError, match="17 differences"):
        signs([1.0] * 17)
