"""Early decisions: several looks at an answer promise more than each of them does."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from app.training.calibration import Array
from app.training.confidence.cautioning import caution, lowered, unseen
from app.training.confidence.judging import promises


def looks(seed: int, *, alike: bool) -> tuple[Array, NDArray[np.bool_]]:
    """What two looks say, each of them by a signal of its own, or both by the same; each alone is
    calibrated: the mean of chances over what the other signal may be."""
    random = np.random.default_rng(seed)
    signals = random.standard_normal((20_000, 2))
    if alike:
        signals[:, 1] = signals[:, 0]
    right = random.random(len(signals)) < expit(signals.sum(1) - 0.5)
    others = random.standard_normal(4000)
    grid = np.linspace(-5, 5, 201)
    mean = expit(2 * grid - 0.5) if alike else expit(grid[:, None] + others - 0.5).mean(1)
    return np.interp(signals, grid, mean), right


def gap(said: Array, right: NDArray[np.bool_]) -> float:
    """How much too much is promised, in the mean over all that is kept at any threshold."""
    told = [one for one in promises(said, right) if one["kept"]]
    kept = sum(one["kept"] for one in told)
    return sum(one["kept"] * (one["promised"] - one["right"]["mean"]) for one in told) / kept


def test_looks_that_are_calibrated_one_by_one_are_lowered_together() -> None:
    said, right = looks(1, alike=False)
    assert all(abs(said[:, look].mean() - right.mean()) < 0.01 for look in (0, 1))
    level = caution(said, right)
    assert level is not None and level > 0
    fresh, outcome = looks(2, alike=False)
    assert gap(fresh, outcome) > 0.02
    assert abs(gap(lowered(fresh, level), outcome)) < 0.01


def test_looks_that_say_the_same_need_none() -> None:
    said, right = looks(3, alike=True)
    assert caution(said - 1e-3, right) == 0


def test_behind_an_answers_end_nothing_is_kept() -> None:
    said = np.array([[0.2, np.nan], [0.9, np.nan], [np.nan, np.nan]])
    assert caution(said, np.array([False, True, False])) == 0
    assert np.isnan(lowered(said, 1.0)[0, 1])


def test_what_no_caution_mends_is_told() -> None:
    assert caution(np.full((50, 2), 0.99), np.zeros(50, bool)) is None


def test_nothing_is_said_of_what_it_was_fitted_on() -> None:
    def say(fitted: object, of: object) -> Array:
        assert isinstance(fitted, list) and isinstance(of, list)
        assert not set(fitted) & set(of) and len(fitted) + len(of) == 50
        return np.array([[float(one)] for one in of])

    right = np.arange(50) % 3 == 0
    found = unseen(list(range(50)), right, say, seed=0)
    assert found.ravel().tolist() == list(range(50))


@pytest.mark.parametrize("level", [0.0, 0.7])
def test_to_lower_is_by_logits(level: float) -> None:
    assert lowered(np.array([0.5]), level) == pytest.approx(expit(-level))
