"""A calibration's money: what may be spent is held before, and never more than there is."""

from __future__ import annotations

from pathlib import Path

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


def test_what_a_killed_run_held_is_spent(tmp_path: Path) -> None:
    file = tmp_path / "held.json"
    spending = Spending(1000, file=file)
    spending.settle("a", spending.hold("a", 4), 1e-11)
    spending.hold("a", 4)
    spending.hold("a", 3)  # and here it is killed
    assert Spending(1000, 10, file=file).spent == 10 + 247 + 247
    again = Spending(1000, 10, file=file)
    assert again.most is not None and again.hold("a") == 1000 - 10 - 2 * 247
    # Killed once more, it has spent both.
    assert Spending(1000, 10, file=file).spent == 1000


def test_what_is_settled_is_held_until_its_line_is_written(tmp_path: Path) -> None:
    file = tmp_path / "held.json"
    spending = Spending(1000, file=file)
    spending.settle("a", spending.hold("a", 2), 1e-11)
    assert Spending(1000, file=file).spent == 500
    spending.close()
    assert Spending(1000, file=file).spent == 0  # the answers' file has it
    spending.lose(7)
    assert Spending(1000, file=file).spent == 7


def test_without_a_bound_there_is_nothing_to_keep(tmp_path: Path) -> None:
    spending = Spending(file=tmp_path / "held.json")
    spending.settle("a", spending.hold("a"), 1e-11)
    spending.close()
    assert not (tmp_path / "held.json").exists()


@pytest.mark.parametrize("told", ["", "[]", "{}", '{"held": null, "lost": 0}'])
def test_another_file_is_refused(tmp_path: Path, told: str) -> None:
    file = tmp_path / "held.json"
    file.write_text(told)
    with pytest.raises(ValueError, match="held.json: is not what a calibration holds"):
        Spending(1000, file=file)
