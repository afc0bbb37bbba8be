"""What each way's answers to a replayed trace say, beside those of `auto` to the same requests."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from app.bench.calibrate.kinds import bounded
from app.bench.goodput.outcomes import WHYS, Outcome
from app.bench.paired import Comparison, compared
from app.estimates import Estimate, mean, share
from app.tariffs import PICO

K = TypeVar("K")


@dataclass(frozen=True)
class Times:
    """Quantiles in seconds, of answers that there are."""

    p50: float
    p95: float


@dataclass(frozen=True)
class InClass:
    """One class of requests."""

    requests: int
    met: Estimate
    right: Estimate


@dataclass(frozen=True)
class Against:
    """How much better `auto` did, request by request."""

    met: Comparison
    right: Comparison
    value: Comparison


@dataclass
class Figure:
    """One way. Shares have Wilson's intervals, and means a bootstrap's over requests."""

    way: str
    requests: int
    met: Estimate  # share in time and within budget: goodput
    right: Estimate  # share of those that were right, too
    value: Estimate  # mean worth, where one that did not keep to all is worth 0
    quality: Estimate  # mean worth of all answers, in time or not
    why_not: dict[str, int]
    over: int  # requests that cost more than their budget: must be 0
    unknown: int  # requests whose cost nobody can say
    used: Estimate | None  # share of the budget
    cost: Estimate | None  # USD of a request
    first: Times | None
    seconds: Times | None
    lag: float  # the longest that a request was sent too late, seconds
    chosen: dict[str, float]  # ways that answered, by share of the answers
    classes: dict[str, InClass] = field(default_factory=dict)
    by_seed: dict[int, float] = field(default_factory=dict)  # share that was right
    against: Against | None = None  # None: it is `auto`


def figures(found: Sequence[Outcome], auto: str, seed: int = 0) -> list[Figure]:
    """Of every way, `auto` first, then by the share that was right."""
    ways = defaultdict[str, dict[tuple[int, int], Outcome]](dict)
    for one in found:
        ways[one.way][one.seed, one.number] = one
    rows = [_figure(way, [*of.values()], seed) for way, of in ways.items()]
    for row in rows:
        if row.way != auto:
            row.against = _against(ways[auto], ways[row.way], seed)
    return sorted(rows, key=lambda row: (row.way != auto, -row.right.mean, -row.met.mean))


def _figure(way: str, found: Sequence[Outcome], seed: int) -> Figure:
    used = [one.used for one in found if one.used is not None]
    costs = [one.cost / PICO for one in found if one.cost is not None]
    whys = Counter(one.why for one in found)
    chosen = Counter(one.chosen for one in found if one.chosen)
    return Figure(
        way=way,
        requests=len(found),
        met=_share(found, lambda one: one.met),
        right=_share(found, lambda one: one.right),
        value=bounded([one.worth if one.met else 0.0 for one in found], seed=seed),
        quality=bounded([one.worth for one in found], seed=seed),
        why_not={why: whys[why] for why in WHYS if whys[why]},
        over=sum(one.over for one in found),
        unknown=sum(one.cost is None for one in found),
        used=mean(used, seed=seed) if used else None,
        cost=mean(costs, seed=seed) if costs else None,
        first=_times([one.first for one in found if one.first is not None]),
        seconds=_times([one.seconds for one in found if one.seconds is not None]),
        lag=max(one.lag for one in found),
        chosen={name: count / chosen.total() for name, count in chosen.most_common()},
        classes={
            name: InClass(len(of), _share(of, lambda one: one.met), _share(of, lambda o: o.right))
            for name, of in _grouped(found, lambda one: one.slo).items()
        },
        by_seed={
            number: statistics.fmean(one.right for one in of)
            for number, of in _grouped(found, lambda one: one.seed).items()
        },
    )


def _grouped(found: Sequence[Outcome], key: Callable[[Outcome], K]) -> dict[K, list[Outcome]]:
    groups: dict[K, list[Outcome]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    return groups


def _share(found: Sequence[Outcome], test: Callable[[Outcome], bool]) -> Estimate:
    return share(sum(map(test, found)), len(found))


def _times(values: Sequence[float]) -> Times | None:
    return Times(*map(float, np.quantile(values, [0.5, 0.95]))) if values else None


def _against(
    auto: Mapping[tuple[int, int], Outcome], other: Mapping[tuple[int, int], Outcome], seed: int
) -> Against:
    both = sorted(auto.keys() & other.keys())

    def beside(value: Callable[[Outcome], float]) -> Comparison:
        ours, theirs = ([value(way[key]) for key in both] for way in (auto, other))
        return compared(ours, theirs, seed=seed)

    return Against(
        met=beside(lambda one: float(one.met)),
        right=beside(lambda one: float(one.right)),
        value=beside(lambda one: one.worth if one.met else 0.0),
    )
