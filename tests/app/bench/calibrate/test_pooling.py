"""What ways are worth by all answers together, of answers whose truth is known."""

import statistics
from dataclasses import replace

import numpy as np
import pytest

from app.bench.calibrate.fitting import answers_by_way, fit
from app.bench.calibrate.kinds import ALL, qualities
from app.bench.calibrate.observed import Observed
from app.bench.calibrate.pooling import pooled
from tests.app.bench.calibrate.made import KINDS, Made, answers, points, texts


def asked(worths, questions=4, random=0, ease=0.25):
    """Answers of ways with these chances to be right, to questions that are easier or harder."""
    rng = np.random.default_rng(random)
    found = []
    for kind in KINDS:
        for number in range(questions):
            easier = rng.normal(0, ease)
            for way, worth in worths.items():
                right = float(rng.random() < min(max(worth + easier, 0), 1))
                found.append(Observed(way, kind, f"{kind}/{number}", 1, 1, right, ""))
    return found


def by_way(found):
    return answers_by_way(found, [*dict.fromkeys(each.way for each in found)])


def gap(worths, told):
    """How far off it is, squared, of a way beside all others, over ways and kinds."""
    middle = statistics.fmean(worths.values())
    off = []
    for kind in KINDS:
        level = statistics.fmean(told[way][kind].mean for way in worths)
        off += [told[way][kind].mean - level - (worth - middle) for way, worth in worths.items()]
    return statistics.fmean(each**2 for each in off)


def test_it_is_nearer_to_the_truth_than_each_ways_own_mean_where_questions_are_few():
    alike = {f"way{n}": 0.5 for n in range(12)}
    graded = {f"way{n}": 0.3 + 0.04 * n for n in range(12)}
    for worths in (alike, graded):
        ours, theirs = [], []
        for random in range(12):
            ways = by_way(asked(worths, random=random))
            ours.append(gap(worths, pooled(ways)))
            theirs.append(gap(worths, {way: qualities(of) for way, of in ways.items()}))
        assert statistics.fmean(ours) < 0.35 * statistics.fmean(theirs)


def test_with_many_questions_it_is_each_ways_own_mean():
    ways = by_way(asked({"small": 0.3, "large": 0.8}, questions=200))
    told = pooled(ways)
    for way, of in ways.items():
        for kind, own in qualities(of).items():
            assert told[way][kind].mean == pytest.approx(own.mean, abs=0.03)


def test_who_was_asked_the_easy_questions_is_not_better_for_it():
    found = asked({"lucky": 0.4, "good": 0.6, "other": 0.5}, questions=60, ease=0.3)
    right = {each.question for each in found if each.way == "other" and each.worth}
    # The other way got the easy ones right, and the lucky way is asked these; the good one others.
    kept = [
        each
        for each in found
        if each.way == "other" or (each.way == "lucky") == (each.question in right)
    ]
    ways = by_way(kept)
    own = {way: qualities(of)[ALL].mean for way, of in ways.items()}
    told = {way: of[ALL].mean for way, of in pooled(ways).items()}
    assert own["lucky"] > own["good"]
    assert told["good"] > told["lucky"] + 0.1


def test_its_intervals_are_of_how_ways_differ():
    worths, covered = {f"way{n}": 0.35 + 0.05 * n for n in range(7)}, []
    for random in range(60):
        told = pooled(by_way(asked(worths, questions=10, random=random, ease=0.0)))
        level = statistics.fmean(told[way][ALL].mean for way in worths)
        for way, worth in worths.items():
            each, truth = told[way][ALL], level + worth - 0.5
            covered.append(each.low <= truth <= each.high)
    assert 0.9 < statistics.fmean(covered) < 0.99


def test_ways_that_share_no_question_are_told_by_themselves():
    found = [
        Observed("small", "math", "math/1", 1, 1, 0.0, ""),
        Observed("large", "math", "math/2", 1, 1, 1.0, ""),
    ]
    assert pooled(by_way(found)) == {}
    made = [Made("small", 0.3)]
    (way,) = fit(answers(*made), points(*made), texts(), {}, 0).ways
    own = qualities(answers(*made))
    assert way.quality[ALL].mean == own[ALL].mean


def test_ways_that_never_differ_are_alike():
    found = [
        Observed(way, "math", f"math/{n}", 1, 1, n / 10, "") for way in "abc" for n in range(5)
    ]
    told = pooled(by_way(found))
    for of in told.values():
        assert (of[ALL].mean, of[ALL].low, of[ALL].high) == pytest.approx((0.2, 0.2, 0.2))


def test_ways_that_write_as_one_model_count_as_one():
    """Of equals one is best by chance; together they are known better than each alone."""
    worths = {"target": 0.5, "guessing": 0.5, "guessing;longest=4": 0.5, "other": 0.3}
    authors = {way: "other" if way == "other" else "target" for way in worths}
    ways = by_way(asked(worths, questions=6))
    told = pooled(ways, authors)
    assert told["target"] == told["guessing"] == told["guessing;longest=4"] != told["other"]
    apart = pooled(ways)
    assert apart["target"] != apart["guessing"]
    asked_one = {way: of for way, of in ways.items() if way != "guessing"}
    assert pooled(asked_one, authors)["target"] != told["target"]  # its answers count, too


def test_a_profile_knows_what_speculation_is_worth_by_its_target():
    three = [
        Made("large", worth=0.8),
        Made("guessing", worth=0.7),
        Made("failing", worth=0.8, fails=0.7),
    ]
    found = answers(*three, questions=12, hard=lambda number: True)
    alike = [replace(point, author="large") for point in points(*three)]
    large, guessing, failing = fit(found, alike, texts(), {}, 0).ways
    assert large.quality == guessing.quality
    assert failing.quality["all"].mean < large.quality["all"].mean - 0.2
