"""Tiny models of random weights, made by transformers, as folders and as GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def llama(**changes: Any) -> PreTrainedModel:
    return _shaken(LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})))


def qwen2(**changes: Any) -> PreTrainedModel:
    """With biases on q, k and v, and a tied head, as the small ones of the family have."""
    sizes = {**SIZES, "tie_word_embeddings": True, **changes}
    return _shaken(Qwen2ForCausalLM(Qwen2Config(**sizes)))


def _shaken(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough for attention to attend, and norms and biases that are not 1 and 0."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(noise * (0.5 if parameter.ndim == 1 else 0.2))
    return model.eval()


def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(ids[None]).logits[0]
    return result


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    tokenizer: Mapping[str, Any] | None = None,
    rope_freqs: torch.Tensor | None = None,
    **changes: Any,
) -> Path:
    """As llama.cpp's converter writes it: other names, and for llama q and k with pairs adjacent.

    `changes` replace metadata, or drop it where None; keys begin behind the architecture's name.
    `tokenizer` is metadata with whole names.
    """
    config = model.config
    kind = config.model_type
    writer = gguf.GGUFWriter(path, kind)
    metadata = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    entries = {f"{kind}.{key}": value for key, value in {**metadata, **changes}.items()}
    numbers = {"tokenizer.ggml.tokens": [f"<{i}>" for i in range(config.vocab_size)]}
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in {**entries, **(tokenizer or numbers)}.items():
        if value is not None:
            add[type(value)](key, value)
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.numpy())
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        rows = tensor.detach().clone()
        which = name.split(".")[-2][0]
        if kind == "llama" and "self_attn" in name and which in heads:
            pairs = rows.reshape(heads[which], 2, -1, rows.shape[-1])
            rows = pairs.transpose(1, 2).reshape(rows.shape)
        writer.add_tensor(_gguf_name(name), rows.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    for theirs, ours in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ):
        name = name.replace(theirs, ours)
    return name
