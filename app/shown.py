"""What a client has been shown of an answer, when that began, and how long it held the rest up."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from app.types import Chunk


@dataclass
class Shown:
    """Of several choices, so far."""

    drawn: int  # choices of each prompt, as they are numbered
    visible: dict[str, int] = field(default_factory=dict)  # tokens, by the model that wrote them
    entropy: Literal["exact", "bounds"] | None = None  # what the policy went by, if any
    cached: int = 0  # tokens of the prompts, each once, that were found in a cache
    first: float | None = None  # when there was something to show; time.monotonic()
    _calls: Counter[int] = field(default_factory=Counter)  # of each choice, that said what was read

    def take(self, chunk: Chunk) -> bool:
        """Whether there is something to show in it."""
        # Of an engine's own bytes we know how many tokens they are, not which.
        shown = len(chunk.tokens) if chunk.raw is None else chunk.usage.completion
        if shown and not chunk.echo:
            self.visible[chunk.model] = self.visible.get(chunk.model, 0) + shown
        for low, high in (token.entropy for token in chunk.tokens if token.entropy is not None):
            self.entropy = "bounds" if low != high else self.entropy or "exact"
        self._calls[chunk.index] += bool(chunk.usage.prompt)
        if chunk.index % self.drawn == 0 and self._calls[chunk.index] == 1:
            self.cached += chunk.usage.cached
        shows = bool(chunk.tokens or chunk.text or chunk.raw or chunk.finish)
        if shows and self.first is None:
            self.first = time.monotonic()
        return shows

    def begin_again(self) -> None:
        """Of what was read nothing was shown, and another model reads it now."""
        self._calls.clear()
        self.cached = 0


@dataclass(slots=True)
class Turns:
    """Whose turn it was, while an answer was read: ours within `with`, which makes a chunk, and
    from then on its reader's, until the next one is asked for."""

    busy: float = 0.0  # seconds of our turns
    held: float = 0.0  # seconds of the reader's between them
    given: float | None = None  # when the last chunk was; time.monotonic()
    _asked: float = 0.0

    def __enter__(self) -> None:
        self._asked = time.monotonic()

    def __exit__(self, kind: object, error: object, at: object) -> None:
        now = time.monotonic()
        self.busy += now - self._asked
        if kind is not None:
            return  # nothing was given: what was last is still the last
        if self.given is not None:
            self.held += self._asked - self.given
        self.given = now

    def took(self, arrived: float) -> tuple[float, float]:
        """Seconds from then (time.monotonic()) that the chunks took to make, the reader's turns
        left out: at least and at most.

        What the reader did behind the last one is no part of it. What it did between them is the
        difference, for nobody tells us whether an engine stood still meanwhile: the embedded one
        works some tokens ahead, a server as far as its connection takes them. Without these turns
        a machine that worked in them would look quick, and with them an idle one slow.
        """
        most = (time.monotonic() if self.given is None else self.given) - arrived
        return most - self.held, most
