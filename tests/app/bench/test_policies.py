"""Strategies are compared by what a gateway answers, whichever they are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app.bench.grading import TASKS, Question
from app.bench.grading import questions as read_all
from app.bench.policies import Plan, drawn, gather, jobs, kept, measure
from app.bench.policy_report import Figure, figures, show
from app.bench.ways import Answered, Sampled, Way, body, described, parse, tag
from app.cli import cli
from app.engines.fake import Fake, Script
from app.errors import ConfigError
from app.factory import create_app
from app.settings import Settings
from tests.policies.scripts import fleet
from tests.running import running

SMALL, LARGE = parse("small=small"), parse("large=large")
ECONOMY = parse("economy=large;entropy_switch;raise_at=2.0;lower_at=0.5;small=small;large=large")
SAMPLES = parse("samples=large;n=3")


def scripted() -> Fake:
    """The small model is right of half of the questions below, the large one of all."""
    return Fake({"small": Script(["####", "4"]), "large": Script(["I", "think:", "####", "4"])})


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k.jsonl"
    lines = [{"question": f"{n} and 2?", "answer": "#### 4"} for n in range(2)]
    lines += [{"question": f"{n} and 3?", "answer": "#### 5"} for n in range(2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def plan(questions: Path, tmp_path: Path) -> Plan:
    return Plan(
        ways=(SMALL, LARGE, ECONOMY, SAMPLES),
        tasks={"gsm8k": questions},
        small="small",
        large="large",
        together=2,
        answers=tmp_path / "answers.jsonl",
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path, ledger="off", no_auth=True)


@pytest.fixture
def fake() -> Fake:
    return scripted()


@pytest.fixture
async def http(settings: Settings, fake: Fake) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, catalog=fleet(), engine=fake)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client


async def measured(http: httpx.AsyncClient, plan: Plan) -> dict[str, Figure]:
    return {figure.way: figure for figure in await measure(http, plan)}


async def test_a_figure_for_each_way(http: httpx.AsyncClient, plan: Plan) -> None:
    found = await measured(http, plan)
    assert list(found) == ["small", "large", "economy", "samples"]
    small, large = found["small"], found["large"]
    assert (small.questions, small.answers, small.failed) == (4, 4, 0)
    assert small.quality.mean == large.quality.mean == 0.5
    assert small.written and large.written
    assert (small.written.mean, large.written.mean) == (2, 4)
    assert small.cost_ratio and small.cost_ratio.mean < 0.2
    assert small.seconds_ratio and small.seconds and small.first_s
    assert 0 < small.first_s.mean <= small.seconds.mean
    assert small.against["large"].p == 1 and "small" not in small.against
    assert set(found["economy"].against) == {"small", "large"}
    assert found["samples"].pass_at[1].mean == found["samples"].pass_at[3].mean == 0.5
    assert found["samples"].written and found["samples"].written.mean == 12
    assert str(found["samples"].chances) == "right=0.5, spread=0.99, false_pass=0"
    assert found["small"].chances is None


async def test_a_cost_is_the_gateways(http: httpx.AsyncClient, plan: Plan) -> None:
    """4 tokens of the large model at 20 USD per million, and its prompt at 10, none of it cached
    but for what a template would be."""
    found = (await measured(http, replace(plan, ways=(LARGE,), small=None)))["large"]
    words = len(
        body(Question(TASKS["gsm8k"], 0, {"question": "0 and 2?"}), LARGE, 0, Sampled())[
            "messages"
        ][0]["content"].split()
    )
    assert found.cost_usd and found.cost_usd.mean == pytest.approx(1e-6 * (4 * 20 + words * 10))


async def test_what_was_answered_is_not_asked_again(
    http: httpx.AsyncClient, plan: Plan, fake: Fake
) -> None:
    await measure(http, replace(plan, limit=2))
    asked = len(fake.calls)
    first = plan.answers.read_text() if plan.answers else ""
    found = await measured(http, plan)
    assert plan.answers and plan.answers.read_text().startswith(first)
    assert len(fake.calls) == 2 * asked and found["small"].questions == 4
    await measure(http, plan)
    assert len(fake.calls) == 2 * asked


async def test_a_question_that_has_changed_is_asked_again(
    http: httpx.AsyncClient, plan: Plan, fake: Fake, questions: Path
) -> None:
    plan = replace(plan, ways=(SMALL,), large=None)
    await measure(http, plan)
    asked = len(fake.calls)
    questions.write_text(questions.read_text().replace("0 and 2?", "2 and 2?"))
    await measure(http, plan)
    assert len(fake.calls) == asked + 1


async def test_a_way_that_has_changed_is_not_taken_for_the_same(
    http: httpx.AsyncClient, plan: Plan
) -> None:
    await measure(http, plan)
    with pytest.raises(ConfigError, match="small was another way then"):
        kept(replace(plan, ways=(parse("small=large"),)))
    with pytest.raises(ConfigError, match="was another way then"):
        kept(replace(plan, sampled=Sampled(temperature=0.5)))


async def test_what_is_all_wrong_is_not_known_to_be_hopeless(
    http: httpx.AsyncClient, plan: Plan, fake: Fake
) -> None:
    fake.scripts = {**fake.scripts, "small": Script(["####", "9"])}
    found = await measured(http, plan)
    wrong, half = found["small"].quality, found["large"].quality
    assert (wrong.mean, wrong.low) == (0, 0) and wrong.high == pytest.approx(0.49, abs=0.01)
    assert half.mean == 0.5 and 0.14 < half.low < half.high < 0.86


async def test_samples_that_failed_are_wrong_ones(http: httpx.AsyncClient, plan: Plan) -> None:
    """One of two requests for three answers to each question."""
    plan = replace(plan, ways=(SAMPLES,), small=None, large=None, seeds=2)
    asked = drawn(plan)
    found = await gather(http, plan, list(jobs(plan, asked)))
    for answer in found:
        if answer.seed:
            answer.texts, answer.failed = [], "it broke off"
    (figure,) = await figures(found, asked, ["samples"], small=None, large=None, seed=0)
    assert list(figure.pass_at) == [1, 2, 3, 4, 5, 6] and figure.failed == 4
    # Of the two questions that are answered rightly three of six are right, of the others none.
    assert figure.pass_at[1].mean == figure.quality.mean == 0.25


async def test_wrong_code_that_keeps_the_examples_passes(tmp_path: Path) -> None:
    line = {
        "prompt": 'def half(x):\n    """\n    >>> half(2)\n    1\n    """\n',
        "entry_point": "half",
        "test": "def check(half):\n    assert half(3) == 1.5\n",
    }
    (tmp_path / "code.jsonl").write_text(json.dumps(line) + "\n")
    (question,) = read_all("humaneval", tmp_path / "code.jsonl")
    texts = ["def half(x): return x / 2", "def half(x): return x // 2", "def half(x): return x"]
    asked = described(Way("samples", "small", n=3), Sampled())
    answer = Answered("humaneval", 0, 0, "samples", asked, 0, texts, ["stop"] * 3)
    (figure,) = await figures([answer], [question], ["samples"], small=None, large=None, seed=0)
    assert figure.chances is not None
    assert figure.chances.right == pytest.approx(1 / 3) and figure.chances.false_pass == 0.5


class TestFailures:
    @pytest.fixture
    def fake(self) -> Fake:
        return replace(
            scripted(),
            scripts={
                "small": Script(["####", "4"]),
                "large": Script(["####", "4"], fails_after=1),
            },
        )

    async def test_they_are_counted_and_worth_nothing(
        self, http: httpx.AsyncClient, plan: Plan
    ) -> None:
        found = await measured(http, replace(plan, ways=(SMALL, LARGE)))
        large = found["large"]
        assert (large.answers, large.failed, large.quality.mean) == (4, 4, 0)
        assert large.cost_usd is None and found["small"].failed == 0
        lines = plan.answers.read_text().splitlines() if plan.answers else []
        told = [why for line in lines if (why := json.loads(line)["failed"])]
        assert len(told) == 4 and all("engine_error" in why for why in told), told
        show(list(found.values()))

    async def test_they_are_asked_again(
        self, http: httpx.AsyncClient, plan: Plan, fake: Fake
    ) -> None:
        plan = replace(plan, ways=(SMALL, LARGE))
        await measure(http, plan)
        asked = len(fake.calls)
        await measure(http, plan)
        assert {call.model for call in fake.calls[asked:]} == {"large"}


async def test_what_the_gateway_refuses_is_a_failure(http: httpx.AsyncClient, plan: Plan) -> None:
    ways = (SMALL, parse("odd=small;entropy_switch;raise_at=-1"))
    found = await measured(http, replace(plan, ways=ways, large=None))
    assert found["odd"].failed == 4 and found["odd"].quality.mean == 0


def test_all_ways_of_a_question_follow_each_other(plan: Plan) -> None:
    asked = [Question(TASKS["gsm8k"], n, {"question": f"{n}?"}) for n in range(6)]
    found = list(jobs(replace(plan, seeds=2), asked))
    groups = [found[at : at + 4] for at in range(0, len(found), 4)]
    assert all(len({(job.question.number, job.seed) for job in group}) == 1 for group in groups)
    orders = {tuple(job.way.name for job in group) for group in groups}
    assert len(groups) == 12 and len(orders) > 3
    assert found == list(jobs(replace(plan, seeds=2), asked))
    assert found != list(jobs(replace(plan, seeds=2, seed=1), asked))


def test_no_prompt_begins_as_another_does(plan: Plan) -> None:
    """What the prefix cache kept of one answer would make the next one cheaper."""
    asked = [Question(TASKS["gsm8k"], n, {"question": f"{n}?"}) for n in range(40)]
    for question in asked:
        jobs_of = list(jobs(replace(plan, seeds=2), [question]))
        assert len({tag(question, job.seed, job.way.name) for job in jobs_of}) == len(jobs_of) == 8
    sent = body(asked[0], SMALL, 3, Sampled())
    assert sent["messages"][0]["content"].startswith(f"({tag(asked[0], 3, 'small')}) 0?")
    assert (sent["seed"], sent["temperature"], "policy" in sent) == (3, 0.0, False)
    several = body(asked[0], SAMPLES, 3, Sampled())
    assert (several["n"], several["temperature"]) == (3, 0.7)


def test_a_verifier_may_have_the_questions_examples(plan: Plan) -> None:
    tests = '{"kind":"tests","tests":"{examples}"}'
    way = parse(f"best=small;best_of_n;n=3;verifier={tests}")
    line = {"prompt": "def f():\n    >>> f()\n    3\n", "entry_point": "f", "test": "x"}
    code = Question(TASKS["humaneval"], 0, line)
    sent = body(code, way, 0, Sampled())["policy"]
    assert sent == {
        "name": "best_of_n",
        "n": 3,
        "verifier": {"kind": "tests", "tests": "assert callable(f)\nassert (f()) == (3)\n"},
    }
    sums = Question(TASKS["gsm8k"], 0, {"question": "1?"})
    ways = [job.way.name for job in jobs(replace(plan, ways=(SMALL, way)), [sums, code])]
    assert sorted(ways) == ["best", "small", "small"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("small", "must look like NAME=MODEL"),
        ("=small", "must look like NAME=MODEL"),
        ("a=m;n=0", "whole number from 1"),
        ("a=m;n=x", "whole number from 1"),
        ("a=m;p;raise_at", "'raise_at' must look like option=value"),
    ],
)
def test_a_way_that_says_nothing(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse(text)


async def test_a_way_to_compare_with_that_is_not_there(http: httpx.AsyncClient, plan: Plan) -> None:
    with pytest.raises(ConfigError, match="one way 'huge', not 0"):
        await measure(http, replace(plan, large="huge"))
    with pytest.raises(ConfigError, match="one way 'small', not 2"):
        await measure(http, replace(plan, ways=(SMALL, SMALL, LARGE)))


def command(url: str, questions: Path, *more: str) -> Any:
    ways = ("--way", "small=small", "--way", "large=large", "--small", "small", "--large", "large")
    task = f"gsm8k={questions}"
    return CliRunner().invoke(
        cli,
        ["bench", "policies", "--url", url, "--task", task, *ways, *more],
        catch_exceptions=True,
    )


def test_the_command(settings: Settings, questions: Path, tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    app = create_app(settings, catalog=fleet(), engine=scripted())
    with running(app, settings) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        done = command(url, questions, "--json", str(report), "--limit", "3")
    assert done.exit_code == 0, done.output
    assert "gsm8k, 3 questions" in done.output
    written = json.loads(report.read_text())
    assert [figure["way"] for figure in written["figures"]] == ["small", "large"]
    assert written["plan"]["limit"] == 3 and written["figures"][0]["failed"] == 0


def test_a_task_has_one_file(questions: Path) -> None:
    done = command("http://127.0.0.1:9", questions, "--task", f"gsm8k={questions}")
    assert isinstance(done.exception, ConfigError)
    assert "--task: gsm8k has one file" in str(done.exception)


def test_no_gateway_and_no_task(questions: Path) -> None:
    done = command("http://127.0.0.1:9", questions)
    assert isinstance(done.exception, ConfigError)
    assert "the gateway at http://127.0.0.1:9" in str(done.exception)
    done = command("http://127.0.0.1:9", questions, "--task", "gsm8k")
    assert "must look like gsm8k=FILE.jsonl" in str(done.exception)
