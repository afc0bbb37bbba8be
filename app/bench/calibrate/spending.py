"""What a calibration may spend of money, kept to exactly; in 1e-12 USD."""

from __future__ import annotations

from collections.abc import Mapping

from app.tariffs import PICO, usd

BUDGET = "X-Budget-Usd"
_SHORT = 4  # times what the dearest request of a way has cost: with less it might go short
_AMPLE = 50  # times that: no request is let hold more


class Spent(Exception):
    """The rest pays for no further request, or might not."""


class Spending:
    """Each request holds what it may cost at most until it is known what it did; the gateway keeps
    it to that. Without a bound nothing is held."""

    def __init__(self, most: int | None = None, spent: int = 0) -> None:
        self.most, self.spent = most, spent
        self._held = 0
        self._dearest: dict[str, int] = {}

    def hold(self, way: str, free: int = 1) -> int:
        """For a request of this way, one of `free` that may be made now. Raises Spent."""
        if self.most is None:
            return 0
        part = (self.most - self.spent - self._held) // free
        dearest = self._dearest.get(way) or max(self._dearest.values(), default=0)
        if part <= _SHORT * dearest:
            raise Spent
        held = min(part, _AMPLE * dearest) if way in self._dearest and dearest else part
        self._held += held
        return held

    def settle(self, way: str, held: int, cost: float | None) -> int:
        """What is counted for a request that held so much: its cost in USD, or where nobody can
        say all that it held."""
        counted = held if cost is None else round(cost * PICO)
        self._held -= held
        self.spent += counted
        self.know(way, counted)
        return counted

    def know(self, way: str, counted: int) -> None:
        """That a request of this way has cost so much."""
        self._dearest[way] = max(self._dearest.get(way, 0), counted)

    def headers(self, held: int) -> Mapping[str, str]:
        """What keeps a request to that."""
        return {} if self.most is None else {BUDGET: usd(held)}
