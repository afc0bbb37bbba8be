"""A calibration's money: what may be spent is held before, and never more than there is."""

from __future__ import annotations

import pytest

from app.bench.calibrate.spending import Spending, Spent


def test_without_a_bound_nothing_is_held_and_all_is_counted() -> None:
    spending = Spending()
    held = spending.hold("a")
    assert (held, spending.headers(held)) == (0, {})
    assert spending.settle("a", held, 2e-6) == spending.spent == 2_000_000


def test_those_at_once_share_what_is_left() -> None:
    spending = Spending(1_000_000)
    first = spending.hold("a", 4)
    others = [spending.hold("a", free) for free in (3, 2, 1)]
    assert (first, others) == (250_000, [250_000] * 3)
    with pytest.raises(Spent):
        spending.hold("a", 1)
    assert spending.headers(first) == {"X-Budget-Usd": "0.00000025"}
    spending.settle("a", first, 1e-8)
    assert spending.hold("a", 1) == 240_000


def test_what_nobody_can_say_counts_in_full() -> None:
    spending = Spending(1000)
    assert spending.settle("a", spending.hold("a", 2), None) == 500
    assert spending.spent == 500


def test_it_stops_before_a_request_might_go_short() -> None:
    spending = Spending(1_000_000)
    spending.settle("a", spending.hold("a"), 2e-7)  # a fifth of it
    with pytest.raises(Spent):
        spending.hold("a")  # four times as much are not left
    with pytest.raises(Spent):
        spending.hold("b")  # of which nothing is known
    spending.know("b", 10_000)
    assert spending.hold("b") == 500_000  # no more than it can need
