"""From signals and what the answers were worth to a calibrated score, by cross-fitting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit
from sklearn.isotonic import IsotonicRegression, isotonic_regression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from app.confidence import Feature, Score, Signals
from app.training.calibration import Array

Objective = Literal["nll", "squared"]
OBJECTIVES: tuple[Objective, ...] = ("nll", "squared")
LEAST = 10  # right answers, and wrong ones, without which nothing is fitted
_FOLDS = 5
_PRIOR = 10  # answers that the logits' own chance counts as, in each part of the isotonic fit
_PENALTY = 1.0  # on the squared weights of standardised features, as scikit-learn's C = 1
_COLDEST, _WARMEST = 0.05, 20.0  # temperatures


def fit(
    found: Sequence[Signals], right: NDArray[np.bool_], features: Sequence[Feature], seed: int
) -> Score:
    """A score by these features of answers that were right or not.

    The weights are fitted by likelihood, and by the squared gap between confidence and correctness
    (the objective of 2404.13016): the one that is nearer to what came out, after temperature
    scaling, on answers that it was not fitted on (five folds) is kept. Temperature (Guo et al.,
    2017) and the isotonic regression above it are fitted on the logits of such answers too; the
    latter is kept where folds of its own say that it surely helps. Raises ValueError where fewer
    than `LEAST` answers are right, or wrong.
    """
    y = right.astype(float)
    if min(y.sum(), (1 - y).sum()) < LEAST:
        raise ValueError(
            f"{int(y.sum())} of {len(y)} answers are right: at least {LEAST} must be, and {LEAST}"
            " must not"
        )
    rows = np.array([[one.feature(name) for name in features] for one in found])
    means = rows.mean(0)
    scales = np.where(rows.std(0) > 1e-9, rows.std(0), 1.0)
    x = (rows - means) / scales
    tried = {objective: _unseen(x, y, objective, seed) for objective in OBJECTIVES}
    warm = {objective: _temperature(logits, y) for objective, logits in tried.items()}
    best = min(OBJECTIVES, key=lambda one: _gap(expit(tried[one] / warm[one]), y))
    logits = tried[best] / warm[best]
    weights, bias = _linear(x, y, best)
    return Score(
        features=tuple(features),
        means=tuple(means.tolist()),
        scales=tuple(scales.tolist()),
        weights=tuple(weights.tolist()),
        bias=bias,
        temperature=warm[best],
        seen=(float(logits.min()), float(logits.max())),
        steps=_steps(logits, y) if _isotonic_helps(logits, y, seed) else (),
        objective=best,
        answers=len(y),
        right=int(y.sum()),
    )


def _gap(said: Array, y: Array) -> float:
    return float(np.mean((said - y) ** 2))


def _linear(x: Array, y: Array, objective: Objective) -> tuple[Array, float]:
    model = LogisticRegression(C=1 / _PENALTY, max_iter=1000).fit(x, y)
    start = np.append(model.coef_[0], model.intercept_[0])
    if objective == "nll":
        return start[:-1], float(start[-1])

    def loss(w: Array) -> tuple[float, Array]:
        said = expit(x @ w[:-1] + w[-1])
        slope = 2 * (said - y) * said * (1 - said)
        # Twice the gap has the likelihood's curvature at 1/2: both are penalised alike.
        penalty = _PENALTY / 2 * float(w[:-1] @ w[:-1])
        gradient = np.append(2 * x.T @ slope + _PENALTY * w[:-1], 2 * slope.sum())
        return 2 * float(((said - y) ** 2).sum()) + penalty, gradient

    w = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return w[:-1], float(w[-1])


def _unseen(x: Array, y: Array, objective: Objective, seed: int) -> Array:
    """The logit of each answer by weights that were fitted without it."""
    logits = np.empty(len(y))
    for learned, held in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(x, y):
        weights, bias = _linear(x[learned], y[learned], objective)
        logits[held] = x[held] @ weights + bias
    return logits


def _temperature(logits: Array, y: Array) -> float:
    signs = 2 * y - 1

    def nll(log_t: float) -> float:
        return -float(log_expit(signs * logits / np.exp(log_t)).sum())

    found = minimize_scalar(nll, bounds=np.log([_COLDEST, _WARMEST]), method="bounded")
    return float(np.exp(found.x))


def _isotonic(logits: Array, y: Array) -> tuple[Array, Array]:
    """Where its level parts begin and end, as logits, and their chances, both rising.

    Each part's share of right answers is drawn to what the logits say by `_PRIOR` answers' weight:
    else a few right ones at an end would promise that all like them are.
    """
    fitted = IsotonicRegression(out_of_bounds="clip").fit(logits, y).predict(logits)
    _, part = np.unique(fitted, return_inverse=True)
    answers, right = np.bincount(part), np.bincount(part, y)
    chances = (right + _PRIOR * np.bincount(part, expit(logits)) / answers) / (answers + _PRIOR)
    chances = isotonic_regression(chances, sample_weight=answers + _PRIOR)
    ends = [(logits[part == one].min(), logits[part == one].max()) for one in range(len(chances))]
    return np.array(ends).ravel(), np.repeat(chances, 2)


def _isotonic_helps(logits: Array, y: Array, seed: int) -> bool:
    """Whether it is nearer to answers that it was not fitted on, by more than a standard error."""
    said = np.empty(len(y))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed + 1)
    for learned, held in folds.split(logits, y):
        said[held] = np.interp(logits[held], *_isotonic(logits[learned], y[learned]))
    gains = (expit(logits) - y) ** 2 - (said - y) ** 2
    return bool(gains.mean() > gains.std() / np.sqrt(len(y)))


def _steps(logits: Array, y: Array) -> tuple[tuple[float, float], ...]:
    pairs = dict(zip(*(column.tolist() for column in _isotonic(logits, y)), strict=True))
    return tuple(pairs.items())  # a part of one answer begins where it ends
