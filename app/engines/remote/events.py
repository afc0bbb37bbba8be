"""Server-sent events, cut out of the bytes as they come."""

from __future__ import annotations

import re

from app.errors import EngineError

MOST_EVENT = 32 * 2**20  # bytes; one with a whole vocabulary's logprobs has about 4 MB
_BLANK = re.compile(rb"\n\n|\r\n\r\n|\r\r")


class Events:
    """Collects bytes and gives back whole events, without the blank line that ends each."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now. Raises EngineError for one that never ends."""
        # The searches of split are in C: with vLLM's own line ends nothing else is needed.
        text = self._rest + data if self._rest else data
        events = _BLANK.split(text) if b"\r" in text else text.split(b"\n\n")
        self._rest = events.pop()
        if len(self._rest) > MOST_EVENT:
            raise EngineError(f"The engine of {self._model} sent an event without an end")
        return [event for event in events if event]

    def end(self) -> None:
        """The bytes are over. Raises EngineError if that was amid an event."""
        if self._rest.strip():
            raise EngineError(f"The engine of {self._model} broke off in mid-answer")


def payload(event: bytes) -> bytes | None:
    """The data of an event; None for one that is a comment, or has none."""
    if event.startswith(b"data:") and b"\n" not in event and b"\r" not in event:
        return event[5:].strip()
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
