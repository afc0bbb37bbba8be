"""How many calls a planner's requests have found of late."""

import math

import pytest

from policies.plans.crowd import Crowd


def found(*seen):
    """What is said at each of `seen`: seconds, and calls that run then."""
    now = [0.0]
    crowd = Crowd(lambda: now[0])

    def at(second, calls):
        now[0] = second
        return crowd.others(("int8",), calls)

    return [at(*one) for one in seen]


def test_at_first_it_is_what_runs():
    assert found((5, 3)) == [3]


def test_a_request_that_finds_nobody_is_told_how_many_others_found():
    assert found((0, 6), (1, 0))[1] == pytest.approx(6 * math.exp(-1 / 20))
    steady = found(*((second, 4 * (second % 2)) for second in range(200)))
    assert steady[-2] == pytest.approx(2, rel=0.1)


def test_what_runs_now_counts_at_once():
    assert found((0, 0), (0, 9)) == [0, 9]


def test_a_burst_is_forgotten_once_nobody_came_for_long():
    assert found((0, 50), (600, 0))[1] < 1e-9


def test_it_is_known_by_the_models_that_are_asked():
    crowd = Crowd(lambda: 0.0)
    crowd.others(("int8",), 7)
    assert crowd.others(("fp32",), 0) == 0
