"""What decides whether to guess, driven by outcomes that are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decides(Protocol):
    """A switch, or a brake."""

    def wants(self, written: int) -> bool: ...

    def learn(self, won: float, written: int) -> None: ...


def used(decides: Decides, wins: Sequence[float], tokens: int = 2) -> list[bool]:
    """Whether it guessed at each step, where a draft wins so much; each writes so many tokens."""
    found, written = list[bool](), 0
    for won in wins:
        found.append(decides.wants(written))
        written += tokens
        if found[-1]:
            decides.learn(won, written)
    return found
