"""Weights come out of both formats alike, and nothing unsupported goes by in silence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engines.embedded.weights import GGUFFile, Weights, load, read_gguf_metadata
from tests.app.engines.embedded import reference


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    reference.llama().save_pretrained(folder)
    return folder


def changed(saved: Path, folder: Path, **keys: Any) -> Path:
    """A copy of the folder with keys of its configuration replaced, or dropped where None."""
    config = json.loads((saved / "config.json").read_text()) | keys
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    if not (folder / "model.safetensors").exists():
        (folder / "model.safetensors").symlink_to(saved / "model.safetensors")
    return folder


def same(one: Weights, other: Weights) -> bool:
    pairs = [(one.embedding, other.embedding), (one.norm, other.norm), (one.head, other.head)]
    for a, b in zip(one.layers, other.layers, strict=True):
        pairs += [(a.qkv, b.qkv), (a.output, b.output), (a.gate_up, b.gate_up), (a.down, b.down)]
        assert (a.qkv_bias is None) == (b.qkv_bias is None)
        if a.qkv_bias is not None and b.qkv_bias is not None:
            pairs.append((a.qkv_bias, b.qkv_bias))
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("make", [reference.llama, reference.qwen2])
def test_both_formats_give_the_same_weights(tmp_path: Path, make: Callable[[], Any]) -> None:
    model = make()
    model.save_pretrained(tmp_path / "folder")
    config, weights = load(tmp_path / "folder")
    file = reference.write_gguf(model, tmp_path / "model.gguf")
    gguf_config, gguf_weights = load(file)
    # GGUF keeps the epsilon in 32 bits.
    assert gguf_config.norm_epsilon == pytest.approx(config.norm_epsilon)
    assert vars(gguf_config) | {"norm_epsilon": 0} == vars(config) | {"norm_epsilon": 0}
    assert same(weights, gguf_weights)
    assert torch.equal(weights.inverse_frequencies, gguf_weights.inverse_frequencies)
    assert (weights.head is weights.embedding) == model.config.tie_word_embeddings
    assert same(load(GGUFFile(file))[1], gguf_weights)


def test_shards_are_one_model(tmp_path: Path, saved: Path) -> None:
    reference.llama().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same(load(tmp_path)[1], load(saved)[1])


def test_norms_and_the_attention_scale_are_folded_in(saved: Path) -> None:
    """Weights that divide by `sqrt(sum of squares)` give what norm, matrix and scale gave."""
    model = reference.llama()
    layer = model.model.layers[0]
    rows = torch.randn(5, 48)
    with torch.inference_mode():
        normed = layer.input_layernorm(rows)
        values = layer.self_attn.v_proj(normed)
        queries = layer.self_attn.q_proj(normed) / math.sqrt(8)
    config, weights = load(saved)
    root = (rows.square().sum(1, True) + 48 * config.norm_epsilon).sqrt()
    ours = rows @ weights.layers[0].qkv.T / root
    torch.testing.assert_close(ours[:, -16:], values)
    # The same numbers, each head's pairs brought together.
    pairs = queries.view(5, 6, 2, 4).transpose(2, 3).reshape(5, 48)
    torch.testing.assert_close(ours[:, :48], pairs)


def test_rope_as_older_configurations_spell_it(saved: Path, tmp_path: Path) -> None:
    config = changed(
        saved,
        tmp_path,
        rope_parameters=None,
        rope_theta=5000.0,
        rope_scaling={"type": "linear", "factor": 4.0},
    )
    exponents = torch.arange(0, 8, 2) / 8
    expected = 5000.0**-exponents / 4
    torch.testing.assert_close(load(config)[1].inverse_frequencies, expected)


def test_gguf_metadata_is_plain(tmp_path: Path) -> None:
    path = reference.write_gguf(reference.qwen2(), tmp_path / "model.gguf")
    metadata = read_gguf_metadata(path)
    assert metadata["general.architecture"] == "qwen2"
    assert metadata["qwen2.block_count"] == 3
    assert metadata["tokenizer.ggml.tokens"][:2] == ["<0>", "<1>"]
    assert {type(value) for value in metadata.values()} <= {int, float, str, list}


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"model_type": "gpt2"}, "architecture 'gpt2' is not supported"),
        ({"use_sliding_window": True}, "not supported: sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "not supported: sliding window"),
        ({"quantization_config": {"bits": 4}}, "not supported: quantization_config"),
        ({"hidden_act": "gelu"}, "not supported: hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "not supported: rope scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'factor' is missing"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "not supported: partial rotation"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"num_hidden_layers": 2.5}, "'num_hidden_layers' is 2.5, not a positive integer"),
    ],
)
def test_a_configuration_we_cannot_run_is_refused(
    saved: Path, tmp_path: Path, keys: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match="config.json: ") as refusal:
        load(changed(saved, tmp_path, **keys))
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"attention.sliding_window": 128}, "not supported: sliding window"),
        ({"expert_count": 8}, "not supported: experts"),
        ({"rope.scaling.type": "yarn"}, "not supported: rope scaling 'yarn'"),
        ({"rope.dimension_count": 4}, "rotation of 4 of 8 dimensions"),
        ({"block_count": None}, "'llama.block_count' is missing"),
        ({"block_count": 4}, "'blk.3.attn_norm.weight' is missing"),
        ({"block_count": 2}, "not supported: tensor 'blk.2."),
    ],
)
def test_a_gguf_we_cannot_run_is_refused(
    tmp_path: Path, keys: dict[str, Any], complaint: str
) -> None:
    path = reference.write_gguf(reference.llama(), tmp_path / "model.gguf", **keys)
    with pytest.raises(ValueError, match="model.gguf: ") as refusal:
        load(path)
    assert complaint in str(refusal.value)


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({NORM: None}, f"tensor '{NORM}' is missing"),
        ({NORM: torch.ones(47)}, f"tensor '{NORM}' has shape [47], not [48]"),
        ({"model.layers.1.self_attn.q_norm.weight": torch.ones(8)}, "not supported: tensor"),
        ({"model.layers.1.self_attn.o_proj.bias": torch.ones(48)}, "not supported: tensor"),
        ({"model.layers.1.self_attn.q_proj.bias": torch.ones(48)}, "a bias on some of"),
    ],
)
def test_tensors_must_be_those_we_know(
    saved: Path, tmp_path: Path, change: dict[str, torch.Tensor | None], complaint: str
) -> None:
    tensors = load_file(saved / "model.safetensors") | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as refusal:
        load(changed(saved, tmp_path))
    assert complaint in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


def test_files_that_are_not_what_they_seem(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.gguf: no such file"):
        load(tmp_path / "absent.gguf")
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(b"PK\3\4" * 100)
    with pytest.raises(ValueError, match="foreign.gguf: not a readable GGUF file"):
        load(foreign)
    whole = reference.write_gguf(reference.llama(), tmp_path / "whole.gguf").read_bytes()
    for length in (10, 300, len(whole) // 2):
        foreign.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="foreign.gguf"):
            load(foreign)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not readable JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no \\*.safetensors file"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="model.safetensors: not a readable safetensors file"):
        load(tmp_path)


@pytest.mark.model
def test_the_default_model(smollm2_gguf: Path) -> None:
    """Its quantised tensors are read as the numbers they stand for."""
    config, weights = load(smollm2_gguf)
    assert (config.architecture, config.layers, config.hidden) == ("llama", 30, 576)
    assert (config.heads, config.kv_heads, config.context) == (9, 3, 8192)
    assert weights.head is weights.embedding
    assert weights.embedding.shape == (49152, 576)
    assert 0.05 < float(weights.embedding.std()) < 0.3
