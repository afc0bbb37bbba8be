"""Looked-up guesses are what followed the same tokens before, and what a plain search finds."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from app.engines.embedded.speculation.lookup import KINDS, LONGEST_MATCH, Lookup, Match

GRAM = 4  # tokens of the n-grams that are looked for


def found(tokens: Sequence[int], ahead: Sequence[int] = ()) -> Match | None:
    lookup = Lookup()
    lookup.extend(tokens)
    return lookup.match(tokens, ahead)


def place_and_length(match: Match | None) -> tuple[int, int] | None:
    return None if match is None else (match.place, match.length)


def searched(tokens: list[int], ahead: list[int]) -> tuple[int, int] | None:
    """By looking at every place: the last one that the most tokens, up to four, lead to, and how
    many tokens before it are those at the end."""
    whole = [*tokens, *ahead]
    recent = [*tokens[-LONGEST_MATCH:], *ahead]
    for n in range(min(GRAM, len(recent)), 0, -1):
        for place in range(len(tokens) - 1, n - 1, -1):
            if tokens[place - n : place] == whole[-n:]:
                length = 0
                most = min(LONGEST_MATCH, len(recent), place)
                while length < most and tokens[place - 1 - length] == recent[-1 - length]:
                    length += 1
                return place, length
    return None


def test_what_followed_the_last_tokens_is_guessed() -> None:
    tokens = [1, 2, 3, 4, 5, 9, 2, 3]
    match = found(tokens)
    assert match is not None and place_and_length(match) == (3, 2)
    assert Lookup.guesses(tokens, match, 3) == [4, 5, 9]


def test_the_last_of_several_places_counts() -> None:
    assert place_and_length(found([7, 1, 7, 2, 7])) == (3, 1)


def test_a_longer_match_goes_before_a_later_one() -> None:
    tokens = [1, 2, 3, 4, 8, 3, 5, 1, 2, 3]
    assert place_and_length(found(tokens)) == (3, 3)


def test_what_is_new_has_no_match() -> None:
    assert found([1, 2, 3]) is None
    assert found([]) is None
    assert found([1]) is None


def test_the_end_is_not_found_in_itself() -> None:
    """Nothing has followed the last token, so it is no place to guess from."""
    assert found([1, 2]) is None
    assert place_and_length(found([5, 5])) == (1, 1)


def test_a_repetition_goes_on() -> None:
    """At the end of what is written it guesses from its own guesses."""
    tokens = [9, 1, 2, 3, 1, 2, 3]
    match = found(tokens)
    assert match is not None
    assert Lookup.guesses(tokens, match, 8) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_a_single_token_repeated_goes_on() -> None:
    tokens = [4, 4, 4]
    match = found(tokens)
    assert match is not None
    assert Lookup.guesses(tokens, match, 5) == [4] * 5


def test_guesses_follow_what_somebody_else_has_guessed() -> None:
    """`ahead` counts as written, in finding the place and in going on behind it."""
    tokens = [1, 2, 3, 4, 5, 1]
    assert place_and_length(found(tokens, [2, 3])) == (3, 3)
    match = found(tokens, [2, 3])
    assert match is not None
    # 4, 5 and 1 are in the tokens; then come those ahead, and its own guesses.
    assert Lookup.guesses(tokens, match, 7, [2, 3]) == [4, 5, 1, 2, 3, 4, 5]


def test_a_match_is_no_longer_than_tells_anything() -> None:
    match = found([*range(40), *range(40)])
    assert place_and_length(match) == (40, LONGEST_MATCH)


def kind(tokens: Sequence[int], ahead: int = 0) -> int:
    match = found(tokens)
    assert match is not None
    return match.kind(ahead)


def test_kinds_tell_what_was_constant_from_what_was_not() -> None:
    """Whether the n-gram was followed by the same token the last two times, or by another, or came
    once only; and how many tokens matched."""
    once, same, another = [5, 1, 9, 5], [5, 1, 9, 5, 1, 8, 5], [5, 1, 9, 5, 2, 8, 5]
    kinds = [kind(tokens) for tokens in (once, same, another)]
    assert len(set(kinds)) == 3
    assert kind([5, 1, 9, 5, 2, 8, 5, 2, 7, 5]) == kinds[1]  # the last two count, no others
    assert len({kind([5, 6, 1, 9, 5, 6]), *kinds}) == 4


def test_a_guess_behind_others_is_of_the_kind_of_a_longer_match() -> None:
    assert kind([5, 1, 9, 5], ahead=1) == kind([5, 6, 1, 9, 5, 6])
    long = [*range(40), *range(40)]
    assert kind(long) == kind(long, ahead=3)
    assert 0 <= kind(long) < KINDS


small = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@given(small, st.lists(st.integers(0, 3), max_size=6))
def test_matches_are_those_of_a_plain_search(tokens: list[int], ahead: list[int]) -> None:
    match = found(tokens, ahead)
    assert place_and_length(match) == searched(tokens, ahead)


@given(small, st.lists(st.integers(0, 3), max_size=6), st.integers(1, 20))
def test_guesses_are_what_stands_there_once_they_are_written(
    tokens: list[int], ahead: list[int], count: int
) -> None:
    match = found(tokens, ahead)
    if match is None:
        return
    guesses = Lookup.guesses(tokens, match, count, ahead)
    whole = [*tokens, *ahead, *guesses]
    assert guesses == whole[match.place : match.place + count]


def test_an_index_that_grew_is_that_of_the_whole() -> None:
    rng = random.Random(0)
    tokens: list[int] = []
    growing = Lookup()
    for _ in range(200):
        tokens += [rng.randrange(3) for _ in range(rng.randrange(1, 6))]
        growing.extend(tokens)
        assert growing.match(tokens) == found(tokens)
