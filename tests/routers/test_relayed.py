"""The last words of an engine, with what they cost put in, and nothing else changed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.errors import EngineError
from app.types import Chunk
from routers.relayed import complete, document, documents

SUMMARY = {"policy": "direct", "models": {"m": 2}}
BILLED = {"m": {"prompt_tokens": 7, "completion_tokens": 9}}
COST = {"cost": 0.5, "cost_details": {"currency": "USD", "models": BILLED}}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2}


def end(index: int = 0, reason: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": {}, "finish_reason": reason, "logprobs": None}
    return {"id": "theirs", "object": "chat.completion.chunk", "choices": [choice], **more}


def last(**more: Any) -> dict[str, Any]:
    return {"id": "theirs", "choices": [], "usage": dict(USAGE), **more}


def raw(*contents: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(content).encode() + b"\n\n" for content in contents)


def completed(
    *contents: dict[str, Any], finish: Chunk | None = None, include_usage: bool = True
) -> list[dict[str, Any]]:
    found = documents(raw(*contents), "ours")
    complete(found, finish or Chunk(finish="stop"), SUMMARY, COST, include_usage)
    return found


def test_every_event_is_read_under_our_id() -> None:
    assert documents(raw(end(), last()), "ours") == [
        {**end(), "id": "ours"},
        {**last(), "id": "ours"},
    ]


def test_what_was_decided_stands_beside_the_choice_and_the_cost_in_the_usage() -> None:
    choice, usage = completed(end(), last())
    assert choice == {**end(), "id": "ours", "farthing": SUMMARY}
    assert usage == {**last(), "id": "ours", "usage": {**USAGE, **COST}}


def test_of_several_choices_the_last_has_the_summary() -> None:
    first, second, usage = completed(end(1), end(0), last())
    assert "farthing" not in first and "farthing" not in usage
    assert second["farthing"] == SUMMARY


def test_usage_that_was_not_asked_for_goes_but_not_the_fingerprint_beside_it() -> None:
    (choice,) = completed(end(), last(system_fingerprint="fp", other=1), include_usage=False)
    assert choice == {
        **end(),
        "id": "ours",
        "farthing": SUMMARY,
        "system_fingerprint": "fp",
    }


def test_several_events_without_a_choice_go_all() -> None:
    assert len(completed(end(), last(), last(), include_usage=False)) == 1


def test_where_an_engine_tells_no_usage_what_was_billed_is_told() -> None:
    (choice,) = completed(end())
    billed = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    assert choice["farthing"] == SUMMARY and choice["usage"] == {**billed, **COST}
    (choice,) = completed(end(), include_usage=False)
    assert "usage" not in choice


def test_an_answer_in_one_piece_keeps_its_usage() -> None:
    body = {**end(), "usage": dict(USAGE)}
    (found,) = completed(body, include_usage=False)
    assert found == {**body, "id": "ours", "usage": {**USAGE, **COST}, "farthing": SUMMARY}


@pytest.mark.parametrize(
    ("reason", "detail"), [("length", {"reason": "budget"}), ("stop", None), ("tool_calls", None)]
)
def test_what_the_budget_cut_says_so(reason: str, detail: Any) -> None:
    cut = Chunk(finish="length", reason="budget")
    choice, _ = completed(end(reason=reason), last(), finish=cut)
    assert choice["choices"][0].get("finish_details") == detail


def test_each_choice_that_was_cut_says_so() -> None:
    cut = Chunk(finish="length", reason="budget")
    found = completed(end(0, "length"), end(1, "stop"), last(), finish=cut)
    details = [content["choices"][0].get("finish_details") for content in found[:2]]
    assert details == [{"reason": "budget"}, None]


@pytest.mark.parametrize("usage", [None, "5", [1]])
def test_a_usage_that_is_none_counts_as_none(usage: Any) -> None:
    *_, found = completed(end(), {**last(), "usage": usage})
    assert found["usage"]["total_tokens"] == 16
    assert len(completed(end(), {**last(), "usage": usage}, include_usage=False)) == 1


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": }', b"[" * 100_000])
def test_what_is_no_json_is_an_error_of_the_engine(text: bytes) -> None:
    with pytest.raises(EngineError, match="no JSON"):
        document(text, "ours")
