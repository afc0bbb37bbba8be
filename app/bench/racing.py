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
_KEPT_BYTES = 2**29


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
    """Some prompts answered in one way, all at once."""

    seconds: float  # from when all had been read to the last token
    usage: Usage  # of what was written in that time
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

    def lap(self, way: Way, prompts: Sequence[Sequence[int]]) -> Lap:
        """Answer these prompts in this way, all at once. What is read is read beforehand."""
        scheduler = Scheduler(
            self.model.decoder,
            self._memory,
            max_running=len(prompts),
            speculator=self._speculator(way),
        )
        decoding = Decoding(speculation=way.speculation)
        call = Call(
            self.model.name, max_tokens=self.tokens, sampling=self.sampling, decoding=decoding
        )
        sequences = [
            RunningSequence(call, ids, self.tokens, self.model.tokenizer) for ids in prompts
        ]
        for sequence in sequences:
            scheduler.submit(sequence)
            while sequence.written == 0:  # read, and the first token written
                scheduler.step()
        before = sum((_usage(sequence) for sequence in sequences), Usage())
        began = self.clock()
        while scheduler.step():
            pass
        took = self.clock() - began
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error
        after = sum((_usage(sequence) for sequence in sequences), Usage())
        answers = tuple(tuple(s.tokens[s.prompt_length :]) for s in sequences)
        return Lap(took, _difference(after, before), answers)

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


def _usage(sequence: RunningSequence) -> Usage:
    return sum((chunk.usage for chunk in sequence.outbox), Usage())


def _difference(after: Usage, before: Usage) -> Usage:
    return Usage(
        completion=after.completion - before.completion,
        drafted=after.drafted - before.drafted,
        accepted=after.accepted - before.accepted,
        passes=after.passes - before.passes,
    )
