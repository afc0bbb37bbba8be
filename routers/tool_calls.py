"""Tells the tool calls of an answer from its text, as the text comes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
# The order in which engines are held to write a call's members.
_HEAD = re.compile(
    r'\s*<tool_call>\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)', re.S
)
_LONGEST_HEAD = 1024  # characters: what has become no call by then is text
_TELLING = re.compile(r'["{}]|\\.', re.S)


@dataclass(frozen=True, slots=True)
class ToolDelta:
    """What came of one call: its id and name once and first, then its arguments in pieces."""

    index: int  # which call of the answer
    id: str | None
    name: str | None
    arguments: str  # a piece of a JSON object's text


class ToolReader:
    """Reads one answer whose calls stand between marks: `<tool_call>{...}</tool_call>`.

    What it tells is a function of the answer's text alone, in whatever pieces that is fed. A call
    that broke off keeps the arguments it had; one that broke off before them stays text, as does
    what only looks like a call. White space around calls is dropped.
    """

    def __init__(self, answer: str) -> None:
        """`answer`: the answer's id; the ids of its calls follow from it."""
        self.calls = 0  # begun so far
        self._answer = answer
        self._held = ""
        self._read: Callable[[], list[str | ToolDelta]] = self._text
        self._depth = 0  # of the braces in arguments
        self._quoted = False

    @property
    def done(self) -> bool:
        """Whether there are calls, and all are whole."""
        return self.calls > 0 and self._read == self._text

    def feed(self, text: str) -> list[str | ToolDelta]:
        """What can be told now that this text has come; no text of it is empty."""
        self._held += text
        pieces: list[str | ToolDelta] = []
        while True:
            state = self._read
            pieces += state()
            if self._read == state:
                return pieces

    def flush(self) -> list[str | ToolDelta]:
        """What was held back, when the answer has ended."""
        rest, self._held = self._held, ""
        if self._read == self._arguments:
            return [self._more(rest)] if rest else []
        if self._read == self._end or (self.calls and not rest.strip()):
            return []
        return [rest] if rest else []

    def _text(self) -> list[str | ToolDelta]:
        before, mark, _ = self._held.partition(_OPEN)
        shown = len(before.rstrip()) if mark else _surely_text(self._held)
        if mark:
            self._read = self._head
        text, self._held = self._held[:shown], self._held[shown:]
        return [text] if text else []

    def _head(self) -> list[str | ToolDelta]:
        head = _HEAD.match(self._held)
        name = _string(head[1]) if head else None
        if head and name is not None:
            self._held, self._read = self._held[head.end() :], self._arguments
            index, self.calls = self.calls, self.calls + 1
            digest = hashlib.sha256(f"{self._answer}:{index}".encode()).hexdigest()
            return [ToolDelta(index, f"call_{digest[:24]}", name, "")]
        if head or _CLOSE in self._held or len(self._held.lstrip()) > _LONGEST_HEAD:
            before, mark, self._held = self._held.partition(_OPEN)
            self._read = self._text
            return [before + mark]
        return []

    def _arguments(self) -> list[str | ToolDelta]:
        end = len(self._held) - (len(self._held) - len(self._held.rstrip("\\"))) % 2
        for mark in _TELLING.finditer(self._held):
            if mark[0] == '"':
                self._quoted = not self._quoted
            elif not self._quoted and mark[0] in "{}":
                self._depth += 1 if mark[0] == "{" else -1
                if not self._depth:
                    end, self._read = mark.end(), self._end
                    break
        piece, self._held = self._held[:end], self._held[end:]
        return [self._more(piece)] if piece else []

    def _end(self) -> list[str | ToolDelta]:
        _, mark, after = self._held.partition(_CLOSE)
        if mark:
            self._held, self._read = after, self._text
        return []

    def _more(self, arguments: str) -> ToolDelta:
        return ToolDelta(self.calls - 1, None, None, arguments)


def _surely_text(text: str) -> int:
    """How many of these characters are text, whatever comes: no part of a mark, nor the space
    before it."""
    mark = text.rfind("<")
    if mark < 0 or not _OPEN.startswith(text[mark:]):
        mark = len(text)
    return len(text[:mark].rstrip())


def _string(quoted: str) -> str | None:
    try:
        return str(json.loads(quoted, strict=False))
    except ValueError:
        return None
