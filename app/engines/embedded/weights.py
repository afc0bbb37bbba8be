"""Reads a model, configuration and weights, from a GGUF file or a Hugging Face folder."""

from dataclasses import replace
from pathlib import Path

from app.engines.embedded.checkpoint import (
    FOLDER_NAMES,
    Checkpoint,
    Keys,
    inverse_frequencies,
    open_folder,
    read_architecture,
)
from app.engines.embedded.draft_folder import DraftFolder, is_draft
from app.engines.embedded.folding import Layout, ModelConfig, Weights, fold
from app.engines.embedded.gguf_file import GGUFFile, read_gguf_metadata
from app.engines.embedded.safetensors_folder import SafetensorsFolder

__all__ = [
    "FOLDER_NAMES",
    "Checkpoint",
    "GGUFFile",
    "ModelConfig",
    "Weights",
    "inverse_frequencies",
    "load",
    "open_checkpoint",
    "read_gguf_metadata",
]


def load(
    source: str | Path | GGUFFile, base: str | Path | GGUFFile | None = None
) -> tuple[ModelConfig, Weights]:
    """Read a GGUF file (by path, or already open), a Hugging Face folder of safetensors, or a
    draft's folder, which needs the `base` that it shares its embedding with.

    Raises FileNotFoundError, and ValueError naming the file and whatever in it is missing,
    misshapen or not supported.
    """
    found = open_checkpoint(source, base)
    weights = fold(found.config, found.source, found.layout, found.inverse_frequencies)
    if isinstance(found.source, DraftFolder):
        weights = replace(weights, drafting=found.source.drafting)
    return found.config, weights


def open_checkpoint(
    source: str | Path | GGUFFile, base: str | Path | GGUFFile | None = None
) -> Checkpoint:
    """Read the configuration alone; arguments and errors as of `load`."""
    if isinstance(source, GGUFFile):
        return _open_gguf(source)
    if is_draft(Path(source)):
        if base is None:
            raise ValueError(f"{source}: is a draft; name the model that it shares as its base")
        return DraftFolder(source, open_checkpoint(base)).checkpoint()
    if base is not None:
        raise ValueError(f"{source}: is no draft's folder, which alone has a base")
    if Path(source).is_dir():
        return open_folder(SafetensorsFolder(source))
    return _open_gguf(GGUFFile(source))


_GGUF_NAMES = {
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "blk.{}.attn_norm.weight",
    "q": "blk.{}.attn_q",
    "k": "blk.{}.attn_k",
    "v": "blk.{}.attn_v",
    "output": "blk.{}.attn_output.weight",
    "mlp_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
}


def _open_gguf(file: GGUFFile) -> Checkpoint:
    keys = Keys(file.path, file.metadata)
    architecture = read_architecture(keys, "general.architecture")
    at = f"{architecture}."
    keys.refuse("sliding window", keys.get(at + "attention.sliding_window"))
    keys.refuse("experts", keys.get(at + "expert_count"))
    keys.refuse("a model split over several files", keys.get("split.count", 0) > 1)
    heads, hidden = keys.count(at + "attention.head_count"), keys.count(at + "embedding_length")
    head_dim = keys.count(at + "attention.key_length", hidden // heads)
    rotated = keys.count(at + "rope.dimension_count", head_dim)
    keys.refuse(f"rotation of {rotated} of {head_dim} dimensions", rotated != head_dim)
    config = ModelConfig(
        architecture=architecture,
        layers=keys.count(at + "block_count"),
        hidden=hidden,
        intermediate=keys.count(at + "feed_forward_length"),
        heads=heads,
        kv_heads=keys.count(at + "attention.head_count_kv", heads),
        head_dim=head_dim,
        vocabulary=len(keys["tokenizer.ggml.tokens"]),
        context=keys.count(at + "context_length"),
        norm_epsilon=float(keys[at + "attention.layer_norm_rms_epsilon"]),
    )
    scaling = {
        "rope_type": keys.get(at + "rope.scaling.type", "none"),
        "factor": keys.get(at + "rope.scaling.factor"),
    }
    theta = float(keys.get(at + "rope.freq_base", 10000.0))
    frequencies = inverse_frequencies(file.path, head_dim, theta, scaling)
    if "rope_freqs.weight" in file.names:  # GGUF's form of llama3's scaling, worked out already
        frequencies = frequencies / file.tensor("rope_freqs.weight")
    layout = Layout(
        names=_GGUF_NAMES,
        tied=_GGUF_NAMES["head"] not in file.names,
        # llama.cpp's converter makes RoPE's pairs neighbours for llama, and only for llama.
        interleaved=architecture == "llama",
    )
    return Checkpoint(config, file, layout, theta, scaling, frequencies)
