"""Which of several ways to answer is taken, by what is expected of each: a pure function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Bound: TypeAlias = Literal["able", "usd", "latency", "first_token", "quality"]
MOST_EXPLORED = 0.2  # of the requests, whatever is asked for
_SAME = 1e-9  # of quality: no more is a difference


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
    alike: float = 0.0  # standard errors of the best quality: what is nearer to it is as good
    delay_price: float = 0.0  # quality that a second of others' time is worth

    def quality_of(self, option: Option) -> float:
        """By which it is compared."""
        low = option.quality_low
        return option.quality if low is None or not self.cautious else low

    def cost_of(self, option: Option) -> float:
        if self.strict and option.worst is not None:
            return option.worst
        return self._high(option.cost, option.cost_high)

    def latency_of(self, option: Option) -> float:
        return self._high(option.latency, option.latency_high)

    def first_token_of(self, option: Option) -> float:
        return self._high(option.first_token, option.first_token_high)

    def usd_of(self, option: Option) -> float | None:
        """What may be spent in this way."""
        if self.usd is None or option.usd is None:
            return option.usd if self.usd is None else self.usd
        return min(self.usd, option.usd)

    def _high(self, expected: float, high: float | None) -> float:
        return expected if high is None or not self.cautious else high


class Choice(NamedTuple):
    """One that may be taken."""

    option: Option
    propensity: float  # how likely it is
    missed: Bound | None = None  # what it does not keep to, as nothing does; None: it fits


def choose(options: Sequence[Option], wish: Wish, explore: float = 0.0) -> list[Choice]:
    """Those that may be taken, whose propensities sum to 1; the one that should be comes first.

    Of those that keep to everything: where a quality is wished for the cheapest one, else the one
    of the best quality less what others' time is worth that it takes (as a queue is kept short at
    the least loss: drift plus penalty, Neely 2010, Stochastic Network Optimization, 4.1); of those
    that are as good the cheaper one, then the quicker. `explore` is shared out evenly among all of
    them. Where none keeps to everything there is nothing to explore: of those that keep to all that
    comes before (able, money, time, first token, quality) the one that is nearest. Raises
    ValueError where there is none, or none exact where that is wished for.
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
    share = min(explore, MOST_EXPLORED) / len(pool)
    if not share:
        return [Choice(best, 1.0)]
    others = [Choice(option, share) for option in pool if option is not best]
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
    found: list[tuple[Bound, _Test, _Key]] = [
        ("able", lambda option: not option.unable, lambda option: (0.0,)),
        (
            "usd",
            _afforded(wish),
            lambda option: (wish.cost_of(option), -wish.quality_of(option)),
        ),
    ]
    if (latency := wish.latency) is not None:
        found.append(
            (
                "latency",
                lambda option: wish.latency_of(option) <= latency,
                lambda option: (wish.latency_of(option), option.cost),
            )
        )
    if (first := wish.first_token) is not None:
        found.append(
            (
                "first_token",
                lambda option: wish.first_token_of(option) <= first,
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


def _afforded(wish: Wish) -> _Test:
    """By `cost_of` and `usd_of`, in one step: it is asked of every way."""
    most, cautious, strict = wish.usd, wish.cautious, wish.strict

    def keeps(option: Option) -> bool:
        usd, cost = option.usd, option.cost
        if usd is None or (most is not None and most < usd):
            usd = most
        if usd is None:
            return True
        if strict and option.worst is not None:
            cost = option.worst
        elif cautious and option.cost_high is not None:
            cost = option.cost_high
        return cost <= usd

    return keeps


def _best(pool: Sequence[Option], wish: Wish) -> Option:
    """Of those that keep to everything. Equal qualities may differ in how they were summed up."""
    if wish.quality is None:
        for quality_of in (wish.quality_of, lambda option: option.quality):
            worths = [quality_of(option) - wish.delay_price * option.delay for option in pool]
            most = max(worths)
            # As trees are pruned: the simplest within a standard error of the best (Breiman et al.
            # 1984, Classification and Regression Trees, 3.4.3).
            doubt = wish.alike and wish.alike * pool[worths.index(most)].doubt
            least = most - max(doubt, _SAME)
            pool = [option for option, one in zip(pool, worths, strict=True) if one >= least]
    return min(pool, key=lambda one: (one.cost, one.latency, -wish.quality_of(one)))
