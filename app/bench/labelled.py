"""How often samples are right, or wrong and taken for right: estimated from labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MOST_SPREAD = 0.99  # more would say that nothing is learned from a first sample


@dataclass(frozen=True, slots=True)
class Item:
    """What became of one question's samples."""

    samples: int
    right: int
    passing: int = 0  # wrong, but passed by the verifier; of a vote: that gave the commonest one

    def __post_init__(self) -> None:
        if self.right < 0 or self.passing < 0 or self.right + self.passing > self.samples:
            raise ValueError("right and passing must be counts that samples hold")


@dataclass(frozen=True, slots=True)
class Chances:
    """As `best_of_n` wants to be told."""

    right: float  # mean chance that a sample is right
    spread: float  # of that chance between questions: 0, all alike; 1, each is 0 or 1
    false_pass: float  # share of the wrong ones that pass

    def __str__(self) -> str:
        told = {"right": self.right, "spread": self.spread, "false_pass": self.false_pass}
        return ", ".join(f"{name}={value:.3g}" for name, value in told.items())


def estimate(items: Sequence[Item]) -> Chances:
    """By the method of moments for a beta-binomial, each question weighing by its samples.

    `spread` is the correlation of two samples of a question, 1 / (a + b + 1) of a Beta(a, b)
    (Kleinman 1973, J. Am. Stat. Assoc. 68, 46-54); it needs two samples of some question, and is
    0 without. Raises ValueError where there is no sample.
    """
    used = [item for item in items if item.samples]
    total = sum(item.samples for item in used)
    if not total:
        raise ValueError("there are no samples to estimate from")
    right = sum(item.right for item in used) / total
    wrong = sum(item.samples - item.right for item in used)
    passing = sum(item.passing for item in used)
    return Chances(right, _spread(used, total, right), passing / wrong if wrong else 0.0)


def _spread(items: Sequence[Item], total: int, right: float) -> float:
    shares = [(item.samples / total, item) for item in items]
    observed = sum(w * (item.right / item.samples - right) ** 2 for w, item in shares)
    single = right * (1 - right)
    by_chance = sum(w * (1 - w) / item.samples for w, item in shares)
    between = sum(w * (1 - w) for w, _ in shares) - by_chance
    if single * between <= 0:
        return 0.0
    return min(max((observed - single * by_chance) / (single * between), 0.0), _MOST_SPREAD)
