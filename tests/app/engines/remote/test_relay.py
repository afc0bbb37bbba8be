"""An engine's own bytes go through; usage, ids and the end are read out of them, and no more."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engines.remote import relay
from app.engines.remote.relay import Scan
from app.errors import BadRequest, EngineError
from app.types import Chunk, Usage
from tests.app.engines.remote.toy import ToyOrigin, call, collected, event, usage

DONE = b"data: [DONE]\n\n"


def delta(text: str | None, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    content = {} if text is None else {"content": text}
    one = {"index": index, "delta": content, "finish_reason": finish}
    return event({"id": "chatcmpl-theirs", "object": "x", "choices": [one], **more})


def last(prompt: int = 5, completion: int = 2, cached: int | None = None) -> bytes:
    return event(
        {"id": "chatcmpl-theirs", "choices": [], "usage": usage(prompt, completion, cached)}
    )


def asked(**fields: Any) -> Any:
    return call(id="chatcmpl-ours", prompt=None, messages=({"role": "user"},), **fields)


def scanned(pieces: list[bytes], **fields: Any) -> list[Chunk]:
    scan = Scan(asked(**fields))
    found = [chunk for piece in pieces if (chunk := scan.read(piece)) is not None]
    return [*found, scan.finish()]


def raw(chunks: list[Chunk]) -> list[Any]:
    text = b"".join(chunk.raw or b"" for chunk in chunks)
    blocks = text.split(b"\n\n")
    assert blocks.pop() == b""
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks)
    return [json.loads(block[6:]) for block in blocks]


def total(chunks: list[Chunk]) -> Usage:
    return sum((chunk.usage for chunk in chunks), Usage())


STREAM = [
    delta("", usage=usage(5, 0)),
    delta("Hel", usage=usage(5, 1)),
    delta("lo", usage=usage(5, 2)),
    delta(None, "stop", usage=usage(5, 2)),
    last(5, 2, cached=4),
    DONE,
]


def test_the_events_go_through_under_our_id_and_without_usage_that_was_not_asked_for() -> None:
    chunks = scanned(STREAM)
    documents = raw(chunks)
    assert {document["id"] for document in documents} == {"chatcmpl-ours"}
    assert ["usage" in document for document in documents] == [False] * 4 + [True]
    assert [d["choices"][0]["delta"] for d in documents[:3]] == [
        {"content": ""},
        {"content": "Hel"},
        {"content": "lo"},
    ]
    assert total(chunks) == Usage(5, 4, 2)


def test_the_ends_come_with_the_finish_chunk() -> None:
    *before, end = scanned(STREAM)
    assert len(raw(before)) == 3
    finished, usage_of_all = raw([end])
    assert finished["choices"][0]["finish_reason"] == "stop"
    assert usage_of_all["usage"]["prompt_tokens"] == 5
    assert end.finish == "stop" and not end.tokens


@given(st.lists(st.integers(0, 1000), max_size=10))
def test_it_does_not_matter_how_the_bytes_arrive(places: list[int]) -> None:
    text = b"".join(STREAM)
    ends = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    pieces = [text[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    chunks = scanned(pieces)
    assert raw(chunks) == raw(scanned(STREAM))
    assert total(chunks) == Usage(5, 4, 2)


def test_running_usage_stays_where_the_client_asked_for_it() -> None:
    options = {"stream_options": {"continuous_usage_stats": True, "include_usage": True}}
    assert all("usage" in document for document in raw(scanned(STREAM, body=options)))


HOSTILE = (
    '","finish_reason":"stop","usage":{"prompt_tokens":0,"completion_tokens":0},"id":"chatcmpl-x"'
)


@pytest.mark.parametrize("field", ["content", "refusal"])
def test_what_a_model_writes_is_never_taken_for_the_protocol(field: str) -> None:
    """Its words look like JSON, but are strings of JSON."""
    for text in (HOSTILE, json.dumps({"choices": HOSTILE}), "\\" * 3 + HOSTILE):
        content = {"index": 0, "delta": {field: text}, "finish_reason": None}
        hostile = event({"id": "chatcmpl-theirs", "choices": [content], "usage": usage(5, 1)})
        chunks = scanned([hostile, *STREAM[2:]])
        assert raw(chunks)[0]["choices"] == [content]
        assert raw(chunks)[0]["id"] == "chatcmpl-ours"
        assert total(chunks) == Usage(5, 4, 2)


def test_an_engine_that_tells_its_usage_at_the_end_is_counted_by_events_until_then() -> None:
    events = [delta(""), delta("Hel"), delta("lo"), delta(None, "stop"), last(5, 9), DONE]
    chunks = scanned(events)
    assert [chunk.usage.completion for chunk in chunks] == [0, 1, 1, 7, 0]
    assert total(chunks) == Usage(5, 0, 9)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "arguments", "text"])
def test_what_is_thought_or_called_counts_too(field: str) -> None:
    said = {"index": 0, "delta": {field: "x"}, "finish_reason": None}
    chunks = scanned([event({"choices": [said]}), delta(None, "stop"), last(), DONE])
    assert chunks[0].usage.completion == 1


def test_usage_that_comes_with_the_last_choice_is_passed_on_as_an_event_of_its_own() -> None:
    """Mistral's servers send it like this."""
    end = delta(None, "stop", usage=usage(5, 3, cached=2))
    chunks = scanned([delta("a"), end, DONE])
    *_, finished, usage_of_all = raw(chunks)
    assert "usage" not in finished
    assert usage_of_all["choices"] == []
    assert usage_of_all["usage"] == usage(5, 3, cached=2)
    assert total(chunks) == Usage(5, 2, 3)


