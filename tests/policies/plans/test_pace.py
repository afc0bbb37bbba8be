"""What is learned of a machine from its answers' times."""

import math

import pytest

from policies.plans.pace import Pace, Slower

MACHINE, PAIR = frozenset({"tiny", "int8"}), frozenset({"draft", "target"})
BESIDE = {name: each for each in (MACHINE, PAIR) for name in each}
BESIDE |= {name: frozenset({name}) for name in ("server", "other")}


def learned(*ratios, models=("int8",)):
    pace = Pace(BESIDE)
    for first, whole in ratios:
        pace.learn(models, first, None if whole is None else (whole, whole))
    return pace


def test_nothing_is_known_at_first():
    assert learned().of(["tiny", "server"]) == Slower(1.0, 1.0)


def test_it_comes_to_what_all_answers_say():
    slower = learned(*[(2.0, 3.0)] * 60).of(["int8"])
    assert slower == pytest.approx((2.0, 3.0), rel=0.01)
    quicker = learned(*[(0.5, 0.25)] * 60).of(["int8"])
    assert quicker == pytest.approx((0.5, 0.25), rel=0.01)


def test_one_answer_says_little_and_no_more_than_that_it_was_eight_times_as_slow():
    assert learned((4.0, 2.0)).of(["int8"]) == pytest.approx((4 ** (1 / 8), 2 ** (1 / 8)))
    assert learned((1e6, 1e-6)).of(["int8"]) == pytest.approx((8 ** (1 / 8), 8 ** (-1 / 8)))


def test_what_is_not_known_of_an_answer_changes_nothing():
    assert learned((None, 2.0)).of(["int8"]) == pytest.approx((1.0, 2 ** (1 / 8)))
    assert learned((0.0, None)).of(["int8"]) == Slower()


@pytest.mark.parametrize(
    ("bounds", "known"),
    [((0.5, 90.0), 2.0), ((4.0, 90.0), 4.0), ((0.1, 1.0), 1.0), ((-0.01, 1.0), 1.0)],
)
def test_of_what_is_known_in_bounds_the_nearest_is_learned(bounds, known):
    pace = learned(*[(2.0, 2.0)] * 60)
    for _ in range(60):
        pace.learn(["int8"], None, bounds)
    assert pace.of(["int8"]) == pytest.approx((2.0, known), rel=0.01)


def test_models_of_one_machine_share_its_pace_and_others_do_not():
    pace = learned(*[(2.0, 2.0)] * 60)
    assert pace.of(["tiny"]) == pace.of(["int8"]) == pytest.approx((2, 2), rel=0.01)
    assert pace.of(["server"]) == Slower()
    pace.learn(["server"], 4.0, (1.0, 1.0))
    assert pace.of(["other"]) == pace.of(["target"]) == Slower()
    pace.learn(["draft"], 4.0, (1.0, 1.0))
    assert pace.of(["target"]).first > 1


def test_who_may_ask_several_is_as_slow_as_the_slowest_in_each_time():
    pace = learned(*[(4.0, 0.5)] * 60)
    pace.learn(["server"], math.exp(0.8), (math.exp(0.8), math.exp(0.8)))
    first, whole = pace.of(["int8", "server"])
    assert (first, whole) == pytest.approx((4.0, math.exp(0.1)), rel=0.01)
