"""All questions are put in all ways, at all levels alike, and never twice."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bench.calibrate import asking
from app.bench.calibrate.asking import Job, Kept, Plan, Told, gather, groups, read
from app.bench.calibrate.observed import Point
from app.bench.calibrate.points import points, probes
from app.bench.calibrate.spending import Spending
from app.bench.grading import TASKS, Question, Task
from app.bench.ways import Sampled, ask, parse, tag
from app.engines.fake import Fake, Script
from app.errors import ConfigError
from app.factory import create_app
from app.reasons import Decision
from app.settings import Settings
from routers.costs import switch
from tests.policies.scripts import fleet, price
from tests.running import running

WAYS = ("small", "large", "economy")
SUMS = TASKS["gsm8k"]
CHAT = replace(SUMS, name="chat", needs="best")


def scripted(**more: object) -> Fake:
    return Fake(
        {
            "small": Script(["####", "4"], entropies=[1.0, 3.0], **more),
            "large": Script(["I", "think:", "####", "4"]),
        }
    )


def asked(many: int, task: Task = SUMS) -> tuple[Question, ...]:
    return tuple(Question(task, n, {"question": f"{n} and 2?"}) for n in range(many))


def three() -> tuple[Point, ...]:
    found = [p for p in points(fleet(), 0) if p.preset in WAYS]
    assert [point.name for point in found] == list(WAYS)
    return tuple(found)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(three(), asked(4), tmp_path / "answers.jsonl", levels=(1, 2))


@pytest.fixture
def fake() -> Fake:
    return scripted()


@pytest.fixture
async def http(tmp_path: Path, fake: Fake) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(state_dir=tmp_path, ledger="off", no_auth=True)
    app = create_app(settings, catalog=fleet(), engine=fake)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client


def nobody(more: int, doing: str) -> None:
    pass


async def go(
    http: httpx.AsyncClient, plan: Plan, usd: int | None = None, before: Sequence[Kept] = ()
) -> Told:
    spending = Spending(usd, sum(kept.spent for kept in before))
    return await gather(http, plan, spending, before, nobody)


async def test_every_question_in_every_way(http: httpx.AsyncClient, plan: Plan) -> None:
    found = (await go(http, plan)).found
    assert Counter(kept.answer.way for kept in found) == dict.fromkeys(WAYS, 4)
    small = next(kept for kept in found if kept.answer.way == "small")
    assert small.answer.texts == ["#### 4 "] and not small.answer.failed
    assert small.spent == round((small.answer.cost or 0) * 1e12) > 0
    assert read(plan.answers) == found


def test_levels_go_round_the_questions_and_all_ways_of_one_share_its_level(plan: Plan) -> None:
    plan = replace(plan, questions=asked(8), seeds=3, levels=(1, 4, 8))
    jobs = [(group.level, job) for group in groups(plan) for job in group.jobs]
    assert len(jobs) == 8 * 3 * 3 and all(level == job.level for level, job in jobs)
    levels: dict[tuple[int, int], set[int]] = {}
    for level, job in jobs:
        levels.setdefault((job.question.number, job.seed), set()).add(level)
    assert all(len(each) == 1 for each in levels.values())
    assert Counter(level for (level,) in levels.values()) == {1: 8, 4: 8, 8: 8}
    # With several seeds a question meets several levels.
    assert len({level for n in range(3) for level in levels[0, n]}) == 3


def test_all_ways_of_a_question_follow_each_other_in_an_order_of_their_own(plan: Plan) -> None:
    plan = replace(plan, questions=asked(12), levels=(1,))
    jobs = [job for group in groups(plan) for job in group.jobs]
    of = [jobs[at : at + 3] for at in range(0, len(jobs), 3)]
    assert all(len({job.question.number for job in each}) == 1 for each in of)
    assert len({tuple(job.point.name for job in each) for each in of}) > 3
    assert [job.question.number for job in jobs[::3]] != sorted(range(12))


def test_a_level_s_clients_are_at_work_for_a_while(plan: Plan) -> None:
    found = groups(replace(plan, questions=asked(160), levels=(1, 8)))
    assert all(len(group.jobs) >= 3 * group.level for group in found)
    halves = found[: len(found) // 2], found[len(found) // 2 :]
    assert all({group.level for group in half} == {1, 8} for half in halves)  # they take turns


def test_requests_at_once_are_of_one_way(plan: Plan) -> None:
    found = groups(replace(plan, questions=asked(160), levels=(1, 8)))
    ways = [(group.level, {job.point.name for job in group.jobs}) for group in found]
    assert {name for level, names in ways for name in names if level == 8} == set(WAYS)
    assert all(len(names) == 1 for level, names in ways if level == 8)
    assert all(names == set(WAYS) for level, names in ways if level == 1)
    # All of it is still asked, and every question in all ways at one level.
    levels: dict[int, set[int]] = {}
    for group in found:
        for job in group.jobs:
            levels.setdefault(job.question.number, set()).add(group.level)
    assert len(levels) == 160 and all(len(each) == 1 for each in levels.values())
    assert sum(len(group.jobs) for group in found) == 160 * len(WAYS)


async def test_how_many_ran_beside_it_is_measured(http: httpx.AsyncClient, plan: Plan) -> None:
    """At a level of 8 that is less than 7 where the last of them wait for nobody."""
    plan = replace(plan, points=three()[:1], questions=asked(4), levels=(8,))
    found = (await go(http, plan)).found
    assert all(0 < kept.beside <= 3 for kept in found)
    assert sorted(kept.met for kept in found) == [0, 1, 2, 3]
    assert read(plan.answers) == found
    alone = (await go(http, replace(plan, levels=(1,)))).found
    assert [(kept.beside, kept.met) for kept in alone] == [(0.0, 0)] * 4


async def test_requests_at_once_begin_one_after_another(
    http: httpx.AsyncClient, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the time that the way's answers are known to take."""
    waits: list[tuple[int, float]] = []
    client = asking._Asking._client

    async def noted(self: Any, queue: Iterator[Job], level: int, wait: float) -> None:
        waits.append((level, wait))
        await client(self, queue, level, wait)

    monkeypatch.setattr(asking._Asking, "_client", noted)
    found = (await go(http, replace(plan, questions=asked(24), levels=(1, 4)))).found
    assert waits[0] == (1, 0.0)  # by which all ways are known
    assert {wait for level, wait in waits if level == 1} == {0.0}
    several = [wait for level, wait in waits if level == 4]
    longest = max(kept.answer.seconds or 0 for kept in found)
    assert len(several) == 4 * len(WAYS)
    for at in range(0, len(several), 4):
        first, second, *others = several[at : at + 4]
        assert first == 0 < second < longest / 4
        assert others == pytest.approx([2 * second, 3 * second])


