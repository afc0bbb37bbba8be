"""A relayed answer is what the server itself would have said, whatever stands in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.chaos.houses import CHAT, QUESTION, House
from tests.upstreams.faults import FAULTS

TEXTS = [
    'says ,"usage":{"prompt_tokens":1,"completion_tokens":10000000} and',
    '"finish_reason":"stop"',
    ',"usage":null}',
    "\n\ndata: [DONE]\n\n",
    "data: {}\r\n\r\n: farthing {}",
    "\u2028\u2029\x85\x00\x1f",
    'a "quoted" \\ and \\" \\u0041',
    "half 😀👩‍🚀 é",
    '"choices":[],"error":{"message":"no"}',
    '"id":"chatcmpl-other"',
    "",
    " ",
]
ARGUMENTS = ['{"path": "C:\\\\x", ', '"text": "\\"usage\\":{\\"a\\":1}', '\\n\\n"}']
CALLS = [
    {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f"}}]},
    *({"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ARGUMENTS),
    {"tool_calls": [{"index": 1, "id": "call_2", "function": {"name": "g", "arguments": ""}}]},
]
DELTAS: dict[str, list[dict[str, Any]]] = {
    "texts": [{"content": text} for text in TEXTS] + [{"content": ""}],
    "tools": CALLS,
    "reasoning": [
        {"reasoning": 'let me "think"', "reasoning_content": "\n\n"},
        {"content": "so", "reasoning": None},
        {"refusal": "no", "content": None},
        {},
    ],
    "unknown": [
        {"content": "a", "x_new": {"deep": [1, None, {"b": 1e-9}], "usage": {"prompt_tokens": 9}}},
        {"content": "b", "x_big": 2**70, "x_float": 0.1},
    ],
}
FURTHER = {"x_server": {"usage": 1, "list": [[], {}], "text": "\n\n"}, "service_tier": None}
OPTIONS: list[dict[str, Any] | None] = [
    None,
    {},
    {"include_usage": False},
    {"include_usage": True},
    {"continuous_usage_stats": True},
    {"include_usage": True, "continuous_usage_stats": True},
]


@pytest.fixture(autouse=True)
def plain_again(home: House) -> Iterator[None]:
    yield
    home.large[0].deltas, home.large[0].further = None, {}
    home.ready()
    home.quiet()


def events(url: str, body: dict[str, Any], path: str = CHAT) -> list[Any]:
    answer = httpx.post(url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = answer.content.split(b"\n\n")
    assert blocks[-2:] == [b"data: [DONE]", b""]
    assert all(b.startswith(b"data: ") and b"\n" not in b and b"\r" not in b for b in blocks[:-1])
    found = [known(json.loads(block[6:])) for block in blocks[:-2]]
    # A choice that ends before the others has its last event at the end of all, with the cost.
    return sorted(found, key=lambda event: [c["index"] for c in event["choices"]] or [9])


def known(content: dict[str, Any]) -> dict[str, Any]:
    """Without what must differ."""
    rest = {k: v for k, v in content.items() if k not in ("id", "created", "farthing")}
    usage = rest.get("usage")
    if isinstance(usage, dict):
        usage = {k: v for k, v in usage.items() if not k.startswith("cost")}
        # What the first of the two calls has read is cached for the second.
        usage.pop("prompt_tokens_details", None)
        rest["usage"] = usage
    return rest


def body(**more: Any) -> dict[str, Any]:
    question = {"model": "large", "messages": QUESTION, "max_tokens": 60, "temperature": 0}
    return {**question, **{key: value for key, value in more.items() if value is not None}}


@pytest.mark.parametrize("options", OPTIONS, ids=json.dumps)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("said", DELTAS)
def test_a_stream_is_the_servers_own(
    home: House, said: str, n: int, options: dict[str, Any] | None
) -> None:
    home.large[0].deltas, home.large[0].further = DELTAS[said], FURTHER
    asked = body(stream=True, n=n, stream_options=options)
    assert events(home.url, asked) == events(home.large[0].url, asked)


@pytest.mark.parametrize("pieces", ["byte by byte", "in odd pieces", "all in one write"])
@pytest.mark.parametrize("said", DELTAS)
def test_in_whatever_pieces_it_comes(home: House, said: str, pieces: str) -> None:
    home.large[0].deltas, home.large[0].further = DELTAS[said], FURTHER
    asked = body(stream=True, stream_options={"include_usage": True})
    home.large[0].breaks(FAULTS[pieces])
    assert events(home.url, asked) == events(home.large[0].url, asked)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("more", [{}, {"logprobs": True, "top_logprobs": 3}, {"max_tokens": 7}])
def test_the_plain_answer_too(home: House, more: dict[str, Any], n: int) -> None:
    for options in OPTIONS:
        asked = body(stream=True, n=n, stream_options=options, **more)
        assert events(home.url, asked) == events(home.large[0].url, asked)


@pytest.mark.parametrize("options", OPTIONS, ids=json.dumps)
@pytest.mark.parametrize("n", [1, 2])
def test_a_completion_is_the_servers_own(
    home: House, n: int, options: dict[str, Any] | None
) -> None:
    asked = body(stream=True, n=n, stream_options=options, logprobs=2, prompt="The sky is")
    del asked["messages"]
    path = "/v1/completions"
    assert events(home.url, asked, path) == events(home.large[0].url, asked, path)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("said", [None, *DELTAS])
def test_an_answer_in_one_piece_is_the_servers_own(home: House, said: str | None, n: int) -> None:
    home.large[0].deltas, home.large[0].further = DELTAS[said] if said else None, FURTHER
    ours, theirs = (
        known(httpx.post(url + CHAT, json=body(n=n), timeout=60).json())
        for url in (home.url, home.large[0].url)
    )
    assert ours == theirs


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_what_the_client_sends_reaches_the_server(home: House, stream: bool) -> None:
    """Fields that we do not know, as they are; and none of ours."""
    more = {"x_new": {"a": [1, None]}, "user": "é\u2028", "seed": 7, "stop": ["never"]}
    told = home.ask("large", stream=stream, policy="direct", **more)
    assert told.right
    sent = home.large[0].calls()[-1].body
    assert {key: sent[key] for key in more} == more
    assert "policy" not in sent and "budget" not in sent
    assert sent["messages"] == QUESTION and sent["max_tokens"] <= 60
    assert not any(name.startswith("x-budget") for name in home.large[0].calls()[-1].headers)
