"""Answers of the real models, held against a pattern, a schema and another model's judgement."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.real.real import LARGE, SMALL, Real

pytestmark = pytest.mark.model


def best_of(real: Real, prompt: str, verifier: dict[str, Any]) -> Any:
    policy = {"name": "best_of_n", "n": 3, "choose": "verify", "verifier": verifier}
    body = {"policy": policy}
    given = {"max_tokens": 12, "temperature": 0.7, "seed": 5}
    return real.ask(prompt, model=LARGE, extra_body=body, **given)


def test_a_judge_says_how_sure_it_is(real: Real) -> None:
    answer = best_of(real, "Name a color. Answer with one word.", {"kind": "judge", "judge": SMALL})
    assert answer.choices[0].message.content
    models = answer.usage.cost_details["models"]
    assert 1 <= models[SMALL]["completion_tokens"] <= 6
    decided = answer.farthing["decided"]
    assert decided["kind"] == "select" and 0 <= decided["confidence"] <= 1


def test_a_pattern_chooses(real: Real) -> None:
    verifier = {"kind": "regex", "pattern": "(?i)[a-z]"}
    answer = best_of(real, "Why is the sky blue?", verifier)
    decided = answer.farthing["decided"]
    assert (decided["kind"], decided["confidence"]) == ("select", 1)


def test_the_default_gateway_runs_no_code(real: Real) -> None:
    with pytest.raises(openai.BadRequestError, match="runs no code"):
        best_of(real, "Write double(x) in Python.", {"kind": "tests", "tests": "double(2)"})
