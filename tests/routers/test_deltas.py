"""What an answer says is read alike in whatever pieces it comes, from tokens and from bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import EngineError
from app.types import Call, Candidate, Chunk, Sampling, Token
from routers.deltas import Delta, Deltas, End, Piece
from routers.tool_calls import ToolDelta

TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}
CALLS = 'Let me see. <tool_call>{"name": "f", "arguments": {"a": "}<é"}}</tool_call>\n' * 2
Said = list[tuple[Any, ...]]


def joined(deltas: Sequence[Delta]) -> Said:
    """Neighbouring pieces of one kind, or of one call, put together."""
    found: Said = []
    for delta in deltas:
        if isinstance(delta, ToolDelta):
            if delta.id is not None:
                assert delta.name is not None
                found.append(("call", delta.id, delta.name, ""))
            *head, text = found.pop()
            found.append((*head, text + delta.arguments))
        elif found and found[-1][0] == delta.kind:
            found[-1] = (delta.kind, found[-1][1] + delta.text)
        else:
            found.append((delta.kind, delta.text))
    return found


def own(text: str, cuts: Sequence[int], call: Call) -> Said:
    reader, deltas = Deltas(call), list[Delta]()
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in zip(places, places[1:], strict=False):
        deltas += reader.feed(Chunk(text=text[start:end]))
    last = Chunk(finish="stop")
    deltas += reader.feed(last)
    assert reader.end(last) == End()
    return joined(deltas)


@given(st.lists(st.integers(0, 1000)))
def test_our_own_text_is_told_alike_however_it_is_cut(cuts: list[int]) -> None:
    said = own(CALLS, cuts, Call("m", extra=TOOLS, id="resp_1"))
    assert [piece[0] for piece in said] == ["text", "call", "text", "call"]
    assert said[0] == ("text", "Let me see.")
    assert [piece[2:] for piece in said if piece[0] == "call"] == [("f", '{"a": "}<é"}')] * 2
    assert said[1][1] != said[3][1]


@pytest.mark.parametrize("extra", [{}, {"tools": []}, TOOLS | {"tool_choice": "none"}])
def test_where_no_tools_are_offered_all_is_text(extra: Mapping[str, Any]) -> None:
    assert own(CALLS, [3, 20], Call("m", extra=extra)) == [("text", CALLS)]


def stream(*said: Mapping[str, Any], reason: str | None = None, **more: Any) -> bytes:
    """Events of an engine's own, the last with this finish_reason."""
    events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in said]
    if reason:
        events += [{"choices": [{"index": 0, "delta": {}, "finish_reason": reason, **more}]}]
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


NATIVE: list[dict[str, Any]] = [
    {"role": "assistant", "content": ""},
    {"reasoning": "hm"},
    {"reasoning_content": "m", "reasoning": "m"},
    {"content": "so "},
    {"content": "it is", "tool_calls": []},
    {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
    {"tool_calls": [{"index": 3, "id": "call_2", "function": {"name": "g", "arguments": "{}"}}]},
    {"refusal": "no"},
]
TOLD: Said = [
    ("reasoning", "hmm"),
    ("text", "so it is"),
    ("call", "call_1", "f", '{"a": 1}'),
    ("call", "call_2", "g", "{}"),
    ("refusal", "no"),
]


@given(st.lists(st.integers(0, len(NATIVE))))
def test_an_engines_events_are_told_alike_in_whatever_chunks_they_come(cuts: list[int]) -> None:
    reader, deltas = Deltas(Call("m")), list[Delta]()
    places = [0, *sorted(cuts), len(NATIVE)]
    for start, end in zip(places, places[1:], strict=False):
        deltas += reader.feed(Chunk(raw=stream(*NATIVE[start:end])))
    last = Chunk(raw=stream(reason="tool_calls"), finish="stop")
    deltas += reader.feed(last)
    assert joined(deltas) == TOLD and reader.end(last) == End()


def test_an_engines_body_is_told_as_its_stream_is() -> None:
    calls = [
        {"id": "call_1", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "call_2", "function": {"name": "g", "arguments": "{}"}},
    ]
    message = {"reasoning": "hmm", "content": "so it is", "tool_calls": calls, "refusal": "no"}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "stop_reason": "x"}
    usage = {
        "prompt_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 7},
    }
    raw = json.dumps({"choices": [choice], "usage": usage}).encode()
    reader, last = Deltas(Call("m", whole=True)), Chunk(raw=raw, finish="stop")
    said = joined(reader.feed(last))
    assert sorted(said) == sorted(TOLD)
    assert reader.end(last) == End(stopped_by="x", prompt=9, cached=4, reasoning=7)


@pytest.mark.parametrize(
    ("reason", "finish", "cut", "end"),
    [
        ("stop", "stop", None, End()),
        ("length", "length", None, End("length")),
        ("length", "length", "budget", End("length", "budget")),
        ("content_filter", "stop", None, End("content_filter")),
    ],
)
def test_how_an_engine_ended(reason: str, finish: Any, cut: Any, end: End) -> None:
    reader = Deltas(Call("m"))
    last = Chunk(raw=stream(reason=reason, stop_reason=None), finish=finish, reason=cut)
    reader.feed(last)
    assert reader.end(last) == end


def test_what_stopped_it_is_told_where_it_is_a_text() -> None:
    reader = Deltas(Call("m"))
    assert reader.end(Chunk(finish="stop", stopped_by="x")).stopped_by == "x"
    assert reader.end(Chunk(finish="stop", stopped_by=7)).stopped_by is None


def test_a_call_without_an_id_gets_one() -> None:
    raw = stream({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]})
    (delta,) = Deltas(Call("m", id="resp_abc")).feed(Chunk(raw=raw))
    assert isinstance(delta, ToolDelta) and delta.id == "call_abc00"


def test_two_calls_at_once_are_the_engines_fault() -> None:
    calls = [{"index": index, "id": "x", "function": {"name": "f"}} for index in (0, 1, 0)]
    with pytest.raises(EngineError, match="two tool calls"):
        Deltas(Call("m")).feed(Chunk(raw=stream({"tool_calls": calls})))


@pytest.mark.parametrize(
    "content",
    [
        {"choices": None},
        {"choices": [None, {"delta": 3}, {"index": 1, "delta": {"content": "other"}}]},
        {"choices": [{"delta": {"content": ["x"], "tool_calls": [3, {}], "reasoning": 5}}]},
        {"usage": [], "choices": [{"logprobs": 3, "delta": {}, "finish_reason": {}}]},
    ],
)
def test_what_is_oddly_shaped_is_passed_over(content: Any) -> None:
    raw = b"data: " + json.dumps(content).encode() + b"\n\n"
    for delta in Deltas(Call("m")).feed(Chunk(raw=raw)):
        assert isinstance(delta, ToolDelta) and (delta.name, delta.arguments) == ("", "")


def test_logprobs_come_with_the_text_of_their_tokens() -> None:
    call = Call("m", sampling=Sampling(logprobs=1), extra=TOOLS)
    reader, top = Deltas(call), (Candidate(1, b"a", -0.5),)
    assert reader.feed(Chunk(text="", tokens=(Token(1, b"a", -0.5, top),))) == []
    (piece,) = reader.feed(Chunk(text="ab", tokens=(Token(2, b"b", -1.0),)))
    assert isinstance(piece, Piece)
    assert [score["token"] for score in piece.logprobs] == ["a", "b"]
    assert piece.logprobs[0]["top_logprobs"] == [{"token": "a", "logprob": -0.5, "bytes": [97]}]
