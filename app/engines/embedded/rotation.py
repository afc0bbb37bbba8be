"""Turns a model's residual stream so that no coordinate of it stands out, which int8 needs."""

import math
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
        # The Kronecker product of two small rotations turns all coordinates into all others for
        # a fraction of the work (for a model of 1.5B weights some seconds instead of a minute).
        size = max(n for n in range(1, math.isqrt(hidden) + 1) if hidden % n == 0)
        seeded = torch.Generator().manual_seed(0)
        self._factors = _random(size, seeded), _random(hidden // size, seeded)

    def layer(self, weights: LayerWeights) -> LayerWeights:
        """The layer that reads and writes the rotated stream, with its MLP evened out."""
        gate_up, down = _even(weights)
        return replace(
            weights,
            qkv=self._turn(weights.qkv),
            gate_up=self._turn(gate_up),
            output=self._turn(weights.output.T).T,
            down=self._turn(down.T).T,
        )

    def embedding(self, weights: Weights) -> Tensor:
        """The table, `[vocabulary, hidden]`, that begins a rotated stream."""
        return self._turn(weights.embedding)

    def head(self, weights: Weights) -> Tensor:
        """The head, `[vocabulary, hidden]`, that reads a rotated stream, the final norm in it."""
        return self._turn(weights.head * weights.norm)

    def reader(self, weight: Tensor) -> Tensor:
        """A matrix `[out, hidden]` that reads the stream, to read a rotated one."""
        return self._turn(weight)

    def back(self, weights: Weights, rows: Tensor) -> Tensor:
        """Final hidden states `[n, hidden]` out of the rotated stream, with the norm's weight."""
        first, second = self._factors
        grid = rows.reshape(len(rows), len(first), len(second))
        return (
            torch.matmul(torch.matmul(first.T, grid), second.T).reshape(rows.shape) * weights.norm
        )

    def _turn(self, rows: Tensor) -> Tensor:
        first, second = self._factors
        grid = rows.reshape(len(rows), len(first), len(second))
        return torch.matmul(torch.matmul(first, grid), second).reshape(rows.shape)


def _even(weights: LayerWeights) -> tuple[Tensor, Tensor]:
    """The same MLP with less difference in size between its inner units.

    What is between `up` and `down` cannot be rotated, but each unit can be scaled. How large it
    will be is guessed from its weights; the exponent is where the divergence was least.
    """
    gate, up = weights.gate_up.split_with_sizes([weights.down.shape[1]] * 2)
    scale = (gate.norm(dim=1) * up.norm(dim=1)).clamp_min(1e-6) ** -0.25
    return torch.cat([gate, up * scale[:, None]]), weights.down / scale


def _random(size: int, seeded: torch.Generator) -> Tensor:
    gauss = torch.randn(size, size, dtype=torch.float64, generator=seeded)
    orthogonal: Tensor = torch.linalg.qr(gauss)[0]
    return orthogonal.float()
