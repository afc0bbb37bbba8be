"""`auto` beside single ways, where it is known what each way can."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from app.bench.calibrate import beside as module
from app.bench.calibrate.beside import beside
from app.bench.calibrate.fitting import fit
from app.bench.calibrate.observed import Observed
from app.bench.calibrate.report import report
from tests.app.bench.calibrate.made import Made, points, texts

PRICES = {"small": 1e-6, "large": 4e-6, "waste": 4.5e-6}  # of a token of the answer
LENGTHS = {"code": 20, "math": 100}
SKILL = {"small": {"code": 0, "math": 8}, "large": {"code": 10, "math": 10}, "waste": {}}
POINTS = points(*map(Made, PRICES))


def answered(way, kind, number):
    tokens = LENGTHS[kind]
    return Observed(
        *(way, kind, f"{kind}/{number}", 0, 1),
        worth=float(number % 10 < SKILL[way].get(kind, 5)),
        failed="",
        prompt=30,
        completion=tokens,
        cost=PRICES[way] * tokens,
        first_s=0.1,
        seconds=1.0,
    )


def answers(code=30, math=30):
    """The small one knows no code; the large one knows all, at four times its price. In millionths
    of a USD their answers cost 20 and 80 in code, 100 and 400 in mathematics. The third one is
    dearer and worse."""
    return [
        answered(way, kind, number)
        for way in PRICES
        for kind, many in (("code", code), ("math", math))
        for number in range(many)
    ]


@pytest.fixture(scope="module")
def told():
    return beside(answers(), POINTS, texts(30, ("code", "math")))


def test_auto_is_above_single_ways_where_each_has_its_own_kind(told):
    """Where 100 can be spent and not 400, the best single way is cut short in all of one kind."""
    assert (told.questions, told.lacking, len(told.rivals), told.reached) == (60, "", 5, 5)
    (middle,) = (each for each in told.rivals if 100e-6 < each.usd < 400e-6)
    assert middle.taken == {"large": 30, "small": 30}
    assert middle.quality == pytest.approx((1.0 + 0.8) / 2)
    assert middle.cost == pytest.approx((80e-6 + 100e-6) / 2)
    assert (middle.single, middle.single_quality) == ("large", pytest.approx(0.5))
    # Its answers in mathematics would cost more than there is.
    assert middle.single_cost == pytest.approx((80e-6 + middle.usd) / 2)
    assert middle.difference.mean == pytest.approx(0.4) and middle.difference.low > 0.2
    assert middle.sure and middle.times < 1 and 0 < middle.used < 1
    least, *_, most = told.rivals
    for ends, way in ((least, "small"), (most, "large")):
        assert ends.single == way and ends.taken == {way: 60} and not ends.sure
        assert ends.difference.mean == 0 and ends.times == 1 and ends.p == 1.0


def test_what_is_sure_is_one_sentence(told):
    sure = sum(each.sure for each in told.rivals)
    assert [*told] == [
        "On questions that its profile had not seen, auto was, beside the best single way, surely"
        f" better at {sure} of 5 budgets."
    ]
    worse = [
        replace(each, difference=replace(each.difference, mean=-each.difference.mean))
        for each in told.rivals
    ]
    (line,) = replace(told, rivals=[*told.rivals, *worse])
    assert f"surely better at {sure} and surely worse at {sure} of 10 budgets" in line
    assert [*replace(told, rivals=[each for each in told.rivals if not each.sure])] == []


def test_no_profile_has_seen_what_it_is_asked(monkeypatch):
    """And what few questions there are of a kind is left to all of them."""
    seen = []

    def spied(found, points, texts, *more):
        seen.append(({each.question for each in found}, set(texts)))
        return fit(found, points, texts, *more)

    monkeypatch.setattr(module, "fit", spied)
    few = {f"code/{number}" for number in range(4)}
    told = beside(answers(code=4), POINTS, texts(30, ("code", "math")))
    every = {each.question for each in answers(code=4)}
    left_out = [every - learned for learned, _ in seen]
    assert told.questions == 30 and sorted(map(len, left_out)) == [6] * 5
    assert set().union(*left_out) == every - few
    assert all(of.isdisjoint(read) for of, (_, read) in zip(left_out, seen, strict=True))


def test_kinds_count_alike():
    """As in all of the report, however many questions there are of each."""
    told = beside(answers(code=10, math=40), POINTS, texts(40, ("code", "math")))
    (middle,) = (each for each in told.rivals if 100e-6 < each.usd < 400e-6)
    assert middle.quality == pytest.approx((1.0 + 0.8) / 2)
    assert middle.cost == pytest.approx((80e-6 + 100e-6) / 2)
    assert middle.difference.mean == pytest.approx(0.4)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_failure_is_worth_nothing_and_a_gap_is_no_question(seed):
    found = answers()
    broken = [
        replace(each, failed="503: no engine", cost=None, worth=0.0, prompt=0)
        if each.way == "large" and each.question in ("code/1", "code/2")
        else each
        for each in found
        if (each.way, each.question) != ("small", "math/0")
    ]
    told = beside(broken, POINTS, texts(30, ("code", "math")), seed)
    assert told.questions == 59
    (middle,) = (each for each in told.rivals if 100e-6 < each.usd < 400e-6)
    assert middle.single == "large" and middle.single_quality == pytest.approx(28 / 30 / 2)


def test_few_questions_tell_nothing():
    told = beside(answers(code=9, math=9), POINTS, texts(9, ("code", "math")))
    assert told.rivals == () and [*told] == []
    assert told.lacking == (
        "it takes 20 questions that all ways were asked, at least 5 of a kind, at a cost: there"
        " are 18"
    )


def test_it_takes_two_ways_and_what_they_cost():
    free = [replace(each, cost=None) if each.way != "small" else each for each in answers()]
    told = beside(free, POINTS, texts(30, ("code", "math")))
    assert told.lacking == "it takes two ways that tell what they cost: 1 did"
    gratis = [replace(each, cost=0.0) for each in answers()]
    told = beside(gratis, POINTS, texts(30, ("code", "math")))
    assert told.lacking.endswith("at a cost: there are 0") and told.rivals == ()


def test_it_is_in_the_report(told, tmp_path):
    found, read = answers(), texts(30, ("code", "math"))
    profile = fit(found, POINTS, read, {}, 0)
    report(found, profile, tmp_path, auto=told)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.index("would choose") < page.index("beside the best single way</h2>")
    assert "60 questions that all ways were asked" in page
    assert "no worse at 5 of 5 budgets" in page and [*told][0] in page
    assert '<td class="text">large 30, small 30</td>' in page
    with (tmp_path / "auto.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [float(row["usd"]) for row in rows] == [each.usd for each in told.rivals]
    middle = next(row for row in rows if float(row["difference_low"]) > 0)
    assert middle["single"] == "large" and middle["auto_took"] == "large:30 small:30"
    short = beside(answers(5, 5), POINTS, read)
    report(found, profile, tmp_path, auto=short)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert f"This cannot be told: {short.lacking}." in page
    with (tmp_path / "auto.csv").open(newline="") as file:
        assert [*csv.DictReader(file)] == []  # what was told before is gone
