"""A model of the fleet as the benchmarks use it: reading, writing and scoring token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from app.engines.embedded.linear import Precision
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.scheduler import Scheduler
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.tokenizer import Tokenizer, load_tokenizer
from app.engines.embedded.weights import load
from app.types import Call, Sampling

_KV_BYTES = 2**30
_AT_ONCE = 8  # sequences that write


@dataclass(frozen=True)
class Weights:
    """A model to load: what it is called, where it lies, of a draft its base too."""

    name: str
    path: Path
    base: Path | None
    precision: Precision

    def in_precision(self, precision: Precision) -> Weights:
        return replace(self, precision=precision)


@dataclass(frozen=True)
class Measured:
    """A model, loaded."""

    name: str
    decoder: Decoder
    tokenizer: Tokenizer

    @classmethod
    def load(cls, found: Weights) -> Measured:
        """Raises FileNotFoundError, ValueError as `weights.load` does."""
        config, weights = load(found.path, found.base)
        decoder = Decoder(config, weights, found.precision)
        return cls(found.name, decoder, load_tokenizer(found.base or found.path))

    def hidden(self, ids: Sequence[int]) -> Tensor:
        """Final hidden states, fp32 `[len(ids), hidden]`."""
        cache = self.decoder.kv_memory(_KV_BYTES, 0).acquire(ids, len(ids))
        if cache is None:
            raise MemoryError(f"{_KV_BYTES} bytes do not hold {len(ids)} tokens")
        return self.decoder.forward(torch.tensor(ids), [Span(cache, len(ids))])

    def log_probabilities(self, ids: Sequence[int], start: int) -> Tensor:
        """Of the tokens behind ids[start - 1], ids[start], ...: fp32 `[len(ids) - start, V]`."""
        hidden = self.hidden(ids)[start - 1 : len(ids) - 1]
        return torch.log_softmax(self.decoder.logits(hidden), -1)

    def write(
        self, prompts: Sequence[Sequence[int]], tokens: int, sampling: Sampling
    ) -> list[list[int]]:
        """Answers of at most so many tokens, each with the token that ended it."""
        memory = self.decoder.kv_memory(_KV_BYTES, 0)
        scheduler = Scheduler(self.decoder, memory, max_running=_AT_ONCE, max_waiting=len(prompts))
        call = Call(self.name, max_tokens=tokens, sampling=sampling)
        sequences = [RunningSequence(call, ids, tokens, self.tokenizer) for ids in prompts]
        for sequence in sequences:
            scheduler.submit(sequence)
        while scheduler.step():
            pass
        return [self._written(sequence) for sequence in sequences]

    def _written(self, sequence: RunningSequence) -> list[int]:
        if sequence.error is not None:
            raise sequence.error
        return [token.id for chunk in sequence.outbox for token in chunk.tokens]

    def chat(self, text: str) -> list[int]:
        return self.tokenizer.chat([{"role": "user", "content": text}])
