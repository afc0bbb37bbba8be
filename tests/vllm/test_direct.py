"""A named model's answer through the gateway is the server's own, field by field."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.vllm.two_servers import LARGE, ByHand, events

pytestmark = [pytest.mark.vllm, pytest.mark.model]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
AGE = {
    "type": "json_schema",
    "json_schema": {
        "name": "age",
        "schema": {
            "type": "object",
            "properties": {"age": {"type": "integer", "maximum": 99}},
            "required": ["age"],
            "additionalProperties": False,
        },
    },
}
PLAIN = {"messages": [{"role": "user", "content": "Name three rivers of France."}]}
SEEDED = {"temperature": 0.8, "seed": 7, "max_tokens": 24}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (CHAT, {**PLAIN, "temperature": 0, "max_tokens": 24}),
    "to_the_end": (CHAT, {**PLAIN, "temperature": 0, "max_completion_tokens": 200}),
    "unlimited": (CHAT, {**PLAIN, "temperature": 0, "stop": ["France"]}),
    "logprobs": (CHAT, {**PLAIN, **SEEDED, "logprobs": True, "top_logprobs": 4}),
    "tools": (CHAT, {**PLAIN, **SEEDED, "tools": [WEATHER], "tool_choice": "required"}),
    "auto_tools": (CHAT, {**PLAIN, **SEEDED, "tools": [WEATHER], "max_tokens": 40}),
    "schema": (CHAT, {**PLAIN, **SEEDED, "response_format": AGE, "max_tokens": 60}),
    "choices": (CHAT, {**PLAIN, **SEEDED, "n": 3}),
    "stop": (CHAT, {**PLAIN, **SEEDED, "stop": [" the", "\n"]}),
    "unknown_fields": (CHAT, {**PLAIN, **SEEDED, "return_token_ids": True, "min_tokens": 24}),
    "text": (TEXT, {"prompt": "Once upon a time", **SEEDED, "logprobs": 3}),
    "ids": (TEXT, {"prompt": [1, 2, 3, 504, 28], **SEEDED, "n": 2}),
}
OPTIONS: list[dict[str, bool] | None] = [
    None,
    {"include_usage": True},
    {"include_usage": True, "continuous_usage_stats": True},
]


@pytest.mark.smoke
@pytest.mark.parametrize("name", BODIES)
def test_in_one_piece(gateway: httpx.Client, large: ByHand, name: str) -> None:
    path, body = BODIES[name]
    _read(large, path, body)
    own = _whole(large.http, path, {**body, "model": large.name})
    ours = _whole(gateway, path, {**body, "model": LARGE})
    assert ours.pop("farthing")["fidelity"] == "exact"
    assert ours["usage"].pop("cost") > 0
    assert ours["usage"].pop("cost_details")["models"].keys() == {LARGE}
    assert _told(ours) == _told(own)


@pytest.mark.parametrize("options", OPTIONS, ids=["no_usage", "usage", "running_usage"])
@pytest.mark.parametrize("name", BODIES)
def test_streamed(
    gateway: httpx.Client, large: ByHand, name: str, options: dict[str, bool] | None
) -> None:
    path, body = BODIES[name]
    body = {**body, "stream": True} | ({"stream_options": options} if options else {})
    _read(large, path, body)
    own = _streamed(large.http, path, {**body, "model": large.name})
    ours = _streamed(gateway, path, {**body, "model": LARGE})
    last = ours[-2] if options else ours[-1]
    assert last.pop("farthing")["fidelity"] == "exact"
    if options:
        assert ours[-1]["usage"].pop("cost") > 0
        ours[-1]["usage"].pop("cost_details")
    assert len({event["id"] for event in ours}) == 1
    # The choices of one answer run side by side: only within each is there an order.
    for index in range(body.get("n", 1)):
        assert _of(ours, index) == _of(own, index)
    assert _told(ours[-1]) == _told(own[-1])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [("logit_bias", {"99999999": 1}), ("min_tokens", 1000), ("response_format", {"type": "nope"})],
)
def test_what_the_server_refuses_is_refused_as_it_says(
    gateway: httpx.Client, large: ByHand, field: str, value: Any, stream: bool
) -> None:
    body = {**PLAIN, **SEEDED, field: value, "stream": stream}
    own = large.http.post(CHAT, json={**body, "stream": False, "model": large.name})
    ours = gateway.post(CHAT, json={**body, "model": LARGE})
    assert (own.status_code, ours.status_code) == (400, 400)
    assert ours.json()["error"]["message"] == own.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_budget_cuts_every_choice_and_says_so(gateway: httpx.Client, stream: bool) -> None:
    body = {**PLAIN, **SEEDED, "model": LARGE, "n": 2, "max_tokens": 200, "stream": stream}
    headers = {"X-Budget-Usd": "0.000006"}  # 36 tokens read, about 20 written
    with gateway.stream("POST", CHAT, json=body, headers=headers) as answer:
        if stream:
            found = events(answer.iter_lines())
            ends = [c for e in found for c in e["choices"] if c.get("finish_reason")]
            assert ends[-1]["finish_details"] == {"reason": "budget"}
            return
        answer.read()
    content = answer.json()
    assert 0 < content["usage"]["cost"] <= 0.000006
    assert content["usage"]["completion_tokens"] > 10
    for choice in content["choices"]:
        assert choice["finish_reason"] == "length"
        assert choice["finish_details"] == {"reason": "budget"}


_PROMPT = ("messages", "prompt", "tools")  # the fields that make one
_seen: set[str] = set()


def _read(server: ByHand, path: str, body: dict[str, Any]) -> None:
    """See to it that the server has read this prompt: then both will find it cached."""
    prompt = json.dumps([server.name, path, *map(body.get, _PROMPT)])
    if prompt not in _seen:
        _whole(server.http, path, {**body, "model": server.name, "stream": False})
        _seen.add(prompt)


def _whole(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _streamed(http: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with http.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200, answer.read()
        return events(answer.iter_lines())


def _told(content: dict[str, Any]) -> dict[str, Any]:
    """What must be equal: not the id, which is ours, nor when and how fast it was made."""
    changing = ("id", "created", "metrics")
    told = {key: value for key, value in content.items() if key not in changing}
    for choice in told.get("choices", ()):
        for call in (choice.get("message") or {}).get("tool_calls") or ():
            call.pop("id")
    return told


def _of(found: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    """One choice's events, put together: how many tokens one holds depends on the moment."""
    merged: list[dict[str, Any]] = []
    for event in found:
        choices = [choice for choice in event["choices"] if choice["index"] == index]
        told = _told({**event, "choices": choices})
        told.pop("usage", None)
        if not choices:
            continue
        choice = choices[0]
        for call in choice.get("delta", {}).get("tool_calls") or ():
            call.pop("id", None)
        merged.append(told)
    text = "".join(
        (event["choices"][0].get("delta") or event["choices"][0]).get("content")
        or event["choices"][0].get("text")
        or ""
        for event in merged
    )
    keys = {key for event in merged for key in event}
    ends = [event["choices"][0].get("finish_reason") for event in merged]
    scored = [event["choices"][0].get("logprobs") for event in merged]
    return [
        {
            "text": text,
            "keys": keys,
            "end": ends[-1],
            "scored": [item for item in scored if item],
            "deltas": [event["choices"][0] for event in merged],
        }
    ]
