"""One account's money: what is spent and held in this minute, day, month, and in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from app.storage.records import AccountRow, Refusal, Reserve, Windows

WINDOWS = ("minute", "day", "month", "total")
CAPACITY = 9 * 10**18
"""Most that one account can spend in all, 1e-12 USD: what fits a 64-bit integer."""
_AHEAD = 16  # at most this part of what is left is held ahead of need


def windows_at(seconds: int) -> Windows:
    """The windows that this moment is in."""
    month = datetime.fromtimestamp(seconds, UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    return Windows(seconds - seconds % 60, seconds - seconds % 86400, int(month.timestamp()))


def window_end(name: str, start: int) -> int | None:
    """The first second after a window; None: it never ends."""
    if name == "month":
        later = datetime.fromtimestamp(start, UTC) + timedelta(days=31)
        return int(later.replace(day=1).timestamp())
    return {"minute": start + 60, "day": start + 86400}.get(name)


@dataclass
class _Window:
    limit: int | None
    start: int
    spent: int
    held: int

    @property
    def most(self) -> int:
        return CAPACITY if self.limit is None else self.limit

    @property
    def rest(self) -> int:
        return self.most - self.spent - self.held


class Balance:
    """An account's row while its lock is held; knows no SQL.

    A request counts in the windows in which it was admitted. A window only ever moves forward:
    a process whose clock is behind counts in the window that the others have begun.
    """

    def __init__(self, row: Mapping[str, Any], now: int) -> None:
        """`now` in seconds."""
        self._key = row["key_id"]
        self._windows = {
            name: _Window(*(row[f"{name}_{part}"] for part in ("limit", "start", "spent", "held")))
            for name in WINDOWS
        }
        self._running: int = row["running"]
        current = windows_at(now)
        for name in ("minute", "day", "month"):
            window, start = self._windows[name], getattr(current, name)
            if window.start < start:
                window.start, window.spent, window.held = start, 0, 0

    @property
    def windows(self) -> Windows:
        return Windows(*(self._windows[name].start for name in ("minute", "day", "month")))

    def good_until(self) -> int:
        """Seconds: until when money held now is held in the right windows.

        The day counts even without a limit: usage is told by days, and a limit may yet come.
        """
        minute, day = self._windows["minute"], self._windows["day"]
        return day.start + 86400 if minute.limit is None else minute.start + 60

    def reserve(self, asked: Reserve) -> int | Refusal:
        """Hold what is asked for, or as much as there is; the amount, or why not."""
        if asked.concurrency is not None and self._running >= asked.concurrency:
            return Refusal("concurrency", asked.concurrency, 0, self._running)
        rest = min(window.rest for window in self._windows.values())
        amount = 0
        if asked.want:  # what costs nothing is never refused
            if rest < asked.least:
                return self._refusal(asked.least)
            amount = min(asked.want, rest)
        amount += max(min(asked.ahead, (rest - amount) // _AHEAD), 0)
        self._running += 1
        for window in self._windows.values():
            window.held += amount
        return amount

    def settle(self, windows: Windows, amount: int, cost: int, *, ended: bool) -> None:
        """Give back `amount` that was held in these windows, and spend `cost` in them."""
        self._running -= ended
        for name, window in self._windows.items():
            if name == "total" or window.start == getattr(windows, name):
                window.held -= amount
                window.spent += cost

    def columns(self) -> dict[str, Any]:
        """The row as it is now."""
        row: dict[str, Any] = {"key_id": self._key, "running": self._running}
        for name, window in self._windows.items():
            row[f"{name}_start"] = window.start
            row[f"{name}_spent"] = window.spent
            row[f"{name}_held"] = window.held
        return row

    def shown(self) -> AccountRow:
        parts = {
            part: {name: getattr(window, part) for name, window in self._windows.items()}
            for part in ("limit", "spent", "held")
        }
        return AccountRow(parts["limit"], parts["spent"], parts["held"], self._running)

    def _refusal(self, least: int) -> Refusal:
        """The limit in the way that lasts longest; one that is spent before one that is held."""
        windows = [(name, self._windows[name]) for name in reversed(WINDOWS)]
        short = [(name, window) for name, window in windows if window.rest < least]
        spent = [(name, window) for name, window in short if window.most - window.spent < least]
        name, window = (spent or short)[0]
        return Refusal(name, window.most, window.spent, window.held, window_end(name, window.start))
