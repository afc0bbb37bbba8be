"""Off-policy estimates from logged choices: what another policy's mean reward would have been.

With the reward r of the way a that was taken with propensity m(a), what the other policy would take
with p(a), a model q of rewards, and w = p(a) / m(a):

* direct method: mean of sum_a p(a) q(a). Right as far as the model is.
* inverse propensity (Horvitz and Thompson, 1952): mean of w r. Unbiased where m(a) > 0 wherever
  p(a) > 0.
* self-normalised (Hajek; Swaminathan and Joachims, 2015): sum of w r / sum of w. Biased a little,
  with less variance.
* doubly robust (Dudik, Langford and Li, 2011, arXiv 1103.4601): mean of
  sum_a p(a) q(a) + w (r - q(a)). Unbiased as inverse propensity, with the less variance the better
  the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from app.estimates import Estimate

DRAWS = 1000
_AT_ONCE = 4_000_000  # numbers that are drawn at once

Column: TypeAlias = npt.NDArray[np.float64]
"""A number for each request."""


@dataclass(frozen=True)
class Sample:
    """One reward of logged requests, under another policy. All columns have one length, n > 0."""

    rewards: Column  # that came
    weights: Column  # w, of the way that was taken
    direct: Column  # what the model expects of the other policy
    expected: Column  # what it expects of the way that was taken
    supported: npt.NDArray[np.bool_]  # whether all that the other may take could have been taken


@dataclass(frozen=True)
class Estimated:
    """A mean by each estimator, with a 95 % interval (bootstrap over requests, percentiles). None:
    nothing that was logged says anything of it."""

    direct: Estimate
    ips: Estimate | None  # over the requests with support only, as is the next
    snips: Estimate | None
    robust: Estimate | None  # over all; where there is no support the model alone counts


def estimated(sample: Sample, *, seed: int = 0, draws: int = DRAWS) -> Estimated:
    """The mean reward of the other policy."""
    held = sample.supported.astype(float)
    weights = sample.weights * held
    residual = sample.weights * (sample.rewards - sample.expected)
    ones = np.ones_like(held)
    columns = np.stack(
        [sample.direct, weights * sample.rewards, weights, held, sample.direct + residual, ones]
    )

    def of(sums: Column) -> Column:
        direct, weighted, weight, support, robust, number = sums.T
        with np.errstate(divide="ignore", invalid="ignore"):
            found = [direct / number, weighted / support, weighted / weight, robust / number]
        return np.stack(found)

    found = of(columns.sum(1)[None])[:, 0]
    drawn = of(_resampled(columns, seed, draws))
    intervals = [_between(float(mean), row) for mean, row in zip(found, drawn, strict=True)]
    # Nothing was taken that the other policy takes: then its mean is the model's word only.
    seen = bool(weights.any())
    direct, ips, snips, robust = intervals
    if not seen:
        return Estimated(_known(direct), None, None, None)
    return Estimated(_known(direct), ips, snips, robust)


def tail(sample: Sample, level: float, *, seed: int = 0, draws: int = DRAWS) -> Estimate | None:
    """Conditional value at risk: the mean of the greatest 1 - `level` of the rewards (Rockafellar
    and Uryasev, 2000), each weighed by w, over the requests with support; None: there is none."""
    kept = sample.supported & (sample.weights > 0)
    if not kept.any():
        return None
    order = np.argsort(-sample.rewards[kept], kind="stable")
    rewards, weights = sample.rewards[kept][order], sample.weights[kept][order]

    def of(weight: Column) -> Column:
        """By rows of weights."""
        most = (1 - level) * weight.sum(1, keepdims=True)
        taken = np.clip(most - (np.cumsum(weight, 1) - weight), 0, weight)
        with np.errstate(invalid="ignore"):
            means: Column = (taken * rewards).sum(1) / taken.sum(1)
        return means

    drawn = [of(counts * weights) for counts in _counts(len(sample.weights), seed, draws, kept)]
    # The same requests in another order: their counts are drawn alike.
    return _between(float(of(weights[None])[0]), np.concatenate(drawn))


def effective(weights: Column, supported: npt.NDArray[np.bool_]) -> float:
    """Effective sample size (Kish, 1965): so many requests of the other policy's own say as
    much."""
    kept = weights[supported]
    squares = float((kept**2).sum())
    return float(kept.sum()) ** 2 / squares if squares else 0.0


def shares(of: Column, *, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """The plain mean of what is told of each request."""
    columns = np.stack([of, np.ones_like(of)])
    sums = _resampled(columns, seed, draws)
    return _known(_between(float(of.mean()), sums[:, 0] / sums[:, 1]))


def mapped(of: Estimate | None, change: Callable[[float], float]) -> Estimate | None:
    """Through a function that rises or falls throughout."""
    if of is None:
        return None
    low, high = sorted((change(of.low), change(of.high)))
    return Estimate(change(of.mean), low, high)


def _resampled(columns: Column, seed: int, draws: int) -> Column:
    """Sums of each column over as many requests drawn anew: draws x columns."""
    parts = [counts @ columns.T for counts in _counts(columns.shape[1], seed, draws)]
    return np.concatenate(parts)


def _counts(
    requests: int, seed: int, draws: int, kept: npt.NDArray[np.bool_] | None = None
) -> Iterator[Column]:
    """How often each request is drawn, a few draws at a time; of those that are kept."""
    generator = np.random.default_rng(seed)
    step = max(_AT_ONCE // requests, 1)
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        drawn = generator.integers(0, requests, (rows, requests))
        # Each row has numbers of its own, and all of them are counted at once.
        drawn += np.arange(rows)[:, None] * requests
        counts = np.bincount(drawn.ravel(), minlength=rows * requests).reshape(rows, requests)
        yield (counts if kept is None else counts[:, kept]).astype(float)


def _between(mean: float, drawn: Column) -> Estimate | None:
    """None where the mean is not a number. Draws without support have none, and are left out."""
    finite = drawn[np.isfinite(drawn)]
    if not np.isfinite(mean) or not len(finite):
        return None
    low, high = np.quantile(finite, [0.025, 0.975])
    return Estimate(mean, float(low), float(high))


def _known(found: Estimate | None) -> Estimate:
    if found is None:
        raise ValueError("there is nothing to take a mean of")
    return found
