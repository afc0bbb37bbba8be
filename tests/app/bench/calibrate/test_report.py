"""The report of a calibration: who stands where, and a page that says so."""

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from app.bench.calibrate.fitting import fit
from app.bench.calibrate.frontier import frontier, neighbours, standings
from app.bench.calibrate.headline import sentences, sure_steps
from app.bench.calibrate.report import report
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
    for test in neighbours(found, line, "cost"):
        assert test.p > 0.05
        assert test.times == pytest.approx(2.0, rel=0.1)
    assert [row.way for row in sure_steps(found, line)] == ["one"]
    assert len(twin) == 240


def test_steps_are_tested_in_pairs_each_kind_alike(found, profile):
    line = frontier(standings(found, profile), "cost")
    tiny, small = neighbours(found, line, "cost")
    assert (tiny.cheap, tiny.dear, tiny.questions) == ("tiny", "small", 60)
    assert tiny.p < 0.001 and tiny.difference.low > 0.2
    assert tiny.times == pytest.approx(10, rel=0.1)
    assert small.difference.mean == pytest.approx(line[2].value - line[1].value)


def test_right_or_wrong_answers_are_tested_by_mcnemar():
    ways = (Made("a", 0.2, cost=law(1e-9)), Made("b", 0.9, cost=law(1e-8)))
    found = answers(*ways, seeds=(1,), levels=(1,))
    (test,) = neighbours(
        found, frontier(standings(found, fit(found, points(*ways), texts(), {}, 0)), "cost"), "cost"
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
    (test,) = neighbours(found, frontier(rows, "cost"), "cost")
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
    assert "large has the best answers" in others[0]
    assert any("waste" in each and "beaten" in each for each in others)
    assert any(each.startswith("240 of 1200 requests failed") for each in others)


def test_few_questions_make_no_sure_sentence():
    ways = (Made("a", 0.0, cost=law(1e-9)), Made("b", 1.0, cost=law(1e-8)))
    found = answers(*ways, questions=1, seeds=(1,), levels=(1,))
    told = sentences(found, standings(found, fit(found, points(*ways), texts(1), {}, 0)))
    assert any("None of these steps is sure yet" in each for each in told), told


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
        "mean absolute error", "Each model alone", "What a prompt tells by itself",
        "What failed", "How it was measured", "farthing calibrate", "[planner]",
        "503: no engine", "small is as good or better",
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
    rows = re.findall(r"(\S+) USD (\S+) (\S+) (\S+)(?= |$)", " ".join(told))
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
