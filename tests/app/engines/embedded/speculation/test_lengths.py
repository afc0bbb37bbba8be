"""Each rule stops where its paper, or the code it is taken from, says."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from app.engines.embedded.speculation.lengths import (
    AdaEDL,
    Confidence,
    Fixed,
    Guess,
    HeadRule,
    Heuristic,
    Rule,
    make_rule,
)
from app.types import LengthRule, Speculation

SURE = Guess(1, probability=1.0, entropy=0.0, chance=1.0)
LONGEST = 16


def length(rule: Rule, guesses: Sequence[Guess]) -> int:
    """How many guesses a draft has that is made of these."""
    most = rule.begin()
    for made, guess in enumerate(guesses, 1):
        if not rule.goes_on(guess) or made >= most:
            return made
    raise AssertionError("needs more guesses than there are")


def draft(rule: Rule, accepted: int, guesses: Sequence[Guess] = (SURE,) * LONGEST) -> int:
    """Make a draft of which so many are accepted (all, where it has fewer); its length."""
    made = length(rule, guesses)
    rule.learn(min(accepted, made), made)
    return made


def probabilities(*values: float) -> list[Guess]:
    return [Guess(1, probability=value) for value in values]


@pytest.mark.parametrize("accepted", [0, 2, LONGEST])
def test_a_fixed_draft_is_always_as_long(accepted: int) -> None:
    rule = Fixed(5)
    doubtful = [Guess(1, 0.01, 9.0, 0.01)] * LONGEST
    assert [draft(rule, accepted, doubtful) for _ in range(4)] == [5] * 4


def test_the_heuristic_adds_two_and_takes_one() -> None:
    """Hugging Face's: two more after a draft that was accepted whole, else one less, at least 1."""
    rule = Heuristic(LONGEST)
    outcomes = [LONGEST, LONGEST, 3, 0, LONGEST, *[0] * 12, LONGEST, 0]
    lengths = [draft(rule, accepted) for accepted in outcomes]
    assert lengths == [5, 7, 9, 8, 7, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 1, 1, 1, 3]


def test_the_heuristic_keeps_to_the_longest() -> None:
    rule = Heuristic(6)
    assert [draft(rule, LONGEST) for _ in range(4)] == [5, 6, 6, 6]
    assert draft(Heuristic(3), LONGEST) == 3


@pytest.mark.parametrize("made", [2, 5])
def test_the_heuristic_judges_what_was_verified_not_what_it_allowed(made: int) -> None:
    """A draft that ended early, or was cut, and was accepted so far, was accepted whole."""
    rule = Heuristic(LONGEST)
    rule.begin()
    for _ in range(made):
        rule.goes_on(SURE)
    rule.learn(2, 2)
    assert rule.begin() == 7


@pytest.mark.parametrize(("level", "made"), [(None, 3), (0.7, 2), (0.05, 4)])
def test_confidence_ends_with_a_guess_under_the_level(level: float | None, made: int) -> None:
    """At 0.4 unless a level was named; the guess that is under it is part of the draft."""
    guesses = probabilities(0.9, 0.6, 0.3, 0.04, 0.9)
    assert length(Confidence(LONGEST, level), guesses) == made


def test_confidence_keeps_to_the_longest() -> None:
    assert length(Confidence(3), [SURE] * 5) == 3


def roc_cost(seen: Sequence[tuple[float, bool]], level: float) -> float:
    """FPR + 3 FNR of a threshold that lets through what is at or above it."""
    good = sum(accepted for _, accepted in seen)
    wrong = sum(value >= level and not accepted for value, accepted in seen)
    missed = sum(value < level and accepted for value, accepted in seen)
    return wrong / (len(seen) - good) + 3 * missed / good


@pytest.mark.parametrize("seed", range(8))
def test_confidence_learns_the_threshold_of_least_fpr_and_three_fnr(seed: int) -> None:
    """Against every threshold that there is, after every draft. Ties among the probabilities,
    as of a model that is quite sure, are part of it."""
    rng = random.Random(seed)
    rule, seen = Confidence(LONGEST), list[tuple[float, bool]]()
    for _ in range(30):
        values = [round(rng.random(), 1) for _ in range(rng.randrange(1, 5))]
        accepted = next((n for n, v in enumerate(values) if rng.random() > v), len(values))
        rule.begin()
        for guess in probabilities(*values):
            rule.goes_on(guess)
        rule.learn(accepted, len(values))
        judged = values[: accepted + 1]
        seen += [(value, place < accepted) for place, value in enumerate(judged)]
        both = {accepted for _, accepted in seen} == {True, False}
        if len(seen) <= 5 or not both:
            assert rule.level == 0.4
            continue
        best = min(roc_cost(seen, level) for level, _ in seen)
        assert roc_cost(seen, rule.level) == pytest.approx(best)


