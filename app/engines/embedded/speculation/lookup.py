"""Prompt look-up: guesses that cost nothing, from what followed the same tokens before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_GRAM = 4  # tokens of the longest indexed n-gram
LONGEST_MATCH = 16  # tokens; a longer match tells no more
_NEW, _AGREED, _DIFFERED = range(3)  # how the n-gram was followed the last two times
KINDS = 3 * (LONGEST_MATCH + 1)


@dataclass(frozen=True, slots=True)
class Match:
    """The last `length` tokens stood before, and what followed them begins at `place`."""

    place: int
    length: int
    constancy: int = _NEW

    def kind(self, ahead: int) -> int:
        """Which of KINDS the guess is that stands `ahead` of the first one, for telling how likely
        it is: those before it have made the match longer."""
        return self.constancy * (LONGEST_MATCH + 1) + min(self.length + ahead, LONGEST_MATCH)


class Lookup:
    """An index over the tokens of one sequence (prompt look-up decoding, Saxena 2023).

    For every n-gram of up to four tokens it knows where it stood last; what followed there is the
    guess. `extend` as the sequence grows.
    """

    def __init__(self) -> None:
        # Where what followed begins, and how constant it is.
        self._after: list[dict[tuple[int, ...], tuple[int, int]]] = [{} for _ in range(_GRAM)]
        self._indexed = 0  # n-grams that end before this index are known

    def extend(self, tokens: Sequence[int]) -> None:
        """Take up what the sequence has gained; `tokens` are all of it."""
        # The last token is left out: nothing has followed it yet.
        for end in range(self._indexed, len(tokens) - 1):
            for n in range(1, min(_GRAM, end + 1) + 1):
                known, gram = self._after[n - 1], tuple(tokens[end + 1 - n : end + 1])
                before, constancy = known.get(gram), _NEW
                if before is not None:
                    constancy = _AGREED if tokens[before[0]] == tokens[end + 1] else _DIFFERED
                known[gram] = end + 1, constancy
        self._indexed = max(self._indexed, len(tokens) - 1)

    def match(self, tokens: Sequence[int], ahead: Sequence[int] = ()) -> Match | None:
        """Where the last tokens of `tokens`, with `ahead` written after them, stood last."""
        recent = [*tokens[-LONGEST_MATCH:], *ahead]
        for n in range(min(_GRAM, len(recent)), 0, -1):
            found = self._after[n - 1].get(tuple(recent[-n:]))
            if found is not None:
                place, constancy = found
                return Match(place, self._length(tokens, recent, place, n), constancy)
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
