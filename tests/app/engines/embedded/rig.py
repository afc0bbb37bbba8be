"""A decoder that remembers what it computed, and what a scheduler needs beside it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from app.engines.embedded.grammar import Constraint
from app.engines.embedded.kv_cache import SequenceCache
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.prediction import Predictor
from app.engines.embedded.predictors import AnyPredictor
from app.engines.embedded.scheduler import Scheduler
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.tokenizer import Tokenizer, load_tokenizer
from app.engines.embedded.weights import load
from app.types import Call, Decoding, KVPrediction, Sampling, Usage

GREEDY = Sampling(temperature=0, ignore_eos=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # as the engine chooses it


@dataclass
class Rig:
    """A decoder that remembers what it computed, and its tokenizer."""

    decoder: Decoder
    tokenizer: Tokenizer
    passes: list[list[int]]  # of each pass, the number of tokens of each span
    fail_at: int | None = None  # the pass that raises

    def forward(self, tokens: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
        self.passes.append([span.count for span in spans])
        if len(self.passes) == self.fail_at:
            raise RuntimeError("broken")
        return self.decoder.forward(tokens, spans)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder.logits(hidden)

    def predict(self, tokens: torch.Tensor, span: Span, predictor: Predictor) -> None:
        self.decoder.predict(tokens, span, predictor)

    def place(self, made: torch.Tensor, cache: SequenceCache) -> None:
        self.decoder.place(made, cache)

    def turn(self, cache: SequenceCache, start: int, count: int, by: int) -> None:
        self.decoder.turn(cache, start, count, by)

    def scheduler(self, tokens: int = 100_000, prefixes: bool = True, **bounds: Any) -> Scheduler:
        """`tokens`: how many the KV memory holds."""
        size = self.decoder.kv_memory(1).bytes_per_token
        memory = self.decoder.kv_memory(tokens * size, None if prefixes else 0)
        return Scheduler(self, memory, **bounds)

    def sequence(
        self,
        prompt: int | Sequence[int],
        limit: int = 5,
        sampling: Sampling = GREEDY,
        outbox: int | None = None,
        constraint: Constraint | None = None,
        **call: Any,
    ) -> RunningSequence:
        """A call with this prompt, or a prompt of so many tokens that no other has."""
        if isinstance(prompt, int):
            prompt = [random.randrange(256) for _ in range(prompt)]
        asked = Call("tiny", sampling=sampling, **call)
        return RunningSequence(asked, prompt, limit, self.tokenizer, outbox, constraint=constraint)


def rig(path: Path, precision: Literal["fp32", "int8"]) -> Rig:
    config, weights = load(path)
    return Rig(Decoder(config, weights, precision, DEVICE), load_tokenizer(path), [])


def cache_of(decoder: Decoder) -> SequenceCache:
    cache = decoder.kv_memory(2**30).acquire([0], 100)
    assert cache is not None
    return cache


def predicting(
    model: Rig, by: AnyPredictor | None, prompt: Sequence[int], asked: KVPrediction, limit: int
) -> RunningSequence:
    """A call whose prompt is predicted, where there is somebody who does."""
    decoding = Decoding() if by is None else Decoding(kv=asked)
    sequence = model.sequence(prompt, limit, decoding=decoding)
    sequence.predictor = by
    return sequence


def answers(scheduler: Scheduler, sequences: Sequence[RunningSequence]) -> list[list[int]]:
    """What they write, all of them together. Raises what one of them failed with."""
    for sequence in sequences:
        scheduler.submit(sequence)
    while scheduler.step():
        pass
    for sequence in sequences:
        if sequence.error is not None:
            raise sequence.error
    return [sequence.tokens[sequence.prompt_length :] for sequence in sequences]


def used(sequence: RunningSequence) -> Usage:
    return sum((chunk.usage for chunk in sequence.outbox), Usage())
