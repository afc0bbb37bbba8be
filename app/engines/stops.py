"""Stop strings in a text that comes piece by piece, and what may be shown before they are whole."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back what may yet become a stop string; what it shows depends on the text alone."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._matchers = [_Matcher(stop) for stop in stops if stop]
        self._held = ""  # a proper prefix of a stop string, or empty
        self.stopped_by: str | None = None

    def push(self, new: str) -> str:
        """What may be shown now and could not before; sets `stopped_by` when a stop completes."""
        if self.stopped_by is not None:
            return ""
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

    def flush(self) -> str:
        """What was held back, once it is known that no more text comes."""
        held, self._held = self._held, ""
        return held


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
