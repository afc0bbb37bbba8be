"""How an answer ends: choice by choice, and then in a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from app.errors import DeadlineExceeded, FarthingError
from app.types import Chunk, Decision

Outcome: TypeAlias = Literal["kept", "cut", "steered", "deadline", "refused", "failed", "closed"]
"""How an answer ended: `cut` and `steered` by its budget, `closed` by its client."""


@dataclass
class Ending:
    """Of several choices."""

    writing: set[int]  # choices that have not ended
    finishes: list[str] = field(default_factory=list)  # of those that have
    _reasons: set[str | None] = field(default_factory=set)  # why, beyond their finish

    def take(self, chunk: Chunk, decisions: Sequence[Decision]) -> Outcome:
        """How the answer ends, if this is its last finish chunk."""
        if chunk.raw is not None or chunk.vectors:
            self.writing.clear()
        self.writing.discard(chunk.index)
        self._reasons.add(chunk.reason)
        if chunk.finish is not None:
            self.finishes.append(chunk.finish)
        if self.writing:
            return "closed"
        if "deadline" in self._reasons:
            return "deadline"
        if "cancelled" in self._reasons:
            return "closed"
        if "budget" in self._reasons:
            return "cut"
        steered = any(d.steered or d.kind == "steer" for d in decisions)
        return "steered" if steered else "kept"


def outcome_of(error: Exception) -> Outcome:
    """How an answer ended that raised this."""
    if isinstance(error, DeadlineExceeded):
        return "deadline"
    theirs = isinstance(error, FarthingError) and error.status < 500
    return "refused" if theirs else "failed"
