"""Which sequences of a model compute next: continuous batching, fair to all that wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch

from app.engines.embedded.kv_cache import KVMemory, SequenceCache
from app.engines.embedded.model import Span
from app.engines.embedded.sampling import Drawn, draw
from app.engines.embedded.sequence import RunningSequence
from app.errors import EngineError, Overloaded


class Model(Protocol):
    """What is needed of a decoder: hidden states of new tokens, and logits of some of them."""

    def forward(self, tokens: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


class Scheduler:
    """The sequences of one model.

    `submit` and `cancel` may be called from any thread; all else belongs to the one thread that
    calls `step`.
    """

    def __init__(
        self,
        model: Model,
        memory: KVMemory,
        *,
        max_running: int = 16,
        max_waiting: int = 256,
        prefill_chunk: int = 64,
    ) -> None:
        """`prefill_chunk`: prompt tokens computed in one step."""
        self.memory = memory
        self._model = model
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._prefill_chunk = prefill_chunk
        self._inbox: deque[RunningSequence] = deque()  # the only thing other threads append to
        self._waiting: deque[RunningSequence] = deque()
        self._running: list[RunningSequence] = []
        self._reading: deque[RunningSequence] = deque()  # those of them not done with their prompt
        self._at_risk: list[RunningSequence] = []  # whom an error in the current step would hit
        self._news: dict[RunningSequence, None] = {}
        self._any_cancelled = False
        self._began: dict[RunningSequence, float] = {}
        self._duration = 1.0  # of a call, seconds; rolling

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._inbox) + len(self._waiting)

    def submit(self, sequence: RunningSequence) -> None:
        """Queue a sequence, whose capacity must be able to fit. Raises Overloaded."""
        free = max(0, self._max_running - self.running)
        if self.waiting >= self._max_waiting + free:
            # How long until those before it have had their turn, at the recent pace.
            estimate = self._duration * (self.waiting + 1) / self._max_running
            raise Overloaded(
                f"{self.waiting} calls are waiting for this model already",
                retry_after=max(1.0, estimate),
            )
        self._inbox.append(sequence)

    def cancel(self, sequence: RunningSequence) -> None:
        """Give back what the sequence holds, at the next step."""
        sequence.cancelled = True
        self._any_cancelled = True

    def take_news(self) -> list[RunningSequence]:
        """The sequences whose outbox has got something, or that failed, since the last time."""
        news = list(self._news)
        self._news.clear()
        return news

    @torch.inference_mode()
    def step(self) -> bool:
        """One token for every sequence that writes, and one piece of one prompt.

        Returns whether anything was done. After an error, call `fail`.
        """
        self._at_risk = []
        moved = self._reap() | self._admit()
        batch = self._writing()
        if self._reading:
            batch.append(self._reading.popleft())
        if batch:
            self._compute(batch)
        return moved or bool(batch)

    def fail(self, message: str) -> None:
        """End the sequences that an error in `step` has hit: all, where that is not known."""
        hit = self._at_risk or [*self._running, *self._waiting]
        self._at_risk = []
        for sequence in hit:
            self._end(sequence, message)

    def close(self, message: str) -> None:
        """End every sequence."""
        self._waiting.extend(self._drain())
        for sequence in [*self._running, *self._waiting]:
            self._end(sequence, message)

    def _drain(self) -> list[RunningSequence]:
        return [self._inbox.popleft() for _ in range(len(self._inbox))]

    def _reap(self) -> bool:
        """Give back what cancelled sequences hold."""
        self._waiting.extend(self._drain())
        if not self._any_cancelled:
            return False
        self._any_cancelled = False  # first: who cancels from here on is seen at the next step
        gone = [s for s in [*self._running, *self._waiting] if s.cancelled]
        for sequence in gone:
            self._drop(sequence, keep=True)
        return bool(gone)

    def _admit(self) -> bool:
        """Start waiting sequences, in order, while their worst case fits the KV memory."""
        admitted = False  # or refused: whether anything has changed
        while self._waiting and self._active < self._max_running:
            sequence = self._waiting[0]
            self._at_risk = [sequence]
            cache = self.memory.acquire(sequence.tokens, sequence.capacity)
            if cache is None:
                if self._running:
                    break
                # With nobody to wait for it would wait for ever.
                self._end(sequence, "the KV memory does not hold this call")
                admitted = True
                continue
            self._waiting.popleft()
            self._running.append(sequence)
            self._reading.append(sequence)
            self._began[sequence] = time.monotonic()
            sequence.admit(cache)
            self._news[sequence] = None
            admitted = True
        self._at_risk = []
        return admitted

    @property
    def _active(self) -> int:
        """Running sequences but those that their readers hold up: these take nobody's place."""
        return sum(not sequence.paused for sequence in self._running)

    def _writing(self) -> list[RunningSequence]:
        """The sequences that write a token in this step."""
        ready = [s for s in self._running if not s.reading and not s.paused]
        if len(ready) <= self._max_running:
            return ready
        # More came back to life than fit a batch: take turns.
        chosen, rest = ready[: self._max_running], set(ready[self._max_running :])
        self._running.sort(key=lambda sequence: sequence not in rest)
        return chosen

    def _compute(self, batch: Sequence[RunningSequence]) -> None:
        self._at_risk = list(batch)
        tokens: list[int] = []
        spans: list[Span] = []
        writers: list[RunningSequence] = []
        last: list[int] = []  # their last token's row
        for sequence in batch:
            cache = _cache(sequence)
            new = sequence.upcoming(self._prefill_chunk)
            tokens += new
            spans.append(Span(cache, len(new)))
            if cache.length + len(new) == len(sequence.tokens):
                writers.append(sequence)
                last.append(len(tokens) - 1)
        hidden = self._model.forward(torch.tensor(tokens), spans)
        if batch[-1].reading:
            self._reading.append(batch[-1])
        self._at_risk = writers
        if writers:
            logits = self._model.logits(hidden if len(last) == len(tokens) else hidden[last])
            samplers = [sequence.sampler for sequence in writers]
            for drawn in draw(samplers, logits):
                self._write(writers[0], drawn)
                del writers[0]  # no longer at risk

    def _write(self, sequence: RunningSequence, drawn: Drawn) -> None:
        sequence.accept(drawn)
        self._news[sequence] = None
        if sequence.finished:
            took = time.monotonic() - self._began[sequence]
            self._duration += 0.2 * (took - self._duration)
            self._drop(sequence, keep=True)

    def _end(self, sequence: RunningSequence, message: str) -> None:
        """End a sequence with an error, and forget what it computed."""
        sequence.error = EngineError(message)
        self._news[sequence] = None
        self._drop(sequence, keep=False)

    def _drop(self, sequence: RunningSequence, keep: bool) -> None:
        """Forget a sequence and give back its cache, which `keep` leaves for others to find."""
        for place in (self._running, self._waiting, self._reading):
            if sequence in place:
                place.remove(sequence)
        self._began.pop(sequence, None)
        cache, sequence.cache = sequence.cache, None
        if cache is not None:
            self.memory.release(cache, sequence.tokens, keep=keep)


def _cache(sequence: RunningSequence) -> SequenceCache:
    if sequence.cache is None:
        raise ValueError("a sequence computes only once it has a cache")
    return sequence.cache
