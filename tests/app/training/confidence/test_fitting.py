"""Fits of confidence, where the chance of being right is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from app.confidence import Feature, Score, Signals
from app.training.calibration import Array
from app.training.confidence.fitting import _isotonic, fit
from app.training.confidence.judging import THRESHOLDS, judged, lines, promises

FEATURES: tuple[Feature, ...] = ("mean_logprob", "max_entropy")
Truth = Callable[[Array, Array], Array]


def linear(logprob: Array, entropy: Array) -> Array:
    """Far from exp(logprob), which is 0.45 to 1: of such answers most are wrong."""
    return np.asarray(expit(4 + 9 * logprob - 0.3 * entropy))


def stepped(logprob: Array, entropy: Array) -> Array:
    return np.where(logprob > -0.2, 0.9, np.where(logprob > -0.4, 0.5, 0.1))


def answers(truth: Truth, number: int, seed: int) -> tuple[list[Signals], Array, NDArray[np.bool_]]:
    """Signals, what chance they truly have, and what came of it."""
    random = np.random.default_rng(seed)
    logprob, entropy = -0.8 * random.random(number), 4 * random.random(number)
    chance = truth(logprob, entropy)
    found = [Signals(a, 2 * a, b / 2, b, 9) for a, b in zip(logprob, entropy, strict=True)]
    return found, chance, random.random(number) < chance


def told(score: Score, of: list[Signals]) -> Array:
    return np.array([score.probability(one) for one in of])


@pytest.mark.parametrize("truth", [linear, stepped])
def test_the_chances_found_are_those_there_are(truth: Truth) -> None:
    found, _, right = answers(truth, 8000, 0)
    score = fit(found, right, FEATURES, 0)
    new, chance, _ = answers(truth, 4000, 1)
    # At a step's edge no smooth or finite fit is right.
    assert np.mean(np.abs(told(score, new) - chance)) < (0.02 if truth is linear else 0.04)


def test_what_is_not_logistic_needs_the_isotonic_steps() -> None:
    found, _, right = answers(stepped, 4000, 0)
    new, chance, _ = answers(stepped, 4000, 1)
    score = fit(found, right, FEATURES, 0)
    bare = score.model_copy(update={"steps": ()})
    assert score.steps
    assert np.mean((told(score, new) - chance) ** 2) < np.mean((told(bare, new) - chance) ** 2) / 2


def test_the_better_objective_is_kept() -> None:
    """A tenth of what is surely right is wrong: likelihood bends to it more than the gap does."""

    def spoilt(logprob: Array, entropy: Array) -> Array:
        chance = np.where(entropy > 2, expit(40 * (logprob + 0.4)), 0.5)
        return np.where(logprob < -0.75, 0.9, chance)

    spoilt_found, _, spoilt_right = answers(spoilt, 4000, 0)
    assert fit(spoilt_found, spoilt_right, ("mean_logprob",), 0).objective == "squared"
    found, _, right = answers(linear, 400, 2)
    kinds = {fit(found, right, FEATURES, seed).objective for seed in range(6)}
    assert "nll" in kinds


def test_a_few_right_answers_at_an_end_are_no_certainty() -> None:
    logits = np.linspace(-2, 2, 60)
    right = np.arange(60) % 4 == 0
    right[-5:] = True
    places, chances = _isotonic(logits, right.astype(float))
    assert np.all(np.diff(places) >= 0) and np.all(np.diff(chances) >= 0)
    assert 0.85 < chances[-1] < (5 + 10 * 0.89) / 15


def test_calibration_error_falls_and_the_promise_is_kept() -> None:
    found, _, right = answers(linear, 600, 0)
    score = fit(found, right, FEATURES, 0)
    new, _, were = answers(linear, 600, 1)
    report = judged(np.array([one.raw for one in new]), told(score, new), were, 0)
    before, after = report["before"], report["after"]
    assert after["ece"]["high"] < before["ece"]["low"]
    assert after["brier"]["mean"] < before["brier"]["mean"]
    assert after["auroc"]["mean"] > 0.85
    assert all(one["within"] for one in report["promises"] if one["kept"])
    assert [one["threshold"] for one in report["promises"]] == list(THRESHOLDS)
    assert after["ece"]["mean"] < report["ece_by_chance"]["high"] < before["ece"]["mean"]
    assert len(lines("whole", report)) == 4 + len(THRESHOLDS)


def test_a_promise_that_is_not_kept_is_told() -> None:
    said, right = np.full(100, 0.85), np.arange(100) < 60
    kept = {one["threshold"]: one for one in promises(said, right)}
    assert kept[0.8]["kept"] == 100 and kept[0.8]["promised"] == pytest.approx(0.85)
    assert kept[0.8]["right"]["mean"] == 0.6 and kept[0.8]["within"] is False
    assert kept[0.9] == {"threshold": 0.9, "kept": 0}
    assert promises(said, np.arange(100) < 83)[0]["within"] is True


def test_the_first_chance_that_suffices_counts() -> None:
    said = np.array([[0.95, 0.6], [0.3, 0.75], [np.nan, 0.65], [0.2, 0.1]])
    kept = promises(said, np.array([True, True, False, False]))
    assert [one["kept"] for one in kept] == [3, 3, 3, 3, 2, 1, 1]
    assert kept[2]["promised"] == pytest.approx((0.95 + 0.75 + 0.65) / 3)
    assert kept[2]["right"]["mean"] == pytest.approx(2 / 3)


def test_one_seed_makes_one_score() -> None:
    found, _, right = answers(linear, 300, 0)
    assert fit(found, right, FEATURES, 3) == fit(found, right, FEATURES, 3)


def test_a_signal_that_never_changes_is_no_harm() -> None:
    found, _, right = answers(linear, 300, 0)
    score = fit(found, right, (*FEATURES, "log_tokens"), 0)
    assert score.scales[-1] == 1.0
    assert 0 < score.probability(found[0]) < 1


def test_too_few_answers_of_a_kind_are_told() -> None:
    found, _, _ = answers(linear, 100, 0)
    with pytest.raises(ValueError, match="9 of 100 answers are right: at least 10 must be"):
        fit(found, np.arange(100) < 9, FEATURES, 0)
    with pytest.raises(ValueError, match="95 of 100"):
        fit(found, np.arange(100) < 95, FEATURES, 0)
