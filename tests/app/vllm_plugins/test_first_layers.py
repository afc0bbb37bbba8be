"""A model's first layers over a prompt in pieces are those over it as a whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.vllm_plugins.first_layers import FirstLayers, PromptCache, why_not
from tests.app.vllm_plugins.straw_model import HIDDEN, KV_HEADS, SIZE, model, reference, turned

IDS = torch.arange(3, 23)


@pytest.mark.parametrize(("bias", "normed"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("ends", [[20], [7, 8, 20], [1, 20]], ids=str)
def test_pieces_are_the_whole(bias: bool, normed: bool, ends: list[int]) -> None:
    """As llama has it, qwen2 with its bias, and qwen3 with its norms."""
    of = model(bias=bias, normed=normed)
    layers, cache = FirstLayers(of), PromptCache(20)
    streams, rows, at = [], [], 0
    for end in ends:
        stream, each = layers.run(IDS[at:end], at, cache, 2)
        streams.append(stream.clone())
        rows.append(each)
        at = end
    wanted, true = reference(of.model, IDS, 2)
    torch.testing.assert_close(torch.cat(streams), wanted, rtol=1e-4, atol=1e-5)
    for layer, (keys, values) in enumerate(true):
        for kind, each in enumerate((keys, values)):
            found = torch.cat([piece[layer][kind] for piece in rows])
            torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-5)


def test_all_layers_first_and_few_of_them_then() -> None:
    of = model()
    layers, cache = FirstLayers(of), PromptCache(20)
    deep, _ = layers.run(IDS[:6], 0, cache, 3)
    torch.testing.assert_close(deep, reference(of.model, IDS[:6], 3)[0], rtol=1e-4, atol=1e-5)
    stream, rows = layers.run(IDS[6:], 6, cache, 1)
    wanted, _ = reference(of.model, IDS, 1)
    assert len(rows) == 1
    torch.testing.assert_close(stream, wanted[6:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normed", [False, True])
def test_predicted_keys_are_normed_and_turned_as_the_layer_does_its_own(normed: bool) -> None:
    of = model(normed=normed)
    keys = torch.randn(5, KV_HEADS, SIZE)
    given = keys.clone()
    found = FirstLayers(of).rotated(given, layer=2, first=9)
    own = of.model.layers[2].self_attn
    wanted = turned(torch.arange(9, 14), own.k_norm(keys) if normed else keys)
    torch.testing.assert_close(found, wanted)


def config(**fields: Any) -> Any:
    return SimpleNamespace(**{"model_type": "llama", "hidden_size": HIDDEN, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model_type": "qwen3", "layer_types": ["full_attention"] * 3},
        {"model_type": "qwen2", "sliding_window": 99, "use_sliding_window": False},
    ],
    ids=str,
)
def test_models_whose_layers_are_known(fields: dict[str, Any]) -> None:
    assert why_not(config(**fields)) is None


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model_type": "gemma3"}, "'gemma3'"),
        ({"sliding_window": 99}, "attend to all"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "attend to all"),
        ({"is_causal": False}, "attend to all"),
        ({"dual_chunk_attention_config": {"a": 1}}, "chunks"),
    ],
    ids=str,
)
def test_others_are_refused(fields: dict[str, Any], why: str) -> None:
    assert why in (why_not(config(**fields)) or "")
