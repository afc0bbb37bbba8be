"""Policies evaluated on a log: what they would have cost, taken and been worth, and their risk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from app.errors import ConfigError
from app.estimates import Estimate
from app.replay.decisions import Decided, Log, Way
from app.replay.estimators import (
    DRAWS,
    Column,
    Estimated,
    Sample,
    effective,
    estimated,
    mapped,
    shares,
    tail,
)
from app.replay.targets import Target

_NONE = 1e-9  # of a choice: no more is none
LEVEL = 0.95  # of the risk measures: the mean of the worst one in twenty


@dataclass(frozen=True)
class Reward:
    """Something that an answer comes out with."""

    name: str
    unit: str
    came: Callable[[Decided], float | None]  # None: it is not known of this answer
    expects: Callable[[Decided, Way], float]  # of a way, when it was chosen from
    worse: int  # 1: more of it is worse, -1: less; 0: it has no tail


REWARDS = (
    Reward("cost", "USD", lambda one: one.cost.usd, lambda one, way: way.usd, 1),
    Reward(
        "latency",
        "s",
        lambda one: one.times.duration_s if one.answered else None,
        lambda one, way: way.latency_s,
        1,
    ),
    Reward(
        "first token",
        "s",
        lambda one: one.first if one.answered else None,
        lambda one, way: way.first_token_s,
        1,
    ),
    Reward(
        "met",
        "share",
        lambda one: float(one.met),
        lambda one, way: float(one.would_meet(way)),
        0,
    ),
)


@dataclass(frozen=True)
class Found:
    """One reward under one policy."""

    reward: str
    unit: str
    requests: int  # of which it is known
    unknown: int
    mean: Estimated
    tail: Estimate | None  # the mean of the worst 5 %: CVaR; None: it has none, or has no support
    graded: bool = True  # quality: by grades; false: only what was expected is known


@dataclass(frozen=True)
class Evaluated:
    """A policy on a log."""

    name: str
    requests: int
    unsupported: int  # requests for which it may take what had propensity 0
    outside: Estimate  # of its choices, the share that had propensity 0
    effective: float  # sample size
    found: Sequence[Found]
    by_expectation: bool  # the planner's choice, as the log does not hold how sure it was

    @property
    def missed(self) -> Mapping[str, Estimate | None]:
        """The chance of missing SLO or budget, by estimator."""
        met = next(one.mean for one in self.found if one.reward == "met")
        each = {"direct": met.direct, "snips": met.snips, "dr": met.robust}
        return {name: mapped(one, lambda share: 1 - share) for name, one in each.items()}


class _Dice(TypedDict):
    """Of the bootstrap."""

    seed: int
    draws: int


@dataclass(frozen=True)
class _Chosen:
    """What a policy would take of each request: a row for each."""

    likely: Sequence[Mapping[str, float]]  # of each way
    weights: Column  # of the way that was taken, by how likely that was
    supported: npt.NDArray[np.bool_]
    outside: Column  # share of its choice that had propensity 0
    usual: Mapping[str, Way]  # for requests that did not weigh it

    @classmethod
    def of(cls, decided: Sequence[Decided], target: Target) -> _Chosen:
        """Raises ConfigError as the target."""
        likely = [target.choose(one) for one in decided]
        outside = [
            sum(share for name, share in row.items() if not _propensity(one, name))
            for one, row in zip(decided, likely, strict=True)
        ]
        weights = [
            row.get(one.taken.name, 0.0) / one.taken.propensity
            for one, row in zip(decided, likely, strict=True)
        ]
        left = np.array(outside)
        return cls(likely, np.array(weights), left < _NONE, left, _usual(decided))

    def mean(
        self,
        one: Decided,
        likely: Mapping[str, float],
        expects: Callable[[Decided, Way], float],
    ) -> float:
        """What is expected of its choice for this request."""
        ways = {way.name: way for way in one.alternatives}
        pairs = ((share, ways.get(name) or self.usual[name]) for name, share in likely.items())
        return sum(share * expects(one, way) for share, way in pairs)


def evaluate(
    log: Log,
    target: Target,
    grades: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Evaluated:
    """What the policy would have done. `draws`: of the bootstrap.

    Raises ValueError for an empty log, and ConfigError for what the policy cannot choose and for
    grades of nothing that is in the log.
    """
    if not log.decided:
        raise ValueError("there is nothing to replay")
    chosen, dice = _Chosen.of(log.decided, target), _Dice(seed=seed, draws=draws)
    asked = [*REWARDS, *([_graded(log.decided, grades)] if grades else [])]
    found = [_found(log.decided, chosen, reward, dice) for reward in asked]
    if not grades:
        found.append(_expected(log.decided, chosen, dice))
    return Evaluated(
        name=target.name,
        requests=len(log.decided),
        unsupported=int((~chosen.supported).sum()),
        outside=shares(chosen.outside, **dice),
        effective=effective(chosen.weights, chosen.supported),
        found=[one for one in found if one is not None],
        by_expectation=target.plans and not all(one.bounded for one in log.decided),
    )


def _graded(decided: Sequence[Decided], grades: Mapping[str, float]) -> Reward:
    """Quality by grades. What is expected of it is relative to the best way's: on the scale of the
    grades by one factor, with which it is right in the mean of the ways that were taken."""
    pairs = [(grades[one.id], one.taken.quality) for one in decided if one.id in grades]
    if not pairs:
        raise ConfigError("--grades: no id in it is of an answer in the log")
    below = sum(expected for _, expected in pairs)
    scale = sum(worth for worth, _ in pairs) / below if below else 0.0
    return Reward(
        "quality",
        "0 to 1",
        lambda one: grades.get(one.id),
        lambda one, way: way.quality * scale,
        -1,
    )


def _expected(decided: Sequence[Decided], chosen: _Chosen, dice: _Dice) -> Found:
    """Quality where nothing was graded: what the profile expects, and no more than that."""
    rows = zip(decided, chosen.likely, strict=True)
    direct = np.array([chosen.mean(one, row, lambda _, way: way.quality) for one, row in rows])
    mean = Estimated(shares(direct, **dice), None, None, None)
    return Found("quality", "of the best", len(decided), 0, mean, None, graded=False)


def _found(
    decided: Sequence[Decided], chosen: _Chosen, reward: Reward, dice: _Dice
) -> Found | None:
    """None where it is not known of any answer."""
    came = [reward.came(one) for one in decided]
    known = np.array([value is not None for value in came])
    if not known.any():
        return None
    rows = [row for row in zip(decided, chosen.likely, came, strict=True) if row[2] is not None]
    sample = Sample(
        rewards=np.array([value for _, _, value in rows], float),
        weights=chosen.weights[known],
        direct=np.array([chosen.mean(one, likely, reward.expects) for one, likely, _ in rows]),
        expected=np.array([reward.expects(one, one.taken) for one, _, _ in rows]),
        supported=chosen.supported[known],
    )
    return Found(
        reward=reward.name,
        unit=reward.unit,
        requests=len(rows),
        unknown=len(decided) - len(rows),
        mean=estimated(sample, **dice),
        tail=_tail(sample, reward.worse, dice),
    )


def _tail(sample: Sample, worse: int, dice: _Dice) -> Estimate | None:
    if not worse:
        return None
    turned = replace(sample, rewards=worse * sample.rewards)
    return mapped(tail(turned, LEVEL, **dice), lambda value: worse * value)


def _usual(decided: Sequence[Decided]) -> dict[str, Way]:
    """Each way as it is expected to be in the mean of the requests that weighed it."""
    weighed: dict[str, list[Way]] = {}
    for one in decided:
        for way in one.alternatives:
            weighed.setdefault(way.name, []).append(way)
    return {
        name: ways[0].model_copy(
            update={
                field: sum(getattr(way, field) for way in ways) / len(ways)
                for field in ("usd", "first_token_s", "latency_s", "quality")
            }
        )
        for name, ways in weighed.items()
    }


def _propensity(one: Decided, name: str) -> float:
    return next((way.propensity for way in one.alternatives if way.name == name), 0.0)
