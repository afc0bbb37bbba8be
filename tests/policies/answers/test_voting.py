"""Votes: who is ahead, and that a vote which stops early was decided."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.answers.voting import ahead, decided, groups

answers = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=12)


def counts(found):
    return [group.votes for group in found]


def test_equal_answers_are_one_group_and_none_is_no_answer():
    found = groups(["7", None, "8", "7"], [-1.0, -0.1, -0.5, -0.2])
    assert [(group.answer, group.members) for group in found] == [("7", (3, 0)), ("8", (2,))]


def test_ties_go_to_the_likeliest():
    found = groups(["7", "8", "7", "8", "9"], [-1.0, -0.4, -0.3, -0.9, -0.1])
    assert [group.answer for group in found] == ["7", "8", "9"]
    assert groups(["7", "8"], [None, -5.0])[0].answer == "8"


@pytest.mark.parametrize(("first", "second"), [(1, 0), (3, 0), (4, 0), (2, 2), (5, 1), (9, 4)])
def test_who_is_ahead_is_told_by_the_beta_distribution(first, second):
    draw = random.Random(f"{first} {second}")
    drawn = [draw.betavariate(first + 1, second + 1) > 0.5 for _ in range(40_000)]
    assert ahead(first, second) == pytest.approx(sum(drawn) / len(drawn), abs=0.01)


def test_the_published_rule_stops_at_four_of_four():
    assert ahead(3, 0) == 15 / 16 and ahead(4, 0) == 31 / 32
    assert not decided([3], 30, 0.95) and decided([4], 30, 0.95)
    assert not decided([4, 1], 30, 0.95) and not decided([], 3, 0.95)


@given(answers, st.lists(st.floats(-5, 0), min_size=12, max_size=12))
def test_what_cannot_change_does_not(given_answers, logprobs):
    """At `sure` 1, whenever it says that it is decided, the whole vote ends the same."""
    whole = groups(given_answers, logprobs)
    for asked in range(1, len(given_answers) + 1):
        found = groups(given_answers[:asked], logprobs)
        if found and decided(counts(found), len(given_answers) - asked, 1.0):
            assert found[0].answer == whole[0].answer
            return
    assert not whole


@given(answers.filter(lambda some: any(some)), st.integers(0, 12))
def test_what_could_change_is_not_decided(given_answers, left):
    found = groups(given_answers, [0.0] * len(given_answers))
    votes = counts(found)
    rival = (votes[1] if len(votes) > 1 else 0) + left
    assert decided(votes, left, 1.0) == (left == 0 or votes[0] > rival)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_it_is_decided_sooner_for_those_who_are_content_with_less(first, second, left):
    votes = sorted((first, second), reverse=True)
    if decided(votes, left, 0.95):
        assert decided(votes, left, 0.8)
    if decided(votes, left, 1.0):
        assert decided(votes, left, 0.95)


def test_one_that_stops_early_is_rarely_wrong():
    """Of ten answers, 60 % of them the same one."""
    draw, changed, asked = random.Random(7), 0, 0
    for _ in range(2000):
        made = [draw.choices("abc", (6, 3, 1))[0] for _ in range(10)]
        whole = groups(made, [None] * 10)
        for several in range(1, 11):
            found = groups(made[:several], [None] * several)
            if decided(counts(found), 10 - several, 0.95):
                break
        asked += several
        changed += found[0].answer != whole[0].answer
    assert changed / 2000 < 0.05 and asked / 2000 < 8.5
    assert ahead(0, 0) == 0.5
