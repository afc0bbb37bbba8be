"""What a prompt's end asks about: its last paragraph's rare words tell."""

from __future__ import annotations

import pytest

from app.nets.relevance import BLOCK, relevant
from app.nets.route import Route

ASKS = (b"\n\n", b"Who", b" climbed", b" Everest", b" in", b" the", b" year", b" nineteen", b" 12")
NAMES = [b"fir", b"oak", b"elm", b"ash", b"yew", b"box"]


def prompt(blocks: int, *, said: dict[int, bytes], end: tuple[bytes, ...] = ASKS) -> list[bytes]:
    """So many blocks of words that are everywhere, but for some places; and a paragraph."""
    text = [NAMES[at % 6] + b" the" for at in range(blocks * BLOCK)]
    for at, word in said.items():
        text[at] = word
    return [*text, *end]


def test_the_block_with_the_rare_words_is_found() -> None:
    text = prompt(10, said=dict.fromkeys(range(0, 320, 7), b" in") | {5 * BLOCK + 3: b" everest"})
    assert relevant(text, range(4, 10 * BLOCK), 0.1) == [range(5 * BLOCK, 6 * BLOCK)]


def test_a_rare_word_counts_more_than_many_common_ones() -> None:
    common = {at * BLOCK + 9: b" in" for at in range(1, 14, 2)}
    common |= {at * BLOCK + 8: b" who" for at in range(1, 14, 2)}
    text = prompt(20, said=common | {15 * BLOCK: b" Everest"})
    assert relevant(text, range(20 * BLOCK), 0.05) == [range(15 * BLOCK, 16 * BLOCK)]


def test_neighbours_share_in_it_and_come_together() -> None:
    text = prompt(9, said={5 * BLOCK: b" climbed", 5 * BLOCK + 1: b" Everest"})
    assert relevant(text, range(9 * BLOCK), 0.33) == [range(4 * BLOCK, 7 * BLOCK)]


def test_what_is_worth_nothing_is_taken_from_the_beginning_on() -> None:
    assert relevant(prompt(8, said={}), range(6, 8 * BLOCK), 0.25) == [range(6, 2 * BLOCK)]


@pytest.mark.parametrize(("share", "blocks"), [(0.001, 1), (0.24, 2), (0.26, 3), (1.0, 10)])
def test_the_share_is_rounded_and_one_is_taken_at_least(share: float, blocks: int) -> None:
    found = relevant(prompt(10, said={}), range(10 * BLOCK), share)
    assert found == [range(blocks * BLOCK)]


def test_the_paragraph_that_asks_is_taken_itself() -> None:
    text = prompt(4, said={40: b" Everest"})
    within = range(4, len(text) - 3)
    assert relevant(text, within, 0.2) == [
        range(BLOCK, 2 * BLOCK),
        range(4 * BLOCK + 1, len(text) - 3),
    ]


@pytest.mark.parametrize(
    "end",
    [
        ASKS,
        (*ASKS, b"", b"\n", b"", b"assistant", b"\n"),  # as a template closes
        (*ASKS, b"", b"", b"assistant", b"", b"\n\n"),
        (b"\n", b"\n", *ASKS[1:]),  # lines that end one by one
        (b"\r\n\r\n", *ASKS[1:]),
    ],
)
def test_it_is_found_behind_an_empty_line(end: tuple[bytes, ...]) -> None:
    text = prompt(10, said={170: b" Everest"}, end=end)
    begins = 10 * BLOCK + end.index(b"Who")
    assert relevant(text, range(len(text)), 0.01) == [range(160, 192), range(begins, len(text))]


def test_where_there_is_no_empty_line_the_last_tokens_ask() -> None:
    text = [b"word %d" % at for at in range(300)]
    text[50] = text[40] = text[270]
    assert relevant(text, range(290), 0.01)[0] == range(BLOCK, 2 * BLOCK)
    assert relevant(text, range(290), 0.01)[1] == range(300 - 64, 290)


def test_signs_and_what_is_not_shown_are_no_words() -> None:
    end = (*ASKS[:4], b"##", b"", b"...", *ASKS[4:])
    said = {40: b"##", 41: b"...", 42: b"", 43: b"\xff", 100: b" in"}
    assert relevant(prompt(8, said=said, end=end), range(8 * BLOCK), 0.1) == [range(96, 128)]


def test_a_short_prompt_is_all_question() -> None:
    assert relevant([b"a", b"b"], range(1), 0.5) == [range(1)]
    assert relevant([b"a"] * 40, range(4, 4), 0.5) == []


def test_a_route_is_what_is_left_to_predict() -> None:
    text = prompt(10, said={5 * BLOCK + 3: b" everest"})
    found = Route.of(text, 4, 3, 0.1)
    assert found == Route((4, 160, 192, 321))
    assert [found.predicts(at) for at in (0, 3, 4, 159, 160, 191, 192, 320, 321, 400)] == [
        *(False, False, True, True, False, False, True, True, False, False)
    ]
    assert (found.begins, found.stop) == (4, 321)
    assert found.predicted(0, 999) == 156 + 129 and found.predicted(100, 200) == 60 + 8
    assert Route.of(text, 4, 3) == Route((4, len(text) - 3))


@pytest.mark.parametrize(("first", "last"), [(0, 1), (4, 3)])
def test_where_all_is_computed_nothing_is_predicted(first: int, last: int) -> None:
    found = Route.of(prompt(3, said={}), first, last, 1.0)
    assert found == Route() and not found.predicts(5) and found.stop == found.begins == 0


@pytest.mark.parametrize(("first", "last"), [(200, 1), (0, 200), (50, 60)])
def test_a_prompt_that_is_all_beginning_and_end_has_nothing_to_predict(
    first: int, last: int
) -> None:
    for share in (0.0, 0.5):
        assert Route.of([b"a"] * 100, first, last, share) == Route()


def test_pieces_are_counted_from_the_last_turn() -> None:
    route, ends = Route((4, 160, 192, 321)), []
    at = 0
    while at < 400:
        at = route.end(at, 64)
        ends.append(at)
    assert ends == [4, 68, 132, 160, 192, 256, 320, 321, 385, 449]
    assert route.end(100, 64) == 132 and Route().end(70, 64) == 128
