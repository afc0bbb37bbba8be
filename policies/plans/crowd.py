"""How many calls run where an answer would be written, lately: what comes after it waits for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

_LATELY_S = 20.0  # time constant


class Crowd:
    """Of one planner, by the models that a way asks.

    A request that finds nobody may keep many waiting that come while it is answered. By how many
    calls the requests of late have found (Poisson arrivals see time averages: Wolff 1982) it is
    told what one that comes now finds in the mean.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[Sequence[str], tuple[float, float]] = {}  # mean, and when it was that

    def others(self, models: Sequence[str], calls: float) -> float:
        """Calls that are likely to run beside an answer by these until its end; `calls` run or wait
        there now, and are learned of."""
        now = self._clock()
        mean, then = self._known.get(models, (0.0, -math.inf))
        mean = calls + (mean - calls) * math.exp((then - now) / _LATELY_S)
        self._known[models] = mean, now
        return max(mean, calls)
