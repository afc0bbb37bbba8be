"""Turns a model's residual stream so that no coordinate of it stands out, which int8 needs."""

from dataclasses import replace

import torch
from torch import Tensor

from app.engines.embedded.folding import LayerWeights, Weights


class Rotation:
    """A fixed random rotation of the residual stream; with it the model computes the same.

    A few coordinates of a trained residual stream are many times larger than the rest. Quantised
    with one scale for a row, they leave hardly a level for the others. Rotated, all are alike; and
    since norms have no weights left (`folding`), matrices can be rotated once, at no cost later.
    SmolLM2-135M, int8 against fp32, on 457 tokens of dolly: the mean KL divergence of the next
    token falls from 0.13 to 0.03, the share of equal best tokens rises from 82 to 91 %.
    """

    def __init__(self, hidden: int) -> None:
        seeded = torch.Generator().manual_seed(0)
        gauss = torch.randn(hidden, hidden, dtype=torch.float64, generator=seeded)
        self._matrix = torch.linalg.qr(gauss)[0].float()

    def layer(self, weights: LayerWeights) -> LayerWeights:
        """The layer that reads and writes the rotated stream."""
        return replace(
            weights,
            qkv=weights.qkv @ self._matrix,
            gate_up=weights.gate_up @ self._matrix,
            output=self._matrix.T @ weights.output,
            down=self._matrix.T @ weights.down,
        )

    def embedding(self, weights: Weights) -> Tensor:
        """The table, `[vocabulary, hidden]`, that begins a rotated stream."""
        return torch.mm(weights.embedding, self._matrix)

    def head(self, weights: Weights) -> Tensor:
        """The head, `[vocabulary, hidden]`, that reads a rotated stream, the final norm in it."""
        return torch.mm(weights.head * weights.norm, self._matrix)
