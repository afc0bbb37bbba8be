"""What is expected of each way to answer one request, by what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pow, sqrt
from operator import mul
from statistics import NormalDist
from typing import NamedTuple

from app.profile import Law, Profile, Way
from policies.plans.choosing import Option
from policies.plans.pace import Slower

_BOTH = sqrt(2) - 1
_HIGH = 0.9  # share of answers that stay below a law's `high`
_LIKELY = 0.02  # kinds that a prompt is less likely to be of are left out
_INTERVAL = 2 * 1.96  # standard errors, from one end to the other
_LEAST = 0.05  # quality: where the best way has less, a difference is not told in shares of it


@dataclass(frozen=True, slots=True)
class Situation:
    """What a request asks, and what it finds. Lists have an entry for each way."""

    kinds: Mapping[str, float]  # how likely its prompt is of each kind
    prompt: float  # tokens of one prompt
    choices: int  # answers that are to be written
    rooms: Sequence[float]  # tokens that one of them may have
    calls: Sequence[float]  # that run or wait already on what the way runs on
    paces: Sequence[Slower]
    usd: Sequence[float | None]  # what may be spent
    worst: Sequence[float | None]  # USD that all answers may cost
    unable: Sequence[str]  # why it cannot be taken; empty: it can
    stretch: float = 1.0  # of what nine of ten do not pass, by `stretched`


def stretched(sure: float) -> float:
    """To which power a factor is to be taken that nine of ten do not pass, so that this share does
    not: amounts spread by factors, as logarithms that are normal do."""
    return NormalDist().inv_cdf(sure) / NormalDist().inv_cdf(_HIGH)


class _Columns(NamedTuple):
    """Of one kind of prompts, an entry for each way."""

    quality: Sequence[float]
    low: Sequence[float]
    length: Sequence[float]
    longest: Sequence[float]
    doubt: Sequence[float]


class Forecast:
    """Of these ways, in their order."""

    def __init__(self, ways: Sequence[Way], profile: Profile) -> None:
        # Plain numbers: to ask each Law of each way for each request would take as long again.
        self._rows = tuple(
            (
                *(way.name, way.fidelity == "exact"),
                *(_of(way.cost), _of(way.first_token), _of(way.latency)),
            )
            for way in ways
        )
        best = next((way for way in profile.ways if way.name == profile.best), profile.ways[0])
        # The best one is among the columns even where it may not be taken: all others' qualities
        # are relative to its.
        self._kinds = {kind: _columns((*ways, best), kind) for kind in best.quality}

    def options(self, found: Situation) -> list[Option]:
        """What is expected of each."""
        quality, low, length, longest, doubts = self._mixed(found.kinds)
        best, known = quality[-1], low[-1]
        scale = max(best, _LEAST)
        prompt, choices, beside = found.prompt, found.choices, found.choices - 1
        stretch = found.stretch
        made = []
        for row, mean, least, some, many, doubt, room, calls, slow, left, worst, unable in zip(
            *(self._rows, quality, low, length, longest, doubts),
            *(found.rooms, found.calls, found.paces, found.usd, found.worst, found.unable),
            strict=False,  # the columns have the best way at their end once more
        ):
            name, exact, costs, begins, takes = row
            some, many = some if some < room else room, many if many < room else room
            calls += beside
            relative = 1 + (mean - best) / scale
            bound = 1 + (least - known) / scale
            bound = bound if bound < relative else relative
            more, rest = many - some, room - some
            base, each, token, _, high = costs
            usd = base + each * prompt + token * some
            base, each, word, load, late = begins
            begun, slower = base + each * prompt + word * some, (1 + load * calls) * slow.first
            base, each, step, load, later = takes
            taken, longer = base + each * prompt + step * some, (1 + load * calls) * slow.whole
            made.append(
                Option._make(
                    (
                        name,
                        relative if relative > 0 else 0.0,
                        usd * choices,
                        begun * slower,
                        taken * longer,
                        # Questions are the same for all ways, so bounds are compared with bounds.
                        bound if bound > 0 else 0.0,
                        _bound(usd, token * more, token * rest, high, stretch) * choices,
                        _bound(begun, word * more, word * rest, late, stretch) * slower,
                        _bound(taken, step * more, step * rest, later, stretch) * longer,
                        left,
                        worst,
                        exact,
                        unable,
                        doubt / scale,
                    )
                )
            )
        return made

    def _mixed(self, kinds: Mapping[str, float]) -> _Columns:
        """The columns of all kinds, each as far as the prompt is likely to be of it."""
        shares = {kind: kinds.get(kind, 0.0) for kind in self._kinds}
        shares = {kind: share for kind, share in shares.items() if share >= _LIKELY}
        if not shares:  # nothing was measured of what it is: it may be any
            shares = dict.fromkeys(self._kinds, 1.0)
        total = sum(shares.values())
        weights = [share / total for share in shares.values()]
        columns = [self._kinds[kind] for kind in shares]
        if len(columns) == 1:
            return columns[0]
        return _Columns(*(_weighed(weights, [kind[i] for kind in columns]) for i in range(5)))


def _of(law: Law) -> tuple[float, ...]:
    return law.base, law.prompt, law.completion, law.load, law.high


def _bound(usual: float, more: float, rest: float, factor: float, stretch: float) -> float:
    """What an amount does not pass, but for so few: nine of ten answers are no longer than adds
    `more` to it, nor does it pass `factor` times what their length says; `rest` is what the longest
    adds.

    The two are independent, and their logarithms as if normal, so that these add up by squares:
    by the larger and _BOTH times the lesser, which is at most a twelfth more.
    """
    if not usual:
        return more * pow(factor, stretch)
    spread = 1 + more / usual
    less, grown = (spread, factor) if spread < factor else (factor, spread)
    if less > 1:
        grown *= pow(less, _BOTH)
    bound, most = usual * pow(grown, stretch), (usual + rest) * pow(max(factor, 1.0), stretch)
    return bound if bound < most else most


def _weighed(weights: Sequence[float], columns: Sequence[Sequence[float]]) -> list[float]:
    return [sum(map(mul, weights, values)) for values in zip(*columns, strict=True)]


def _columns(ways: Sequence[Way], kind: str) -> _Columns:
    """Of a way that was not asked this kind, the worst that is known of it, and no lower bound."""
    measured = [way.quality.get(kind) for way in ways]
    lengths = [way.length.get(kind) for way in ways]
    return _Columns(
        [_worst(way) if one is None else one.mean for way, one in zip(ways, measured, strict=True)],
        [0.0 if one is None else one.low for one in measured],
        [
            _longest(way, high=False) if one is None else one.mean
            for way, one in zip(ways, lengths, strict=True)
        ],
        [
            _longest(way, high=True) if one is None else one.high
            for way, one in zip(ways, lengths, strict=True)
        ],
        [0.0 if one is None else (one.high - one.low) / _INTERVAL for one in measured],
    )


def _worst(way: Way) -> float:
    return min((one.mean for one in way.quality.values()), default=0.0)


def _longest(way: Way, high: bool) -> float:
    return max((one.high if high else one.mean for one in way.length.values()), default=0.0)
