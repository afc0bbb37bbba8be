"""Laws of cost and time: those that answers were made by are found again."""

import numpy as np
import pytest

from app.bench.calibrate.laws import Sample, common_load, drawn, solved, upper, with_high
from app.profile import Law

TRUTH = Law(base=0.2, prompt=0.002, completion=0.03, load=0.25)


def samples(law=TRUTH, many=60, noise=0.05, levels=(1, 4, 8), random=1):
    rng = np.random.default_rng(random)
    found = []
    for number in range(many):
        prompt, completion = float(rng.integers(10, 500)), float(rng.integers(5, 150))
        for level in levels:
            amount = law.at(prompt, completion, level - 1) * rng.lognormal(0, noise)
            found.append(Sample(f"math/{number}", prompt, completion, level - 1, float(amount)))
    return found


def test_a_law_with_load_is_found_again():
    found = drawn(samples(), common_load([samples()]), robust=True).law
    for name in ("base", "prompt", "completion", "load"):
        assert getattr(found, name) == pytest.approx(getattr(TRUTH, name), rel=0.15), name


def test_a_cost_is_found_exactly_and_has_no_load():
    law = Law(base=1e-7, prompt=1e-8, completion=5e-8)
    found = drawn(samples(law, noise=0.0), None, robust=False)
    for name in ("base", "prompt", "completion", "load"):
        assert getattr(found.law, name) == pytest.approx(getattr(law, name), rel=1e-6), name
    assert found.law.error < 1e-12
    assert found.ratios(samples(law, noise=0.0)) == pytest.approx([1.0] * 180)


def test_a_few_far_off_have_little_say():
    found = samples()
    spoilt = [
        Sample(s.question, s.prompt, s.completion, s.calls, s.amount * (30 if at % 50 == 7 else 1))
        for at, s in enumerate(found)
    ]
    law = solved(spoilt, 0.25, robust=True)
    assert law.at(200, 60, 3) == pytest.approx(TRUTH.at(200, 60, 3), rel=0.1)
    assert solved(spoilt, 0.25, robust=False).at(200, 60, 3) > 1.2 * TRUTH.at(200, 60, 3)


def test_a_way_that_costs_more_one_time_in_five_is_told_by_its_mean():
    rng = np.random.default_rng(3)
    found = [
        Sample(s.question, s.prompt, s.completion, s.calls, s.amount * (6 if dear else 1))
        for s, dear in zip(samples(many=200), rng.random(600) < 0.2, strict=True)
    ]
    law = solved(found, 0.25, robust=True)
    expected = [law.at(s.prompt, s.completion, s.calls) for s in found]
    assert sum(expected) == pytest.approx(sum(s.amount for s in found), rel=0.15)


@pytest.mark.parametrize("load", [0.0, 0.25, 1.2])
def test_all_ways_together_say_how_much_load_matters(load):
    """No question is asked at more than one level, and each way has few."""
    laws = [Law(base=b, prompt=p, completion=c, load=load) for b, p, c in COSTS]
    ways = [
        [each for each in samples(law, many=9, random=at) if _level(each) == each.calls]
        for at, law in enumerate(laws)
    ]
    assert all(len(way) == 9 for way in ways)
    assert common_load(ways) == pytest.approx(load, rel=0.15, abs=0.03)


COSTS = [(0.1, 0.001, 0.01), (0.0, 0.004, 0.03), (1.0, 0.0, 0.01), (0.3, 0.001, 0.0)] * 2


def _level(sample):
    return (0, 3, 7)[int(sample.question.rpartition("/")[2]) % 3]


def test_few_answers_do_not_undo_what_all_say_of_load():
    assert common_load([samples(levels=(1,))]) == common_load([]) == 0.0
    few = samples(many=3, levels=(1, 4), noise=0.3)
    assert solved(few, 0.25, robust=True).load == pytest.approx(0.25, abs=0.15)
    many = samples(Law(base=0.2, prompt=0.002, completion=0.03, load=1.0))
    assert solved(many, 0.25, robust=True).load == pytest.approx(1.0, rel=0.15)


def test_one_level_alone_takes_the_load_from_the_others():
    found = solved(samples(levels=(4,)), 0.25, robust=True)
    assert found.load == pytest.approx(0.25)
    assert found.at(200, 60) == pytest.approx(TRUTH.at(200, 60), rel=0.1)


def test_the_error_is_of_questions_that_were_left_out():
    """Every question has a time of its own, that tells nothing of another's."""
    rng = np.random.default_rng(5)
    found = [
        Sample(f"math/{question}", 100 + question, 20, 0, amount)
        for question, amount in enumerate(rng.uniform(0.5, 1.5, 5))
        for _ in range(4)
    ]
    law = drawn(found, 0.0, robust=True).law
    inside = [abs(s.amount - law.at(s.prompt, s.completion)) for s in found]
    assert law.error > 1.1 * sum(inside) / len(inside)


def test_high_holds_nine_of_ten_that_were_not_seen():
    known, others = samples(noise=0.3, random=11), samples(noise=0.3, random=12)
    found = drawn(known, 0.25, robust=True)
    law = with_high(found, known, ())
    within = [s.amount <= law.high * law.at(s.prompt, s.completion, s.calls) for s in others]
    assert 0.84 < sum(within) / len(within) < 0.96


def test_of_few_answers_all_ways_say_how_far_off_they_may_be():
    few = samples(many=2, levels=(1,), noise=0.01)
    found = drawn(few, 0.0, robust=True)
    assert with_high(found, few, [1.0, 1.1, 7.5]).high == 7.5
    assert upper([]) == 1.0
    assert upper([float(n) for n in range(1, 20)]) == 18.0  # ceil(0.9 * 20)


def test_before_the_answer_its_length_is_its_kinds():
    short = [Sample(f"facts/{n}", 50, 10, 0, 10.0) for n in range(10)]
    long = [Sample(f"code/{n}", 50, 100, 0, 100.0) for n in range(10)]
    found = drawn([*short, *long], None, robust=False)
    assert found.ahead[:10] == pytest.approx([10.0] * 10)
    assert found.ahead[10:] == pytest.approx([100.0] * 10)


@pytest.mark.parametrize("amount", [0.0, 3.0])
def test_one_answer_is_enough_for_a_law(amount):
    only = [Sample("math/1", 10, 5, 0, amount)]
    found = drawn(only, 0.0, robust=True)
    assert found.said == ()
    assert found.law.at(10, 5) == pytest.approx(amount)
