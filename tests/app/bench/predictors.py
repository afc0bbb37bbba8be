"""A KV predictor of the tiny model that predicts what is true, or nearly."""

from __future__ import annotations

from pathlib import Path

import torch

from app.engines.embedded.weights import open_checkpoint
from app.nets.kv_predictor import About, KVPredictor
from app.training.net import read_net


def true_predictor(folder: Path, noise: float = 0.0) -> KVPredictor:
    """The last layer's own projections, which are true of the stream before it; and noise."""
    net = read_net(open_checkpoint(folder))
    config, layer = net.config, net.layers[-1]
    width, kept = config.kv_heads * config.head_dim, config.layers - 1
    made = KVPredictor(About("m", "", config.hidden, config.layers, width, 60_000, kept))
    seeded = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for which, name in enumerate(("k", "v")):
            weight = getattr(layer, name) * layer.attention_norm
            made.weight[which] = weight + noise * torch.randn(weight.shape, generator=seeded)
    return made
