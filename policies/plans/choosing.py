"""Which of several ways to answer is taken, by what is expected of each: a pure function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from statistics import NormalDist
from typing import Literal, NamedTuple, TypeAlias

Bound: TypeAlias = Literal["able", "usd", "latency", "first_token", "quality"]
MOST_EXPLORED = 0.2  # of the requests, whatever is asked for
NEARLY = 0.98  # share of the answers that stay below an amount's `high`
SURE = 0.5  # by default: more likely than not
_SAME = 1e-9  # of quality: no more is a difference
_Z = NormalDist().inv_cdf(NEARLY)


class Option(NamedTuple):
    """A way to answer, and what is expected of it for one request. Of what is `None` nobody knows
    a worse value than the expected one."""

    name: str
    quality: float = 1.0  # relative to the best way's
    cost: float = 0.0  # USD
    first_token: float = 0.0  # seconds
    latency: float = 0.0  # seconds, to the answer's end
    quality_low: float | None = None  # what it is at least, as far as is known
    cost_high: float | None = None  # what nearly all do not pass
    first_token_high: float | None = None
    latency_high: float | None = None
    usd: float | None = None  # what may be spent in this way; None: as the wish says
    worst: float | None = None  # USD at worst
    exact: bool = True  # whether it is distributed as a named model's
    unable: str = ""  # why it cannot serve the request; empty: it can
    doubt: float = 0.0  # standard error of `quality`, beside the other ways
    delay: float = 0.0  # seconds that other answers come later, all together


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a way to answer. None: nothing."""

    usd: float | None = None
    latency: float | None = None  # seconds that are left
    first_token: float | None = None
    quality: float | None = None  # the cheapest way that has it is taken; else the best that fits
    exact: bool = False
    cautious: bool = True  # by bounds, not by what is expected
    strict: bool = False  # what it costs at worst must fit, too
    sure: float = SURE  # least chance to keep to money, and to each time
    alike: float = 0.0  # standard errors of the best quality: what is nearer to it is as good
    delay_price: float = 0.0  # quality that a second of others' time is worth

    def quality_of(self, option: Option) -> float:
        """By which it is compared."""
        low = option.quality_low
        return option.quality if low is None or not self.cautious else low

    def cost_of(self, option: Option) -> float:
        """What it may cost; so the times."""
        if self.strict and option.worst is not None:
            return option.worst
        return self._high(option.cost, option.cost_high)

    def latency_of(self, option: Option) -> float:
        return self._high(option.latency, option.latency_high)

    def first_token_of(self, option: Option) -> float:
        return self._high(option.first_token, option.first_token_high)

    def chance(self, option: Option) -> float:
        """How likely it is to keep to money and time. All of these grow with an answer's length, so
        that it is as likely as the least likely of them."""
        return min((chances([option])[0] for _, chances, _ in _terms(self)), default=1.0)

    def chance_of(self, option: Option, bound: Bound) -> float:
        """That it keeps to one of them."""
        found = (chances([option])[0] for name, chances, _ in _terms(self) if name == bound)
        return next(found, 1.0)

    def usd_of(self, option: Option) -> float | None:
        """What may be spent in this way."""
        if self.usd is None or option.usd is None:
            return option.usd if self.usd is None else self.usd
        return min(self.usd, option.usd)

    def _high(self, expected: float, high: float | None) -> float:
        return expected if high is None or not self.cautious else high


def _chance(expected: float, high: float | None, most: float) -> float:
    """That an amount is at most `most`: its logarithm is as if normal."""
    if high is not None and 0 < expected < high and high * high <= most * expected:
        return 1.0  # far from both: twice as far as nearly all
    if high is None or not 0 < expected < high < math.inf:
        return float((expected if high is None else high) <= most)
    if most * high <= expected * expected:
        return 0.0
    # Apart, as a quotient of the least and the greatest numbers would be 0.
    beyond = _Z * (math.log(most) - math.log(expected)) / math.log(high / expected)
    return 0.5 * math.erfc(-beyond / math.sqrt(2))


class Choice(NamedTuple):
    """One that may be taken."""

    option: Option
    propensity: float  # how likely it is
    missed: Bound | None = None  # what it does not keep to, as nothing does; None: it fits


