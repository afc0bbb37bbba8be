"""Which of several ways to answer is taken, by what is expected of each: a pure function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        return min(self.usd_chance(option), self.latency_chance(option), self.first_chance(option))

    def usd_chance(self, option: Option) -> float:
        usd = self.usd_of(option)
        if usd is not None and self.strict and option.worst is not None:
            return float(option.worst <= usd)
        return self._chance(option.cost, option.cost_high, usd)

    def latency_chance(self, option: Option) -> float:
        return self._chance(option.latency, option.latency_high, self.latency)

    def first_chance(self, option: Option) -> float:
        return self._chance(option.first_token, option.first_token_high, self.first_token)

    def usd_of(self, option: Option) -> float | None:
        """What may be spent in this way."""
        if self.usd is None or option.usd is None:
            return option.usd if self.usd is None else self.usd
        return min(self.usd, option.usd)

    def _chance(self, expected: float, high: float | None, most: float | None) -> float:
        """That an amount is at most `most`: its logarithm is as if normal."""
        if most is None:
            return 1.0
        if not self.cautious or high is None or not 0 < expected < high < math.inf:
            return float(self._high(expected, high) <= most)
        if most <= 0:
            return 0.0
        # Apart, as a quotient of the least and the greatest numbers would be 0.
        beyond = _Z * (math.log(most) - math.log(expected)) / math.log(high / expected)
        return 0.5 * math.erfc(-beyond / math.sqrt(2))

    def _high(self, expected: float, high: float | None) -> float:
        return expected if high is None or not self.cautious else high


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
    free = wish.usd is None and not any(option.usd is not None for option in pool)
    for bound, keeps, away in _bounds(wish):
        if bound == "usd" and free:
            continue
        kept = [option for option in pool if keeps(option)]
        if kept:
            pool = kept
        elif bound != "able":  # whoever is asked says why not
            return [Choice(min(pool, key=away), 1.0, bound)]
    best = _best(pool, wish)
    if not explore:
        return [Choice(best, 1.0)]
    safe = [each for each in pool if each is not best and wish.chance(each) >= NEARLY]
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
    return next((bound for bound, keeps, _ in _bounds(wish) if not keeps(option)), None)


_Test: TypeAlias = Callable[[Option], bool]
_Key: TypeAlias = Callable[[Option], tuple[float, ...]]


def _bounds(wish: Wish) -> list[tuple[Bound, _Test, _Key]]:
    """What must be kept to, in the order in which it matters: whether an option does, and how far
    away it is where it does not."""
    least = wish.sure - _SAME
    found: list[tuple[Bound, _Test, _Key]] = [
        ("able", lambda option: not option.unable, lambda option: (0.0,)),
        (
            "usd",
            lambda option: wish.usd_chance(option) >= least,
            lambda option: (wish.cost_of(option), -wish.quality_of(option)),
        ),
    ]
    if wish.latency is not None:
        found.append(
            (
                "latency",
                lambda option: wish.latency_chance(option) >= least,
                lambda option: (wish.latency_of(option), option.cost),
            )
        )
    if wish.first_token is not None:
        found.append(
            (
                "first_token",
                lambda option: wish.first_chance(option) >= least,
                lambda option: (wish.first_token_of(option), option.cost),
            )
        )
    if (quality := wish.quality) is not None:
        found.append(
            (
                "quality",
                lambda option: wish.quality_of(option) >= quality - _SAME,
                lambda option: (-wish.quality_of(option), option.cost),
            )
        )
    return found


def _best(pool: Sequence[Option], wish: Wish) -> Option:
    """Of those that keep to everything. Equal qualities may differ in how they were summed up."""
    chances = [wish.chance(option) for option in pool]
    if wish.quality is not None:
        least = min(NEARLY, max(chances)) - _SAME
        pool = [option for option, one in zip(pool, chances, strict=True) if one >= least]
        return min(pool, key=lambda one: (one.cost, one.latency, -wish.quality_of(one)))
    for quality_of in (wish.quality_of, lambda option: option.quality):
        each = [*zip(pool, chances, strict=True)]
        worths = [quality_of(one) * chance - wish.delay_price * one.delay for one, chance in each]
        most = max(worths)
        # As trees are pruned: the simplest within a standard error of the best (Breiman et al.
        # 1984, Classification and Regression Trees, 3.4.3).
        doubt = wish.alike and wish.alike * pool[worths.index(most)].doubt
        least = most - max(doubt, _SAME)
        kept = [one for one, worth in zip(each, worths, strict=True) if worth >= least]
        pool, chances = [one for one, _ in kept], [chance for _, chance in kept]
    return min(pool, key=lambda one: (one.cost, one.latency, -wish.quality_of(one)))
