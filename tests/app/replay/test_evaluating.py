"""What is estimated of another policy, against logs whose truth is known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from app.errors import ConfigError
from app.estimates import Estimate
from app.replay import evaluating
from app.replay.decisions import of_documents
from app.replay.estimators import Sample, effective, tail
from app.replay.evaluating import Evaluated, Found
from app.replay.targets import LOGGED, logged, parse
from tests.app.replay.logs import COST, GOOD, document, drawn, way

CAREFUL = 4.0  # USD: the mean of 2 and of three times that
CAREFUL_IS_RIGHT = sum(GOOD["careful"]) / 2


evaluate = partial(evaluating.evaluate, draws=300)


def of(one: Evaluated, reward: str) -> Found:
    return next(found for found in one.found if found.reward == reward)


def holds(estimate: Estimate | None, truth: float) -> bool:
    assert estimate is not None
    return estimate.low <= truth <= estimate.high


def test_over_seeds_each_is_near_the_truth_and_its_interval_holds_it() -> None:
    found = []
    for seed in range(30):
        log, grades = drawn(200, seed)
        one = evaluate(log, parse("careful", log.decided), grades, seed=seed, draws=200)
        found.append((of(one, "cost").mean, of(one, "quality").mean))
    for index, truth in enumerate((CAREFUL, CAREFUL_IS_RIGHT)):
        for name in ("ips", "snips", "robust"):
            estimates = [getattr(each[index], name) for each in found]
            means = [each.mean for each in estimates]
            error = np.std(means) / np.sqrt(len(means))
            assert abs(np.mean(means) - truth) < 4 * error, name
            assert sum(holds(each, truth) for each in estimates) >= 25, name


def test_the_direct_method_is_as_wrong_as_its_model_and_doubly_robust_is_not() -> None:
    log, _ = drawn(2000, 7, wrong=1.5)
    found = of(evaluate(log, parse("careful", log.decided)), "cost").mean
    assert found.direct.mean == pytest.approx(1.5 * CAREFUL, rel=0.05)
    assert not holds(found.direct, CAREFUL) and holds(found.robust, CAREFUL)


def test_doubly_robust_varies_less_than_inverse_propensity() -> None:
    ips, robust = [], []
    for seed in range(30):
        log, _ = drawn(100, seed)
        found = of(evaluate(log, parse("careful", log.decided), draws=2), "cost").mean
        assert found.ips is not None and found.robust is not None
        ips.append(found.ips.mean)
        robust.append(found.robust.mean)
    assert np.var(robust) < np.var(ips) / 4
    assert np.var(robust) > 0


def test_the_policy_that_made_the_log_gets_what_came() -> None:
    log, grades = drawn(100, 3)
    one = evaluate(log, logged(), grades)
    costs = [each.cost.usd for each in log.decided]
    found = of(one, "cost").mean
    for estimate in (found.ips, found.snips):
        assert estimate is not None and estimate.mean == pytest.approx(np.mean(costs))
    assert one.name == LOGGED and one.unsupported == 0
    assert one.effective == pytest.approx(100)
    assert of(one, "quality").mean.snips.mean == pytest.approx(np.mean(list(grades.values())))


def test_what_could_not_have_been_taken_is_said_and_has_only_the_model_s_word() -> None:
    both = [way("small", 1.0, chosen=True, usd=1.0), way("large", 0.0, usd=5.0)]
    half = [way("small", 0.5, usd=1.0), way("large", 0.5, chosen=True, usd=5.0)]
    log = of_documents(
        [
            *(document(f"{n}", both, cost={"usd": 1.5}) for n in range(6)),
            *(document(f"x{n}", half, cost={"usd": 7.0}) for n in range(2)),
        ]
    )
    one = evaluate(log, parse("large", log.decided))
    assert (one.unsupported, one.outside.mean) == (6, 0.75)
    found = of(one, "cost").mean
    assert found.direct.mean == 5.0
    assert found.ips is not None and found.snips is not None and found.robust is not None
    assert (found.ips.mean, found.snips.mean) == (14.0, 7.0)  # of two requests: w is 2
    assert found.robust.mean == pytest.approx((6 * 5 + 2 * (5 + 2 * (7 - 5))) / 8)
    assert one.effective == pytest.approx(2.0)


def test_without_exploration_nothing_is_known_of_another_policy_but_what_was_expected() -> None:
    ways = [way("small", 1.0, chosen=True), way("large", 0.0, usd=5.0)]
    log = of_documents([document(f"{n}", ways) for n in range(4)])
    assert not log.explored
    one = evaluate(log, parse("large", log.decided))
    found = of(one, "cost").mean
    assert (found.ips, found.snips, found.robust) == (None, None, None)
    assert found.direct.mean == 5.0 and of(one, "cost").tail is None
    assert one.unsupported == 4 and one.effective == 0
    assert one.missed["snips"] is None


def test_a_way_that_a_request_did_not_weigh_is_expected_as_in_the_others() -> None:
    first = document("a", [way("small", 1.0, chosen=True)])
    others = [
        document(f"{n}", [way("small", 0.5, chosen=True), way("late", 0.5, usd=usd)])
        for n, usd in enumerate((3.0, 5.0))
    ]
    log = of_documents([first, *others])
    one = evaluate(log, parse("late", log.decided))
    assert one.unsupported == 1
    assert of(one, "cost").mean.direct.mean == pytest.approx(4.0)


def test_quality_without_grades_is_what_was_expected_and_is_said_to_be() -> None:
    log, _ = drawn(50, 1)
    found = of(evaluate(log, parse("large", log.decided)), "quality")
    assert not found.graded and found.mean.robust is None and found.mean.ips is None
    hard = np.mean([each.alternatives[0].usd > 2 for each in log.decided])
    truth = (1 - hard) * GOOD["large"][0] + hard * GOOD["large"][1]
    assert found.mean.direct.mean == pytest.approx(truth)


def test_answers_without_a_grade_are_left_out_of_quality_and_counted() -> None:
    log, grades = drawn(60, 2)
    some = dict(list(grades.items())[:40])
    found = of(evaluate(log, logged(), some), "quality")
    assert (found.requests, found.unknown) == (40, 20)
    with pytest.raises(ConfigError, match="no id in it"):
        evaluate(log, logged(), {"other": 1.0})


def test_met_is_within_budget_deadline_and_first_token() -> None:
    ways = [way("small", 1.0, chosen=True)]
    request = {"deadline_s": 2.0, "first_token_s": 0.5}
    cases = [
        ({}, 1.0),
        ({"outcome": "steered"}, 1.0),
        ({"outcome": "cut"}, 0.0),
        ({"outcome": "failed"}, 0.0),
        ({"times": {"duration_s": 2.1}}, 0.0),
        ({"times": {"first_token_s": 0.6}}, 0.0),
        ({"times": {"first_token_s": None}}, 0.0),
    ]
    for more, met in cases:
        log = of_documents([document("a", ways, request=request, **more)])
        assert of(evaluate(log, logged()), "met").mean.snips.mean == met, more


def test_the_chance_of_a_miss_is_that_of_the_hard_requests_that_take_too_long() -> None:
    log, _ = drawn(3000, 5)
    one = evaluate(log, parse("large", log.decided))  # 6 s of a hard request, 2 of an easy one
    assert holds(one.missed["dr"], 0.5) and holds(one.missed["snips"], 0.5)
    assert one.missed["direct"].mean == pytest.approx(0.5, abs=0.03)


def test_the_worst_are_the_dearest_and_the_least_good() -> None:
    log, grades = drawn(4000, 6)
    one = evaluate(log, parse("small", log.decided), grades)
    # Hard ones cost 2.4 to 3.6, evenly: of the whole the dearest 5 % are their last tenth.
    assert holds(of(one, "cost").tail, COST["small"] * 3 * (1.2 - 0.4 * 0.05))
    assert of(one, "quality").tail.mean == 0.0
    assert of(one, "met").tail is None


def test_a_tail_by_hand() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    ones = np.ones(4)
    sample = Sample(values, np.array([1.0, 1.0, 1.0, 0.0]), ones, ones, ones > 0)
    assert tail(sample, 0.5).mean == pytest.approx((3 + 2 / 2) / 1.5)
    assert tail(sample, 0.0).mean == pytest.approx(2.0)


def test_the_effective_sample_is_smaller_the_more_the_weights_differ() -> None:
    even, all_of_them = np.ones(10), np.ones(10) > 0
    assert effective(even, all_of_them) == 10
    assert effective(np.array([9.0, *[0.0] * 9]), all_of_them) == 1
    assert effective(even, np.arange(10) < 4) == 4


def test_more_requests_than_are_drawn_at_once_make_the_same_estimate(monkeypatch) -> None:
    log, _ = drawn(50, 4)
    target = parse("careful", log.decided)
    whole = evaluate(log, target)
    monkeypatch.setattr("app.replay.estimators._AT_ONCE", 120)
    parts = evaluate(log, target)
    one, other = (of(each, "cost").mean.robust for each in (parts, whole))
    assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_one_request_alone_has_an_estimate() -> None:
    log, _ = drawn(1, 0)
    found = of(evaluate(log, logged()), "cost").mean
    assert found.snips.mean == pytest.approx(log.decided[0].cost.usd)
    with pytest.raises(ValueError, match="nothing to replay"):
        evaluate(of_documents([]), logged())
