"""The report of a calibration: who stands where, and a page that says so."""

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from app.bench.calibrate.fitting import fit
from app.bench.calibrate.frontier import frontier, neighbours, standings
from app.bench.calibrate.headline import among, sentences, sure_steps
from app.bench.calibrate.report import Unreferenced, report
from app.bench.calibrate.unseen import picked
from app.errors import ConfigError
from app.profile import Law, Runtime
from tests.app.bench.calibrate.made import Made, answers, points, texts


def law(price):
    return Law(base=0, prompt=price, completion=5 * price)


TINY = Made("tiny", 0.05, cost=law(1e-9))
SMALL = Made("small", 0.5, cost=law(1e-8))
# As good as the small one, at three times its price and time.
WASTE = Made("waste", 0.3, "cascade", law(3e-8), Law(base=0.5, prompt=0.01, completion=0.1))
LARGE = Made("large", 0.9, cost=law(4e-8))
BROKEN = Made("<b>broken</b>", 0.5, "refine", fails=1.0)
ALL = (TINY, SMALL, WASTE, LARGE, BROKEN)


@pytest.fixture(scope="module")
def found():
    return answers(*ALL)


@pytest.fixture(scope="module")
def profile(found):
    runtimes = {"large": Runtime(first={1: 0.02, 64: 0.1, 256: 0.4}, each=0.025)}
    return fit(found, points(*ALL), texts(), runtimes, 0)


