"""Classifiers of prompts, fitted with scikit-learn: of what kind one is, and how hard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from app.bench.calibrate.laws import Array
from app.prompt_features import FEATURES, Classifier, features

SMALL, LARGE = "small", "large"
_FOLDS = 5
_STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # inverse, of the penalty on weights
_BETTER = 0.05  # by so much the large model's answer must be worth more to be needed


@dataclass(frozen=True)
class Sorted:
    """A classifier, and what ones fitted without a prompt say of it, in the prompts' order."""

    classifier: Classifier
    unseen: Array | None  # shape (prompts, classes); None: too few to leave any out


def classify(
    texts: Sequence[str], labels: Sequence[str], classes: Sequence[str], *, even: bool, seed: int
) -> Sorted:
    """A classifier of these texts, one label each, among `classes` (two or more of which, or one,
    are among the labels). `even`: each class counts alike, however many texts it has.

    The strength of its penalty is the one that leaves the least log loss on texts it was not fitted
    to. Where all texts have one label, or there are none, it says the smoothed shares of the labels
    whatever the text.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        return Sorted(_constant(counts, classes), None)
    x = np.array([features(text) for text in texts])
    y = np.array(labels)
    usual = max(counts.values()) / len(labels)
    folds = min(_FOLDS, *counts.values())
    if folds < 2:
        return Sorted(_fitted(x, y, classes, 1.0, even, usual=usual), None)
    split = [*StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y)]
    tried = {one: _unseen(x, y, classes, one, even, split) for one in _STRENGTHS}
    at = [classes.index(label) for label in labels]

    def loss(strength: float) -> float:
        return float(log_loss(at, tried[strength], labels=range(len(classes))))

    best = min(_STRENGTHS, key=loss)
    right = float((tried[best].argmax(1) == np.array(at)).mean())
    return Sorted(_fitted(x, y, classes, best, even, right, usual), tried[best])


def needs(small: float, large: float) -> str:
    """The class of a question by what the answers of two models are worth."""
    return LARGE if large > small + _BETTER else SMALL


def quantiles(values: Sequence[float], steps: int = 20) -> tuple[float, ...]:
    """0 to 1, evenly spaced. Raises ValueError for nothing."""
    if not values:
        raise ValueError("there is nothing to take quantiles of")
    return tuple(np.quantile(np.array(values), np.linspace(0, 1, steps + 1)).tolist())


def _constant(counts: Counter[str], classes: Sequence[str]) -> Classifier:
    total = sum(counts.values()) + 0.5 * len(classes)
    zeros = (0.0,) * len(FEATURES)
    return Classifier(
        features=FEATURES,
        classes=tuple(classes),
        mean=zeros,
        scale=(1.0,) * len(FEATURES),
        weights=(zeros,) * len(classes),
        bias=tuple(float(np.log((counts[name] + 0.5) / total)) for name in classes),
    )


def _pipeline(
    x: Array, y: NDArray[np.str_], strength: float, even: bool
) -> tuple[LogisticRegression, Array, Array]:
    means = x.mean(0)
    scales = np.where(x.std(0) > 1e-9, x.std(0), 1.0)
    model = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced" if even else None)
    return model.fit((x - means) / scales, y), means, scales


def _fitted(
    x: Array,
    y: NDArray[np.str_],
    classes: Sequence[str],
    strength: float,
    even: bool,
    accuracy: float | None = None,
    usual: float | None = None,
) -> Classifier:
    model, means, scales = _pipeline(x, y, strength, even)
    weights, bias = _rows(model)
    order = [list(model.classes_).index(name) for name in classes]
    return Classifier(
        features=FEATURES,
        classes=tuple(classes),
        mean=tuple(means.tolist()),
        scale=tuple(scales.tolist()),
        weights=tuple(tuple(row.tolist()) for row in weights[order]),
        bias=tuple(bias[order].tolist()),
        accuracy=accuracy,
        usual=usual,
    )


def _rows(model: LogisticRegression) -> tuple[Array, Array]:
    """A row for each class: of two classes scikit-learn keeps the second one's alone."""
    weights, bias = model.coef_, model.intercept_
    if len(model.classes_) > 2:
        return weights, bias
    return np.vstack([np.zeros_like(weights), weights]), np.append(np.zeros_like(bias), bias)


def _unseen(
    x: Array,
    y: NDArray[np.str_],
    classes: Sequence[str],
    strength: float,
    even: bool,
    split: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
) -> Array:
    found = np.zeros((len(y), len(classes)))
    for learned, held in split:
        model, means, scales = _pipeline(x[learned], y[learned], strength, even)
        order = [list(model.classes_).index(name) for name in classes]
        found[held] = model.predict_proba((x[held] - means) / scales)[:, order]
    return found
