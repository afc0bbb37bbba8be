"""Text that may be shown is a function of the answer's ids alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engines.embedded.detokenize import Detokenizer

# Single bytes, whole words, parts of characters, and invalid bytes.
PIECES = [b"a", b"b", b"ab", b" the", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\x98\x80", b"\xff", b""]
ids = st.lists(st.integers(0, len(PIECES) - 1), max_size=30)
stops = st.lists(st.text("ab €t", min_size=1, max_size=4), max_size=3)


def detokenizer(stop: Sequence[str] = ()) -> Detokenizer:
    return Detokenizer(PIECES.__getitem__, stop)


def write(detokenizer: Detokenizer, tokens: Sequence[int]) -> str:
    return "".join(detokenizer.push(token) for token in tokens)


def visible(tokens: Sequence[int], stop: Sequence[str]) -> str:
    """The definition, from all tokens at once."""
    text = b"".join(PIECES[token] for token in tokens).decode("utf-8", "replace")
    whole = b"".join(PIECES[token] for token in tokens)
    for cut in range(1, 4):  # an unfinished character is at most three bytes
        if (tail := whole[-cut:]) and unfinished(tail):
            text = whole[:-cut].decode("utf-8", "replace")
    for end in range(len(text) + 1):  # the stop string that is complete first
        ended = [s for s in stop if text[:end].endswith(s)]
        if ended:
            return text[: end - max(map(len, ended))]
    held = max(
        (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])),
        default=0,
    )
    return text[: len(text) - held]


def unfinished(tail: bytes) -> bool:
    need = {0xE2: 3, 0xF0: 4}.get(tail[0], 0)
    return len(tail) < need and all(0x80 <= byte < 0xC0 for byte in tail[1:])


@given(ids, stops)
def test_what_is_shown_is_the_definition_of_visible(tokens: list[int], stop: list[str]) -> None:
    assert write(detokenizer(stop), tokens) == visible(tokens, stop)


@given(ids, stops, st.integers(0, 30))
def test_a_fresh_instance_continues_exactly(tokens: list[int], stop: list[str], at: int) -> None:
    """A hand-over at any token, even inside a character or a stop string, changes no text."""
    whole = detokenizer(stop)
    expected = write(whole, tokens), whole.flush(), whole.stopped_by
    first, second = detokenizer(stop), detokenizer(stop)
    text = write(first, tokens[:at])
    second.prime(tokens[:at])
    text += write(second, tokens[at:])
    assert (text, second.flush(), second.stopped_by) == expected


@given(ids)
def test_all_text_is_what_python_decodes(tokens: list[int]) -> None:
    one = detokenizer()
    text = write(one, tokens) + one.flush()
    assert text == b"".join(PIECES[token] for token in tokens).decode("utf-8", "replace")


@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=8), max_size=3))
def test_overlapping_stop_strings_are_found(text: str, stop: list[str]) -> None:
    """Stops that repeat themselves or contain each other, as a plain search finds them."""
    tokens = ["ab".index(char) for char in text]
    assert write(detokenizer(stop), tokens) == visible(tokens, stop)


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    one = detokenizer(["b the"])
    assert [one.push(PIECES.index(piece)) for piece in (b"a", b"ab", b" the", b"a")] == [
        "a",
        "a",
        "",
        "",
    ]
    assert (one.stopped_by, one.flush()) == ("b the", "")


def test_what_was_held_back_is_shown_when_no_more_comes() -> None:
    one = detokenizer(["b the"])
    assert write(one, [PIECES.index(b"ab"), PIECES.index(b"\xf0\x9f")]) == "a"
    assert one.flush() == "b\ufffd"
    assert one.stopped_by is None


@pytest.mark.parametrize("stop", [[], [""]])
def test_an_empty_stop_string_stops_nothing(stop: list[str]) -> None:
    one = detokenizer(stop)
    assert write(one, [0, 1]) == "ab"
