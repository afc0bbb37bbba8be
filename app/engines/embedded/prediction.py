"""A KV predictor as a decoder runs it: in its precision, for its residual stream, in its order."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from app.engines.embedded.folding import ModelConfig, paired
from app.engines.embedded.linear import Precision, make_linear
from app.engines.embedded.rotation import Rotation
from app.nets.kv_predictor import KVPredictor


class Predictor:
    """Maps the stream behind the first `kept` layers to keys and values of all later ones."""

    def __init__(
        self,
        predictor: KVPredictor,
        config: ModelConfig,
        precision: Precision,
        device: torch.device,
    ) -> None:
        """Raises ValueError where it is for a model of another shape, or told by another model."""
        check_shape(predictor, config)
        about, width = predictor.about, predictor.about.width
        if about.kind != "layers":
            raise ValueError("this KV predictor is told by another model, not by first layers")
        self.kept, self._width = about.kept, 2 * width
        self.share = about.share
        maps = 2 * about.predicted
        weight, bias = predictor.weight.detach(), predictor.bias.detach()
        order = key_order(config)
        weight, bias = weight.clone(), bias.clone()
        weight[::2], bias[::2] = weight[::2, order], bias[::2, order]  # keys; values stay
        inner = predictor.inner.detach() * math.sqrt(config.hidden) if about.units else None
        # As in `folding`: who divides by the root of the sum has the root of the mean so.
        flat = weight.view(maps * width, -1) * math.sqrt(config.hidden)
        if precision == "int8":
            rotation = Rotation(config.hidden)
            flat = rotation.reader(flat)
            inner = None if inner is None else rotation.reader(inner)
        self._map = make_linear(flat.contiguous(), precision, device)
        self._bias = bias.flatten().to(device)
        self._inner = None
        if inner is not None:
            outer = predictor.outer.detach().clone()
            outer[::2] = outer[::2, order]
            self._inner = make_linear(inner.contiguous(), precision, device)
            self._outer = make_linear(outer.view(maps * width, -1), precision, device)

    def __call__(self, residual: Tensor, root: Tensor) -> Tensor:
        """Keys before RoPE and values, fp32 `[n, layers - kept, 2 * width]`, each head's pairs side
        by side, of the stream, fp32 `[n, hidden]`, and the root of its squares' sum, `[n, 1]`."""
        made = self._map.divided(residual, root).add_(self._bias)
        if self._inner is not None:
            inner = F.silu(self._inner.divided(residual, root))
            made = self._outer.add_to(made, inner)
        return made.view(len(residual), -1, self._width)


def check_shape(predictor: KVPredictor, config: ModelConfig) -> None:
    """Raises ValueError where it is for a model of another shape."""
    about, width = predictor.about, config.kv_heads * config.head_dim
    if (about.hidden, about.layers, about.width) != (config.hidden, config.layers, width):
        raise ValueError(
            f"this KV predictor is for {about.layers} layers of {about.hidden} and keys of"
            f" {about.width}; the model has {config.layers} of {config.hidden} and {width}"
        )


def key_order(config: ModelConfig) -> Tensor:
    """Which row of Hugging Face's order stands where in the decoder's keys."""
    rows = torch.arange(config.kv_heads * config.head_dim)
    return paired(rows, config.kv_heads)
