"""Estimates, where their intervals are known."""

from __future__ import annotations

import pytest

from app.estimates import share


@pytest.mark.parametrize(
    ("counted", "of", "low", "high"),
    [
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (83, 100, 0.7445, 0.8911),
    ],
)
def test_a_share_has_wilson_s_interval(counted: int, of: int, low: float, high: float) -> None:
    found = share(counted, of)
    assert found.mean == counted / of
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_there_is_no_share_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        share(0, 0)
