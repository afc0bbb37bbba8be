"""How tests ask for responses, and read their events as the official client does."""

from __future__ import annotations

import json
from typing import Any

from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

URL = "/v1/responses"
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def asking(model: str = "large", **fields: Any) -> dict[str, Any]:
    return {"model": model, "input": "why is the sky blue", **fields}


def read(text: str) -> list[dict[str, Any]]:
    """The events, each of a type that the client knows, in order, and assembled by it without
    contradiction."""
    state, found = ResponseStreamState(input_tools=omit, text_format=omit), []
    for number, block in enumerate(text.removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and event["sequence_number"] == number
        state.handle_event(_EVENT.validate_python(event))
        found.append(event)
    return found


def final(text: str) -> dict[str, Any]:
    """The response in the last event; what was streamed is what it holds."""
    events = read(text)
    response: dict[str, Any] = events[-1]["response"]
    Response.model_validate(response)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert response["output"] == done
    for index, item in enumerate(done):
        assert streamed(events, index) == whole(item)
    return response


def streamed(events: list[dict[str, Any]], index: int) -> str:
    """What the deltas of one item said."""
    deltas = [event for event in events if event["type"].endswith(".delta")]
    return "".join(event["delta"] for event in deltas if event["output_index"] == index)


def whole(item: dict[str, Any]) -> str:
    """What an item says."""
    if item["type"] == "function_call":
        return str(item["arguments"])
    (part,) = item["content"]
    return str(part.get("text", part.get("refusal")))