def test_no_prompt_begins_as_another_does(plan: Plan) -> None:
    """What the prefix cache kept of one answer would make the next one cheaper, and sooner."""
    jobs = [job for group in groups(replace(plan, seeds=2)) for job in group.jobs]
    tags = {tag(job.question, job.seed, job.point.name) for job in jobs}
    assert len(tags) == len(jobs) == 24


async def test_what_others_are_graded_by_is_asked_first(
    http: httpx.AsyncClient, plan: Plan
) -> None:
    plan = replace(plan, questions=(*asked(3), *asked(3, CHAT)), best="large")
    jobs = [job for group in groups(plan) for job in group.jobs]
    names = [(job.question.task.name, job.question.number, job.point.name) for job in jobs]
    assert len(names) == len(set(names)) == 18
    first = {(job.question.task.name, job.point.name) for job in jobs[:3]}
    assert first == {("chat", "large")}
    found = (await go(http, plan)).found
    assert [kept.answer.way for kept in found[:3]] == ["large"] * 3


async def test_what_was_answered_is_not_asked_again(
    http: httpx.AsyncClient, plan: Plan, fake: Fake
) -> None:
    await go(http, replace(plan, questions=asked(4)[:2]))
    made = len(fake.calls)
    found = (await go(http, plan, before=read(plan.answers))).found
    assert len(found) == 12
    again = len(fake.calls)
    assert again > made
    assert len((await go(http, plan, before=read(plan.answers))).found) == 12
    assert len(fake.calls) == again


