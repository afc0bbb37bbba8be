"""Whatever a server sends, cut wherever the network cuts it: the same events, or an EngineError."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engines.remote.events import Events, payload
from app.engines.remote.relay import Scan
from app.errors import FarthingError
from app.types import Usage
from tests.app.engines.remote.test_events import cut
from tests.app.engines.remote.test_relay import DONE, asked, delta, last
from tests.app.engines.remote.toy import usage

LINES = [b"\n", b"\r", b"\r\n", b"data:", b" ", b":", b"a", b"\xff", b"event: x", b"id", b"{}"]
bytes_of_lines = st.lists(st.sampled_from(LINES) | st.binary(max_size=3), max_size=30).map(b"".join)
places = st.lists(st.integers(0, 400), max_size=10)


@given(bytes_of_lines, places)
def test_events_do_not_depend_on_where_the_bytes_are_cut(text: bytes, at: list[int]) -> None:
    whole, parts = Events("m"), Events("m")
    found = whole.feed(text)
    assert [event for piece in cut(text, at) for event in parts.feed(piece)] == found
    for event in found:
        data = payload(event)
        assert data is None or b"\r" not in data


@given(
    st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_characters="\r\n\x0b\x0c\x1c\x1d\x1e"), min_size=1
        )
    )
)
def test_what_is_written_as_data_is_read_as_it(texts: list[str]) -> None:
    said = [text.strip().encode() for text in texts]
    events = Events("m").feed(b"".join(b"data: " + data + b"\n\n" for data in said))
    assert [payload(event) for event in events] == said


EVENTS = [
    delta("a", usage=usage(5, 1)),
    delta("é\u2028", usage=usage(5, 2)),
    delta(None, "stop"),
    delta("b", "length", index=1),
    last(5, 2),
    b": ping\n\n",
    b'data: {"error": {"message": "no", "code": 400}}\n\n',
    b'data: {"choices": 1, "usage": {"prompt_tokens": "x"}}\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 99999999999}}\n\n',
    b"data: {broken\n\n",
    b'data: {"choices"}\n\n',
    b"\n\n",
    b'data: {"choices": "\xff"}\n\n',
    DONE,
]
answers = st.lists(st.sampled_from(EVENTS) | bytes_of_lines, max_size=8).map(b"".join)


def read(pieces: list[bytes], choices: int) -> tuple[bytes, Usage, str]:
    """What goes on, what was used, and how it ended."""
    scan, raw, used = Scan(asked(choices=choices)), b"", Usage()
    try:
        for piece in pieces:
            chunk = scan.read(piece)
            if chunk is not None:
                raw, used = raw + (chunk.raw or b""), used + chunk.usage
        chunk = scan.finish()
    except FarthingError as error:
        return raw, used, type(error).__name__
    return raw + (chunk.raw or b""), used + chunk.usage, "whole"


@settings(max_examples=300)
@given(answers, places, st.integers(1, 2))
def test_an_answer_is_relayed_alike_however_it_is_cut_or_is_an_error_of_the_engine_s(
    text: bytes, at: list[int], choices: int
) -> None:
    whole, parts = read([text], choices), read(cut(text, at), choices)
    assert parts[2] == whole[2]
    if whole[2] == "whole":
        assert parts == whole
    else:  # what came before the fault may have gone on already
        assert parts[0].startswith(whole[0])
