"""When a server counts as broken, and how long it is then left alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random


@dataclass(slots=True)
class Breaker:
    """Counts faults in a row. It opens at `limit`; only a probe closes it again."""

    limit: int = 3
    faults: int = 0

    def fault(self) -> bool:
        """Count one more. True when that makes too many."""
        self.faults += 1
        return self.faults >= self.limit

    def reset(self) -> None:
        self.faults = 0


@dataclass(slots=True)
class Backoff:
    """Delays that double, from `first` to `longest` seconds, each shortened by up to a half.

    The jitter keeps many gateways from asking a server that has just come up all at once.
    """

    first: float = 1.0
    longest: float = 30.0
    random: Random = field(default_factory=Random)
    _next: float = 0.0

    def delay(self) -> float:
        """Seconds to wait before the next attempt."""
        whole = min(max(self._next, self.first), self.longest)
        self._next = whole * 2
        return whole * self.random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._next = 0.0
