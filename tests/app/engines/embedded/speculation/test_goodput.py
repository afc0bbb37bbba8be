"""What a pass costs, what guesses are worth: learned from noise, and acted upon without flutter."""

from __future__ import annotations

import random

import pytest

from app.engines.embedded.speculation.goodput import Chances, Pace, Prospect, StepCost, Switch
from tests.app.engines.embedded.speculation.driven import used

FIRST, SEQUENCE, ROW = 0.008, 0.002, 0.0004  # seconds
THOUSAND = 0.0005  # seconds, of a thousand tokens that are attended to
EACH = 200  # tokens that a row attends to, unless it is said otherwise


def attended(sequences: int, rows: int, each: int = EACH) -> int:
    return (sequences + rows) * each


def true_seconds(sequences: int, rows: int, each: int = EACH) -> float:
    read = attended(sequences, rows, each) / 1000
    return FIRST + SEQUENCE * (sequences - 1) + ROW * rows + THOUSAND * read


def known(wrong: float = 1.0) -> StepCost:
    return StepCost(*(wrong * value for value in (FIRST, SEQUENCE, ROW, THOUSAND)))


def said(cost: StepCost, sequences: int, rows: int, each: int = EACH) -> float:
    return cost.seconds(sequences, rows, attended(sequences, rows, each))


def observed(cost: StepCost, rng: random.Random, passes: int, noise: float, held: float) -> None:
    """Passes of a machine with this much noise, some of them held up by another process."""
    for _ in range(passes):
        sequences, rows, each = rng.randrange(1, 9), rng.randrange(0, 17), rng.randrange(1, 1000)
        seconds = true_seconds(sequences, rows, each) * rng.uniform(1 - noise, 1 + noise)
        if rng.random() < held:
            seconds *= rng.uniform(5, 50)
        cost.observe(sequences, rows, attended(sequences, rows, each), seconds)


def told(cost: StepCost) -> tuple[float, float, float]:
    """Of a first sequence, of another, of a further row; attention left out."""
    first = cost.seconds(1)
    return first, cost.seconds(2) - first, cost.row(0)


def test_what_is_known_beforehand_is_said_before_anything_was_measured() -> None:
    cost = known()
    for sequences, rows in ((1, 0), (3, 0), (1, 7), (8, 40)):
        assert said(cost, sequences, rows) == pytest.approx(true_seconds(sequences, rows))
    assert cost.row(3000) == pytest.approx(ROW + 3 * THOUSAND)


