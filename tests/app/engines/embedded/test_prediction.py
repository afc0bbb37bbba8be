"""Predicted keys and values stand in the cache as computed ones would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.engines.embedded.linear import Precision
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.weights import load
from app.nets.kv_predictor import About, KVPredictor
from tests.app.engines.embedded import reference
from tests.app.engines.embedded.rig import cache_of

IDS = torch.randint(97, (40,), generator=torch.Generator().manual_seed(0))


def own(model: Any, kept: int) -> KVPredictor:
    """The later layers' own projections of the stream behind `kept` layers: true for the first of
    them, as nothing comes between."""
    config = model.config
    layers = model.model.layers
    width = layers[0].self_attn.k_proj.weight.shape[0]
    about = About("m", "", config.hidden_size, len(layers), width, 1000, kept)
    predictor = KVPredictor(about)
    with torch.no_grad():
        for at, layer in enumerate(layers[kept:]):
            for which, part in enumerate((layer.self_attn.k_proj, layer.self_attn.v_proj)):
                predictor.weight[2 * at + which] = part.weight * layer.input_layernorm.weight
                if part.bias is not None:
                    predictor.bias[2 * at + which] = part.bias
    return predictor


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("make", [reference.llama, reference.qwen2])
def test_true_ones_are_those_of_a_pass(make: Any, precision: Precision, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    decoder = Decoder(*load(tmp_path), precision)
    kept = decoder.config.layers - 1
    predictor = decoder.predictor(own(model, kept))
    computed, predicted = cache_of(decoder), cache_of(decoder)
    decoder.forward(IDS, [Span(computed, 40)])
    decoder.predict(IDS[:25], Span(predicted, 25), predictor)
    decoder.predict(IDS[25:], Span(predicted, 15), predictor)  # behind others
    assert predicted.length == 40
    ours, theirs = predicted.buffer[:, :, :40], computed.buffer[:, :, :40]
    least = 1e-4 if precision == "fp32" else 0.05  # int8 may round a number to its neighbour
    torch.testing.assert_close(ours, theirs, atol=least, rtol=least)