@pytest.fixture(scope="module")
def folder(found, profile, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration") / "new"
    report(found, profile, folder)
    return folder


def test_a_dominated_way_is_named_with_what_beats_it(found, profile):
    rows = {row.way: row for row in standings(found, profile)}
    assert list(rows)[:2] == ["large", "small"]
    assert rows["waste"].better["cost"] == "small"
    assert rows["waste"].useless == "small"
    assert not rows["small"].better.get("cost") and not rows["large"].useless
    assert [row.way for row in frontier([*rows.values()], "cost")] == ["tiny", "small", "large"]


def test_a_way_that_only_failed_is_beaten_by_any(found, profile):
    row = standings(found, profile)[-1]
    assert row.way == BROKEN.name and row.failed == row.asked == 240
    assert row.value == 0.0 and row.cost is None
    assert row.useless == "large"


def test_costs_are_those_of_the_answers(found, profile):
    row = next(row for row in standings(found, profile) if row.way == "small")
    mine = [each.cost for each in found if each.way == "small"]
    assert row.cost.mean == pytest.approx(sum(mine) / len(mine))
    alone = [each.seconds for each in found if each.way == "small" and each.level == 1]
    assert row.seconds.mean == pytest.approx(sum(alone) / len(alone))


def test_equals_are_both_kept_and_no_step_between_them_is_sure():
    one, other = Made("one", 0.5, cost=law(1e-8)), Made("other", 0.5, cost=law(2e-8))
    found = answers(one, other, random=4)
    twin = [each for each in found if each.way == "one"]
    rows = standings(found, fit(found, points(one, other), texts(), {}, 0))
    line = frontier(rows, "cost")
    for test in neighbours(found, line, "cost", 2):
        assert test.p > 0.05
        assert test.times == pytest.approx(2.0, rel=0.1)
    assert [row.way for row in sure_steps(found, line, 2)] == ["one"]
    assert len(twin) == 240


def test_steps_are_tested_in_pairs_each_kind_alike(found, profile):
    line = frontier(standings(found, profile), "cost")
    tiny, small = neighbours(found, line, "cost", 4)
    assert (tiny.cheap, tiny.dear, tiny.questions) == ("tiny", "small", 60)
    assert tiny.p < 0.001 and tiny.difference.low > 0.2
    assert tiny.times == pytest.approx(10, rel=0.1)
    assert small.difference.mean == pytest.approx(line[2].value - line[1].value)


def test_right_or_wrong_answers_are_tested_by_mcnemar():
    ways = (Made("a", 0.2, cost=law(1e-9)), Made("b", 0.9, cost=law(1e-8)))
    found = answers(*ways, seeds=(1,), levels=(1,))
    (test,) = neighbours(
        found,
        frontier(standings(found, fit(found, points(*ways), texts(), {}, 0)), "cost"),
        "cost",
        2,
    )
    assert test.test == "McNemar, exact" and test.p < 0.01


def test_of_few_questions_no_step_is_called_sure():
    """Four of seven answers are better, and none worse: so it comes one time in eight by chance."""
    ways = (Made("a", cost=law(1e-9)), Made("b", cost=law(1e-8)))
    gains = {"a": [0.0] * 7, "b": [0.3, 1.0, 0.6, 0.17, 0.0, 0.0, 0.0]}
    found = [
        replace(each, worth=gains[each.way][int(each.question.rpartition("/")[2])])
        for each in answers(*ways, questions=7, seeds=(1,), levels=(1,), kinds=("math",))
    ]
    rows = standings(found, fit(found, points(*ways), texts(), {}, 0))
    (test,) = neighbours(found, frontier(rows, "cost"), "cost", 2)
    assert (test.test, test.p) == ("signs, exact", 0.125)


def test_seeds_tell_how_much_is_chance(found, profile):
    row = next(row for row in standings(found, profile) if row.way == "small")
    assert set(row.by_seed) == {1, 2}
    assert 0 < row.spread < 0.15 and 0.2 < row.within < 0.5
    once = answers(SMALL, seeds=(1,))
    (alone,) = standings(once, fit(once, points(SMALL), texts(), {}, 0))
    assert alone.spread is None and alone.within is None


def test_the_first_sentence_says_which_way_for_which_money(found, profile):
    first, *others = sentences(found, standings(found, profile))
    assert re.fullmatch(
        r"By what 1,000 requests may cost: tiny \(quality 0\.\d\d\) is what the least money buys,"
        r" from \$0\.00\d+ small \(quality 0\.\d\d\), from \$0\.0\d+ large \(quality 0\.\d\d\);"
        r" more money buys nothing that is surely better\.",
        first,
    )
    assert others[0].startswith("large had the best answers")
    assert any("waste" in each and "beaten" in each for each in others)
    assert (
        "1 of 5 ways were beaten in quality, cost and time at once, 1 of them surely: waste."
        in others
    )
    assert "1 of 5 ways gave no answer at all: <b>broken</b>." in others
    assert any(each.startswith("240 of 1200 requests failed") for each in others)


def test_few_questions_make_no_sure_sentence():
    ways = (Made("a", 0.0, cost=law(1e-9)), Made("b", 1.0, cost=law(1e-8)))
    found = answers(*ways, questions=1, seeds=(1,), levels=(1,))
    told = sentences(found, standings(found, fit(found, points(*ways), texts(1), {}, 0)))
    assert any("None of these steps is sure yet" in each for each in told), told


def graded(gains, **more):
    """Two ways' answers with these worths, and how they stand."""
    slow = Law(base=0.2, prompt=0.002, completion=0.04)
    ways = (Made("a", cost=law(1e-9), noise=0.0), Made("b", cost=law(1e-8), seconds=slow))
    questions = len(next(iter(gains.values())))
    made = answers(*ways, questions=questions, seeds=(1,), levels=(1,), kinds=("math",))
    found = [
        replace(each, worth=gains[each.way][int(each.question.rpartition("/")[2])], **more)
        for each in made
    ]
    return found, standings(found, ways_of(*ways))


def test_few_questions_do_not_make_a_cheap_way_as_good():
    """That it is not surely worse says nothing, where nothing could be."""
    gains = {"a": [0.0] * 5 + [1.0, 0.9], "b": [0.9] * 7}
    told = " ".join(sentences(*graded(gains)))
    assert "b had the best answers: quality 0.90." in told
    gains = {"a": [0.0, 1.0] * 20, "b": [0.02, 1.0] * 20}
    told = " ".join(sentences(*graded(gains)))
    assert "those of a are at most 0.05 worse (quality 0.50) and cost 10% of it" in told


def test_of_equals_in_all_the_first_is_kept():
    """A model before a preset that never asks another one."""
    ways = (Made("again", policy="cascade", cost=law(1e-8)), Made("small", cost=law(1e-8)))
    one = answers(ways[0])
    found = [*one, *(replace(each, way="small") for each in one)]
    rows = standings(found, fit(found, points(*ways), texts(), {}, 0))
    assert [row.way for row in rows] == ["small", "again"]
    assert [row.way for row in frontier(rows, "cost")] == ["small"]
    assert rows[1].better == {"cost": "small", "seconds": "small", "first_s": "small"}
    assert rows[1].useless == "small" and rows[1].surely and not rows[0].useless


def test_of_equals_at_one_cost_none_is_without_use_for_time_alone():
    """Which of them is the quicker one is chance."""
    ways = (Made("small", cost=law(1e-8)), Made("again", policy="cascade", cost=law(1e-8)))
    one = answers(ways[0])
    sooner = [
        replace(each, way="again", seconds=0.9 * each.seconds, first_s=0.9 * each.first_s)
        for each in one
    ]
    rows = standings([*one, *sooner], ways_of(*ways))
    assert [row.better.get("cost", "") for row in rows] == ["", "small"]
    assert [row.better.get("seconds", "") for row in rows] == ["again", ""]
    assert [row.useless for row in rows] == ["", ""]


def test_what_was_beaten_for_a_few_questions_is_not_surely_beaten():
    gains = {"a": [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0], "b": [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]}
    found, rows = graded(gains)
    assert [(row.way, row.useless) for row in rows] == [("a", ""), ("b", "a")]
    assert not rows[1].surely
    assert any(
        "1 of 2 ways were beaten" in e and "none of them surely" in e
        for e in sentences(found, rows)
    )
    _, rows = graded({"a": [1.0, 0.5] * 20, "b": [0.0, 0.5] * 20})
    assert rows[1].useless == "a" and rows[1].surely


@pytest.fixture(scope="module")
def equals():
    """The best of twelve, and how they stand."""
    ways = [Made(f"w{n}", 0.5, cost=law(1e-9 * (n + 1))) for n in range(12)]
    found = answers(*ways, questions=20, seeds=(1,), levels=(1,), random=33)
    return found, standings(found, ways_of(*ways))


def ways_of(*ways):
    """As much of a profile as tells how ways stand: its laws take a while."""
    return SimpleNamespace(ways=points(*ways))


def test_a_step_picked_among_many_is_less_sure(equals):
    """The best of several equals is better than the cheapest one, by chance."""
    found, rows = equals
    line = frontier(rows, "cost")
    assert among(rows) == 12 and len(line) > 1
    assert len(sure_steps(found, line, 2)) > 1  # were it a pair of its own
    assert len(sure_steps(found, line, 12)) == 1
    for test in neighbours(found, line, "cost", 12):
        assert test.adjusted == pytest.approx(min(1.0, 11 * test.p))


def test_the_best_of_many_equals_is_the_luckiest(equals):
    found, rows = equals
    unseen = picked(found, rows)
    assert rows[0].value > 0.58 and 0.4 < unseen < 0.55
    assert any("partly the luckiest" in e and f"{unseen:.2f}" in e for e in sentences(found, rows))
    # What is the best by far is so on all questions.
    clear = [*found, *answers(Made("star", 1.0), questions=20, seeds=(1,), levels=(1,))]
    rows = standings(clear, ways_of(*(Made(row.way) for row in rows), Made("star")))
    assert picked(clear, rows) == rows[0].value == 1.0
    assert not any("luckiest" in each for each in sentences(clear, rows))


def test_of_few_questions_none_can_be_left_out():
    gains = {"a": [1.0] * 9, "b": [0.0] * 9}
    assert picked(*graded(gains)) is None


def test_what_has_no_right_answer_is_told(tmp_path, found, profile):
    said = [*Unreferenced(["chat"], "large", ["essays"], "small")]
    assert "chat: graded by how much an answer is like that of large" in said[0]
    assert said[1].startswith("essays: graded by small") and [*Unreferenced()] == []
    report(found, profile, tmp_path, Unreferenced(["chat"], "large"))
    assert said[0] in (tmp_path / "report.html").read_text("utf-8")


class Page(HTMLParser):
    """Its text, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.text, self.fetched, self.tags, self.quiet = "", [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.quiet = tag == "style"
        self.fetched += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "srcset", "action", "data")
            and not value.startswith(("#", "data:"))
        ]

    def handle_data(self, data):
        if not self.quiet:
            self.text += f" {' '.join(data.split())}"


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text("utf-8"))


def test_a_newcomer_finds_all_of_it_on_one_page(page, found, profile):
    text = " ".join(page.text.split())
    assert sentences(found, standings(found, profile))[0] in text
    for words in (
        "What money buys", "What time buys", "All ways", "Is each step up a sure one?",
        "By kind of question", "Does it come out the same again?", "Can it be foretold?",
        "Beaten in quality, cost and time at once", "waste , surely",
        "mean absolute error", "Each model alone", "What a prompt tells by itself",
        "What failed", "How it was measured", "farthing calibrate", "[planner]",
        "503: no engine", "small was as good or better",
    ):  # fmt: skip
        assert words in text, words
    assert page.tags.count("svg") == 6


def test_a_page_needs_no_other_host_and_no_script(page, folder):
    assert page.fetched == []
    assert "script" not in page.tags
    source = (folder / "report.html").read_text("utf-8")
    assert not re.search(r"https?://|@import|url\((?!#)", source)
    assert "prefers-color-scheme: dark" in source and "#012345" not in source


def test_a_page_shows_names_as_text(page, folder):
    assert "<b>broken</b>" in page.text
    assert "b" not in page.tags
    assert "<b>broken" not in (folder / "report.html").read_text("utf-8")


def test_what_auto_would_choose_is_told_at_five_budgets(page):
    told = page.text.partition("What auto would choose")[2].partition("A star:")[0].split()
    rows = re.findall(r"each: (\S+) (\S+) (\S+) (\S+)(?= |$)", " ".join(told))
    assert len(rows) == 5
    budgets = [float(row[0]) for row in rows]
    assert budgets == sorted(budgets)
    assert {*rows[0][1:]} <= {"tiny", "*"} and rows[-1][1:] == ("large", "large", "large")


def test_a_table_of_numbers_and_a_picture_lie_beside_it(folder):
    with (folder / "ways.csv").open(newline="") as file:
        rows = {row["way"]: row for row in csv.DictReader(file)}
    assert rows["waste"]["as_good_for_no_more_cost"] == "small"
    assert float(rows["small"]["quality_all"]) == pytest.approx(0.5, abs=0.1)
    assert float(rows["small"]["cost_low"]) < float(rows["small"]["cost"])
    assert rows[BROKEN.name]["failed"] == "240" and rows[BROKEN.name]["cost"] == ""
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_little_is_reported_too(tmp_path):
    """One way, one question, no cost."""
    free = Made("free", cost=None)
    found = answers(free, questions=1, seeds=(1,), levels=(1,), kinds=("math",))
    rows = report(found, fit(found, points(free), texts(1), {}, 0), tmp_path)
    assert [row.way for row in rows] == ["free"]
    text = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert "No answer told its cost" in text and "with one seed" in text
    assert (tmp_path / "frontier.png").exists()


def test_where_nothing_can_be_written_it_is_told(tmp_path, found, profile):
    (tmp_path / "file").write_text("")
    once = answers(SMALL, questions=1, seeds=(1,), levels=(1,))
    with pytest.raises(ConfigError, match="file"):
        report(once, fit(once, points(SMALL), texts(1), {}, 0), tmp_path / "file")