@pytest.mark.parametrize("wrong", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_cost_of_a_pass_is_found_under_noise(seed: int, wrong: float) -> None:
    """Whatever was thought beforehand."""
    cost = known(wrong)
    observed(cost, random.Random(seed), 600, noise=0.1, held=0.0)
    assert told(cost) == pytest.approx((FIRST, SEQUENCE, ROW), rel=0.35)
    for sequences, rows, each in ((1, 0, 10), (1, 8, 800), (8, 0, 500), (8, 16, 100)):
        wanted = true_seconds(sequences, rows, each)
        assert said(cost, sequences, rows, each) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_passes_that_were_held_up_hardly_count(seed: int) -> None:
    """One in fifty takes 5 to 50 times as long, which would make the mean half as much again."""
    cost = known()
    observed(cost, random.Random(seed), 600, noise=0.1, held=0.02)
    for sequences, rows in ((1, 0), (1, 8), (8, 0), (8, 16)):
        wanted = true_seconds(sequences, rows)
        assert said(cost, sequences, rows) == pytest.approx(wanted, rel=0.25)


def test_one_that_stands_still_for_a_minute_moves_little() -> None:
    cost = known()
    observed(cost, random.Random(0), 200, noise=0.05, held=0.0)
    before = said(cost, 1, 0)
    cost.observe(1, 0, EACH, 60.0)
    observed(cost, random.Random(1), 8, noise=0.05, held=0.0)
    assert said(cost, 1, 0) == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_it_follows_the_load_of_the_machine(factor: float) -> None:
    cost, rng = known(), random.Random(0)
    observed(cost, rng, 1000, noise=0.1, held=0.0)
    for _ in range(600):
        sequences, rows = rng.randrange(1, 9), rng.randrange(0, 17)
        seconds = factor * true_seconds(sequences, rows)
        cost.observe(sequences, rows, attended(sequences, rows), seconds)
    assert said(cost, 4, 8) == pytest.approx(factor * true_seconds(4, 8), rel=0.1)


def test_what_is_never_seen_keeps_what_was_known_of_it() -> None:
    """A thousand passes of one sequence and one row say nothing of two sequences, nor of guesses:
    their costs are still those measured at the start."""
    cost, rng = known(), random.Random(0)
    for _ in range(1000):
        cost.observe(1, 0, EACH, FIRST * rng.uniform(1.3, 1.7))
    _, sequence, row = told(cost)
    assert said(cost, 1, 0) == pytest.approx(1.5 * FIRST, rel=0.1)
    assert (sequence, row) == pytest.approx((SEQUENCE, ROW), rel=0.3)


def test_nothing_costs_less_than_nothing() -> None:
    """Noise would have it that a row saves time."""
    cost, rng = known(), random.Random(0)
    for _ in range(400):
        rows = rng.randrange(0, 17)
        cost.observe(1, rows, attended(1, rows), FIRST * (1.5 - 0.05 * rows))
    assert cost.row(EACH) > 0
    assert said(cost, 8, 16) >= said(cost, 8, 0) >= said(cost, 1, 0) > 0


def test_a_copy_learns_by_itself() -> None:
    cost = known()
    observed(cost, random.Random(0), 100, noise=0.0, held=0.0)
    other, before = cost.copy(), said(cost, 4, 4)
    assert said(other, 4, 4) == pytest.approx(before)
    for _ in range(200):
        other.observe(4, 4, attended(4, 4), 3 * before)
    assert said(cost, 4, 4) == before < 2 * before < said(other, 4, 4)


def test_chances_begin_at_what_was_known_and_go_where_they_are_seen() -> None:
    chances = Chances((0.2, 0.8), 40.0)
    assert (chances[0], chances[1]) == pytest.approx((0.2, 0.8))
    rng = random.Random(0)
    for _ in range(2000):
        chances.learn(0, rng.random() < 0.6)
    assert chances[0] == pytest.approx(0.6, abs=0.07)
    assert chances[1] == pytest.approx(0.8)  # another kind


def test_a_prior_holds_as_long_as_little_was_seen() -> None:
    chances = Chances((0.5,), 40.0)
    for _ in range(4):
        chances.learn(0, True)
    assert 0.5 < chances[0] < 0.6


def test_a_sequence_begins_with_what_others_have_taught() -> None:
    chances = Chances((0.5,), 10.0)
    first, second = chances.child(8.0), chances.child(8.0)
    for _ in range(300):
        first.learn(0, True)
    assert chances[0] > 0.9 and first[0] > 0.95
    assert second[0] == pytest.approx(chances[0])
    for _ in range(300):
        second.learn(0, False)
    # Its own experience weighs most, and the other's is not taken from it.
    assert second[0] < 0.2
    assert first[0] > 0.75


def test_chances_follow_what_changes() -> None:
    chances = Chances((0.5,), 10.0)
    for kept in [True] * 1000 + [False] * 2000:
        chances.learn(0, kept)
    assert chances[0] < 0.1


HOPE = Prospect.HOPE


def changes(found: list[bool]) -> int:
    return sum(one != other for one, other in zip(found, found[1:], strict=False))


def test_a_draft_that_wins_stays_on() -> None:
    switch = Switch(HOPE)
    assert all(used(switch, [0.5] * 300))
    assert switch.mean == pytest.approx(0.5, abs=0.05)


def test_a_draft_that_loses_goes_off_soon_and_tries_ever_more_seldom() -> None:
    found = used(Switch(HOPE), [-0.5] * 2000)
    assert found[0]
    assert sum(found[:20]) <= 5
    tries = [at for at, used_ in enumerate(found) if used_]
    gaps = [later - sooner for sooner, later in zip(tries, tries[1:], strict=False) if later > 20]
    assert len(gaps) >= 3
    assert gaps == sorted(gaps)
    assert sum(found[500:]) <= 0.02 * 1500


def test_a_draft_that_begins_to_win_comes_on_again() -> None:
    switch = Switch(HOPE)
    used(switch, [-0.5] * 100)
    assert not switch.on
    found = used(switch, [1.0] * 2000)
    assert switch.on
    assert all(found[-500:])


def test_one_that_begins_to_lose_goes_off() -> None:
    switch = Switch(HOPE)
    used(switch, [1.0] * 500)
    used(switch, [-0.5] * 100)
    assert not switch.on


@pytest.mark.parametrize("mean", [-0.03, 0.0, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_it_does_not_flutter_where_it_makes_no_difference(mean: float, seed: int) -> None:
    """Drafts that win and lose about as much, with noise far wider than the two levels."""
    rng = random.Random(seed)
    wins = [mean + rng.gauss(0, 0.1) for _ in range(2000)]
    switch = Switch(HOPE)
    states = []
    for at, won in enumerate(wins):
        if switch.wants(2 * at):
            switch.learn(won, 2 * at + 2)
        states.append(switch.on)
    assert changes(states) <= 2000 / 50


def test_between_the_levels_it_stays_as_it_is() -> None:
    middle = (Switch.OFF + Switch.ON) / 2
    on, off = Switch(HOPE), Switch(HOPE)
    used(off, [-1.0] * 10)
    used(on, [middle] * 500)
    used(off, [middle] * 4000)
    assert on.on and not off.on


def test_a_single_outlier_does_not_switch() -> None:
    """A draft whose process was held up seems to have lost a hundred tokens."""
    switch = Switch(HOPE)
    used(switch, [1.0] * 100)
    used(switch, [-100.0])
    assert switch.on


def test_pace_is_at_least_that_of_plain_steps() -> None:
    """Speculation that goes badly must not make what it could write meanwhile seem little."""
    pace = Pace()
    assert pace.tokens_a_second(4, 0.01) == pytest.approx(400)
    for _ in range(300):
        pace.observe(4, 4, 0.03, 0.01)  # three times as long for the same
    assert pace.tokens_a_second(4, 0.01) == pytest.approx(400)
    assert pace.last == pace.tokens_a_second(4, 0.01)


def test_pace_is_what_is_written() -> None:
    """Twice the tokens in steps that take 1.25 times as long: 1.6 times the pace."""
    pace = Pace()
    for _ in range(300):
        pace.observe(4, 8, 0.0125, 0.01)
    assert pace.tokens_a_second(4, 0.01) == pytest.approx(640, rel=0.02)
    assert pace.tokens_a_second(1, 0.004) == pytest.approx(400, rel=0.02)  # at another size


def test_pace_survives_a_step_that_was_held_up() -> None:
    pace = Pace()
    for _ in range(300):
        pace.observe(1, 2, 0.01, 0.01)
    pace.observe(1, 2, 60.0, 0.01)
    assert pace.tokens_a_second(1, 0.01) > 0.8 * 200
