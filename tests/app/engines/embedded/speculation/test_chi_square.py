"""The tests of distributions say what they should of samples whose distribution is known."""

from __future__ import annotations

import random
from collections import Counter

from tests.app.engines.embedded.speculation import chi_square
from tests.app.engines.embedded.speculation.chi_square import CHANCE

# Some that are common, and a long tail of those seen once or never.
WEIGHTS = [1 / (rank + 1) for rank in range(2000)]


def sample(rng: random.Random, size: int, weights: list[float] = WEIGHTS) -> Counter[int]:
    return Counter(rng.choices(range(len(weights)), weights, k=size))


def probabilities(weights: list[float]) -> dict[int, float]:
    return {at: weight / sum(weights) for at, weight in enumerate(weights)}


def test_samples_of_one_distribution_have_any_p_value() -> None:
    """Small ones a tenth of the time, also where most was seen once; and all of them together."""
    rng = random.Random(0)
    two = [chi_square.between(sample(rng, 400), sample(rng, 700)) for _ in range(400)]
    one = [chi_square.of(sample(rng, 400), probabilities(WEIGHTS)) for _ in range(400)]
    for found in (two, one):
        assert 20 <= sum(p < 0.1 for p in found) <= 60
        assert chi_square.together(found) > CHANCE


def test_samples_of_two_distributions_do_not() -> None:
    rng = random.Random(0)
    other = [weight * (0.7 if at % 2 else 1.3) for at, weight in enumerate(WEIGHTS)]
    assert chi_square.between(sample(rng, 3000), sample(rng, 3000, other)) < CHANCE
    assert chi_square.of(sample(rng, 3000, other), probabilities(WEIGHTS)) < CHANCE


def test_what_has_no_chance_is_seen() -> None:
    assert chi_square.of({0: 10, 1: 1}, {0: 1.0, 1: 0.0}) == 0.0
    assert chi_square.of({0: 10, 2: 1}, {0: 1.0}) == 0.0
