"""The official `openai` package for Python: answers by a schema, and tools."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.conftest import MODEL

MODELS = [MODEL, "economy", "swift"]
"""Answered by one model, switching between two in mid-answer, and guessed ahead."""


class Light(Enum):
    DAY = "day"
    NIGHT = "night"


class Layer(BaseModel):
    """A part of the sky."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=12)]
    cloudy: bool


class Sky(BaseModel):
    """What there is to see."""

    model_config = ConfigDict(extra="forbid")

    colour: Literal["blue", "grey", "black"]
    light: Light
    kilometres: Annotated[int, Field(ge=0, le=99)]
    wind: Annotated[float, Field(ge=0, le=9)] | None
    layers: Annotated[list[Layer], Field(min_length=1, max_length=2)]


ASKED: list[Any] = [{"role": "user", "content": "Describe the sky of today as JSON."}]


class Look(BaseModel):
    """Look at the sky above a city."""

    city: Annotated[str, Field(max_length=12)]
    unit: Literal["km", "miles"]


LOOK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at the sky above a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"type": "string", "enum": ["km", "miles"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
WAIT: dict[str, Any] = {"type": "function", "function": {"name": "wait"}}  # takes no arguments
FORCED: Any = {"type": "function", "function": {"name": "look"}}
WHERE: list[Any] = [{"role": "user", "content": "How is the sky above Oslo?"}]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_of_pydantic_is_what_comes(sdk: OpenAI, model: str) -> None:
    answer = sdk.chat.completions.parse(
        model=model, messages=ASKED, response_format=Sky, max_tokens=160, temperature=0
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Sky)
    assert choice.message.refusal is None


@pytest.mark.parametrize("model", MODELS)
def test_and_is_streamed(sdk: OpenAI, model: str) -> None:
    with sdk.chat.completions.stream(
        model=model, messages=ASKED, response_format=Sky, max_tokens=160, temperature=1, seed=4
    ) as stream:
        parts = [event.parsed for event in stream if event.type == "content.delta"]
        sky = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(sky, Sky)
    assert len(parts) > 5
    assert parts[-1] == sky.model_dump(mode="json")


def test_an_answer_that_was_cut_is_not_taken_for_whole(sdk: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        sdk.chat.completions.parse(
            model=MODEL, messages=ASKED, response_format=Sky, max_tokens=4, temperature=0
        )


def test_any_object(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": 'Answer with {"colour": "blue"}.'}],
        response_format={"type": "json_object"},
        max_tokens=48,
        temperature=0,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_a_schema_that_is_none_is_refused_by_its_field(sdk: OpenAI) -> None:
    schema: Any = {"name": "sky", "schema": {"type": "spaceship"}, "strict": True}
    with pytest.raises(openai.BadRequestError) as raised:
        sdk.chat.completions.create(
            model=MODEL,
            messages=ASKED,
            response_format={"type": "json_schema", "json_schema": schema},
        )
    assert (raised.value.param or "").startswith("response_format")


@pytest.mark.parametrize("model", MODELS)
def test_a_tool_that_is_named_is_called(sdk: OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": WHERE, "temperature": 0, "max_tokens": 96}
    tools = {"tools": [LOOK, WAIT], "tool_choice": FORCED}
    (choice,) = sdk.chat.completions.create(**asked, **tools).choices
    assert choice.finish_reason in ("stop", "tool_calls")
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or ()
    assert (call.type, call.function.name) == ("function", "look")
    assert json.loads(call.function.arguments).keys() == {"city", "unit"}
    streamed = {"name": "", "id": "", "arguments": ""}
    for chunk in sdk.chat.completions.create(**asked, **tools, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            assert delta.index == 0
            assert delta.function is not None
            streamed["name"] += delta.function.name or ""
            streamed["id"] += delta.id or ""
            streamed["arguments"] += delta.function.arguments or ""
    assert streamed["name"] == "look"
    assert streamed["id"]
    assert streamed["arguments"] == call.function.arguments


def test_a_tool_s_arguments_are_parsed(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.parse(
        model=MODEL,
        messages=WHERE,
        tools=[openai.pydantic_function_tool(Look)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=96,
        temperature=0,
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Look)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_what_a_tool_said_goes_back(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 96, "tools": [LOOK]}
    first = sdk.chat.completions.create(**asked, messages=WHERE, tool_choice=FORCED)
    message = first.choices[0].message
    (call,) = message.tool_calls or ()
    told = [*WHERE, message, {"role": "tool", "tool_call_id": call.id, "content": "Clear."}]
    then = sdk.chat.completions.create(**asked, messages=told, tool_choice="none")
    assert then.choices[0].message.content
    assert not then.choices[0].message.tool_calls
    plain = sdk.chat.completions.create(
        model=MODEL, messages=WHERE, tools=[LOOK], tool_choice="none", max_tokens=1
    )
    assert then.usage is not None
    assert plain.usage is not None
    assert then.usage.prompt_tokens > plain.usage.prompt_tokens


def test_a_response_by_a_schema_and_with_a_tool(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 160}
    sky = sdk.responses.parse(**asked, input=ASKED, text_format=Sky)
    assert isinstance(sky.output_parsed, Sky)
    tool: Any = {"type": "function", **LOOK["function"]}
    named: Any = {"type": "function", "name": "look"}
    first = sdk.responses.create(**asked, input=WHERE, tools=[tool], tool_choice=named)
    (call,) = (item for item in first.output if item.type == "function_call")
    assert json.loads(call.arguments).keys() == {"city", "unit"}
    said: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Clear."}
    then = sdk.responses.create(
        **asked, input=[said], previous_response_id=first.id, tools=[tool], tool_choice="none"
    )
    assert then.output_text
