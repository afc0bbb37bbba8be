"""What is expected of each way to answer one request, by what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.profile import Profile, Way
from policies.plans.choosing import NEARLY, Option
from policies.plans.pace import Slower

_Array: TypeAlias = NDArray[np.float64]
_LAWS = ("cost", "first_token", "latency")
_HIGH = 0.9  # share of answers that stay below a law's `high`
# To which power a factor is to be taken that nine of ten do not pass, so that nearly all do not:
# amounts spread by factors, as logarithms that are normal do.
_STRETCH = NormalDist().inv_cdf(NEARLY) / NormalDist().inv_cdf(_HIGH)
_LIKELY = 0.02  # kinds that a prompt is less likely to be of are left out
_INTERVAL = 2 * 1.96  # standard errors, from one end to the other
_ENDLESS = 1e9  # seconds: nothing is worth more of others' time
_LEAST = 0.05  # quality: where the best way has less, a difference is not told in shares of it


@dataclass(frozen=True, slots=True)
class Situation:
    """What a request asks, and what it finds. Lists have an entry for each way."""

    kinds: Mapping[str, float]  # how likely its prompt is of each kind
    prompt: float  # tokens of one prompt
    choices: int  # answers that are to be written
    rooms: Sequence[float]  # tokens that one of them may have
    calls: Sequence[float]  # that run or wait already on what the way runs on
    others: Sequence[float]  # that will run beside it until its end: those, or more
    joins: Sequence[bool]  # whether a model of its writes already, whose batches it joins
    paces: Sequence[Slower]
    usd: Sequence[float | None]  # what may be spent
    worst: Sequence[float | None]  # USD that all answers may cost
    unable: Sequence[str]  # why it cannot be taken; empty: it can


class _Amounts(NamedTuple):
    """Laws of cost, time to the first token and to the end, (3, ways)."""

    base: _Array
    prompt: _Array
    completion: _Array
    load: _Array
    spread: _Array  # logarithm of what nine of ten do not pass, of what the law says

    @classmethod
    def of(cls, ways: Sequence[Way]) -> _Amounts:
        laws = [[getattr(way, name) for way in ways] for name in _LAWS]
        return cls(
            base=np.array([[law.base for law in of] for of in laws]),
            prompt=np.array([[law.prompt for law in of] for of in laws]),
            completion=np.array([[law.completion for law in of] for of in laws]),
            load=np.array([[law.load for law in of] for of in laws]),
            spread=np.log([[max(law.high, 1.0) for law in of] for of in laws]),
        )


class Forecast:
    """Of these ways, in their order."""

    def __init__(self, ways: Sequence[Way], profile: Profile) -> None:
        # Arrays: to ask each Law of each way for each request would take many times as long.
        self._names = tuple(way.name for way in ways)
        self._exact = tuple(way.fidelity == "exact" for way in ways)
        self._amounts = _Amounts.of(ways)
        best = next((way for way in profile.ways if way.name == profile.best), profile.ways[0])
        # The best one is among the columns even where it may not be taken: all others' qualities
        # are relative to its.
        self._kinds = {kind: _columns((*ways, best), kind) for kind in best.quality}

    def options(self, found: Situation) -> list[Option]:
        """What is expected of each."""
        quality, low, length, longest, doubt = self._mixed(found.kinds)
        scale = max(float(quality[-1]), _LEAST)
        relative = 1 + (quality[:-1] - quality[-1]) / scale
        # Questions are the same for all ways, so bounds are compared with bounds.
        least = np.minimum(1 + (low[:-1] - low[-1]) / scale, relative)
        rooms = np.array(found.rooms, dtype=float)
        some = np.minimum(length[:-1], rooms)
        many = np.maximum(np.minimum(longest[:-1], rooms), some)
        usual, bounds, delays = self._expected(found, some, many, rooms)
        each = zip(
            self._names,
            np.maximum(relative, 0).tolist(),
            *usual.tolist(),
            np.maximum(least, 0).tolist(),
            *bounds.tolist(),
            found.usd,
            found.worst,
            self._exact,
            found.unable,
            (doubt[:-1] / scale).tolist(),
            delays.tolist(),
            strict=True,
        )
        return [*map(Option._make, each)]

    @np.errstate(over="ignore")  # what is too much for a float is too much for any wish
    def _expected(
        self, found: Situation, some: _Array, many: _Array, rooms: _Array
    ) -> tuple[_Array, _Array, _Array]:
        """Cost, time to the first token and to the end, (3, ways): what is expected of answers of
        some tokens, and what they do not pass, but for so few. And seconds that others wait longer.

        Nine of ten answers have no more tokens than `many`, and nine of ten amounts are within the
        law's `high`. The two are independent, and their logarithms as if normal, so that these add
        up by squares.
        """
        base, prompt, completion, load, spread = self._amounts
        usual = base + prompt * found.prompt + completion * some
        more = completion * (many - some)
        amount = np.where(usual > 0, usual, more)  # where an answer usually is nothing
        longer = np.log1p(np.divide(more, usual, out=np.zeros_like(more), where=usual > 0))
        most = amount + completion * (rooms - some)  # no answer is longer than it may be
        high = np.minimum(
            amount * np.exp(_STRETCH * np.hypot(longer, spread)),
            most * np.exp(_STRETCH * spread),
        )
        # Other answers of the same request run beside each one; and so do, until its end, those
        # that come meanwhile.
        beside = np.array((found.calls, found.others), dtype=float)
        paces = np.array([*zip(*found.paces, strict=True)], dtype=float)
        times = np.empty_like(usual)
        times[0] = found.choices  # of the cost
        times[1:] = (1 + load[1:] * (beside + (found.choices - 1))) * paces
        # What one more call adds to another's time is what this one takes of the machine. That was
        # measured among its like, in whose batches it takes part; other models take turns with it.
        share = np.where(found.joins, load[2], np.maximum(load[2], 1.0))
        takes = usual[2] * share * (found.choices * paces[1])
        delays = np.minimum(takes, _ENDLESS) * beside[1]
        return usual * times, high * times, delays

    def _mixed(self, kinds: Mapping[str, float]) -> _Array:
        """The columns of all kinds, each as far as the prompt is likely to be of it."""
        shares = {kind: kinds.get(kind, 0.0) for kind in self._kinds}
        shares = {kind: share for kind, share in shares.items() if share >= _LIKELY}
        if not shares:  # nothing was measured of what it is: it may be any
            shares = dict.fromkeys(self._kinds, 1.0)
        total = sum(shares.values())
        first, *others = (share / total * self._kinds[kind] for kind, share in shares.items())
        return sum(others, first)


def _columns(ways: Sequence[Way], kind: str) -> _Array:
    """Of a kind of prompts: quality, its lower bound, tokens of an answer, of a long one, and the
    standard error of the quality, (5, ways). Of a way that was not asked this kind, the worst that
    is known of it, and no lower bound."""
    measured = [way.quality.get(kind) for way in ways]
    lengths = [way.length.get(kind) for way in ways]
    return np.array(
        [
            [
                _worst(way) if one is None else one.mean
                for way, one in zip(ways, measured, strict=True)
            ],
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
        ]
    )


def _worst(way: Way) -> float:
    return min((one.mean for one in way.quality.values()), default=0.0)


def _longest(way: Way, high: bool) -> float:
    return max((one.high if high else one.mean for one in way.length.values()), default=0.0)
