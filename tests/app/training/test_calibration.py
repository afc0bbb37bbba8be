"""Scores of probabilities, where what they must be is known."""

from __future__ import annotations

import numpy as np
import pytest

from app.training.calibration import (
    Array,
    Outcomes,
    area,
    best_level,
    brier,
    calibration_error,
    measured,
    speed,
)


def drawn(count: int) -> tuple[Array, Array]:
    """Probabilities, and outcomes that they are right about."""
    random = np.random.default_rng(0)
    said = random.random(count)
    return said, (random.random(count) < said).astype(float)


def test_what_is_right_has_no_calibration_error() -> None:
    said, kept = drawn(200_000)
    ones = np.ones_like(said)
    assert calibration_error(said, kept, ones) < 0.005
    assert calibration_error(said, said, ones) < 1e-9  # a soft label as much as an outcome
    assert calibration_error(said**2, kept, ones) == pytest.approx(1 / 2 - 1 / 3, abs=0.005)


def test_brier_of_probabilities_is_that_of_the_outcomes_they_stand_for() -> None:
    said, kept = drawn(200_000)
    ones = np.ones_like(said)
    assert brier(said, kept, ones) == pytest.approx(1 / 6, abs=0.005)
    assert brier(said, said, ones) == pytest.approx(1 / 6, abs=0.005)
    assert brier(kept, kept, ones) == 0


def test_area_counts_pairs() -> None:
    ones = np.ones(4)
    said = np.array([0.1, 0.4, 0.35, 0.8])
    assert area(said, np.array([0.0, 0.0, 1.0, 1.0]), ones) == pytest.approx(3 / 4)
    assert area(np.full(4, 0.5), np.array([0.0, 0.0, 1.0, 1.0]), ones) == pytest.approx(1 / 2)
    assert area(said, ones, ones) == 0.5
    # A soft label is part of either side.
    assert area(np.array([0.2, 0.9]), np.array([0.0, 0.5]), np.ones(2)) == pytest.approx(5 / 6)


def test_weights_count_as_so_many_guesses() -> None:
    said, kept = drawn(1000)
    times = np.random.default_rng(1).integers(0, 4, 1000)
    for measure in (brier, calibration_error, area):
        repeated = measure(np.repeat(said, times), np.repeat(kept, times), np.ones(times.sum()))
        assert measure(said, kept, times.astype(float)) == pytest.approx(repeated, abs=0.01)


def test_an_interval_is_over_texts() -> None:
    """As many guesses in fewer texts tell less."""
    said, kept = drawn(2000)
    few = Outcomes(kept, np.ones(2000), np.arange(2000) // 200)
    many = Outcomes(kept, np.ones(2000), np.arange(2000))
    alike = Outcomes(np.tile(kept[:200], 10), np.ones(2000), np.arange(2000) % 200)
    for of in (few, many, alike):
        found = measured(brier, said, of)
        assert found.low < found.mean < found.high
    # Texts that are each one guess ten times over: a tenth of what so many guesses tell.
    same = np.tile(said[:200], 10)
    wide, narrow = measured(brier, same, alike), measured(brier, said, many)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_speed_of_drafts_that_end_where_they_should() -> None:
    accepted = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    never, at_once = np.zeros((2, 3)), np.ones((2, 3))
    # Three guesses each: 2 + 1 and 0 + 1 tokens, in twice 1 + 3 * 0.5 passes' time.
    assert speed(never, accepted, 0.5, 0.5) == pytest.approx(4 / 5)
    # One each.
    assert speed(at_once, accepted, 0.5, 0.5) == pytest.approx(3 / 3)
    knowing = np.array([[0.0, 0.6, 0.9], [0.9, 0.9, 0.9]])
    # Two and one: 3 + 1 tokens in 2 + 1.5.
    assert speed(knowing, accepted, 0.5, 0.5) == pytest.approx(4 / 3.5)
    assert best_level(knowing, accepted, 0.5) < 0.6
