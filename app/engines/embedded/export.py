"""Writes an embedded model as a Hugging Face folder, which vLLM and transformers load."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from torch import Tensor

from app.engines.embedded.folding import CheckedTensors, separated
from app.engines.embedded.linear import Precision, quantized
from app.engines.embedded.safetensors_file import SafetensorsFile
from app.engines.embedded.tokenizer import Tokenizer, load_tokenizer
from app.engines.embedded.weights import (
    FOLDER_NAMES,
    Checkpoint,
    inverse_frequencies,
    open_checkpoint,
)
from app.errors import ConfigError

_LINEAR = ("q", "k", "v", "output", "gate", "up", "down")
_SCALING = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
# Text on which the kinds of byte-level tokenizers differ, and names of tokens that they may add.
_PROBE = (
    "It's 1234567 x½y² e\u0301 YOU'LL  \n\n\tfoo(bar);   日本語 😀 ٣"
    "<s></s><unk><pad><|endoftext|><|im_start|><|im_end|>"
)
# W8A8: a scale for each row of a matrix, and one for each token that meets it.
_INT8: Mapping[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "global_compression_ratio": None,
    "kv_cache_scheme": None,
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
            "output_activations": None,
        }
    },
}


def export(
    name: str,
    source: Path,
    target: Path,
    precision: Precision,
    *,
    force: bool,
    console: Console,
    base: Path | None = None,
) -> Path:
    """Write the model `name`, whose weights are at `source`, as the folder `target`.

    Of a draft, what it shares with its `base` is written too: the folder stands alone. It appears
    when it is complete: all is written beside it first. `force` replaces a folder that holds a
    model already. Returns the folder's real path. Raises ConfigError.
    """
    target = target.expanduser().resolve()
    try:
        _check(source, target, force)
        found = open_checkpoint(source, base)
        tokenizer = load_tokenizer(base or source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            folder = Path(beside, "new")
            folder.mkdir()  # unlike the one around it, it may be read by those who may read ours
            _write(found, tokenizer, precision, folder, console)
            _replace(target, folder, Path(beside, "old"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model {name}: cannot export: {_reason(error, source, target)}"
        ) from error
    return target


def _reason(error: OSError | ValueError, source: Path, target: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or target}: {error.strerror}"
    text = " ".join(str(error).split())  # transformers' take several lines, and name no file
    return text if str(source) in text else f"{source}: {text}"


def _check(source: Path, target: Path, force: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"{target}: is there already, and no folder")
    if not any(target.iterdir()):
        return
    if not force:
        raise ConfigError(f"{target}: is not empty; --force replaces the model in it")
    if source.resolve().is_relative_to(target):
        raise ConfigError(f"{target}: holds the very weights to be exported")
    if not all((target / file).exists() for file in ("config.json", "model.safetensors")):
        raise ConfigError(f"{target}: holds something else than a model; nothing was replaced")


def _replace(target: Path, new: Path, old: Path) -> None:
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise


def _write(
    found: Checkpoint, tokenizer: Tokenizer, precision: Precision, folder: Path, console: Console
) -> None:
    tensors = CheckedTensors(found.source)
    # Llama and Qwen2 differ, here and in transformers, in the biases of q, k and v alone.
    biased = tensors.holds(found.layout.names["q"].format(0) + ".bias")
    parts = list(_parts(found, biased))
    _write_json(folder / "config.json", _config(found, tokenizer, precision, biased))
    ids = {key: value for key, value in tokenizer.special_ids().items() if value not in (None, [])}
    # Ids alone: how to sample is for each request to say, as it is in the embedded engine.
    _write_json(folder / "generation_config.json", ids)
    tokenizer.save(folder)
    _check_tokenizer(tokenizer, folder)
    declared = dict(entry for part in parts for entry in part.stored(precision))
    with SafetensorsFile(folder / "model.safetensors", declared) as file, _bar(console) as bar:
        free = shutil.disk_usage(folder).free
        if file.size > free:
            needed = f"it takes {file.size / 1e6:.1f} MB, and {free / 1e6:.1f} are free"
            raise OSError(errno.ENOSPC, needed)
        task = bar.add_task("writing", total=file.size)
        for part in parts:
            for name, tensor in part.read(tensors, precision):
                bar.advance(task, file.put(name, tensor))
    tensors.finish(ignored=found.layout.names["head"])


def _check_tokenizer(ours: Tokenizer, folder: Path) -> None:
    """transformers reads a Qwen2's tokenizer.json in part and puts its own rules beside it."""
    if load_tokenizer(folder).encode(_PROBE) != ours.encode(_PROBE):
        raise ValueError(
            "transformers makes another tokenizer of tokenizer.json than the model's own"
        )


