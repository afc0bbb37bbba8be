"""What is made of the hidden states of a text that is read, where nothing is to be written."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F

from app.types import Call, Candidate, Chunk, Token

Pooling = Literal["mean", "last"]


class States(Protocol):
    """What is needed of a decoder."""

    def trained_states(self, hidden: torch.Tensor) -> torch.Tensor: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


class Gist(Protocol):
    """Takes the hidden states of a whole prompt, piece by piece, none of it from a cache."""

    def take(self, model: States, hidden: torch.Tensor) -> None:
        """The final hidden states of the next tokens, `[n, hidden]`, as `model` makes them."""

    def finish(self, call: Call) -> list[Chunk]:
        """What came of it, once all have been taken; the last one has `finish`."""


class Vector:
    """One vector of length 1: the mean of the states, or the last of them."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._sum: torch.Tensor | None = None

    def take(self, model: States, hidden: torch.Tensor) -> None:
        states = model.trained_states(hidden)
        if self._pooling == "last" or self._sum is None:
            self._sum = torch.zeros_like(states[0])
        # The mean's direction is the sum's.
        self._sum += states[-1] if self._pooling == "last" else states.sum(0)

    def finish(self, call: Call) -> list[Chunk]:
        if self._sum is None:
            raise ValueError("no state has been taken")
        vector = F.normalize(self._sum.double(), dim=0).float().cpu()
        return [Chunk(model=call.model, vectors=(array("f", vector.tolist()),), finish="stop")]


class Scores:
    """The log-probability of each token of a prompt after those before it, and the likeliest."""

    def __init__(self, ids: Sequence[int], number: int, piece: Callable[[int], bytes]) -> None:
        """`number`: how many of the likeliest to tell; `piece`: what a token's bytes are."""
        self._ids = ids
        self._number = number
        self._piece = piece
        self._tokens = [Token(ids[0], piece(ids[0]))]  # nothing is before it

    def take(self, model: States, hidden: torch.Tensor) -> None:
        start = len(self._tokens)
        ids = self._ids[start : start + len(hidden)]
        if not ids:
            return
        logits = model.logits(hidden[: len(ids)]).double()
        scores = logits - logits.logsumexp(-1, keepdim=True)
        own = scores.gather(-1, torch.tensor(ids, device=scores.device)[:, None])[:, 0].tolist()
        best = scores.topk(self._number)
        for id, logprob, likeliest, values in zip(
            ids, own, best.indices.tolist(), best.values.tolist(), strict=True
        ):
            top = zip(likeliest, values, strict=True)
            candidates = tuple(Candidate(other, self._piece(other), value) for other, value in top)
            self._tokens.append(Token(id, self._piece(id), logprob, candidates))

    def finish(self, call: Call) -> list[Chunk]:
        told = Chunk(tokens=tuple(self._tokens), model=call.model)
        return [told, Chunk(model=call.model, finish="length")]
