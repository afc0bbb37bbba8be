"""The official `openai` package for Python, with OpenAI's newer shape: responses."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.clients.conftest import MODEL

ASKED: dict[str, Any] = {"model": MODEL, "input": "Why is the sky blue?", "temperature": 0}


def test_a_response(sdk: OpenAI) -> None:
    response = sdk.responses.create(**ASKED, max_output_tokens=16, instructions="Be brief.")
    assert response.object == "response"
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.error is None
    assert response.output_text
    assert response.usage is not None
    assert response.usage.output_tokens == 16
    assert response.usage.total_tokens == response.usage.input_tokens + 16
    assert response.usage.cost > 0  # type: ignore[attr-defined]  # a field of ours


def test_no_field_of_a_response_is_of_another_type_than_declared(sdk: OpenAI) -> None:
    raw = sdk.responses.with_raw_response.create(
        **ASKED, max_output_tokens=16, include=["message.output_text.logprobs"], top_logprobs=2
    )
    type(raw.parse()).model_validate_json(raw.text, strict=True)


def test_its_stream_is_of_typed_events(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {**ASKED, "max_output_tokens": 64, "extra_body": {"stop": ["."]}}
    with sdk.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text == sdk.responses.create(**asked).output_text


def test_a_stream_that_ends_early_says_why(sdk: OpenAI) -> None:
    *_, last = sdk.responses.create(**ASKED, max_output_tokens=16, stream=True)
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"


def test_a_conversation_is_remembered(sdk: OpenAI) -> None:
    first = sdk.responses.create(**ASKED, max_output_tokens=16)
    then = sdk.responses.create(
        **{**ASKED, "input": "And at night?"},
        max_output_tokens=16,
        previous_response_id=first.id,
    )
    assert then.previous_response_id == first.id
    assert first.usage is not None
    assert then.usage is not None
    assert then.usage.input_tokens > first.usage.input_tokens + 16
    assert sdk.responses.retrieve(then.id).output_text == then.output_text
    asked = list(sdk.responses.input_items.list(then.id))
    assert [item.role for item in asked] == ["user", "assistant", "user"]  # type: ignore[union-attr]
    sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(first.id)


def test_a_conversation_is_sent_back_as_it_came(sdk: OpenAI) -> None:
    first = sdk.responses.create(**ASKED, max_output_tokens=16, store=False)
    told: list[Any] = [{"role": "user", "content": ASKED["input"]}]
    told += first.output
    told.append({"role": "user", "content": [{"type": "input_text", "text": "And at night?"}]})
    then = sdk.responses.create(**{**ASKED, "input": told}, max_output_tokens=16, store=False)
    assert then.output_text


def test_a_preset_with_a_budget(sdk: OpenAI) -> None:
    response = sdk.responses.create(
        **{**ASKED, "model": "economy"},
        extra_headers={"X-Budget-Usd": "0.000003"},
        extra_body={"policy": {"name": "economy", "raise_at": "inf"}},
    )
    assert response.status in ("completed", "incomplete")
    assert response.usage is not None
    assert response.usage.cost <= 0.000003  # type: ignore[attr-defined]  # a field of ours
    with pytest.raises(openai.NotFoundError):
        sdk.responses.create(**{**ASKED, "model": "nope"})
    with pytest.raises(openai.BadRequestError) as raised:
        sdk.responses.create(**ASKED, background=True)
    assert raised.value.param == "background"
