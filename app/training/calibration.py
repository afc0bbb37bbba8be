"""How good probabilities of acceptance are: Brier score, calibration error, AUC, and what a stop
by them would save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.estimates import Estimate

Array = NDArray[np.float64]
_BINS = 15
_DRAWS = 200  # of a bootstrap over texts


@dataclass(frozen=True)
class Outcomes:
    """What became of guesses `[n]`: each kept with a probability, and counted by a weight."""

    accepted: Array  # in [0, 1]; that of a greedy guess is 0 or 1
    weight: Array  # how likely the guess is looked at at all
    text: NDArray[np.int64]  # from which text it is


def brier(said: Array, kept: Array, weight: Array) -> float:
    """The mean of (said - outcome) ** 2, where the outcome is 1 with probability `kept`."""
    each = said**2 - 2 * said * kept + kept
    return float((each * weight).sum() / weight.sum())


def calibration_error(said: Array, kept: Array, weight: Array, number: int = _BINS) -> float:
    """ECE: over 15 bins of equal weight, or another number of them, the mean distance of what is
    said from what is kept."""
    order = np.argsort(said, kind="stable")
    said, kept, weight = said[order], kept[order], weight[order]
    share = np.cumsum(weight) - weight / 2
    bins = np.minimum((share / weight.sum() * number).astype(int), number - 1)
    gaps = np.bincount(bins, (said - kept) * weight, number)
    return float(np.abs(gaps).sum() / weight.sum())


def area(said: Array, kept: Array, weight: Array) -> float:
    """AUC: how often a guess that is kept was said to be likelier than one that is not.

    0.5, as by chance, where all are kept, or none: there is nothing to tell apart.
    """
    _, place = np.unique(said, return_inverse=True)
    good = np.bincount(place, kept * weight)
    bad = np.bincount(place, (1 - kept) * weight)
    if not (good.sum() and bad.sum()):
        return 0.5
    below = np.cumsum(bad) - bad / 2  # an equal pair counts half
    return float((good * below).sum() / (good.sum() * bad.sum()))


Measure = Callable[[Array, Array, Array], float]


def measured(measure: Measure, said: Array, of: Outcomes, seed: int = 0) -> Estimate:
    """With the 95 % interval of a bootstrap over texts."""
    _, index = np.unique(of.text, return_inverse=True)
    texts = int(index.max()) + 1
    random = np.random.default_rng(seed)
    found = []
    for _ in range(_DRAWS):
        times = random.multinomial(texts, np.full(texts, 1 / texts))
        weight = of.weight * times[index]
        here = weight > 0
        found.append(measure(said[here], of.accepted[here], weight[here]))
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(measure(said, of.accepted, of.weight), float(low), float(high))


def speed(doubt: Array, accepted: Array, level: float, cost: float) -> float:
    """Tokens for the time of one pass of the target, where drafts end by a `doubt`.

    `doubt` and `accepted` are `[drafts, longest]`, `cost` is the time of a guess by that of a pass.
    A draft ends behind the first guess whose doubt is above `level`, and that guess is verified
    too. What it takes to verify more tokens in one pass is left out.
    """
    over: Array = (doubt > level).astype(np.float64)
    # A guess is made where no guess before it ended the draft.
    made: Array = (np.cumsum(over, 1) - over == 0).astype(np.float64)
    written = (np.cumprod(accepted, 1) * made).sum(1) + 1
    return float(written.sum() / (1 + cost * made.sum(1)).sum())


def best_level(doubt: Array, accepted: Array, cost: float) -> float:
    """The level, in steps of 0.05, at which `speed` is greatest."""
    levels = [number / 20 for number in range(1, 20)]
    return max(levels, key=lambda level: speed(doubt, accepted, level, cost))
