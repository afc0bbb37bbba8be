"""Tests of whether two ways differ, each asked the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.estimates import Estimate, mean

_DRAWS = 10_000


@dataclass(frozen=True)
class Comparison:
    """How much better the first of two ways is, and how likely so much is by chance."""

    difference: Estimate  # of the means
    p: float  # two-sided
    test: str
    better: int  # questions
    worse: int


def compared(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Comparison:
    """Two ways' scores, by their common index: McNemar's exact test where all of them are 0 or 1,
    else a paired bootstrap. Raises ValueError for nothing, and for unequal lengths."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    binary = all(score in (0.0, 1.0) for score in (*ours, *theirs))
    p = mcnemar(better, worse) if binary else bootstrap(differences, seed=seed)
    test = "McNemar, exact" if binary else "paired bootstrap"
    return Comparison(mean(differences, seed=seed), p, test, better, worse)


def mcnemar(better: int, worse: int) -> float:
    """The two-sided p of so many pairs that differ in one sense and in the other, if either sense
    were as likely: exact, by the binomial (McNemar, 1947)."""
    pairs = better + worse
    tail = sum(math.comb(pairs, k) for k in range(min(better, worse) + 1)) / (1 << pairs)
    return min(1.0, 2 * tail)


def bootstrap(differences: Sequence[float], *, seed: int = 0) -> float:
    """The two-sided p of the mean of these differences, if it were 0: how often the mean of as many
    drawn from them, moved to a mean of 0, is as far from 0 (Efron and Tibshirani, 1993, 16.4)."""
    if len(differences) < 2:
        return 1.0  # one alone says nothing of how much they vary
    values = np.array(differences, float)
    drawn = np.random.default_rng(seed).integers(0, len(values), (_DRAWS, len(values)))
    means = np.abs((values - values.mean())[drawn].mean(1))
    # A hair less, as sums of the same numbers in another order differ in their last bits.
    seen = abs(float(values.mean())) * (1 - 1e-9)
    return (1 + int((means >= seen).sum())) / (1 + _DRAWS)


def signs(differences: Sequence[float]) -> float:
    """The two-sided p of the mean of these differences, if each might as well have the other sign:
    exact, over all signs of those that are not 0 (Fisher, 1935, section 21), 16 at most. Raises
    ValueError for more."""
    values = np.array([one for one in differences if one], float)
    if len(values) > 16:
        raise ValueError(f"{len(values)} differences have too many signs to try")
    flips = (np.arange(1 << len(values))[:, None] >> np.arange(len(values))) & 1
    sums = np.abs((values * (1 - 2 * flips)).sum(1))
    return float((sums >= abs(values.sum()) * (1 - 1e-9)).mean())
