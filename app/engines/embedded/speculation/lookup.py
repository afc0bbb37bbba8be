"""Prompt look-up: guesses that cost nothing, from what followed the same tokens before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_GRAM = 4  # tokens of the longest indexed n-gram
LONGEST_MATCH = 16  # tokens; a longer match tells no more


@dataclass(frozen=True, slots=True)
class Match:
    """The last `length` tokens stood before, and what followed them begins at `place`."""

    place: int
    length: int


class Lookup:
    """An index over the tokens of one sequence (prompt look-up decoding, Saxena 2023).

    For every n-gram of up to four tokens it knows where it stood last; what followed there is the
    guess. `extend` as the sequence grows.
    """

    def __init__(self) -> None:
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in range(_GRAM)]
        self._indexed = 0  # n-grams that end before this index are known

    def extend(self, tokens: Sequence[int]) -> None:
        """Take up what the sequence has gained; `tokens` are all of it."""
        # The last token is left out: nothing has followed it yet.
        for end in range(self._indexed, len(tokens) - 1):
            for n in range(1, min(_GRAM, end + 1) + 1):
                self._after[n - 1][tuple(tokens[end + 1 - n : end + 1])] = end + 1
        self._indexed = max(self._indexed, len(tokens) - 1)

    def match(self, tokens: Sequence[int], ahead: Sequence[int] = ()) -> Match | None:
        """Where the last tokens of `tokens`, with `ahead` written after them, stood last."""
        recent = [*tokens[-LONGEST_MATCH:], *ahead]
        for n in range(min(_GRAM, len(recent)), 0, -1):
            place = self._after[n - 1].get(tuple(recent[-n:]))
            if place is not None:
                return Match(place, self._length(tokens, recent, place, n))
        return None

    @staticmethod
    def _length(tokens: Sequence[int], recent: Sequence[int], place: int, known: int) -> int:
        """How many tokens before `place` are those at the end; `known` of them are so."""
        most = min(LONGEST_MATCH, len(recent), place)
        while known < most and tokens[place - 1 - known] == recent[-1 - known]:
            known += 1
        return known

    @staticmethod
    def guesses(
        tokens: Sequence[int], match: Match, count: int, ahead: Sequence[int] = ()
    ) -> list[int]:
        """The `count` tokens after the match; at the end of what is written it goes on as if what
        it guesses were written, which is what a repetition needs."""
        start, length = match.place, len(tokens)
        found: list[int] = []
        for at in range(start, start + count):
            if at < length:
                found.append(tokens[at])
            elif at - length < len(ahead):
                found.append(ahead[at - length])
            else:
                found.append(found[at - length - len(ahead)])
        return found