@pytest.mark.parametrize("changed", ["price", "question", "level"])
async def test_what_has_changed_is_asked_anew(
    http: httpx.AsyncClient, plan: Plan, fake: Fake, changed: str
) -> None:
    plan = replace(plan, points=tuple(p for p in three() if p.name == "small"), levels=(1,))
    await go(http, plan)
    before, made = read(plan.answers), len(fake.calls)
    if changed == "price":
        dearer = points(fleet(small=price(1, 3, 0.1)), 0)
        plan = replace(plan, points=tuple(p for p in dearer if p.name == "small"))
    elif changed == "level":
        plan = replace(plan, levels=(2,))
    else:
        other = Question(SUMS, 0, {"question": "other?"})
        plan = replace(plan, questions=(other, *plan.questions[1:]))
    await go(http, plan, before=before)
    assert len(fake.calls) - made == (1 if changed == "question" else 4)


class TestFailures:
    @pytest.fixture
    def fake(self) -> Fake:
        return scripted(fails_after=1)

    async def test_they_are_kept_and_told_and_asked_again(
        self, http: httpx.AsyncClient, plan: Plan, fake: Fake
    ) -> None:
        plan = replace(plan, questions=asked(2))
        told = await go(http, plan)
        small = [kept for kept in told.found if kept.answer.way == "small"]
        assert len(small) == 2 and all("engine_error" in kept.answer.failed for kept in small)
        assert told.hopeless == {}
        made = len(fake.calls)
        await go(http, plan, before=read(plan.answers))
        assert {call.model for call in fake.calls[made:]} == {"small"}

    async def test_a_way_that_only_fails_is_asked_no_more(
        self, http: httpx.AsyncClient, plan: Plan, fake: Fake
    ) -> None:
        plan = replace(plan, questions=asked(9), levels=(1,))
        told = await go(http, plan)
        assert list(told.hopeless) == ["small"] and "engine_error" in told.hopeless["small"]
        assert sum(kept.answer.way == "small" for kept in told.found) == 3
        assert sum(kept.answer.way == "large" for kept in told.found) == 9


async def test_where_all_fails_of_a_sudden_it_ends(
    http: httpx.AsyncClient, plan: Plan, fake: Fake
) -> None:
    """Its profile would say that all ways are bad."""
    plan = replace(plan, points=three()[:2], questions=asked(3), levels=(1,))
    await go(http, plan)
    before = read(plan.answers)
    fake.scripts["small"] = replace(fake.scripts["small"], fails_after=0)
    more = replace(plan, questions=asked(60))
    found = (await go(http, more, before=before)).found  # the other one answers in between
    assert Counter(kept.answer.way for kept in found if kept.answer.failed) == {"small": 57}
    fake.scripts["large"] = replace(fake.scripts["large"], fails_after=0)
    lines = len(read(plan.answers))
    with pytest.raises(ConfigError, match=r"25 requests in a row .* (small|large): .*engine_error"):
        await go(http, more, before=before)
    assert len(read(plan.answers)) == lines + 25


