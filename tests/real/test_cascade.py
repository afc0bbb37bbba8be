"""A cascade of real models: whose answer it gives, and that it is that model's own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.real.real import LARGE, SMALL, Real

pytestmark = pytest.mark.model

PROMPT = "Name three colours of the rainbow."


def asked(real: Real, threshold: float, model: str = LARGE, **more: Any) -> Any:
    options = f'models="{SMALL},{LARGE}";threshold={threshold};{more.pop("options", "early=?0")}'
    headers = {"X-Policy": f"cascade;{options}", "X-Debug": 1}
    return real.ask(PROMPT, model=model, headers=headers, max_tokens=12, **more)


@pytest.mark.parametrize(
    ("threshold", "kind", "writer"), [(0.0, "keep", SMALL), (1.0, "escalate", LARGE)]
)
def test_the_answer_is_the_one_that_its_model_gives_alone(
    real: Real, threshold: float, kind: str, writer: str
) -> None:
    alone = real.ask(PROMPT, model=writer, max_tokens=12)
    answer = asked(real, threshold)
    assert answer.choices[0].message.content == alone.choices[0].message.content
    assert answer.choices[0].logprobs is None
    told = answer.model_extra["farthing"]
    assert (told["decided"]["kind"], told["decided"]["model"]) == (kind, writer)
    assert 0 < told["decided"]["confidence"] < 1 and told["fidelity"] == "approximate"
    billed = answer.usage.cost_details["models"]
    assert list(billed) == ([SMALL] if kind == "keep" else [SMALL, LARGE])
    streamed = asked(real, threshold, stream=True)
    text = "".join(choice.delta.content or "" for event in streamed for choice in event.choices)
    assert text == alone.choices[0].message.content


def test_it_may_be_asked_about_its_own_answer(real: Real) -> None:
    answer = asked(real, 0.0, options="early=?0;self_check")
    told = answer.model_extra["farthing"]["decided"]
    line = answer.usage.cost_details["models"][SMALL]
    assert "self-checked" in told["detail"]
    assert line["completion_tokens"] == answer.usage.completion_tokens + 1


def test_within_a_budget_that_pays_for_the_small_one_alone(real: Real) -> None:
    alone = real.ask(PROMPT, model=SMALL, max_tokens=12)
    budget = alone.usage.cost * 1.5
    policy = f'cascade;models="{SMALL},{LARGE}";threshold=1'
    headers = {"X-Policy": policy, "X-Budget-Usd": f"{budget:.12f}"}
    answer = real.ask(PROMPT, model=LARGE, headers=headers, max_tokens=12)
    assert answer.choices[0].message.content == alone.choices[0].message.content
    told = answer.model_extra["farthing"]["decided"]
    assert (told["kind"], told["model"]) == ("keep", SMALL)
    assert told["detail"] == f"the budget does not pay for {LARGE}"
    assert 0 < answer.usage.cost <= budget


def test_the_preset_says_how_sure_it_was(real: Real) -> None:
    answer = real.ask(PROMPT, model="careful", max_tokens=12)
    told = answer.model_extra["farthing"]["decided"]
    assert told["kind"] in ("keep", "escalate") and 0 < told["confidence"] < 1
    assert answer.choices[0].message.content
