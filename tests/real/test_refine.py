"""A real model's answer, reviewed and written anew."""

from __future__ import annotations

from typing import Any

import pytest

from tests.real.real import LARGE, Real

pytestmark = pytest.mark.model

INT8 = "smollm2-135m-int8"
PROMPT = "Why is the sky blue?"


def asked(real: Real, model: str = INT8, usd: float | None = None, **options: Any) -> Any:
    policy = {"policy": {"name": "refine", "rounds": 1, **options}}
    headers = {"X-Debug": 1} | ({} if usd is None else {"X-Budget-Usd": f"{usd:.12f}"})
    return real.ask(PROMPT, model=model, max_tokens=24, headers=headers, extra_body=policy)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"check": "logprob", "critic": LARGE},
        {"check": "verify", "verifier": {"kind": "judge", "judge": LARGE}},
    ],
)
def test_one_of_its_answers_is_given_and_all_are_paid_for(
    real: Real, options: dict[str, Any]
) -> None:
    alone = real.ask(PROMPT, model=INT8, max_tokens=24)
    answer = asked(real, **options)
    (decided,) = answer.farthing["switches"]
    assert (decided["kind"], decided["model"]) == ("refine", INT8)
    document = real.http.get(f"/v1/decisions/{answer.id}").json()
    ways = [way for way in document["alternatives"] if way["kind"] == "answer"]
    assert len(ways) == decided["answers"] and [way["chosen"] for way in ways].count(True) == 1
    same = answer.choices[0].message.content == alone.choices[0].message.content
    assert same == ways[0]["chosen"]  # its first answer is the one that it gives alone
    assert len(document["calls"]) >= 2
    assert sum(call["usd"] for call in document["calls"]) == pytest.approx(answer.usage.cost)
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert 0 < answer.usage.completion_tokens <= 24
    assert answer.farthing["fidelity"] == "approximate"


def test_a_budget_for_one_answer_gives_that_one_as_it_comes(real: Real) -> None:
    alone = real.ask(PROMPT, model=INT8, max_tokens=24)
    answer = asked(real, usd=alone.usage.cost * 2)
    assert answer.choices[0].message.content == alone.choices[0].message.content
    (decided,) = answer.farthing["switches"]
    assert decided["answers"] == 1 and "does not pay" in decided["detail"]
    assert answer.usage.cost <= alone.usage.cost * 2


def test_the_preset_has_the_large_model_review(real: Real) -> None:
    answer = real.ask(PROMPT, model="polished", max_tokens=24)
    assert answer.choices[0].message.content
    assert set(answer.usage.cost_details["models"]) == {INT8, LARGE}
    assert answer.farthing["models"] == {INT8: answer.usage.completion_tokens, LARGE: 0}