@pytest.mark.parametrize("refusals", [2, 99])
async def test_too_much_at_once_is_asked_again(
    plan: Plan, refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key's limit of requests a minute says nothing of a way."""
    monkeypatch.setattr(asking, "_PAUSES_S", (0, 0, 0))
    asked_for: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked_for.append(request)
        if len(asked_for) <= refusals:
            return httpx.Response(429, text="slower")
        done = {"choices": [{"index": 0, "delta": {"content": "4"}, "finish_reason": "stop"}]}
        return httpx.Response(200, text=f"data: {json.dumps(done)}\n\n")

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        one = replace(plan, points=three()[:1], questions=asked(1), levels=(1,))
        (kept,) = (await go(http, one)).found
    assert kept.answer.failed == ("" if refusals == 2 else "429: slower")
    assert len(asked_for) == (3 if refusals == 2 else 4)


async def test_a_refusal_costs_nothing(http: httpx.AsyncClient, plan: Plan) -> None:
    odd = replace(three()[0], options={"raise_at": -1}, policy="entropy_switch", preset="large")
    told = await go(http, replace(plan, points=(odd,)), usd=10**9)
    assert all(kept.answer.failed.startswith("400") for kept in told.found)
    assert sum(kept.spent for kept in told.found) == 0


async def test_the_budget_is_kept(http: httpx.AsyncClient, plan: Plan, fake: Fake) -> None:
    """And goes on where it stopped, with a higher one."""
    whole = sum(kept.spent for kept in (await go(http, plan)).found)
    plan.answers.unlink()
    told = await go(http, plan, usd=whole // 2)
    kept = read(plan.answers)
    assert 0 < sum(each.spent for each in kept) <= whole // 2
    assert told.left == 12 - len(told.found) > 0
    assert not any(each.answer.failed for each in told.found)
    made = len(fake.calls)
    assert (await go(http, plan, usd=whole // 2, before=kept)).left == told.left
    assert len(fake.calls) == made
    told = await go(http, plan, usd=40 * whole, before=kept)
    assert (told.left, len(told.found)) == (0, 12)


async def test_what_the_budget_cut_short_is_no_answer_of_a_way(
    http: httpx.AsyncClient, plan: Plan
) -> None:
    plan = replace(plan, points=three()[1:2], questions=asked(1), levels=(1,))
    told = await go(http, plan, usd=200_000_000)  # its prompt, and some of its four tokens
    assert (told.left, told.found) == (1, [])
    (kept,) = read(plan.answers)
    assert kept.answer.finishes == ["length"] and "budget" in kept.answer.failed
    assert 0 < kept.spent <= 200_000_000
    found = await go(http, plan, usd=10**10, before=[kept])
    assert [each.answer.texts for each in found.found] == [["I think: #### 4 "]]


async def test_what_was_decided_for_want_of_money_is_told() -> None:
    poor = Decision("keep", "small", 2, steered=True)
    assert switch(poor)["steered"] is True and "steered" not in switch(replace(poor, steered=False))
    events = [
        {"choices": [{"index": 0, "delta": {"content": "4"}, "finish_reason": "stop"}]},
        {"farthing": {"policy": "careful", "switches": [switch(poor)]}},
    ]
    said = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=said))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        answer = await ask(http, asked(1)[0], parse("a=small"), 0, Sampled())
    assert (answer.scarce, answer.failed, answer.texts) == (True, "", ["4"])


class TestStopping:
    @pytest.fixture
    def fake(self) -> Fake:
        return scripted(delay=60.0)

    async def test_what_was_under_way_counts_as_if_it_had_cost_all_that_it_held(
        self, tmp_path: Path, plan: Plan, fake: Fake
    ) -> None:
        settings = Settings(state_dir=tmp_path, ledger="off", no_auth=True)
        plan = replace(plan, points=three()[:1], levels=(1,))
        with running(create_app(settings, catalog=fleet(), engine=fake), settings) as server:
            url = f"http://127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=url) as http:
                asking = asyncio.create_task(go(http, plan, usd=10**9))
                while not fake.calls:
                    await asyncio.sleep(0.005)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
        (kept,) = read(plan.answers)
        assert kept.answer.failed == "the calibration was stopped"
        assert kept.spent == 10**9


async def test_a_small_model_s_first_tokens_tell_their_entropy(
    http: httpx.AsyncClient, plan: Plan
) -> None:
    plan = replace(plan, points=tuple(probes(fleet(), three())))
    found = (await go(http, plan)).found
    assert [kept.answer.way for kept in found] == ["small"] * 4
    assert all(kept.answer.entropies == [1.0, 3.0] for kept in found)


async def test_no_gateway_ends_it(plan: Plan) -> None:
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as nowhere:
        with pytest.raises(httpx.ConnectError):
            await go(nowhere, plan)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"level": 1}) + "\n")
    with pytest.raises(ValueError, match=r"answers.jsonl:1: is no answer of a calibration"):
        read(path)
