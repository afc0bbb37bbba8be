"""Minutes, days and months of one account."""

from datetime import UTC, datetime

import pytest

from app.storage.balance import CAPACITY, Balance, window_end, windows_at
from app.storage.records import Refusal, Reserve, Windows

NOW = int(datetime(2027, 12, 31, 23, 59, 30, tzinfo=UTC).timestamp())


def row(**parts):
    names = ("minute", "day", "month", "total")
    zero = {f"{name}_{part}": 0 for name in names for part in ("start", "spent", "held")}
    limits = {f"{name}_limit": None for name in names}
    return {"key_id": "k", "running": 0, **zero, **limits, **parts}


def ask(want, least=1, **more):
    return Reserve("r", "k", want, least, **more)


def moment(seconds):
    return datetime.fromtimestamp(seconds, UTC)


def test_windows_are_those_of_the_calendar_in_utc():
    windows = windows_at(NOW)
    assert moment(windows.minute) == datetime(2027, 12, 31, 23, 59, tzinfo=UTC)
    assert moment(windows.day) == datetime(2027, 12, 31, tzinfo=UTC)
    assert moment(windows.month) == datetime(2027, 12, 1, tzinfo=UTC)
    assert moment(window_end("month", windows.month)) == datetime(2028, 1, 1, tzinfo=UTC)
    february = int(datetime(2028, 2, 1, tzinfo=UTC).timestamp())
    assert moment(window_end("month", february)) == datetime(2028, 3, 1, tzinfo=UTC)
    assert window_end("total", 0) is None


def test_a_clock_that_is_behind_counts_in_the_window_that_others_have_begun():
    """If it began an earlier window anew, what was spent in the later one would be forgotten."""
    later = windows_at(NOW + 3600)
    started = row(
        day_limit=100, day_spent=90, minute_start=later.minute, day_start=later.day,
        month_start=later.month,
    )  # fmt: skip
    balance = Balance(started, NOW)
    assert balance.windows == later
    assert isinstance(balance.reserve(ask(20, 20)), Refusal)


def test_the_refusal_names_the_limit_that_lasts_longest():
    windows = windows_at(NOW)
    starts = {f"{name}_start": getattr(windows, name) for name in ("minute", "day", "month")}
    spent = row(minute_limit=10, minute_spent=10, month_limit=50, month_spent=50, **starts)
    refusal = Balance(spent, NOW).reserve(ask(5, 5))
    assert (refusal.limit, refusal.amount, refusal.spent) == ("month", 50, 50)
    assert moment(refusal.resets) == datetime(2028, 1, 1, tzinfo=UTC)
    held = row(minute_limit=10, minute_spent=10, month_limit=50, month_held=50, **starts)
    assert Balance(held, NOW).reserve(ask(5, 5)).limit == "minute"  # the month may be free again


def test_what_costs_nothing_is_never_refused():
    spent = row(total_limit=10, total_spent=10)
    assert Balance(spent, NOW).reserve(ask(0, 0)) == 0
    overspent = row(total_limit=5, total_spent=10)  # the limit was lowered
    assert Balance(overspent, NOW).reserve(ask(0, 0)) == 0


def test_a_sixteenth_of_what_is_left_is_the_most_that_is_held_ahead():
    assert Balance(row(total_limit=1700), NOW).reserve(ask(100, ahead=1000)) == 100 + 100
    assert Balance(row(total_limit=1700), NOW).reserve(ask(100, ahead=7)) == 107
    assert Balance(row(total_limit=100), NOW).reserve(ask(100, ahead=1000)) == 100


def test_no_account_outgrows_an_integer_of_the_database():
    balance = Balance(row(total_held=CAPACITY - 5), NOW)
    assert balance.reserve(ask(10**21)) == 5
    assert isinstance(balance.reserve(ask(10**21)), Refusal)


def test_requests_at_once_are_counted_as_reservations():
    balance = Balance(row(), NOW)
    assert [balance.reserve(ask(1, concurrency=2)) for _ in range(2)] == [1, 1]
    assert balance.reserve(ask(1, concurrency=2)).limit == "concurrency"
    balance.settle(balance.windows, 1, 1, ended=True)
    assert balance.reserve(ask(1, concurrency=2)) == 1


@pytest.mark.parametrize(
    ("limits", "end"),
    [
        ({"minute_limit": 1, "total_limit": 1}, windows_at(NOW).minute + 60),
        ({"month_limit": 1}, NOW + 30),
        ({"total_limit": 1}, NOW + 30),
        ({}, NOW + 30),
    ],
)
def test_money_held_now_is_good_until_the_day_or_a_limited_minute_ends(limits, end):
    assert Balance(row(**limits), NOW).good_until() == end


def test_a_request_pays_in_the_windows_in_which_it_was_admitted():
    balance = Balance(row(), NOW)
    balance.reserve(ask(10))
    admitted = balance.windows
    later = Balance(
        balance.columns() | {f"{n}_limit": None for n in row()} | row_limits(), NOW + 60
    )
    later.settle(admitted, 10, 4, ended=True)
    shown = later.shown()
    assert (shown.spent["total"], shown.held["total"], shown.running) == (4, 0, 0)
    assert (shown.spent["minute"], shown.spent["day"], shown.spent["month"]) == (0, 0, 0)
    assert later.windows == windows_at(NOW + 60) != admitted
    assert isinstance(admitted, Windows)


def row_limits():
    return {f"{name}_limit": None for name in ("minute", "day", "month", "total")}
