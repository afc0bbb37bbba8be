"""What is learned across sequences: how much a draft model reads of a prompt, and when not to
guess at all."""

from __future__ import annotations

import random

import pytest

from app.engines.embedded.speculation.goodput import Brake, Prospect
from tests.app.engines.embedded.speculation.driven import used

EACH = 0.02  # tokens that are written while a draft model reads one
LONG, SHORT = Prospect.LONG, Prospect.SHORT


def after(wins: list[float]) -> Prospect:
    prospect = Prospect()
    for won in wins:
        prospect.learn(won)
    return prospect


def test_a_prompt_is_read_as_far_as_it_pays() -> None:
    assert after([0.5] * 200).window(1000, EACH) == LONG
    assert after([0.1] * 200).window(1000, EACH) == SHORT  # 3.2 tokens, where LONG takes 5.1
    assert after([0.1] * 200).window(100, EACH) == LONG  # of a short prompt all
    assert after([0.0] * 200).window(1000, EACH) == 0


def test_what_is_not_known_yet_is_found_out() -> None:
    assert Prospect().window(1000, 0.0) == LONG  # nor what reading takes
    assert after([-1.0, 1.0] * 20).window(1000, EACH) == SHORT
    assert after([-1.0, 1.0] * 50).window(1000, EACH) == 0
    assert after([-0.3] * 8).window(1000, EACH) == SHORT
    assert after([-0.3] * 40).window(1000, EACH) == 0  # which is clear


def test_one_of_sixteen_finds_out_whether_it_still_loses() -> None:
    prospect = after([-1.0] * 200)
    found = [prospect.window(1000, EACH) for _ in range(160)]
    assert found.count(SHORT) == 10 and found.count(0) == 150
    for _ in range(100):  # and it does not
        prospect.learn(1.0)
    assert prospect.window(1000, EACH) == LONG


@pytest.mark.parametrize("mean", [-0.3, 0.3])
def test_chance_seldom_decides(mean: float) -> None:
    """A draft wins a token more or less by chance, and is weighed by its mean."""
    rng, wrong = random.Random(0), 0
    for _ in range(100):
        prospect = after([mean + rng.gauss(0, 0.8) for _ in range(100)])
        wrong += (prospect.window(200, EACH) > 0) != (mean > 0)
    assert wrong <= 5


def test_one_outlier_says_little() -> None:
    prospect = after([0.2] * 200)
    prospect.learn(-500.0)
    assert prospect.mean > 0.15


def test_guessing_that_loses_is_stopped_and_tried_ever_more_seldom() -> None:
    found = used(Brake(), [-1.0] * 20_000, tokens=4)
    assert sum(found[:100]) <= 34
    starts = [at for at in range(1, len(found)) if found[at] and not found[at - 1]]
    gaps = [later - sooner for sooner, later in zip(starts, starts[1:], strict=False)]
    assert len(gaps) >= 3 and gaps == sorted(gaps) and gaps[-1] > 4 * gaps[0]
    assert sum(found[10_000:]) <= 0.01 * 10_000


def test_guessing_that_wins_is_hardly_ever_stopped() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        assert all(used(Brake(), [0.15 + rng.gauss(0, 0.9) for _ in range(2000)], tokens=4))


def test_guessing_that_comes_to_lose_is_stopped_whatever_it_had_won() -> None:
    found = used(Brake(), [1.0] * 5000 + [-0.5] * 200, tokens=4)
    assert all(found[:5000]) and not found[5100]


def test_those_who_are_not_weighed_do_not_hold_it_off() -> None:
    """Their steps guess on while it is off, and say nothing about what is weighed."""
    brake = Brake()
    for written in range(400):
        brake.learn(-1.0, written)
    assert not brake.wants(401)
    assert brake.wants(33 + 512)


def test_what_pays_again_is_tried_as_often_as_at_first() -> None:
    brake = Brake()
    found = used(brake, [-1.0] * 5000 + [1.0] * 5000, tokens=4)
    assert all(found[-500:])
    brake.learn(1.0, 50_000)
    for _ in range(40):
        brake.learn(-1.0, 50_000)
    assert not brake.wants(50_000) and brake.wants(50_000 + 512)
