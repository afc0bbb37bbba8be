"""What is expected of a way, and what nearly all of its answers do not pass."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from app.profile import Law, Length, Profile, Way
from policies.plans.choosing import NEARLY, Option, Wish
from policies.plans.pace import Slower
from policies.plans.predicting import Forecast, Situation
from tests.policies.measured import interval
from tests.policies.profiles import classifier

NOTHING = Law(base=0, prompt=0, completion=0)
STRETCH = NormalDist().inv_cdf(0.98) / NormalDist().inv_cdf(
    0.9
)  # of a logarithm that nine of ten do not pass, so that 98 of 100 do not


def expected(
    law: Law,
    length: Length,
    room: int = sys.maxsize,
    first: Law = NOTHING,
    **found: Any,
) -> Option:
    """Of the only way, after a prompt of 100 tokens, with nothing beside it."""
    quality = {"chat": interval(0.5)}
    way = Way(
        name="a",
        preset="a",
        policy="direct",
        options={},
        models=("a",),
        fidelity="exact",
        digest="0" * 16,
        quality=quality,
        length=dict.fromkeys(quality, length),
        cost=law,
        first_token=first,
        latency=law,
    )
    kinds: Mapping[str, float] = {"chat": 1.0}
    profile = Profile(measured="", best="a", ways=(way,), kinds=classifier(["chat", "code"]))
    rest: dict[str, Any] = {name: [None] for name in ("usd", "worst")}
    rest |= {
        "unable": [""],
        "calls": [0],
        "others": [0],
        "joins": [True],
        "paces": [Slower()],
        "choices": 1,
    }
    situation = Situation(kinds=kinds, prompt=100, rooms=[room], **(rest | found))
    (option,) = Forecast((way,), profile).options(situation)
    return option


@pytest.mark.parametrize(("long", "late"), [(0.7, 0.1), (0.1, 0.5), (0.4, 0.4)])
def test_nearly_all_answers_keep_to_the_bounds_and_others_as_often_as_is_said(long, late):
    """Of answers whose lengths and times, beside what their lengths say, spread as logarithms."""
    drawn = np.random.default_rng(0)
    lengths = 50 * drawn.lognormal(0, long, 20_000)
    took = (0.1 + 0.02 * lengths) * drawn.lognormal(0, late, lengths.size)
    high = float(np.exp(late * 1.2816))
    length = Length(mean=50, high=float(np.quantile(lengths, 0.9)))
    law = Law(base=0.1, prompt=0, completion=0.02, high=high)
    option = expected(law, length)
    assert option.latency == pytest.approx(1.1)
    assert option.latency_high is not None
    kept = float(np.mean(took <= option.latency_high))
    assert NEARLY - 0.02 < kept < 1
    for most in (0.8, 1.1, 1.4, 2.0, 3.0):
        said = Wish(latency=most).chance(option)
        assert said == pytest.approx(float(np.mean(took <= most)), abs=0.06)


def test_no_answer_is_longer_than_it_may_be():
    law, length = Law(base=1.0, prompt=0.01, completion=0.1), Length(mean=20, high=80)
    assert expected(law, length).latency_high > 1 + 1 + 8
    assert expected(law, length, room=30).latency_high == pytest.approx(1 + 1 + 3)
    assert expected(law, length, room=10).latency_high == pytest.approx(1 + 1 + 1)


def test_what_is_usually_nothing_has_a_bound_too():
    law = Law(base=0, prompt=0, completion=0.1, high=1.5)
    option = expected(law, Length(mean=0, high=10))
    high = pytest.approx(1.5**STRETCH)
    assert (option.latency, option.latency_high, option.cost_high) == (0, high, high)


def test_a_law_that_says_too_much_for_a_number_is_no_error():
    law = Law(base=1e300, prompt=0, completion=1, high=1e300)
    option = expected(law, Length(mean=1e9, high=1e10), 0.98)
    assert option.latency_high == float("inf")


def test_until_its_end_as_many_run_beside_it_as_requests_found_lately():
    law, length = Law(base=0.1, prompt=0, completion=0.02, load=0.2), Length(mean=50, high=50)
    option = expected(law, length, first=law, calls=[2], others=[7])
    assert option.first_token == pytest.approx(law.at(100, 50, 2))
    assert option.latency == pytest.approx(law.at(100, 50, 7))
    assert option.cost == pytest.approx(law.at(100, 50, 0))


def test_what_one_more_call_takes_from_each_other_one():
    """That is what the law says of one more call: 1.1 s, of which a fifth, for each of three."""
    law, length = Law(base=0.1, prompt=0, completion=0.02, load=0.2), Length(mean=50, high=60)
    assert expected(law, length, others=[3]).delay == pytest.approx(3 * 0.2 * 1.1)
    alone, beside = (law.at(100, 50, calls) for calls in (3, 4))
    assert expected(law, length, others=[1]).delay == pytest.approx(beside - alone)
    slower = [Slower(first=9.0, whole=2.0)]
    twice = expected(law, length, others=[3], paces=slower, choices=4).delay
    assert twice == pytest.approx(8 * 3 * 0.2 * 1.1)
    # Where other models run, which do not take part in its batches, it is all of its own time.
    turns = expected(law, length, others=[3], joins=[False]).delay
    assert turns == pytest.approx(3 * 1.1)
    endless = law.model_copy(update={"base": 1e200, "load": 1e200})
    assert expected(endless, length, others=[0]).delay == 0
