"""Which text may be shown after some tokens: whole characters, and nothing that may yet stop it."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence

from app.engines.stops import StopStrings


class Detokenizer:
    """Text of one answer, token by token.

    All that was shown is a function of the answer's ids alone (not of where chunks or calls
    began), so a fresh instance that is primed with what was written continues exactly.
    """

    def __init__(
        self, piece: Callable[[int], bytes], stops: Sequence[str] = (), said: str = ""
    ) -> None:
        """`said`: the answer's text before the first id, which was shown already."""
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopStrings(stops)
        self._stops.push(said)

    @property
    def stopped_by(self) -> str | None:
        """The stop string that the text has run into."""
        return self._stops.stopped_by

    def prime(self, ids: Iterable[int]) -> None:
        """Take as shown what these tokens of the answer, written before, show."""
        for id in ids:
            self.push(id)

    def push(self, id: int) -> str:
        """What may be shown now and could not before; sets `stopped_by` when a stop completes."""
        if self.stopped_by is not None:
            return ""
        return self._stops.push(self._decoder.decode(self._piece(id)))

    def flush(self) -> str:
        """What was held back, once it is known that no more tokens come."""
        if self.stopped_by is not None:
            return ""
        return self._stops.flush() + self._decoder.decode(b"", final=True)
