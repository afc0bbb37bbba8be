"""Answers of one model written in several ways, one way after the other, and what each took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from app.bench.reading import Measured
from app.engines.embedded.scheduler import Scheduler
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.speculation.guessing import DraftModel
from app.engines.embedded.speculation.joining import measure
from app.engines.embedded.speculation.speculator import Speculator
from app.nets.acceptance_head import AcceptanceHead
from app.types import Call, Decoding, Sampling, Speculation, Usage

_KV_BYTES = 2**31
_KEPT_BYTES = 2**30


@dataclass(frozen=True)
class Way:
    """A way to write: plainly, or by a speculation."""

    name: str
    speculation: Speculation | None = None


@dataclass(frozen=True)
class Draft:
    """A model that guesses, and its acceptance head, if it has one."""

    model: Measured
    head: AcceptanceHead | None = None


@dataclass(frozen=True)
class Lap:
    """Some prompts answered in one way, all at once.

    Who is done early makes room, as on a busy server: the prompts, from the first one on, are
    answered again until all have been once, so that the batch is always full. What that writes
    counts, in time and tokens.
    """

    seconds: float  # from when all had been read to the last token of the last answer
    usage: Usage  # of all that was written in that time
    answers: tuple[tuple[int, ...], ...]


@dataclass
class Track:
    """A model, those that may guess for it, and what each way has learned so far."""

    model: Measured
    drafts: Mapping[str, Draft]
    threads: int
    tokens: int  # of an answer, at most
    clock: Callable[[], float] = time.perf_counter
    sampling: Sampling = Sampling(temperature=0.0)
    _guessing: dict[str, Speculator] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        decoder = self.model.decoder
        self._memory = decoder.kv_memory(_KV_BYTES, _KEPT_BYTES)
        self._memories = {
            name: draft.model.decoder.kv_memory(_KV_BYTES, 0) for name, draft in self.drafts.items()
        }
        self.cost = measure(decoder, self.threads)
        self.draft_costs = {
            name: measure(draft.model.decoder, self.threads) for name, draft in self.drafts.items()
        }

    def warm(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read these prompts, one after another, so that laps find them read.

        In int8 it may decide a close call how a prompt was read: so none is read twice.
        """
        for ids in prompts:
            scheduler = Scheduler(self.model.decoder, self._memory, max_running=1)
            # What is kept is longer than the prompt, or the first to want it would take it away.
            sequence = self._sequence(Way("warm"), ids, 2)
            scheduler.submit(sequence)
            while scheduler.step():
                pass
            if sequence.error is not None:
                raise sequence.error

    def lap(self, way: Way, prompts: Sequence[Sequence[int]]) -> Lap:
        """Answer these prompts in this way, all at once; `warm` has read them. Raises ValueError
        where they were not, or memory does not hold them."""
        scheduler = Scheduler(
            self.model.decoder,
            self._memory,
            max_running=len(prompts),
            speculator=self._speculator(way),
        )
        sequences = [self._sequence(way, ids) for ids in prompts]
        for sequence in sequences:
            scheduler.submit(sequence)
            while sequence.written == 0:  # the prompt's last token, and the first of the answer
                scheduler.step()
                _check(sequence)
        before = sum((_usage(sequence) for sequence in sequences), Usage())
        began = self.clock()
        fillers = self._answer(scheduler, way, sequences, prompts)
        took = self.clock() - began
        for sequence in fillers:
            scheduler.cancel(sequence)
        while scheduler.step():
            pass
        after = sum((_usage(sequence) for sequence in [*sequences, *fillers]), Usage())
        answers = tuple(tuple(s.tokens[s.prompt_length :]) for s in sequences)
        return Lap(took, _difference(after, before), answers)

    def _sequence(self, way: Way, ids: Sequence[int], limit: int | None = None) -> RunningSequence:
        decoding = Decoding(speculation=way.speculation)
        call = Call(
            self.model.name, max_tokens=self.tokens, sampling=self.sampling, decoding=decoding
        )
        return RunningSequence(call, ids, limit or self.tokens, self.model.tokenizer)

    def _answer(
        self,
        scheduler: Scheduler,
        way: Way,
        sequences: Sequence[RunningSequence],
        prompts: Sequence[Sequence[int]],
    ) -> list[RunningSequence]:
        """Go on until these are done, the batch filled up with others, which are returned. Raises
        what a sequence failed with."""
        fillers: list[RunningSequence] = []
        while not all(sequence.finished for sequence in sequences):
            if scheduler.running < len(prompts):
                fillers.append(self._sequence(way, prompts[len(fillers) % len(prompts)]))
                scheduler.submit(fillers[-1])
            scheduler.step()
            for sequence in [*sequences, *fillers]:
                _check(sequence)
        return fillers

    def _speculator(self, way: Way) -> Speculator | None:
        if way.speculation is None:
            return None
        if way.name not in self._guessing:
            models = {
                name: DraftModel(
                    name,
                    draft.model.decoder,
                    self._memories[name],
                    draft.head,
                )
                for name, draft in self.drafts.items()
            }
            self._guessing[way.name] = Speculator(self.cost.copy(), models)
        return self._guessing[way.name]


def _check(sequence: RunningSequence) -> None:
    """Raises what it failed with, and ValueError where its prompt was not there."""
    if sequence.error is not None:
        raise sequence.error
    if sequence.outbox and sequence.outbox[0].usage.cached < sequence.prompt_length - 1:
        raise ValueError("a prompt that had been read was not found again; fewer answers at once")


def _usage(sequence: RunningSequence) -> Usage:
    return sum((chunk.usage for chunk in sequence.outbox), Usage())


def _difference(after: Usage, before: Usage) -> Usage:
    return Usage(
        completion=after.completion - before.completion,
        drafted=after.drafted - before.drafted,
        accepted=after.accepted - before.accepted,
        passes=after.passes - before.passes,
    )
