"""A tiny model and one that guesses for it: right often, and by no means always."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from app.engines.embedded.model import Decoder
from app.engines.embedded.scheduler import Scheduler
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.speculation.goodput import StepCost
from app.engines.embedded.speculation.guessing import DraftModel
from app.engines.embedded.speculation.speculator import Speculator, Step
from app.engines.embedded.tokenizer import load_tokenizer
from app.engines.embedded.weights import Weights, load
from app.nets.acceptance_head import About, AcceptanceHead
from app.types import Chunk, Decoding, LengthRule, Speculation, Usage
from tests.app.engines.embedded.rig import DEVICE, Rig

DRAFT = "guesser"
NOISE = 0.12  # of the standard deviation of the head's numbers: most guesses are right
Precision = Literal["fp32", "int8"]


class Steady(Speculator):
    """One that has made up its mind: nothing that it measures changes it.

    With a model that takes a second a pass every guess pays, with one that takes no time none.
    """

    def stepped(self, step: Step) -> None:
        """Say nothing of it."""


@dataclass
class Duo:
    """A decoder in its rig, and its draft model."""

    target: Rig
    draft: DraftModel

    def speculator(self, seconds: float | None = 1.0) -> Speculator:
        """`seconds`: that a pass of the model is held to take; None: as they are measured."""
        drafts = {DRAFT: self.draft}
        if seconds is None:
            return Speculator(StepCost(0.001, 0.0005, 0.0001), drafts)
        return Steady(StepCost(seconds, seconds / 100, seconds / 1e6), drafts)

    def scheduler(self, seconds: float | None = 1.0, **bounds: Any) -> Scheduler:
        made = self.target.scheduler(**bounds)
        made.speculator = self.speculator(seconds)
        return made

    def sequence(
        self, prompt: int | Sequence[int], asked: Speculation | None, **call: Any
    ) -> RunningSequence:
        decoding = replace(call.pop("decoding", Decoding()), speculation=asked)
        return self.target.sequence(prompt, decoding=decoding, **call)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        asked: Speculation | None,
        *,
        together: int = 1,
        seconds: float | None = 1.0,
        **call: Any,
    ) -> list[RunningSequence]:
        """An answer to each of the prompts, so many at a time; all memory is given back."""
        scheduler = self.scheduler(
            seconds, max_running=together, max_waiting=len(prompts), prefill_chunk=16
        )
        sequences = [self.sequence(prompt, asked, **call) for prompt in prompts]
        run(scheduler, *sequences)
        assert self.held(scheduler) == (0, 0)
        return sequences

    def held(self, scheduler: Scheduler) -> tuple[int, int]:
        """Bytes that running sequences hold of the model's memory, and of the draft's."""
        return scheduler.memory.running_bytes, self.draft.memory.running_bytes


def run(scheduler: Scheduler, *sequences: RunningSequence) -> None:
    """Submit them, and step until all have ended."""
    for sequence in sequences:
        scheduler.submit(sequence)
    finish(scheduler, *sequences)


def finish(scheduler: Scheduler, *sequences: RunningSequence) -> None:
    for _ in range(20_000):
        if all(sequence.finished for sequence in sequences):
            return
        assert scheduler.step(), "nothing moves"
    raise AssertionError("does not end")


def duo(
    folder: Path,
    precision: Precision,
    *,
    noise: float = NOISE,
    layers: int | None = None,
    drafting: Sequence[int] | None = None,
    head: AcceptanceHead | None = None,
    memory: int = 2**26,
    memory_of: float = 1.0,
    favours: Sequence[int] = (),
) -> Duo:
    """The model of this folder, and as its draft the same with noise, or fewer layers, or a head
    of fewer tokens.

    `memory_of`: how much the layers add to the stream. Where that is little the next token hangs
    on the last one, and the model repeats itself. `favours`: the only tokens that it guesses.
    """
    config, weights = load(folder)
    scaled = (
        replace(layer, output=layer.output * memory_of, down=layer.down * memory_of)
        for layer in weights.layers
    )
    weights = replace(weights, layers=tuple(scaled))
    drafting = sorted(favours) or drafting
    target = Rig(Decoder(config, weights, precision, DEVICE), load_tokenizer(folder), [])
    fewer = config if layers is None else replace(config, layers=layers)
    weights = replace(
        weights,
        head=_noisy(weights, noise),
        layers=weights.layers[: fewer.layers],
        drafting=None if drafting is None else torch.tensor(drafting),
    )
    decoder = Decoder(fewer, weights, precision, DEVICE)
    head = None if head is None else head.to(decoder.device)
    return Duo(target, DraftModel(DRAFT, decoder, decoder.kv_memory(memory, 0), head))


def _noisy(weights: Weights, noise: float) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    wrong = torch.randn(weights.head.shape, generator=random)
    return weights.head + noise * weights.head.std() * wrong


def acceptance_head(
    sees: Literal["before", "after"] = "before", hidden: int = 64
) -> AcceptanceHead:
    """One that has an opinion of each guess, for no reason."""
    head = AcceptanceHead(About(hidden, depth=1, sees=sees))
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random))
        head.output.bias.fill_(3.0)
    return head.requires_grad_(False)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Of different lengths, some of them with much that is said again."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        once = [rng.randrange(256) for _ in range(rng.randrange(3, 30))]
        found.append(once * (1 + number % 3))
    return found


def chunks(sequence: RunningSequence) -> list[Chunk]:
    """All that the reader is sent, but for what it cost."""
    return [replace(chunk, usage=Usage()) for chunk in sequence.outbox]


def usage(sequence: RunningSequence) -> Usage:
    return sum((chunk.usage for chunk in sequence.outbox), Usage())


def written(sequence: RunningSequence) -> list[int]:
    return sequence.tokens[sequence.prompt_length :]


def adds_up(sequence: RunningSequence) -> None:
    """Its usage tells what was written, and by what."""
    told = usage(sequence)
    assert told.completion == sequence.written
    assert 0 <= told.accepted <= told.drafted
    assert told.wasted == told.drafted - told.accepted
    # Each pass writes one token beside what is accepted; but the last may end before that.
    ended_early = told.accepted + told.passes - told.completion
    assert ended_early in ((0, 1) if told.accepted else (0,))


RULES: tuple[LengthRule, ...] = ("fixed", "heuristic", "confidence", "adaedl", "head")
DRAFTERS: Mapping[str, Speculation] = {
    "model": Speculation(draft=DRAFT),
    "look-up": Speculation(lookup=True),
    "both": Speculation(draft=DRAFT, lookup=True),
}
