"""What is made of the hidden states of a text that is read, where nothing is to be written."""

from __future__ import annotations

from array import array
from typing import Literal, Protocol

import torch
import torch.nn.functional as F

from app.types import Call, Chunk

Pooling = Literal["mean", "last"]


class States(Protocol):
    """What is needed of a decoder."""

    def trained_states(self, hidden: torch.Tensor) -> torch.Tensor: ...


class Gist(Protocol):
    """Takes the hidden states of a whole prompt, piece by piece, none of it from a cache."""

    def take(self, model: States, hidden: torch.Tensor) -> None:
        """The final hidden states of the next tokens, `[n, hidden]`, as `model` makes them."""

    def finish(self, call: Call) -> Chunk:
        """What came of it, once all have been taken."""


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

    def finish(self, call: Call) -> Chunk:
        if self._sum is None:
            raise ValueError("no state has been taken")
        vector = F.normalize(self._sum.double(), dim=0).float().cpu()
        return Chunk(model=call.model, vectors=(array("f", vector.tolist()),), finish="stop")
