"""What answers are worth, whoever grades them, and what of that is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bench.calibrate.asking import Kept
from app.bench.calibrate.graded import Graded, Judge, grade
from app.bench.calibrate.spending import Spending
from app.bench.grading import TASKS, Question
from app.bench.ways import Answered

SUMS = Question(TASKS["gsm8k"], 0, {"question": "2 and 2?", "answer": "#### 4"})
CHAT = Question(
    replace(TASKS["gsm8k"], name="chat", needs="best"), 0, {"prompt": "hi", "question": "hi"}
)
ESSAY = Question(
    replace(TASKS["gsm8k"], name="essay", needs="judge"), 0, {"prompt": "go", "question": "go"}
)


def said(way: str, text: str, task: str = "gsm8k", **more: Any) -> Kept:
    answer = Answered(task, 0, more.pop("seed", 0), way, "", 0, texts=[text], **more)
    return Kept(answer, level=4, digest="d")


async def graded(kept: Sequence[Kept], judge: Judge | None = None) -> Graded:
    questions = [SUMS, CHAT, ESSAY]
    return await grade(
        kept, questions, best="large", seed=0, judge=judge, advance=lambda more: None
    )


async def test_by_the_reference() -> None:
    right = said("small", "#### 4", cost=2e-6, prompt=7, completion=2, entropies=[1.0, 2.0])
    found = (await graded([right, said("large", "#### 5")])).found
    assert [(each.way, each.worth) for each in found] == [("large", 0.0), ("small", 1.0)]
    small = found[1]
    assert (small.kind, small.question, small.level, small.entropy) == (
        "gsm8k",
        "gsm8k/0",
        4,
        1.5,
    )
    assert (small.cost, small.prompt, small.completion) == (2e-6, 7, 2)


async def test_a_failure_is_worth_nothing_and_told() -> None:
    (found,) = (await graded([said("small", "#### 4", failed="502: no")])).found
    assert (found.worth, found.failed) == (0.0, "502: no")


async def test_beside_the_best_way_s_answer() -> None:
    answers = [
        said("large", "one two three four", "chat"),
        said("large", "something else", "chat", seed=1),
        said("small", "one two", "chat"),
    ]
    found = (await graded(answers)).found
    worths = {(each.way, each.seed): each.worth for each in found}
    assert worths == {("large", 0): 1.0, ("large", 1): 0.0, ("small", 0): pytest.approx(2 / 3)}


@pytest.mark.parametrize("missing", [[], [said("large", "", "chat", failed="502: no")]])
async def test_without_that_it_cannot_be_graded(missing: list[Kept]) -> None:
    found = await graded([said("small", "one", "chat"), *missing])
    assert found.ungraded == 1 and [each.way for each in found.found] == ["large"] * len(missing)
    assert (await graded([said("small", "one", "essay")])).ungraded == 1  # nor without a judge


class TestJudge:
    @pytest.fixture
    def asked(self) -> list[httpx.Request]:
        return []

    @pytest.fixture
    def status(self) -> int:
        return 200

    @pytest.fixture
    def judge(self, asked: list[httpx.Request], status: int, tmp_path: Path) -> Judge:
        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            body = {"choices": [{"message": {"content": "Yes"}}], "usage": {"cost": 2e-6}}
            return httpx.Response(status, json=body)

        transport = httpx.MockTransport(answer)
        http = httpx.AsyncClient(transport=transport, base_url="http://gateway")
        return Judge("large", http, Spending(10**9), tmp_path / "opinions.jsonl")

    async def test_its_opinion_is_paid_for_and_kept(
        self, judge: Judge, asked: list[httpx.Request]
    ) -> None:
        (found,) = (await graded([said("small", "well", "essay")], judge)).found
        assert found.worth == 1.0 and judge.spending.spent == 2_000_000
        assert asked[0].headers["X-Budget-Usd"] == "0.00025"
        assert json.loads(asked[0].content)["model"] == "large"
        (again,) = (await graded([said("small", "well", "essay")], judge)).found
        assert again.worth == 1.0 and len(asked) == 1
        await graded([said("small", "ill", "essay")], judge)
        await graded([said("small", "well", "essay")], replace(judge, model="small"))
        assert len(asked) == 3
        spent = [json.loads(line) for line in judge.file.read_text().splitlines()]
        assert sum(line.get("spent", 0) for line in spent) == judge.spending.spent == 6_000_000

    async def test_without_money_for_it_nothing_is_graded(
        self, judge: Judge, asked: list[httpx.Request]
    ) -> None:
        found = await graded([said("small", "well", "essay")], replace(judge, spending=Spending(0)))
        assert (found.ungraded, found.found, asked) == (1, [], [])

    @pytest.mark.parametrize("status", [402])
    async def test_a_budget_that_does_not_pay_for_its_prompt(self, judge: Judge) -> None:
        found = await graded([said("small", "well", "essay")], judge)
        assert (found.ungraded, judge.spending.spent) == (1, 0)

    @pytest.mark.parametrize("status", [400, 413])
    async def test_what_is_too_long_for_it_is_left_out(self, judge: Judge) -> None:
        found = await graded([said("small", "well", "essay"), said("small", "#### 4")], judge)
        assert (found.ungraded, len(found.found), judge.spending.spent) == (1, 1, 0)

    @pytest.mark.parametrize("status", [404])
    async def test_one_that_is_not_there_ends_it(self, judge: Judge) -> None:
        with pytest.raises(httpx.HTTPStatusError, match="the judge large: 404"):
            await graded([said("small", "well", "essay")], judge)
