"""What a calibration may spend of money, kept to exactly; in 1e-12 USD."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from app.tariffs import PICO, usd

BUDGET = "X-Budget-Usd"
_SHORT = 4  # times what the dearest request of a way has cost: with less it might go short
_AMPLE = 50  # times that: no request is let hold more


class Spent(Exception):
    """The rest pays for no further request, or might not."""


class Spending:
    """Each request holds what it may cost at most until it is known what it did; the gateway keeps
    it to that. Without a bound nothing is held.

    `file`: keeps what is held, so that a run which is killed has spent it. Raises OSError, and
    ValueError for a file that is none of its.
    """

    def __init__(self, most: int | None = None, spent: int = 0, file: Path | None = None) -> None:
        self.most, self.spent = most, spent
        self._held = 0
        self._file, self._lost = file, 0
        if file is not None and file.is_file():
            self._lost = _held(file)
            self.spent += self._lost
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
        self._keep()
        return held

    def close(self) -> None:
        """What is not held any more is in the files of answers."""
        self._keep()

    def _keep(self) -> None:
        """Not as soon as a request is settled, as its line in a file is not written then: rather
        counted twice than not at all."""
        if self._file is None or not (self._held or self._lost or self._file.is_file()):
            return
        beside = self._file.with_suffix(".new")
        told = {"held": self._held, "lost": self._lost}
        beside.write_text(json.dumps(told) + "\n", encoding="utf-8")
        beside.replace(self._file)

    def settle(self, way: str, held: int, cost: float | None) -> int:
        """What is counted for a request that held so much: its cost in USD, or where nobody can
        say all that it held."""
        counted = held if cost is None else round(cost * PICO)
        self._held -= held
        self.spent += counted
        self.know(way, counted)
        return counted

    def lose(self, counted: int) -> None:
        """That what was counted is in no other file."""
        self._lost += counted
        self._keep()

    def know(self, way: str, counted: int) -> None:
        """That a request of this way has cost so much."""
        self._dearest[way] = max(self._dearest.get(way, 0), counted)

    def headers(self, held: int) -> Mapping[str, str]:
        """What keeps a request to that."""
        return {} if self.most is None else {BUDGET: usd(held)}


def _held(file: Path) -> int:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return int(told["held"]) + int(told["lost"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: is not what a calibration holds: {error}") from error