def choose(options: Sequence[Option], wish: Wish, explore: float = 0.0) -> list[Choice]:
    """Those that may be taken, whose propensities sum to 1; the one that should be comes first.

    Of those that keep to everything, as likely as `sure` says: where a quality is wished for the
    cheapest one that nearly always does; else the one of which most is to be hoped, its quality
    times the chance that it keeps to money and time, less what others' time is worth that it takes
    (as a queue is kept short at the least loss: drift plus penalty, Neely 2010, Stochastic Network
    Optimization, 4.1). Of those that are as good the cheaper one, then the quicker. `explore` is
    shared out evenly among all that nearly always keep to everything. Where none keeps to
    everything there is nothing to explore: of those that keep to all that comes before (able,
    money, time, first token, quality) the one that is nearest. Raises ValueError where there is
    none, or none exact where that is wished for.
    """
    pool = [option for option in options if option.exact or not wish.exact]
    if not pool:
        raise ValueError("there is no way to choose from")
    pool = [option for option in pool if not option.unable] or pool  # whoever is asked says why not
    chances = [1.0] * len(pool)  # as `wish.chance`, on the way
    least = wish.sure - _SAME
    for bound, found, away in _terms(wish):
        told = found(pool)
        now = [one if one < two else two for one, two in zip(chances, told, strict=True)]
        if max(now) < least:
            return [Choice(min(pool, key=away), 1.0, bound)]
        if min(now) < least:
            kept = [*zip(pool, now, strict=True)]
            pool = [option for option, chance in kept if chance >= least]
            now = [chance for chance in now if chance >= least]
        chances = now
    if wish.quality is not None:
        good = [one for one in zip(pool, chances, strict=True) if _good(one[0], wish)]
        if not good:
            best = min(pool, key=lambda one: (-wish.quality_of(one), one.cost))
            return [Choice(best, 1.0, "quality")]
        pool, chances = [option for option, _ in good], [chance for _, chance in good]
    best = _best(pool, chances, wish)
    if not explore:
        return [Choice(best, 1.0)]
    each = zip(pool, chances, strict=True)
    safe = [option for option, chance in each if option is not best and chance >= NEARLY]
    share = min(explore, MOST_EXPLORED) / (1 + len(safe))
    others = [Choice(option, share) for option in safe]
    return [Choice(best, 1.0 - share * len(others)), *others]


def fits(option: Option, wish: Wish) -> bool:
    """Whether it keeps to all that is wished for."""
    return missed(option, wish) is None


def missed(option: Option, wish: Wish) -> Bound | Literal["exact"] | None:
    """The first thing that it does not keep to; None: it keeps to all."""
    if wish.exact and not option.exact:
        return "exact"
    if option.unable:
        return "able"
    least = wish.sure - _SAME
    for bound, chances, _ in _terms(wish):
        if chances([option])[0] < least:
            return bound
    return None if wish.quality is None or _good(option, wish) else "quality"


def _good(option: Option, wish: Wish) -> bool:
    return wish.quality is None or wish.quality_of(option) >= wish.quality - _SAME


_Chances: TypeAlias = Callable[[Sequence[Option]], list[float]]
_Key: TypeAlias = Callable[[Option], tuple[float, ...]]
# Of all ways in one step each: they are asked for every request.
_COST = attrgetter("cost", "cost_high", "usd", "worst")
_LATENCY = attrgetter("latency", "latency_high")
_FIRST = attrgetter("first_token", "first_token_high")


def _terms(wish: Wish) -> Iterator[tuple[Bound, _Chances, _Key]]:
    """Money, and what is asked of times, in the order in which they matter: how likely each option
    keeps to it, and how far away it is where none does."""
    yield (
        "usd",
        partial(_usd_chances, wish),
        lambda option: (wish.cost_of(option), -wish.quality_of(option)),
    )
    if wish.latency is not None:
        yield (
            "latency",
            partial(_time_chances, _LATENCY, wish.latency, wish.cautious),
            lambda option: (wish.latency_of(option), option.cost),
        )
    if wish.first_token is not None:
        yield (
            "first_token",
            partial(_time_chances, _FIRST, wish.first_token, wish.cautious),
            lambda option: (wish.first_token_of(option), option.cost),
        )


def _usd_chances(wish: Wish, options: Sequence[Option]) -> list[float]:
    found = []
    for cost, high, own, worst in map(_COST, options):
        most = wish.usd
        if most is None or (own is not None and own < most):
            most = own
        if most is None:
            found.append(1.0)
        elif wish.strict and worst is not None:
            found.append(float(worst <= most))
        else:
            found.append(_chance(cost, high if wish.cautious else None, most))
    return found


def _time_chances(
    times: attrgetter[tuple[float, float | None]],
    most: float,
    cautious: bool,
    options: Sequence[Option],
) -> list[float]:
    each = map(times, options)
    if not cautious:
        return [float(expected <= most) for expected, _ in each]
    return [_chance(expected, high, most) for expected, high in each]


def _best(pool: Sequence[Option], chances: Sequence[float], wish: Wish) -> Option:
    """Of those that keep to everything, each with the chance that it does. Equal qualities may
    differ in how they were summed up."""
    if wish.quality is not None:
        least = min(NEARLY, max(chances)) - _SAME
        pool = [each for each, chance in zip(pool, chances, strict=True) if chance >= least]
        return min(pool, key=lambda one: (one.cost, one.latency, -wish.quality_of(one)))
    price, weighed = wish.delay_price, [*zip(pool, chances, strict=True)]
    for known in (True, False) if wish.cautious else (False,):
        worths = [  # by `wish.quality_of`, but without a call for each of many
            (each.quality_low if known and each.quality_low is not None else each.quality) * chance
            - price * each.delay
            for each, chance in weighed
        ]
        most = max(worths)
        # As trees are pruned: the simplest within a standard error of the best (Breiman et al.
        # 1984, Classification and Regression Trees, 3.4.3).
        doubt = wish.alike and wish.alike * weighed[worths.index(most)][0].doubt
        least = most - max(doubt, _SAME)
        weighed = [one for one, worth in zip(weighed, worths, strict=True) if worth >= least]
        if len(weighed) == 1:
            return weighed[0][0]
    same = (each for each, _ in weighed)
    return min(same, key=lambda one: (one.cost, one.latency, -wish.quality_of(one)))
