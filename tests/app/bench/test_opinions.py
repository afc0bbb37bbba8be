"""Answers without a reference: a judge's opinion, asked over HTTP, and agreement with another."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bench.grading import Question
from app.bench.items import read
from app.bench.opinions import Verdict, asker, chance, judging, worth


@pytest.fixture
def open_question(tmp_path: Path) -> Question:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "Say hello.", "grader": "agree"}))
    return read("mine", path)[0]


@pytest.fixture
def judged(tmp_path: Path) -> Question:
    line = {"system": "Be kind.", "prompt": "Greet.", "grader": "judge", "reference": "Hello!"}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(line))
    return read("mine", path, judged=True)[0]


def reply(text: str, *tops: dict[str, float], cost: float = 0.0) -> dict[str, Any]:
    """What a gateway answers: each place's likeliest tokens and their chances, likeliest first."""
    content = [
        {
            "token": next(iter(top)),
            "logprob": math.log(next(iter(top.values()))),
            "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top.items()],
        }
        for top in tops
    ]
    choice = {"message": {"content": text}, "logprobs": {"content": content} if tops else None}
    return {"choices": [choice], "usage": {"cost": cost}}


def gateway(*answers: tuple[int, dict[str, Any]]) -> tuple[httpx.AsyncClient, list[dict[str, Any]]]:
    """One that gives these answers, in turn; and what it was asked."""
    asked, to_come = list[dict[str, Any]](), iter(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/chat/completions"
        asked.append(json.loads(request.content) | {"usd": request.headers.get("X-Budget-Usd")})
        status, body = next(to_come)
        return httpx.Response(status, json=body)

    transport = httpx.MockTransport(handle)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway"), asked


async def test_agreement_with_the_best_way(open_question: Question) -> None:
    assert await worth(open_question, "Hello, you!", best="hello you") == 1.0
    assert await worth(open_question, "Hello, you there", best="hello you") == pytest.approx(0.8)
    assert await worth(open_question, "", best="") == 0.0
    with pytest.raises(ValueError, match="mine/0: needs the best way's answer"):
        await worth(open_question, "Hello")
    with pytest.raises(ValueError, match="not graded by its text alone"):
        await open_question.grade("Hello")


async def test_a_judge_is_asked_for_its_chance_of_yes(judged: Question) -> None:
    http, asked = gateway((200, reply("Yes", {"Yes": 0.6, " no": 0.2, "Maybe": 0.2}, cost=0.25)))
    async with http:
        found = await worth(judged, "Hi there!", judge="large", ask=asker(http))
    assert found == pytest.approx(0.75)
    (body,) = asked
    assert (body["model"], body["temperature"], body["logprobs"]) == ("large", 0.0, True)
    said = body["messages"][0]["content"]
    for part in ("Be kind.\n\nGreet.", "Hi there!", "A right answer is: Hello!"):
        assert part in said


async def test_what_a_judge_costs_is_told(judged: Question) -> None:
    http, _ = gateway((200, reply("No", {"No": 1.0}, cost=0.25)))
    async with http:
        verdict = await asker(http)("large", judging(judged, "Hi"))
    assert verdict.cost == 0.25 and chance(verdict) == 0.0


async def test_a_judge_that_tells_no_log_probabilities_is_taken_at_its_word(
    judged: Question,
) -> None:
    refusal = {"error": {"message": "logprobs: not of this model"}}
    http, asked = gateway((400, refusal), (200, reply("**Yes**, it is.")))
    async with http:
        ask = asker(http, {"X-Budget-Usd": "0.5"})
        assert await worth(judged, "Hi", judge="large", ask=ask) == 1.0
    assert "logprobs" in asked[0] and "logprobs" not in asked[1]
    assert [body["usd"] for body in asked] == ["0.5", "0.5"]


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (reply("\nYes", {"\n": 1.0}, {"Yes": 0.9, "No": 0.1}), 0.9),  # behind an empty token
        (reply("Well, yes", {"Well": 0.9, "Yeah": 0.1}, {"yes": 1.0}), 0.5),
        (reply("no."), 0.0),
        (reply("It depends."), 0.5),
    ],
)
async def test_what_a_judge_says(judged: Question, body: dict[str, Any], value: float) -> None:
    http, _ = gateway((200, body))
    async with http:
        assert await worth(judged, "Hi", judge="large", ask=asker(http)) == pytest.approx(value)


async def test_an_empty_answer_is_worth_nothing_and_no_judge_is_asked(judged: Question) -> None:
    http, asked = gateway()
    async with http:
        assert await worth(judged, " \n", judge="large", ask=asker(http)) == 0.0
    assert not asked
    with pytest.raises(ValueError, match="mine/0: needs a judge"):
        await worth(judged, "Hi")


async def test_a_judge_that_fails_is_an_error(judged: Question) -> None:
    http, _ = gateway((404, {"error": {"message": "no model small"}}))
    async with http:
        with pytest.raises(httpx.HTTPStatusError, match="the judge small: 404: .*no model small"):
            await worth(judged, "Hi", judge="small", ask=asker(http))


def test_an_unlikely_verdict_without_words() -> None:
    assert chance(Verdict("")) == 0.5
