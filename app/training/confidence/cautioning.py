"""How much less to say of unfinished answers, so that what is kept early is as promised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.model_selection import StratifiedKFold

from app.training.calibration import Array
from app.training.confidence.judging import THRESHOLDS

T = TypeVar("T")
_FOLDS = 5
_LEVELS = np.arange(0, 3.01, 0.05)  # logits, the least first
_CERTAIN = 1e-9


def caution(said: Array, right: NDArray[np.bool_]) -> float | None:
    """The least level that keeps the promise of early decisions; None: there is none that does.

    `said` is `[answers, checkpoints]`, by scores that were not fitted on these answers, nan behind
    an answer's end. Each column may be calibrated, and what is kept at the first of several looks
    promise too much all the same: who is kept at the second is who was not at the first. The
    promise is kept where the mean of what was said of the kept ones, over all of THRESHOLDS, is no
    more than the share of them that is right.
    """
    for level in _LEVELS.tolist():
        if _too_much(lowered(said, level), right) <= 0:
            return float(level)
    return None


def lowered(said: Array, level: float) -> Array:
    """These chances, by so many logits less."""
    found: Array = expit(logit(np.clip(said, _CERTAIN, 1 - _CERTAIN)) - level)
    return found


def _too_much(said: Array, right: NDArray[np.bool_]) -> float:
    total = 0.0
    for threshold in THRESHOLDS:
        enough = said >= threshold  # nan is not
        kept = enough.any(1)
        first = said[np.arange(len(said)), enough.argmax(1)]
        total += float((first - right)[kept].sum())
    return total


def unseen(
    learned: Sequence[T],
    right: NDArray[np.bool_],
    say: Callable[[Sequence[T], Sequence[T]], Array],
    seed: int,
) -> Array:
    """What is said of each, `[answers, ...]`, where `say(fitted_on, of)` was not fitted on it."""
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(right, right)
    parts = [
        (held, say([learned[i] for i in rest], [learned[i] for i in held])) for rest, held in folds
    ]
    found = np.concatenate([part for _, part in parts])
    order = np.concatenate([held for held, _ in parts])
    return found[np.argsort(order)]
