"""How quick a machine is now beside what the profile says of it, by the times of its answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

_SHARE = 1 / 8  # of the newest answer, in what is known of its place
_AS_SAID = (0.0, 0.0)  # by the profile
_MOST = math.log(8)  # of one answer, either way: a machine that slept says nothing of its pace


class Slower(NamedTuple):
    """By what expected times are to be multiplied."""

    first: float = 1.0  # to the first token
    whole: float = 1.0


class Pace:
    """Of one process, by place: the models that run on one machine.

    A profile holds for the machine and the mixture of requests that it was measured with. What
    differs here, because another program runs, because a burst goes on, or because the profile is
    another machine's, shows in the ratio of each answer's times to the expected ones; of its
    logarithm each place keeps an exponential mean over about eight answers. It is by place and not
    by way, so that the quick ways, which a slow machine leaves as the only ones that fit, also tell
    when it has become quick again.

    Of an answer whose client kept its engine waiting, perhaps, only bounds are known. What is known
    of its place then goes to the nearer one, and stays where it is between them: no slow reader
    makes a machine slow, nor does an engine that worked ahead of one make it quick.
    """

    def __init__(self, beside: Mapping[str, frozenset[str]]) -> None:
        """`beside`: by model all that run where it does."""
        self._beside = beside
        self._known: dict[frozenset[str], tuple[float, float]] = {}  # logarithms

    def of(self, models: Sequence[str]) -> Slower:
        """For a way that may ask these: as the slowest of their places."""
        known = [self._known.get(place, _AS_SAID) for place in self._places(models)]
        first, whole = known[0] if len(known) == 1 else map(max, *known)
        return Slower(math.exp(first), math.exp(whole))

    def learn(
        self, models: Sequence[str], first: float | None, whole: tuple[float, float] | None
    ) -> None:
        """`first`, `whole`: times of an answer by these, as multiples of what the profile says for
        as many tokens and calls, the latter at least and at most; None: not known."""
        ratios = None if first is None else (first, first), whole
        for place in self._places(models):
            before = self._known.get(place, _AS_SAID)
            a, b = (_mean(log, ratio) for log, ratio in zip(before, ratios, strict=True))
            self._known[place] = a, b

    def _places(self, models: Sequence[str]) -> Set[frozenset[str]]:
        return {self._beside[model] for model in models}


def _mean(log: float, ratios: tuple[float, float] | None) -> float:
    if ratios is None or ratios[1] <= 0:
        return log
    least, most = (-_MOST if ratio <= 0 else _bounded(math.log(ratio)) for ratio in ratios)
    return log + _SHARE * (min(max(log, least), most) - log)


def _bounded(log: float) -> float:
    return max(-_MOST, min(log, _MOST))
