"""Choices of one request: one of them reads the prompt, and the others copy from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from app.engines.embedded.kv_cache import KVMemory, SequenceCache
from app.engines.embedded.sequence import RunningSequence


def next_reader(
    reading: deque[RunningSequence], running: Sequence[RunningSequence], memory: KVMemory
) -> RunningSequence:
    """Take from `reading` whose turn it is to read a piece of its prompt.

    Who has a sibling that is reading before it waits. Once that one has read all, only the last
    token is left to read: one must be, to get logits.
    """
    while True:
        sequence = reading.popleft()
        siblings = [s for s in running if s is not sequence and s.reads_as(sequence)]
        if not any(_before(other, sequence, running) for other in siblings):
            break
        sequence.waited = True
        reading.append(sequence)
    if siblings or sequence.waited:  # for one that has ended, and left what it read
        prompt = sequence.tokens[: sequence.prompt_length - 1]
        caches = [_cache(other) for other in siblings]
        sequence.borrowed(memory.borrow(_cache(sequence), prompt, caches))
    return sequence


def _before(
    other: RunningSequence, sequence: RunningSequence, running: Sequence[RunningSequence]
) -> bool:
    """Whether the other is reading, and is ahead of this one: somebody always is."""
    if not other.reading:
        return False
    theirs, ours = _cache(other).length, _cache(sequence).length
    return theirs > ours or (theirs == ours and running.index(other) < running.index(sequence))


def _cache(sequence: RunningSequence) -> SequenceCache:
    if sequence.cache is None:
        raise ValueError("a sequence that runs has a cache")
    return sequence.cache
