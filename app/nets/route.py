"""Which tokens of a prompt are computed and which predicted, and in what pieces it is read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from app.nets.relevance import relevant


@dataclass(frozen=True, slots=True)
class Route:
    """The places in a prompt at which predicting begins, and ends, by turns; ascending."""

    turns: tuple[int, ...] = ()

    @classmethod
    def of(cls, pieces: Sequence[bytes], first: int, last: int, share: float = 0.0) -> Route:
        """For a prompt, whose tokens' `pieces` these are: computed are so many at its beginning and
        at its end, and this share of the rest, which is what matters most: as CacheBlend does for
        keys and values that another context made (Yao et al. 2024, arXiv 2405.16444). Words tell
        what that is (`relevant`), before anything is computed."""
        within = range(first, max(len(pieces) - last, first))
        computed = relevant(pieces, within, share) if share and within else []
        turns = [within.start]
        for bound in (*(at for each in computed for at in (each.start, each.stop)), within.stop):
            if turns and turns[-1] == bound:
                turns.pop()  # what begins where it ends is nothing
            else:
                turns.append(bound)
        return cls(tuple(turns))

    @property
    def stop(self) -> int:
        """Behind the last token that is predicted; 0: none is."""
        return self.turns[-1] if self.turns else 0

    @property
    def begins(self) -> int:
        """The first token that is predicted."""
        return self.turns[0] if self.turns else 0

    def predicts(self, at: int) -> bool:
        return bisect_right(self.turns, at) % 2 == 1

    def predicted(self, start: int, stop: int) -> int:
        """How many of these tokens are predicted."""
        runs = zip(self.turns[::2], self.turns[1::2], strict=True)
        return sum(max(min(end, stop) - max(begin, start), 0) for begin, end in runs)

    def turn(self, at: int, stop: int) -> int:
        """The next one behind this place, or `stop` where that comes first."""
        passed = bisect_right(self.turns, at)
        return min((stop, *self.turns[passed : passed + 1]))

    def end(self, at: int, chunk: int) -> int:
        """Of the piece that begins there, at most `chunk` tokens, but for the prompt's own end.

        Ends are multiples of `chunk` behind the last turn: what is computed together depends on
        the prompt alone, wherever reading began."""
        passed = bisect_right(self.turns, at)
        begun = self.turns[passed - 1] if passed else 0
        return self.turn(at, begun + ((at - begun) // chunk + 1) * chunk)
