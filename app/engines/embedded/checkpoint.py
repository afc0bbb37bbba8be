"""A model on disk before its tensors are read, and how a Hugging Face folder becomes one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.engines.embedded.folding import Architecture, Layout, ModelConfig, TensorSource
from app.engines.embedded.safetensors_folder import SafetensorsFolder


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: what its configuration says, with every tensor yet to be read."""

    config: ModelConfig
    source: TensorSource
    layout: Layout
    rope_theta: float
    rope_scaling: Mapping[str, Any]  # as a Hugging Face configuration has it
    inverse_frequencies: Tensor  # [head_dim / 2], what the two come to


FOLDER_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj",
    "k": "model.layers.{}.self_attn.k_proj",
    "v": "model.layers.{}.self_attn.v_proj",
    "output": "model.layers.{}.self_attn.o_proj.weight",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
}


def open_folder(folder: SafetensorsFolder) -> Checkpoint:
    """Read a folder's configuration. Raises ValueError as `weights.load` does."""
    keys = Keys(folder.path / "config.json", folder.config)
    architecture = read_architecture(keys, "model_type")
    # Qwen2's configurations name a window even where they do not use it.
    keys.refuse("sliding window", keys.get("use_sliding_window"))
    keys.refuse("sliding window", "sliding_attention" in keys.get("layer_types", ()))
    keys.refuse("quantization_config", keys.get("quantization_config"))
    activation = keys.get("hidden_act", "silu")
    keys.refuse(f"hidden_act {activation!r}", activation != "silu")
    heads, hidden = keys.count("num_attention_heads"), keys.count("hidden_size")
    config = ModelConfig(
        architecture=architecture,
        layers=keys.count("num_hidden_layers"),
        hidden=hidden,
        intermediate=keys.count("intermediate_size"),
        heads=heads,
        kv_heads=keys.count("num_key_value_heads", heads),
        head_dim=keys.count("head_dim", hidden // heads),
        vocabulary=keys.count("vocab_size"),
        context=keys.count("max_position_embeddings"),
        norm_epsilon=float(keys["rms_norm_eps"]),
    )
    # Since transformers 5 RoPE's base stands in one table with its scaling; before, beside it.
    rope = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    keys.refuse("partial rotation", rope.get("partial_rotary_factor", 1.0) != 1.0)
    theta = float(rope.get("rope_theta", keys.get("rope_theta", 10000.0)))
    frequencies = inverse_frequencies(keys.path, config.head_dim, theta, rope)
    layout = Layout(
        names=FOLDER_NAMES,
        tied=keys.get("tie_word_embeddings", FOLDER_NAMES["head"] not in folder.names),
        interleaved=False,
    )
    return Checkpoint(config, folder, layout, theta, rope, frequencies)


class Keys:
    """A file's configuration. A null counts as absent; every complaint names file and key."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self._values = path, values

    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ValueError(f"{self.path}: {key!r} is missing")
        return value

    def get(self, key: str, default: Any = None) -> Any:
        value = self._values.get(key)
        return default if value is None else value

    def count(self, key: str, default: int | None = None) -> int:
        value = self[key] if default is None else self.get(key, default)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{self.path}: {key!r} is {value!r}, not a positive integer")
        return value

    def refuse(self, thing: str, present: Any) -> None:
        if present:
            raise ValueError(f"{self.path}: not supported: {thing}")


def read_architecture(keys: Keys, key: str) -> Architecture:
    """The architecture that this key names. Raises ValueError."""
    name = keys[key]
    if name == "llama":
        return "llama"
    if name == "qwen2":
        return "qwen2"
    raise ValueError(f"{keys.path}: architecture {name!r} is not supported, only llama and qwen2")


def inverse_frequencies(
    path: Path, head_dim: int, theta: float, scaling: Mapping[str, Any]
) -> Tensor:
    """RoPE's angular step per position for each pair, `[head_dim / 2]`.

    Computed as `transformers` does, operation for operation, so that the angles agree. Raises
    ValueError, naming `path`, for a scaling that is not supported.
    """
    rope = Keys(path, scaling)
    plain = 1.0 / (theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", "none"):
        return plain
    if kind == "linear":
        return plain / float(rope["factor"])
    if kind == "llama3":
        return _llama3(plain, rope)
    raise ValueError(f"{rope.path}: not supported: rope scaling {kind!r}")


def _llama3(plain: Tensor, rope: Keys) -> Tensor:
    """Long wavelengths stretched by the factor, short ones kept, those between in proportion."""
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original, factor = float(rope["original_max_position_embeddings"]), float(rope["factor"])
    wavelength = 2 * math.pi / plain
    stretched = plain / factor
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * stretched + smooth * plain
    result = torch.where(wavelength > original / low, stretched, between)
    return torch.where(wavelength < original / high, plain, result)