def test_what_follows_a_refused_guess_teaches_nothing() -> None:
    """Only the guesses that were verified are looked at: here all are bad that were."""
    rule = Confidence(LONGEST)
    for _ in range(10):
        draft(rule, 0, probabilities(0.9, 0.9, 0.1))
    assert rule.level == 0.4


def test_what_was_not_verified_teaches_nothing() -> None:
    """Guesses that were left out, as they were hardly worth their time, were not refused."""
    confidence, adaedl = Confidence(LONGEST), AdaEDL(LONGEST)
    for _ in range(10):
        for rule in (confidence, adaedl):
            length(rule, [*probabilities(0.9, 0.9, 0.5), Guess(1, 0.1, entropy=9.0)])
            rule.learn(2, 2)
    assert confidence.level == 0.4
    assert adaedl.level < 0.5  # all that it was told of was accepted


def test_a_named_level_stays() -> None:
    for rule in (Confidence(LONGEST, 0.6), AdaEDL(LONGEST, 0.6)):
        for accepted in range(20):
            draft(rule, accepted % 3, probabilities(*[0.9] * 15, 0.1))
        assert rule.level == 0.6


def entropies(*values: float) -> list[Guess]:
    return [Guess(1, entropy=value) for value in values]


@pytest.mark.parametrize("level", [0.2, 0.5, 0.8])
def test_adaedl_stops_at_its_bound_of_the_acceptance(level: float) -> None:
    """1 - sqrt(0.2 H) < level, H in nats: the last entropy to go on is (1 - level)^2 / 0.2."""
    last = (1 - level) ** 2 / 0.2
    rule = AdaEDL(LONGEST, level)
    assert length(rule, entropies(0.0, last - 1e-9, last + 1e-9, 0.0)) == 3


def test_adaedl_keeps_to_the_longest() -> None:
    assert length(AdaEDL(4), entropies(*[0.0] * 8)) == 4


def test_adaedl_moves_its_level_by_the_acceptance() -> None:
    """As in Draft & Verify: the smoothed acceptance (half old, half new) against 0.9; the level by
    a tenth of 0.01 up where it is less, down where it is not."""
    rule = AdaEDL(4)
    level, smoothed, levels = rule.level, 0.9, {rule.level}
    for accepted in [4, 4, 1, 0, 4, 4, 4, 4, 4, 3]:
        assert draft(rule, accepted) == 4
        smoothed = 0.5 * smoothed + 0.5 * accepted / 4
        step = 0.01 if smoothed < 0.9 else -0.01
        level = 0.9 * level + 0.1 * (level + step)
        assert rule.level == pytest.approx(level)
        levels.add(rule.level)
    assert len(levels) > 3


def test_adaedl_learns_nothing_of_no_draft() -> None:
    rule = AdaEDL(4)
    rule.begin()
    rule.learn(0, 0)
    assert rule.level == AdaEDL(4).level


def chances(*values: float) -> list[Guess]:
    return [Guess(1, chance=value) for value in values]


@pytest.mark.parametrize("level", [None, 0.3, 0.9])
def test_the_head_stops_where_the_draft_will_hardly_be_kept_whole(level: float | None) -> None:
    """SpecDec++: 1 - product of the chances > level, 0.7 unless it was named."""
    rng = random.Random(0)
    for _ in range(50):
        values = [rng.uniform(0.5, 1) for _ in range(LONGEST)]
        products = [math.prod(values[: n + 1]) for n in range(LONGEST)]
        under = [n + 1 for n, p in enumerate(products) if 1 - p > (level or 0.7)]
        rule = HeadRule(LONGEST, level)
        assert length(rule, chances(*values)) == (under[0] if under else LONGEST)
        assert length(rule, chances(*values)) == (under[0] if under else LONGEST)  # afresh


def test_a_head_that_lags_counts_the_first_guess_as_certain() -> None:
    """Where the head sees the state after a guess, the engine gives the first a chance of 1."""
    assert length(HeadRule(LONGEST, 0.7), chances(1.0, 0.6, 0.49, 1.0)) == 3


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fixed", Fixed),
        ("heuristic", Heuristic),
        ("confidence", Confidence),
        ("adaedl", AdaEDL),
        ("head", HeadRule),
    ],
)
def test_a_rule_is_made_by_its_name(name: LengthRule, kind: type[Any]) -> None:
    rule = make_rule(Speculation(rule=name), 3)
    assert isinstance(rule, kind)
    assert rule.begin() <= 3


def test_a_level_that_was_named_reaches_its_rule() -> None:
    for name in ("confidence", "adaedl"):
        rule = make_rule(Speculation(rule=name, level=0.25), LONGEST)
        assert isinstance(rule, Confidence | AdaEDL)
        assert rule.level == 0.25
    head = make_rule(Speculation(rule="head", level=0.1), LONGEST)
    assert length(head, chances(0.8, 1.0)) == 1
    fitted = make_rule(Speculation(rule="head"), LONGEST, fitted=0.1)
    assert length(fitted, chances(0.8, 1.0)) == 1
