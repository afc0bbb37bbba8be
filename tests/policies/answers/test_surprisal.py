"""Each word of a text gets the surprisal of its own tokens, wherever windows begin."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engines.fake import Fake, Script
from app.errors import EngineError
from app.types import Call, Token
from policies.answers.surprisal import WINDOW, scored, surprisals, windows


@given(st.integers(1, 20_000), st.integers(2, 5000))
def test_windows_tell_each_token_once_and_read_a_third_more_at_most(
    number: int, context: int
) -> None:
    ids, found = range(number), windows(range(number), context)
    assert [id for window in found for id in window.ids[window.known :]] == list(ids)
    assert all(len(window.ids) <= max(min(context - 1, WINDOW), 2) for window in found)
    assert sum(len(window.ids) for window in found) <= 4 / 3 * number + 1
    assert all(window.known for window in found[1:]) or context < 6


async def test_what_was_told_is_told_once() -> None:
    words = [f"w{n}" for n in range(50)]
    fake = Fake({"m": Script(["x"], surprisals={f"w{n}": float(n) for n in range(50)})})
    ids = tuple(map(fake.token_id, words))
    found = await scored(Call("m"), windows(ids, 21), fake)
    assert [token.id for token in found] == list(ids)
    assert [token.logprob for token in found[1:]] == [-float(n) for n in range(1, 50)]


def test_a_word_has_the_mean_of_its_tokens_and_parts_of_characters_do_no_harm() -> None:
    text = "An é 🎉 unlikely word."
    said = [
        b"An",
        b" ",
        b"\xc3",
        b"\xa9",
        b" \xf0\x9f",
        b"\x8e\x89",
        b" un",
        b"likely",
        b" word",
        b".",
    ]
    tokens = [Token(n, piece, -float(n) if n else None) for n, piece in enumerate(said)]
    cores = [(0, 2), (7, 15), (16, 20)]
    assert [text[begin:end] for begin, end in cores] == ["An", "unlikely", "word"]
    assert surprisals(text, tokens, cores) == [math.inf, 6.5, 8.0]


def test_tokens_of_another_text_are_refused() -> None:
    with pytest.raises(EngineError):
        surprisals("one two", [Token(1, b"three", -1.0)] * 4, [(0, 3)])