@dataclass(frozen=True)
class _Part:
    """A tensor of the source, and what becomes of it."""

    source: str
    name: str
    shape: torch.Size
    linear: bool = False  # a matrix that int8 is for
    pairs: int = 0  # of so many heads, whose rows stand in pairs of RoPE in the source

    def stored(self, precision: Precision) -> Iterator[tuple[str, tuple[torch.dtype, torch.Size]]]:
        if precision == "int8" and self.linear:
            yield self.name, (torch.int8, self.shape)
            yield f"{self.name}_scale", (torch.float32, torch.Size((self.shape[0], 1)))
        else:
            yield self.name, (_dtype(precision), self.shape)

    def read(self, tensors: CheckedTensors, precision: Precision) -> Iterator[tuple[str, Tensor]]:
        tensor = tensors.take(self.source, self.shape)
        if self.pairs:
            tensor = separated(tensor, self.pairs)
        if precision == "int8" and self.linear:
            levels, scale = quantized(tensor)
            yield self.name, levels
            yield f"{self.name}_scale", scale
        else:
            yield self.name, tensor.to(_dtype(precision))


def _dtype(precision: Precision) -> torch.dtype:
    # What int8 leaves alone stays as exact as it was.
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _parts(found: Checkpoint, biased: bool) -> Iterator[_Part]:
    config, layout = found.config, found.layout
    hidden, intermediate = config.hidden, config.intermediate
    heads, kv_heads = config.heads, config.kv_heads
    rows, kv_rows = heads * config.head_dim, kv_heads * config.head_dim
    shapes = {
        "attention_norm": (hidden,),
        "q": (rows, hidden),
        "k": (kv_rows, hidden),
        "v": (kv_rows, hidden),
        "output": (hidden, rows),
        "mlp_norm": (hidden,),
        "gate": (intermediate, hidden),
        "up": (intermediate, hidden),
        "down": (hidden, intermediate),
    }
    pairs = {"q": heads, "k": kv_heads} if layout.interleaved else {}

    def part(what: str, shape: tuple[int, ...], layer: int = 0, ending: str = "") -> _Part:
        source = layout.names[what].format(layer) + ending
        name = FOLDER_NAMES[what].format(layer) + ending
        linear = what in _LINEAR and ending != ".bias"
        return _Part(source, name, torch.Size(shape), linear, pairs.get(what, 0))

    table = (config.vocabulary, hidden)
    yield part("embedding", table)
    for layer in range(config.layers):
        for what, shape in shapes.items():
            several = what in ("q", "k", "v")  # their names leave it open: weight or bias
            yield part(what, shape, layer, ".weight" if several else "")
            if several and biased:
                yield part(what, shape[:1], layer, ".bias")
    yield part("norm", (hidden,))
    if not layout.tied:
        yield part("head", table)


def _config(
    found: Checkpoint, tokenizer: Tokenizer, precision: Precision, biased: bool
) -> dict[str, Any]:
    config = found.config
    if biased and config.heads * config.head_dim != config.hidden:
        # vLLM's Qwen2 takes hidden / heads for it, whatever the configuration says.
        raise ValueError(f"{found.source.path}: not supported: biases and heads of another size")
    special = tokenizer.special_ids()
    return {
        "architectures": ["Qwen2ForCausalLM" if biased else "LlamaForCausalLM"],
        "model_type": "qwen2" if biased else "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": _rope(found),
        "tie_word_embeddings": found.layout.tied,
        "dtype": str(_dtype(precision)).removeprefix("torch."),
        **special,
        "eos_token_id": special["eos_token_id"] or None,
        **({"quantization_config": dict(_INT8)} if precision == "int8" else {}),
    }


def _rope(found: Checkpoint) -> dict[str, Any]:
    """RoPE's base and scaling, under the names of a Hugging Face configuration."""
    theta, scaling = found.rope_theta, found.rope_scaling
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    numbers = {key: scaling[key] for key in _SCALING if scaling.get(key) is not None}
    plain = {"rope_type": "default" if kind == "none" else kind, **numbers}
    for rope in (plain, _llama3(found)):
        frequencies = inverse_frequencies(found.source.path, found.config.head_dim, theta, rope)
        if torch.allclose(frequencies, found.inverse_frequencies, rtol=1e-5, atol=0):
            return {"rope_theta": theta, **rope}
    raise ValueError(f"{found.source.path}: not supported: rope_freqs.weight other than Llama 3's")


def _llama3(found: Checkpoint) -> dict[str, Any]:
    """The scaling of Llama 3: a GGUF keeps what it comes to, of which only one number is free."""
    plain = inverse_frequencies(found.source.path, found.config.head_dim, found.rope_theta, {})
    return {
        "rope_type": "llama3",
        "factor": round(float((plain / found.inverse_frequencies).max()), 3),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _bar(console: Console) -> Progress:
    columns = TextColumn("{task.description:9}"), BarColumn(), DownloadColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