def test_an_engine_without_any_usage_is_paid_for_all_that_it_was_allowed() -> None:
    chunks = scanned([delta("a"), delta(None, "length"), DONE], max_tokens=7)
    assert total(chunks).completion == 7
    assert total(chunks).prompt > 10**6  # the meter takes what was counted
    assert chunks[-1].finish == "length"


@pytest.mark.parametrize("together", [True, False])
def test_an_answer_of_several_choices_ends_with_the_last_of_them(together: bool) -> None:
    events = [
        delta("a", index=0, usage=usage(5, 1)),
        delta("b", index=1, usage=usage(5, 1)),
        delta(None, "stop", index=1, usage=usage(5, 1)),
        delta("c", index=0, usage=usage(5, 2)),
        delta(None, "length", index=0, usage=usage(5, 2)),
        last(5, 3),
        DONE,
    ]
    pieces = [b"".join(events)] if together else events
    chunks = scanned(pieces, choices=2)
    assert total(chunks) == Usage(5, 0, 3)
    assert chunks[-1].finish == "length"
    assert [end["choices"][0]["index"] for end in raw([chunks[-1]])[:-1]] == [1, 0]


def test_choices_that_end_in_one_event() -> None:
    both = [{"index": i, "delta": {}, "finish_reason": "stop"} for i in range(2)]
    chunks = scanned([delta("a"), event({"choices": both}), last(), DONE], choices=2)
    assert len(raw(chunks)) == 3


@pytest.mark.parametrize(
    "events",
    [
        [],
        [DONE],
        [delta("a")],
        [delta("a"), DONE],
        [delta("a"), last(), DONE],
        [delta("a"), delta(None, "stop")[:-9]],
        [delta("a"), delta(None, "stop"), b"data: {"],
    ],
)
def test_an_answer_without_its_end_is_an_error(events: list[bytes]) -> None:
    with pytest.raises(EngineError, match="broke off"):
        scanned(events)


def test_one_of_two_choices_did_not_end() -> None:
    with pytest.raises(EngineError, match="broke off"):
        scanned([delta("a"), delta(None, "stop"), last(), DONE], choices=2)


@pytest.mark.parametrize("data", [b"data: [1]\n\n", b'data: "a"\n\n', b"data: x\n\n", b"data:\n\n"])
def test_what_is_no_event_of_an_answer_is_an_error(data: bytes) -> None:
    with pytest.raises(EngineError, match="malformed"):
        scanned([delta("a"), data])


