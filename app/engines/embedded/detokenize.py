"""Which text may be shown after some tokens: whole characters, and nothing that may yet stop it."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence


class Detokenizer:
    """Text of one answer, token by token.

    All that was shown is a function of the answer's ids alone (not of where chunks or calls
    began), so a fresh instance that is primed with what was written continues exactly.
    """

    def __init__(self, piece: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matchers = [_Matcher(stop) for stop in stops if stop]
        self._held = ""  # a proper prefix of a stop string, or empty
        self.stopped_by: str | None = None

    def prime(self, ids: Iterable[int]) -> None:
        """Take as shown what these tokens of the answer, written before, show."""
        for id in ids:
            self.push(id)

    def push(self, id: int) -> str:
        """What may be shown now and could not before; sets `stopped_by` when a stop completes."""
        if self.stopped_by is not None:
            return ""
        return self._advance(self._decoder.decode(self._piece(id)))

    def flush(self) -> str:
        """What was held back, once it is known that no more tokens come."""
        if self.stopped_by is not None:
            return ""
        rest = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return rest

    def _advance(self, new: str) -> str:
        if not self._matchers:
            return new
        text = self._held + new
        for place, char in enumerate(new, len(self._held) + 1):
            for matcher in self._matchers:
                matcher.push(char)
            done = [matcher for matcher in self._matchers if matcher.complete]
            if done:
                first = max(done, key=lambda matcher: matcher.matched)
                self.stopped_by, self._held = first.stop, ""
                return text[: place - first.matched]
        shown = len(text) - max(matcher.matched for matcher in self._matchers)
        self._held = text[shown:]
        return text[:shown]


class _Matcher:
    """How long a prefix of one stop string the text ends with (Knuth, Morris and Pratt).

    The failure table grows with the match, since clients choose how long a stop string is.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = [0, 0]  # [k]: the longest proper border of stop[:k]

    @property
    def complete(self) -> bool:
        return self.matched == len(self.stop)

    def push(self, char: str) -> None:
        self.matched = self._extend(self.matched, char)
        if self.matched == len(self._fallback):
            border = self._fallback[self.matched - 1]
            self._fallback.append(self._extend(border, char))

    def _extend(self, matched: int, char: str) -> int:
        while matched and self.stop[matched] != char:
            matched = self._fallback[matched]
        return matched + 1 if self.stop[matched] == char else 0
