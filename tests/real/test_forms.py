"""Answers of a given form, and tool calls, of the real models by the official client."""

from __future__ import annotations

import json
from typing import Any, Literal

import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel, Field

from tests.real.real import LARGE, SMALL, Real

pytestmark = pytest.mark.model

Hobby = Literal["hiking", "chess", "music"]


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)
    hobbies: list[Hobby] = Field(max_length=2)


ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Describe Ann, who likes to hike, as JSON."}],
    "max_tokens": 80,
    "temperature": 0,
}
FORM = {
    "type": "json_schema",
    "json_schema": {"name": "person", "schema": Person.model_json_schema(), "strict": True},
}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
CALLING: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What will the weather be in Rome?"}],
    "tools": TOOLS,
    "max_tokens": 80,
    "temperature": 0,
}


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        (LARGE, None),
        ("economy", None),
        (LARGE, {"name": "entropy_switch", "switch_at": [2, 5, 9, 13]}),
        ("swift", None),
    ],
)
def test_every_policy_keeps_the_form(real: Real, model: str, policy: Any) -> None:
    body = {} if policy is None else {"policy": policy}
    found = real.sdk.chat.completions.parse(
        model=model,
        **ASKED,
        response_format=Person,
        extra_headers={"X-Debug": "1"},
        extra_body=body,
    )
    choice, farthing = found.choices[0], found.model_extra["farthing"]
    assert isinstance(choice.message.parsed, Person)
    assert choice.finish_reason == "stop" and "whole" not in farthing
    if policy:
        assert [switch["token"] for switch in farthing["switches"]] == policy["switch_at"]
        assert set(farthing["models"]) == {SMALL, LARGE}


@pytest.mark.parametrize("temperature", [0, 1])
def test_guesses_change_nothing_of_a_formed_answer(real: Real, temperature: int) -> None:
    """Of int8, whose rounding is the same in any batch."""
    model, drawn = "smollm2-135m-int8", {**ASKED, "temperature": temperature, "seed": 7}
    asked = {**drawn, "model": model, "response_format": FORM, "logprobs": True, "top_logprobs": 2}
    plain = real.sdk.chat.completions.create(**asked)
    ahead = {"policy": {"name": "speculative", "adaptive": False, "rule": "fixed", "longest": 4}}
    guessed = real.sdk.chat.completions.create(**asked, extra_body=ahead)
    assert guessed.choices[0].message.content == plain.choices[0].message.content
    assert guessed.choices[0].logprobs == plain.choices[0].logprobs
    details = guessed.usage.model_extra["cost_details"]["models"][model]
    assert details["accepted_tokens"] > 0
    Person.model_validate_json(plain.choices[0].message.content)


@pytest.mark.parametrize("model", ["economy", "swift"])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_that_must_come_comes(real: Real, model: str, choice: Any) -> None:
    asked = {**CALLING, "model": model, "tool_choice": choice, "parallel_tool_calls": False}
    whole = real.sdk.chat.completions.create(**asked).choices[0]
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    (call,) = whole.message.tool_calls
    if choice != "required":
        assert call.function.name == "weather"
    if call.function.name == "weather":
        jsonschema_rs.validate(WEATHER, json.loads(call.function.arguments))
    with real.sdk.chat.completions.stream(**asked) as stream:
        events = list(stream)
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    deltas = [e for e in events if e.type == "tool_calls.function.arguments.delta"]
    assert len(deltas) > 1 or call.function.arguments == "{}"


def test_a_result_is_read_and_answered(real: Real) -> None:
    model = "smollm2-135m-int8"
    forced = real.sdk.chat.completions.create(
        **CALLING, model=model, tool_choice={"type": "function", "function": {"name": "weather"}}
    )
    said = forced.choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "Sunny, 21 degrees"}
    messages = [*CALLING["messages"], said.model_dump(), result]
    asked = {**CALLING, "messages": messages, "tool_choice": "none", "max_tokens": 24}
    answer = real.sdk.chat.completions.create(**asked, model=model)
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls
    assert answer.usage.prompt_tokens > 30


def test_tools_are_counted(real: Real) -> None:
    with_tools = real.sdk.chat.completions.create(**{**CALLING, "max_tokens": 1}, model=SMALL)
    plain = {**CALLING, "max_tokens": 1, "tools": openai.NOT_GIVEN}
    without = real.sdk.chat.completions.create(**plain, model=SMALL)
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + 100


def test_a_call_that_the_budget_cuts_says_so(real: Real) -> None:
    asked = {**CALLING, "model": SMALL, "tool_choice": "required"}
    full = real.sdk.chat.completions.create(**asked)
    budget = f"{full.usage.model_extra['cost'] * 0.9:.12f}"
    cut = real.sdk.chat.completions.create(**asked, extra_headers={"X-Budget-Usd": budget})
    choice = cut.choices[0]
    assert choice.finish_reason == "length"
    assert choice.model_extra["finish_details"] == {"reason": "budget"}


@pytest.mark.parametrize(
    ("form", "answers"),
    [
        ({"structured_outputs": {"choice": ["red", "green"]}}, ("red", "green")),
        ({"guided_regex": "(yes|no)!"}, ("yes!", "no!")),
        ({"guided_grammar": 'root ::= "a" | "b"'}, ("a", "b")),
    ],
)
def test_vllm_s_fields_hold_too(real: Real, form: dict[str, Any], answers: tuple[str]) -> None:
    found = real.ask("Choose.", model=LARGE, extra_body=form)
    assert found.choices[0].message.content in answers


def test_a_schema_that_cannot_be_kept_is_refused_by_its_field(real: Real) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="not") as caught:
        real.ask("?", model=LARGE, response_format=form)
    assert caught.value.param == "response_format.json_schema.schema"
