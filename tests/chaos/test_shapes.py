"""An answer in a server's own bytes, told in the newer shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.chaos.houses import CHAT, QUESTION, House
from tests.routers import responding
from tests.routers.test_messages import read as read_message
from tests.upstreams.faults import FAULTS
from tests.upstreams.script import TEXT

CALLS: list[dict[str, Any]] = [
    {"reasoning": "let me "},
    {"reasoning": "think"},
    {"content": "I shall "},
    {"content": "call"},
    {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f"}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"path": '}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"C:\\\\x"}'}}]},
    {"tool_calls": [{"index": 1, "id": "call_2", "function": {"name": "g", "arguments": "{}"}}]},
]
TOOL = {"name": "f", "parameters": {"type": "object"}}
INPUT = QUESTION[0]["content"]


@pytest.fixture(autouse=True)
def plain_again(home: House) -> Iterator[None]:
    yield
    home.large[0].deltas = None
    home.ready()
    home.quiet()


def post(home: House, url: str, **fields: Any) -> httpx.Response:
    body = {"model": "large", **fields}
    answer = httpx.post(home.url + url, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def asked_of(home: House) -> Any:
    """The body of the last chat that the server was asked for: its pulse is felt in between."""
    return [request.body for request in home.large[0].requests if request.path == CHAT][-1]


def response(home: House, *, stream: bool, **fields: Any) -> dict[str, Any]:
    asked = {"input": INPUT, "max_output_tokens": 60, "temperature": 0, **fields}
    answer = post(home, responding.URL, stream=stream, **asked)
    found: dict[str, Any] = responding.final(answer.text) if stream else answer.json()
    return found


def message(home: House, *, stream: bool, **fields: Any) -> dict[str, Any]:
    asked = {"messages": QUESTION, "max_tokens": 60, "temperature": 0, **fields}
    answer = post(home, "/v1/messages", stream=stream, **asked)
    found: dict[str, Any] = read_message(answer.text)[0].to_dict() if stream else answer.json()
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_servers_text(home: House, stream: bool) -> None:
    found = response(home, stream=stream)
    assert found["output"][0]["content"][0]["text"] == TEXT
    assert found["status"] == "completed" and found["usage"]["cost"] > 0
    other = message(home, stream=stream)
    assert other["content"][0]["text"] == TEXT and other["stop_reason"] == "end_turn"
    tokens = found["usage"]["output_tokens"]
    assert other["usage"]["output_tokens"] == tokens > 30
    chat = post(home, CHAT, messages=QUESTION, max_tokens=60, temperature=0).json()["usage"]
    assert found["usage"]["input_tokens"] == chat["prompt_tokens"]
    assert tokens == chat["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_servers_reasoning_and_calls_as_items(home: House, stream: bool) -> None:
    home.large[0].deltas = CALLS if stream else whole()
    tool = {"type": "function", **TOOL}
    output = response(home, stream=stream, tools=[tool], tool_choice="auto")["output"]
    assert [item["type"] for item in output] == [
        *("reasoning", "message", "function_call", "function_call")
    ]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "let me think"}]
    assert output[1]["content"][0]["text"] == "I shall call"
    calls = [(c["call_id"], c["name"], c["arguments"]) for c in output[2:]]
    assert calls == [("call_1", "f", '{"path": "C:\\\\x"}'), ("call_2", "g", "{}")]
    assert all(item["status"] == "completed" for item in output)
    sent = asked_of(home)
    assert sent["tools"] == [{"type": "function", "function": TOOL}]
    assert sent["max_completion_tokens"] == 60 and "input" not in sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_servers_reasoning_and_calls_as_blocks(home: House, stream: bool) -> None:
    home.large[0].deltas = CALLS if stream else whole()
    tool = {"name": "f", "input_schema": {"type": "object"}}
    found = message(home, stream=stream, tools=[tool], tool_choice={"type": "any"})
    said = [
        {k: v for k, v in b.items() if k not in ("citations", "signature")}
        for b in found["content"]
    ]
    assert said == [
        {"type": "thinking", "thinking": "let me think"},
        {"type": "text", "text": "I shall call"},
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {"path": "C:\\x"}},
        {"type": "tool_use", "id": "call_2", "name": "g", "input": {}},
    ]
    assert found["stop_reason"] == "tool_use"
    assert asked_of(home)["tool_choice"] == "required"


def whole() -> list[dict[str, Any]]:
    """The same as one message, for an answer in one piece."""
    first = {"name": "f", "arguments": '{"path": "C:\\\\x"}'}
    second = {"name": "g", "arguments": "{}"}
    calls = [{"id": "call_1", "function": first}, {"id": "call_2", "function": second}]
    return [{"reasoning": "let me think", "content": "I shall call", "tool_calls": calls}]


def test_a_conversation_with_results_of_tools_goes_on(home: House) -> None:
    home.large[0].deltas = CALLS
    tool = {"type": "function", **TOOL}
    first = response(home, stream=True, tools=[tool])
    home.large[0].deltas = None
    result = {"type": "function_call_output", "call_id": "call_1", "output": "done"}
    response(home, stream=False, input=[result], previous_response_id=first["id"], tools=[tool])
    user, assistant, said = asked_of(home)["messages"]
    assert user == {"role": "user", "content": INPUT}
    assert (assistant["content"], assistant["reasoning"]) == ("I shall call", "let me think")
    assert [call["id"] for call in assistant["tool_calls"]] == ["call_1", "call_2"]
    assert said == {"role": "tool", "tool_call_id": "call_1", "content": "done"}


def test_a_server_that_breaks_off_leaves_a_failed_response_that_was_paid_for(home: House) -> None:
    home.large[0].breaks(FAULTS["reset in mid-answer"])
    asked = {"input": INPUT, "max_output_tokens": 60, "stream": True}
    events = responding.read(post(home, responding.URL, **asked).text)
    failed = events[-1]["response"]
    assert events[-1]["type"] == "response.failed" and failed["error"]["code"] == "server_error"
    assert failed["usage"]["cost"] > 0
    home.large[0].breaks(FAULTS["reset in mid-answer"])
    text = post(home, "/v1/messages", messages=QUESTION, max_tokens=60, stream=True).text
    assert read_message(text)[1][-1]["error"]["type"] == "api_error"
