"""How many samples are worth their price: against brute force, by simulated questions."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.types import Sampling
from policies.answers.sampling import (
    MOST,
    Odds,
    affordable,
    sample,
    tries,
    voters,
    worth_of_tries,
    worth_of_vote,
)
from tests.policies.scripts import call

ODDS = Odds(right=0.4, spread=0.3, false_pass=0.1, wrong_costs=2.0, sample_costs=0.02)
odds = st.builds(
    Odds,
    right=st.floats(0.05, 0.95),
    spread=st.floats(0.02, 0.9),
    false_pass=st.floats(0, 1),
    wrong_costs=st.floats(0, 8),
    sample_costs=st.floats(0, 0.3),
)


def question(known, draw):
    """The chance that a sample of a question is right."""
    return draw.betavariate(known.a, known.b) if known.varies else known.right


def tried(known, k, draw):
    """What at most k samples of one question were worth, each of them drawn."""
    p, worth = question(known, draw), 0.0
    for _ in range(k):
        worth -= known.sample_costs
        if draw.random() < p:
            return worth + 1
        if draw.random() < known.false_pass:
            return worth - known.wrong_costs
    return worth


def voted(known, n, draw):
    p = question(known, draw)
    right = sum(draw.random() < p for _ in range(n))
    rival = sum(draw.random() < known.false_pass for _ in range(n - right))
    votes = {"right": right, "rival": rival} | dict.fromkeys(range(n - right - rival), 1)
    first = [one for one, count in votes.items() if count == max(votes.values())]
    won = draw.choice(first) == "right"
    return (1.0 if won else -known.wrong_costs) - known.sample_costs * n


@pytest.mark.parametrize("known", [ODDS, replace(ODDS, right=0.7, false_pass=0.4, spread=0.0)])
@pytest.mark.parametrize(("simulate", "exact"), [(tried, worth_of_tries), (voted, worth_of_vote)])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_worth_is_that_of_simulated_questions(known, simulate, exact, k):
    draw = random.Random(f"{k}")
    mean = sum(simulate(known, k, draw) for _ in range(30_000)) / 30_000
    assert exact(known, k) == pytest.approx(mean, abs=0.03)


def test_simulated_questions_are_worth_most_at_the_chosen_number():
    draw = random.Random(3)
    chosen = tries(ODDS, MOST)
    worth = {k: sum(tried(ODDS, k, draw) for _ in range(60_000)) for k in (1, chosen, 4 * chosen)}
    assert 1 < chosen < MOST and max(worth, key=worth.__getitem__) == chosen


@given(odds)
def test_the_closed_form_is_where_the_worth_is_greatest(known):
    worth = [worth_of_tries(known, k) for k in range(1, MOST + 1)]
    assert worth[tries(known, MOST) - 1] == pytest.approx(max(worth), abs=1e-9)


@settings(max_examples=20)
@given(odds)
def test_so_it_is_with_votes(known):
    worth = [worth_of_vote(known, n) for n in range(1, 17)]
    assert worth[voters(known, 16) - 1] == pytest.approx(max(worth), abs=1e-9)


def test_more_wrong_ones_that_pass_and_dearer_mistakes_mean_fewer_tries():
    base = tries(ODDS, MOST)
    assert tries(replace(ODDS, false_pass=0.3), MOST) < base
    assert tries(replace(ODDS, wrong_costs=8.0), MOST) < base
    assert tries(replace(ODDS, sample_costs=0.1), MOST) < base
    assert tries(replace(ODDS, false_pass=0.0, sample_costs=0.0), MOST) == MOST


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_odds_that_are_certain_have_a_number_too(right):
    known = replace(ODDS, right=right)
    assert 1 <= tries(known, 8) <= 8 and voters(known, 8) == 1


@pytest.mark.parametrize("spread", [5e-324, 1e-308, 1e-100, 1e-15, 1e-7])
@pytest.mark.parametrize("costs", [0.0, 1000.0])
def test_questions_that_are_almost_alike_are_alike(spread, costs):
    known = replace(ODDS, right=0.6, false_pass=0.5, wrong_costs=costs, spread=spread)
    alike = replace(known, spread=0.0)
    assert tries(known, MOST) == tries(alike, MOST)
    assert voters(known, MOST) == voters(alike, MOST)


def test_hopeless_questions_are_tried_once():
    assert tries(replace(ODDS, right=0.05, wrong_costs=8.0), MOST) == 1


def test_money_is_for_whole_answers():
    assert [affordable(paid, 10, 20) for paid in (29, 30, 89, 90)] == [0, 1, 2, 3]
    assert affordable(5, 0, 0) == MOST


def test_each_sample_has_a_seed_of_its_own():
    asked = replace(call("small"), sampling=Sampling(seed=2**63 - 2, logprobs=None))
    made = [sample(asked, number, 0.7) for number in range(3)]
    assert [one.sampling.seed for one in made] == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert {(one.sampling.temperature, one.sampling.logprobs) for one in made} == {(0.7, 0)}
    assert sample(call("small"), 1, 0.7).sampling.seed is None
