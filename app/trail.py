"""What became of an answer's calls: one record of each, which whoever serves it writes in."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from app.errors import blamed
from app.types import NO_USAGE, Chunk, Tried, Usage


@dataclass(frozen=True, slots=True)
class Attempt:
    """One server's part in a call."""

    server: str  # host:port
    outcome: Tried
    ended: float  # time.monotonic()
    error: str = ""  # what it failed with, in our words


@dataclass(slots=True)
class CallRecord:
    """One call: a Watch. Its times are of time.monotonic()."""

    model: str
    prompt: int  # tokens, as they were counted
    began: float = field(default_factory=time.monotonic)
    headers: Mapping[str, str] = field(default_factory=dict)
    queued: float = 0.0  # seconds in wait for a place
    attempts: list[Attempt] = field(default_factory=list)  # none: served in this process
    first: float | None = None  # when its first tokens came
    ended: float | None = None
    usage: Usage = NO_USAGE
    cost: int = 0  # 1e-12 USD
    outcome: Tried = "closed"
    why: str = ""  # its finish; budget where that cut it; or the error's class
    span: object = None  # the observer's own
    _passes: dict[tuple[float, float], int] = field(default_factory=dict)
    _pass: Usage = NO_USAGE  # the last one, or several of which an engine told together

    def waited(self, seconds: float) -> None:
        self.queued += seconds

    def tried(self, server: str, outcome: Tried, error: str = "") -> None:
        self.attempts.append(Attempt(server, outcome, time.monotonic(), error))

    def saw(self, chunk: Chunk) -> None:
        if self.first is None and (chunk.tokens or chunk.raw):
            self.first = time.monotonic()
        if chunk.finish is not None:
            self.outcome, self.why = "ok", chunk.reason or chunk.finish
        if chunk.usage.passes:
            self._note_pass()
            self._pass = chunk.usage
        elif chunk.usage.accepted:  # the pass goes on: each token it kept is a chunk
            self._pass += chunk.usage

    def passes(self) -> Mapping[tuple[float, float], int]:
        """How many guesses a pass of the model read, how many it kept, and how many passes did;
        of several that an engine told of together, their mean. Once the call has ended."""
        self._note_pass()
        return self._passes

    def _note_pass(self) -> None:
        told, self._pass = self._pass, NO_USAGE
        if told.passes:
            key = told.drafted / told.passes, told.accepted / told.passes
            self._passes[key] = self._passes.get(key, 0) + told.passes

    def broke(self, error: Exception) -> None:
        self.outcome = blamed(error)
        self.why = type(error).__name__


class Witness(Protocol):
    """Who is told of every call."""

    def calling(self, record: CallRecord) -> None:
        """It begins; `headers` may still be set."""

    def called(self, record: CallRecord) -> None:
        """It has ended and is paid for."""
