"""A rotated model is the same model, with no coordinate larger than the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.rotation import Rotation
from app.engines.embedded.weights import load
from tests.app.engines.embedded import reference


def test_a_rotated_model_computes_the_same(tmp_path: Path) -> None:
    reference.qwen2().save_pretrained(tmp_path)
    config, weights = load(tmp_path)
    rotation = Rotation(config.hidden)
    rotated = replace(
        weights,
        embedding=rotation.embedding(weights),
        layers=tuple(rotation.layer(layer) for layer in weights.layers),
        norm=torch.ones(config.hidden),
        head=rotation.head(weights),
    )
    results = []
    for each in (weights, rotated):
        decoder = Decoder(config, each, "fp32")
        cache = decoder.kv_memory(2**20).acquire([1], 20)
        assert cache is not None
        hidden = decoder.forward(torch.arange(20), [Span(cache, 20)])
        results.append(decoder.logits(hidden))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_a_large_coordinate_is_spread_over_all(tmp_path: Path) -> None:
    reference.llama().save_pretrained(tmp_path)
    config, weights = load(tmp_path)
    weights.embedding[:, 7] = 100
    table = Rotation(config.hidden).embedding(weights)
    peak = table.abs().amax(1) / table.norm(dim=1)
    assert float(peak.max()) < 4 / config.hidden**0.5  # was 1
    torch.testing.assert_close(table.norm(dim=1), weights.embedding.norm(dim=1))


def test_it_is_always_the_same() -> None:
    """So that int8 results can be compared between runs."""
    for one, other in zip(Rotation(24)._factors, Rotation(24)._factors, strict=True):
        assert torch.equal(one, other)
