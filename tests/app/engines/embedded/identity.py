"""A KV predictor of a model that is told by the model itself, layer by layer."""

from __future__ import annotations

import torch

from app.engines.embedded.folding import ModelConfig
from app.nets.kv_predictor import About, KVPredictor


def identity(config: ModelConfig, name: str = "small", known: str = "") -> KVPredictor:
    """Its maps change nothing; `name`, `known`: of the auxiliary, its name and print."""
    width = config.kv_heads * config.head_dim
    about = About(
        base="m",
        shared="",
        hidden=config.hidden,
        layers=config.layers,
        width=width,
        layer_weights=1000,
        auxiliary=name,
        auxiliary_width=width,
        auxiliary_weights=500,
        sources=tuple(range(config.layers)),
        auxiliary_print=known,
    )
    predictor = KVPredictor(about)
    with torch.no_grad():
        predictor.weight.copy_(torch.eye(width).expand_as(predictor.weight))
    return predictor
