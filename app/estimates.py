"""Means with 95 % intervals, by a bootstrap over what was drawn independently; and shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NORMAL = 1.959964  # standard deviations on either side that hold 95 %


@dataclass(frozen=True)
class Estimate:
    """A mean, and between what it lies."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(
    over: Sequence[float], under: Sequence[float], *, seed: int = 0, draws: int = 4000
) -> Estimate:
    """sum(over) / sum(under), drawn anew by their common index: a text, a question.

    Draws in which `under` sums to 0 are left out, as they have no ratio. Raises ValueError for
    nothing, and where `under` is 0 throughout.
    """
    if not over:
        raise ValueError("there is nothing to take a mean of")
    top, bottom = np.array(over, float), np.array(under, float)
    if not bottom.any():
        raise ValueError("there is nothing to divide by")
    chosen = np.random.default_rng(seed).integers(0, len(top), (draws, len(top)))
    sums = bottom[chosen].sum(1)
    found = top[chosen].sum(1)[sums != 0] / sums[sums != 0]
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))


def mean(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Of values each drawn independently. Raises ValueError for nothing."""
    return ratio(values, [1.0] * len(values), seed=seed)


def share(counted: float, of: int) -> Estimate:
    """A proportion, with Wilson's interval (1927). Raises ValueError for a share of nothing.

    Of a sum of values between 0 and 1 the interval is wider than it need be: at the same mean none
    vary more than zeros and ones.
    """
    if of < 1:
        raise ValueError("there is nothing to take a share of")
    found, square = counted / of, _NORMAL**2 / of
    middle = (found + square / 2) / (1 + square)
    half = _NORMAL / (1 + square) * math.sqrt(found * (1 - found) / of + square / (4 * of))
    return Estimate(found, max(middle - half, 0.0), min(middle + half, 1.0))
