"""What may be shown is a function of all ids, whoever wrote them, wherever it was handed on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engines.embedded.detokenize import Detokenizer
from app.engines.remote.tokens import Reading, stream
from app.types import Chunk, Decoding
from tests.app.engines.remote.toy import (
    END,
    PIECES,
    ToyOrigin,
    answer,
    call,
    collected,
    decode,
)

PROMPT = (0, 2)
# As byte-level tokenizers cut it: whole, or in parts.
CHARACTERS = ((0,), (1,), (2,), (3,), (4, 5), (12, 5), (6, 7), (8, 9), (8, 13), (10,))
texts = st.lists(st.sampled_from(CHARACTERS), max_size=12).map(lambda parts: sum(parts, ()))
junk = st.lists(st.integers(0, END - 1), max_size=12).map(tuple)
stops = st.lists(st.text("ab €é😀th", min_size=1, max_size=4), max_size=3).map(tuple)
sizes = st.lists(st.integers(1, 3), min_size=1, max_size=4)


async def asked(
    written: Sequence[int],
    ids: Sequence[int],
    stop: tuple[str, ...],
    sizes: Sequence[int],
    entropy: bool,
) -> list[Chunk]:
    async def toy_decode(ids: list[int]) -> str:
        return decode(ids)

    async def names(ids: Iterable[int]) -> dict[int, bytes]:
        return {id: decode([id]).encode() for id in ids}

    finish = "stop" if ids[-1:] == (END,) else "length"
    origin = ToyOrigin(plays=deque([answer([*PROMPT, *written], ids, sizes, finish)]))
    one = call(
        prompt=PROMPT,
        written=tuple(written),
        sampling={"stop": stop},
        decoding=Decoding(entropy=entropy),
    )
    chunks = await collected(stream(origin, {}, one, {}, Reading(100, toy_decode, names)))
    assert not origin.open
    return chunks


def said(chunks: Sequence[Chunk], *, handed_on: bool = False) -> str:
    """The text; who hands an answer on drops what comes with the finish chunk."""
    return "".join(chunk.text for chunk in (chunks[:-1] if handed_on else chunks))


def visible(ids: Sequence[int], stop: Sequence[str]) -> tuple[str, str | None]:
    oracle = Detokenizer(PIECES.__getitem__, stop)
    return "".join(map(oracle.push, ids)) + oracle.flush(), oracle.stopped_by


@settings(max_examples=400)
@given(texts, st.integers(0, 24), stops, sizes, st.sampled_from([(), (END,)]))
def test_two_calls_say_what_one_says(
    ids: tuple[int, ...], at: int, stop: tuple[str, ...], sizes: list[int], end: tuple[int, ...]
) -> None:
    """Cut at any token, amid a character and a stop string too, in events of several tokens."""

    async def run() -> None:
        expected = visible(ids, stop)
        whole = await asked((), ids + end, stop, sizes, True)
        assert (said(whole), whole[-1].stopped_by) == expected
        first = await asked((), ids[:at], stop, sizes, True)
        if first[-1].stopped_by is not None:
            assert (said(first), first[-1].stopped_by) == expected
            return
        second = await asked(ids[:at], ids[at:] + end, stop, sizes, True)
        assert said(first, handed_on=True) + said(second) == expected[0]
        assert second[-1].stopped_by == expected[1]

    asyncio.run(run())


@settings(max_examples=200)
@given(texts, st.integers(0, 24), stops)
def test_it_is_no_matter_who_of_a_family_continues(
    ids: tuple[int, ...], at: int, stop: tuple[str, ...]
) -> None:
    """What the embedded engine shows, and where it goes on, is the same."""

    async def run() -> None:
        expected = visible(ids, stop)
        embedded = Detokenizer(PIECES.__getitem__, stop)
        text = "".join(map(embedded.push, ids[:at]))
        if embedded.stopped_by is None:
            text += said(await asked(ids[:at], ids[at:], stop, [1], False))
        assert text == expected[0]
        chunks = await asked((), ids[:at], stop, [1], False)
        text, embedded = said(chunks, handed_on=True), Detokenizer(PIECES.__getitem__, stop)
        embedded.prime(ids[:at])
        text += "".join(map(embedded.push, ids[at:])) + embedded.flush()
        assert text == expected[0]

    asyncio.run(run())


@settings(max_examples=300)
@given(junk, st.integers(0, 12), sizes)
def test_what_is_no_text_is_said_alike_too(ids: tuple[int, ...], at: int, sizes: list[int]) -> None:
    """Once something follows it: it may be kept back until then."""
    ids = (*ids, 0)

    async def run() -> None:
        assert said(await asked((), ids, (), sizes, True)) == decode(ids)
        first = await asked((), ids[:at], (), sizes, True)
        second = await asked(ids[:at], ids[at:], (), sizes, True)
        assert said(first, handed_on=True) + said(second) == decode(ids)

    asyncio.run(run())


@settings(max_examples=200)
@given(texts, stops, sizes, st.sampled_from([(), (END,)]))
def test_with_entropy_every_token_comes_in_a_chunk_of_its_own(
    ids: tuple[int, ...], stop: tuple[str, ...], sizes: list[int], end: tuple[int, ...]
) -> None:
    """And its text with it: what the first n chunks say is what n tokens may show."""

    async def run() -> None:
        chunks = await asked((), ids + end, stop, sizes, True)
        oracle = Detokenizer(PIECES.__getitem__, stop)
        if chunks[-1].stopped_by is None:
            assert len(chunks) == len(ids + end) + 1
        for chunk, id in zip(chunks[:-1], ids, strict=False):
            assert [token.id for token in chunk.tokens] == [id]
            assert chunk.text == oracle.push(id)

    asyncio.run(run())


async def test_a_stop_string_in_an_event_of_several_tokens_keeps_what_stood_before_it() -> None:
    chunks = await asked((), (0, 1, 2, 0, 1), ("the",), [5], True)
    assert [chunk.text for chunk in chunks] == ["a", "b", " ", ""]
    assert (chunks[-1].finish, chunks[-1].stopped_by) == ("stop", "the")
    assert sum(chunk.usage.completion for chunk in chunks) == 5  # they were written


@pytest.mark.parametrize("entropy", [True, False])
async def test_a_character_begun_by_one_and_ended_by_the_other(entropy: bool) -> None:
    first = await asked((), (0, 6), (), [1], entropy)
    assert [chunk.text for chunk in first[:-1]] == ["a", ""]
    second = await asked((0, 6), (7, 1), (), [2], entropy)
    assert said(second) == "😀b"


async def test_text_said_by_another_family_counts_for_stop_strings() -> None:
    """Its ids mean nothing here; the stop string began in what it said."""

    async def toy_decode(ids: list[int]) -> str:
        return decode(ids)

    origin = ToyOrigin(plays=deque([answer(PROMPT, (3, 0))]))
    one = call(prompt=PROMPT, said="the a", sampling={"stop": ("aab",)})
    chunks = await collected(stream(origin, {}, one, {}, Reading(100, toy_decode, None)))
    assert chunks[-1].stopped_by == "aab"
    assert "ab" not in said(chunks)


@pytest.mark.parametrize("sizes", [[1], [2], [3]])
async def test_what_is_reserved_is_never_shown(sizes: list[int]) -> None:
    """Amid a character too, where tokens are asked for by their ids."""
    for ids in ((0, END), (0, 4, END), (0, 12, END), (4, END)):
        chunks = await asked((), ids, (), sizes, True)
        assert "end" not in said(chunks), ids
        assert chunks[-1].finish == "stop"
    assert said(await asked((0, 4), (END,), (), sizes, True)) == ""


async def test_tokens_that_show_nothing_are_no_beginning_of_a_character() -> None:
    """A model may write reserved tokens in mid-answer; the server leaves them out."""
    chunks = await asked((), (0, END, 10, 1), (), [1], True)
    assert [chunk.text for chunk in chunks] == ["a", "", "", "b", ""]