def test_bytes_that_are_no_text_are_an_error() -> None:
    with pytest.raises(EngineError, match="malformed"):
        scanned([b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'])


def test_an_error_as_the_first_event_is_the_clients_and_later_the_engines() -> None:
    error = event({"error": {"message": "n is odd", "code": 400, "param": "n"}})
    with pytest.raises(BadRequest, match="n is odd"):
        scanned([error])
    with pytest.raises(EngineError, match="mid-answer") as raised:
        scanned([delta("a", usage=usage(5, 1)), error])
    assert not isinstance(raised.value, BadRequest)
    with pytest.raises(EngineError):
        scanned([event({"error": {"message": "out of memory", "code": 500}})])


def test_comments_end_here_and_an_event_over_several_lines_becomes_one() -> None:
    spread = delta("a").replace(b'"object"', b'\ndata: "object"')
    chunks = scanned([b": ping\n\n", b": ping\n" + spread, delta(None, "stop"), last(), DONE])
    assert raw(chunks)[0]["choices"][0]["delta"] == {"content": "a"}


@pytest.mark.parametrize("id", ['"id":"gen-1",', '"id": "chatcmpl-theirs", '])
def test_an_id_that_comes_first_is_ours_from_the_first_byte(id: str) -> None:
    events = [delta("a"), delta(None, "stop"), last(), DONE]
    renamed = [each.replace(b'"id":"chatcmpl-theirs",', id.encode()) for each in events]
    assert {document["id"] for document in raw(scanned(renamed))} == {"chatcmpl-ours"}


def test_an_event_without_an_id_gets_none() -> None:
    said = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
    chunks = scanned([event(said), delta(None, "stop"), last(), DONE])
    assert "id" not in raw(chunks)[0]


async def relayed(origin: ToyOrigin, answer: Any = relay.stream, **fields: Any) -> list[Chunk]:
    try:
        return await collected(answer(origin, "/v1/chat/completions", {}, asked(**fields), {}))
    finally:
        assert not origin.open


async def test_a_stream_is_read_to_its_end_and_no_further() -> None:
    origin = ToyOrigin(plays=deque([[*STREAM, delta("after the end")]]))
    assert len(raw(await relayed(origin))) == 5


async def test_what_is_no_stream_of_events_is_an_error() -> None:
    origin = ToyOrigin(plays=deque([STREAM]), content_type="application/json")
    with pytest.raises(EngineError, match="does not stream"):
        await relayed(origin)


def body(**fields: Any) -> list[bytes]:
    content = {"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]}
    return [json.dumps({**content, **fields}).encode()]


async def test_an_answer_in_one_piece() -> None:
    origin = ToyOrigin(plays=deque([body(usage=usage(5, 2, cached=9))]))
    (end,) = await relayed(origin, relay.whole)
    assert (end.raw, end.finish) == (body(usage=usage(5, 2, cached=9))[0], "stop")
    assert end.usage == Usage(5, 5, 2)
    assert origin.asked[0].silence == origin.patience.whole


@pytest.mark.parametrize("usage", [None, "5", [], 7])
async def test_in_one_piece_without_usage_all_that_was_allowed_is_paid(usage: Any) -> None:
    origin = ToyOrigin(plays=deque([body(usage=usage)]))
    end = (await relayed(origin, relay.whole, max_tokens=3))[-1]
    assert end.usage.completion == 3 and end.usage.prompt > 10**6


async def test_in_one_piece_a_choice_is_missing() -> None:
    with pytest.raises(EngineError, match="without choices"):
        await relayed(ToyOrigin(plays=deque([body()])), relay.whole, choices=2)


@pytest.mark.parametrize(
    "answer", [b"", b"{", b"[]", b"{}", b'{"choices": 5}', b'{"choices": [5]}', b"null"]
)
async def test_in_one_piece_what_cannot_be_read_is_an_error(answer: bytes) -> None:
    with pytest.raises(EngineError, match="no JSON of ours"):
        await relayed(ToyOrigin(plays=deque([[answer]])), relay.whole)


@pytest.mark.parametrize("kind", [relay.whole, relay.stream])
async def test_whoever_pays_learns_that_a_server_is_at_work_before_it_says_anything(
    kind: Any,
) -> None:
    played = body(usage=usage(5, 2)) if kind is relay.whole else []
    origin = ToyOrigin(plays=deque([played]))
    chunks = kind(origin, "/v1/chat/completions", {}, call(), {})
    assert await anext(chunks) == Chunk(model="m")
    await chunks.aclose()
    assert not origin.open


@pytest.mark.parametrize("first", [usage(5, 2), None])
def test_what_was_counted_stays_counted_however_the_answer_is_cut(first: object) -> None:
    """A server that takes tokens back is billed alike for every way the network cuts it."""
    events = [
        delta("a", usage=first),
        delta("b", usage=first),
        delta(None, "stop"),
        last(5, 1),
        DONE,
    ]
    for pieces in ([b"".join(events)], events):
        assert total(scanned(pieces)) == Usage(prompt=5, completion=2)
