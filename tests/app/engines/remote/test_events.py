"""Events are cut out of the bytes wherever these are cut, and say what the standard says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engines.remote import events
from app.engines.remote.events import Events, payload
from app.errors import EngineError

TEXT = b'data: {"a":"\xe2\x82\xac"}\n\n: a comment\n\ndata: [DONE]\n\n'


def fed(pieces: list[bytes]) -> list[bytes]:
    one = Events("m")
    found = [event for piece in pieces for event in one.feed(piece)]
    one.end()
    return found


def cut(text: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in zip(ends, ends[1:], strict=False)]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@given(places=st.lists(st.integers(0, 200), max_size=8))
def test_it_does_not_matter_where_the_bytes_are_cut(line_end: bytes, places: list[int]) -> None:
    found = fed(cut(TEXT.replace(b"\n", line_end), places))
    payloads = [payload(event) for event in found if event.strip()]
    assert payloads == ['{"a":"€"}'.encode(), None, b"[DONE]"]


def test_what_is_no_whole_event_yet_is_held_back() -> None:
    one = Events("m")
    assert one.feed(b"data: 1\n") == []
    assert one.feed(b"\ndata: 2") == [b"data: 1"]
    with pytest.raises(EngineError, match="m broke off"):
        one.end()


def test_an_event_without_an_end_does_not_fill_the_memory(monkeypatch) -> None:
    monkeypatch.setattr(events, "MOST_EVENT", 100)
    one = Events("m")
    assert one.feed(b"data: " + b"x" * 94) == []
    with pytest.raises(EngineError, match="without an end"):
        one.feed(b"x")


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: {}", b"{}"),
        (b"data:{}", b"{}"),
        (b"data: {}  ", b"{}"),
        (b"event: delta\nid: 7\ndata: {}", b"{}"),
        (b"event: delta\r\ndata: {}", b"{}"),
        (b"data: {}\rid: 7", b"{}"),
        (b"data: {\ndata: }", b"{\n}"),
        (b": comment\ndata: {}", b"{}"),
        (b": comment", None),
        (b"event: ping", None),
        (b"data:", b""),
        (b"database: 1", None),
    ],
)
def test_the_data_of_an_event(event: bytes, data: bytes | None) -> None:
    assert payload(event) == data
