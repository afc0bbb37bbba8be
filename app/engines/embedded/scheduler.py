"""Which sequences of a model compute next: continuous batching, fair to all that wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from app.engines.embedded.auxiliary import AuxiliaryPredictor
from app.engines.embedded.kv_cache import EXACT, KVMemory, SequenceCache
from app.engines.embedded.model import Span
from app.engines.embedded.prediction import Predictor
from app.engines.embedded.sampling import Drawn, draw
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.siblings import next_reader
from app.engines.embedded.speculation.acceptance import Draft
from app.engines.embedded.speculation.speculator import Speculator, Step
from app.errors import EngineError, Overloaded
from app.types import Usage

_ONE = Usage(completion=1)
_ALONE = Usage(completion=1, passes=1)  # where it might have been one of several
_ACCEPTED = Usage(accepted=1)
_PIECE = 16  # tokens of a prompt that tell by their time how long reading takes


class Model(Protocol):
    """What is needed of a decoder: hidden states of new tokens, and logits of some of them."""

    def forward(self, tokens: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...

    def trained_states(self, hidden: torch.Tensor) -> torch.Tensor: ...

    def turn(self, cache: SequenceCache, start: int, count: int, by: int) -> None: ...

    def predict(self, tokens: torch.Tensor, span: Span, predictor: Predictor) -> None: ...

    def place(self, made: torch.Tensor, cache: SequenceCache) -> None: ...


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
        speculator: Speculator | None = None,
    ) -> None:
        """`prefill_chunk`: prompt tokens computed in one step; `speculator`: who guesses for
        sequences that ask for it (without one they are written token by token)."""
        self.memory = memory
        self.speculator = speculator
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
        self.reading = 0.0  # seconds that a token of a prompt took; rolling, 0: none was read

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
        predicts = False
        if self._reading:
            reader = next_reader(self._reading, self._running, self.memory)
            predicts = reader.predicts
            if predicts:
                self._predict(reader)
            else:
                batch.append(reader)
        if batch:
            piece = 0 if not batch[-1].reading else len(batch[-1].upcoming(self._prefill_chunk))
            began = time.monotonic()
            self._compute(batch)
            if piece >= _PIECE:
                took = (time.monotonic() - began) / piece
                self.reading += (0.2 if self.reading else 1.0) * (took - self.reading)
        return moved or predicts or bool(batch)

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
            space = EXACT if sequence.space is None else sequence.space
            cache = self.memory.acquire(sequence.tokens, sequence.capacity, space)
            if cache is None:
                if self.memory.running_bytes:
                    break  # of ours, or of those for whom this model guesses
                # With nobody to wait for it would wait for ever.
                self._end(sequence, "the KV memory does not hold this call")
                admitted = True
                continue
            if sequence.gist is not None:
                cache.truncate(0)  # it is told of all states, so all are computed
            self._waiting.popleft()
            self._running.append(sequence)
            self._reading.append(sequence)
            self._began[sequence] = time.monotonic()
            sequence.admit(cache)
            self._move(sequence, cache, space)
            self._news[sequence] = None
            admitted = True
        self._at_risk = []
        return admitted

    def _move(self, sequence: RunningSequence, cache: SequenceCache, space: str) -> None:
        """Where its prompt is an edited one, bring what follows the edit to where it stands now."""
        if sequence.call.decoding.edited is None:
            return
        moved = self.memory.move_tail(cache, sequence.tokens, space)
        if moved is not None:
            self._model.turn(cache, moved.at, moved.count, moved.at - moved.start)
            sequence.moves(moved.at, moved.count)
            sequence.take_moved()

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

    def _predict(self, sequence: RunningSequence) -> None:
        """A piece of its prompt, whose keys and values are predicted."""
        self._at_risk = [sequence]
        cache, predictor = _cache(sequence), sequence.predictor
        before = cache.length
        if predictor is None:
            raise ValueError("a sequence that predicts has a predictor")
        if isinstance(predictor, AuxiliaryPredictor):
            made = sequence.predicted_by(predictor, self._prefill_chunk)
            if made is not None:
                self._model.place(made, cache)
        else:
            new = sequence.upcoming(self._prefill_chunk)
            self._model.predict(torch.tensor(new), Span(cache, len(new)), predictor)
        sequence.predicted(cache.length - before)
        self._reading.append(sequence)  # others that read have their turn
        self._at_risk = []

    def _compute(self, batch: Sequence[RunningSequence]) -> None:
        self._at_risk = list(batch)
        clock = time.thread_time if self.speculator is None else self.speculator.clock
        began = clock()
        drafts = self._drafts(batch)
        drafted = clock()
        tokens: list[int] = []
        spans: list[Span] = []
        writers: list[RunningSequence] = []
        rows: list[int] = []  # behind which the writers' next tokens are, guesses included
        for sequence in batch:
            cache, draft = _cache(sequence), drafts.get(sequence)
            new = sequence.upcoming(self._prefill_chunk)
            writes = sequence.gist is None and cache.length + len(new) == len(sequence.tokens)
            guesses = draft.ids if draft is not None else []
            tokens += [*new, *guesses]
            spans.append(Span(cache, len(new) + len(guesses)))
            if writes:
                writers.append(sequence)
                rows += range(len(tokens) - len(guesses) - 1, len(tokens))
        reads = batch[-1].reading
        hidden = self._model.forward(torch.tensor(tokens), spans)
        if batch[-1].reading:
            batch[-1].take_moved()
            self._reading.append(batch[-1])
        if batch[-1].gist is not None:
            batch[-1].gathered(self._model, hidden[-spans[-1].count :])
            self._told(batch[-1])
        self._at_risk = writers
        if not writers:
            return
        attended = sum(span.count * span.cache.length for span in spans)
        logits = self._model.logits(hidden if len(rows) == len(tokens) else hidden[rows])
        count, before = len(writers), sum(s.written for s in writers)
        growing = list(writers)
        if drafts:
            self._verify(writers, drafts, logits)
        else:
            self._draw(writers, logits)
        if self.speculator is not None and not reads:
            now = clock()
            self.speculator.stepped(
                Step(
                    sequences=count,
                    rows=len(rows) - count,
                    attended=attended,
                    written=sum(s.written for s in growing) - before,
                    verifying=now - drafted,
                    seconds=now - began,
                )
            )

    def _drafts(self, batch: Sequence[RunningSequence]) -> Mapping[RunningSequence, Draft]:
        """Guesses for those who ask for them, but for who is not done with its prompt."""
        if self.speculator is None:
            return {}
        asking = [s for s in batch if s.speculates and not s.reading]
        return self.speculator.draft(asking, len(batch)) if asking else {}

    def _draw(self, writers: list[RunningSequence], logits: torch.Tensor) -> None:
        samplers = [sequence.sampler for sequence in writers]
        for drawn in draw(samplers, logits):
            self._write(writers[0], drawn)
            del writers[0]  # no longer at risk

    def _verify(
        self,
        writers: list[RunningSequence],
        drafts: Mapping[RunningSequence, Draft],
        logits: torch.Tensor,
    ) -> None:
        """Write what is accepted of the guesses, and one token more for each."""
        at, rows = 0, logits.detach().cpu().numpy()
        while writers:
            sequence = writers[0]
            draft = drafts.get(sequence)
            if draft is None:
                self._write(sequence, sequence.sampler.draw(rows[at]))
                at += 1
            else:
                behind = at + len(draft.ids) + 1
                self._write_guessed(sequence, draft, rows[at:behind])
                at = behind
            del writers[0]

    def _write_guessed(
        self, sequence: RunningSequence, draft: Draft, rows: npt.NDArray[np.float32]
    ) -> None:
        speculator, cache = self.speculator, _cache(sequence)
        if speculator is None:
            raise ValueError("a draft has somebody who made it")
        kept: list[bool] = []
        usage = Usage(completion=1, drafted=len(draft.ids), passes=1)
        verified = speculator.acceptance(sequence).verify(sequence.sampler, rows, draft)
        for drawn, guessed in verified:
            kept.append(guessed)
            sequence.accept(drawn, usage + _ACCEPTED if guessed else usage)
            usage = Usage(completion=1)
            if sequence.finished:
                break
        # What was read of refused guesses is forgotten; the last token is not read yet.
        cache.truncate(min(cache.length, len(sequence.tokens) - 1))
        speculator.judged(sequence, kept[: len(draft.ids)])
        self._told(sequence)

    def _write(self, sequence: RunningSequence, drawn: Drawn) -> None:
        sequence.accept(drawn, _ALONE if sequence.speculates else _ONE)
        self._told(sequence)

    def _told(self, sequence: RunningSequence) -> None:
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
        if self.speculator is not None:
            self.speculator.forget(sequence)
        sequence.end_pass()
        cache, sequence.cache = sequence.cache, None
        if cache is not None:
            # An error between a pass and its verification leaves guesses in it.
            cache.truncate(min(cache.length, len(sequence.tokens)))
            space = sequence.space
            keep = keep and space is not None
            self.memory.release(cache, sequence.tokens, keep=keep, space=space or EXACT)


def _cache(sequence: RunningSequence) -> SequenceCache:
    if sequence.cache is None:
        raise ValueError("a sequence computes only once it has a cache")
    return sequence.cache
