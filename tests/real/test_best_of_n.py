"""The best of several answers of a real model: votes, money, and nothing of what was said told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.real.real import Real

pytestmark = pytest.mark.model

SUM = "What is 2 + 3? End your answer with: The answer is N."
INT8 = "smollm2-135m-int8"


def ask(real: Real, **policy: Any) -> Any:
    asked = {"model": "vote", "max_tokens": 24, "seed": 5, "headers": {"X-Debug": "1"}}
    options = {"name": "vote", "n": 3, "sure": 1.0, "extract": "number", **policy}
    return real.ask(SUM, **asked, extra_body={"policy": options})


def test_several_answers_are_drawn_and_one_of_them_is_given(real: Real) -> None:
    first = ask(real)
    (decided,) = first.farthing["switches"]
    assert (decided["kind"], decided["model"]) == ("select", INT8)
    assert decided["answers"] in (2, 3) and 0 < decided["confidence"] <= 1
    assert first.farthing["fidelity"] == "approximate"
    document = real.http.get(f"/v1/decisions/{first.id}").json()
    ways = [way for way in document["alternatives"] if way["kind"] == "answer"]
    assert [way["name"] for way in ways] == [f"answer {i + 1}" for i in range(len(ways))]
    assert [way["chosen"] for way in ways].count(True) == 1
    assert sum(call["usd"] for call in document["calls"]) == pytest.approx(first.usage.cost)
    written = sum(call["completion_tokens"] for call in document["calls"])
    assert first.usage.completion_tokens <= 24 < written


def test_the_same_seed_gives_the_same_answer_however_many_are_written_at_once(real: Real) -> None:
    said = {ask(real, choose="logprob", together=n).choices[0].message.content for n in (1, 3)}
    assert len(said) == 1


@pytest.mark.parametrize("diverse", ["each", "one_call"])
def test_approaches_are_the_model_s_own(real: Real, diverse: str) -> None:
    answer = ask(real, diverse=diverse, choose="logprob")
    (decided,) = answer.farthing["switches"]
    assert decided["kind"] == "select" and decided["answers"] >= 1
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 24


def test_a_budget_for_one_gives_one(real: Real) -> None:
    headers = {"X-Debug": "1", "X-Budget-Usd": "0.000003"}
    answer = real.ask(SUM, model="vote", max_tokens=24, headers=headers)
    (decided,) = answer.farthing["switches"]
    assert decided["answers"] == 1 and 0 < answer.usage.cost <= 0.000003
