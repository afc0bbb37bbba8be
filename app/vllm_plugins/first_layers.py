"""The first layers of vLLM's own model, run over a prompt beside its batch.

They compute what vLLM would, with its weights and kernels; attention alone is ours, over keys and
values that a prompt keeps for itself until it has been read.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FAMILIES = ("llama", "qwen2", "qwen3")  # model_type of those whose layers are known


def why_not(config: Any) -> str | None:
    """Why a model of this configuration (transformers') has no KV prediction; None: it has."""
    family = getattr(config, "model_type", None)
    if family not in FAMILIES:
        return f"models of type {family!r} are not known, only {', '.join(FAMILIES)}"
    windows = getattr(config, "sliding_window", None) and getattr(
        config, "use_sliding_window", True
    )
    kinds = set(getattr(config, "layer_types", None) or ())
    if windows or kinds - {"full_attention"} or not getattr(config, "is_causal", True):
        return "some of its layers do not attend to all tokens before"
    if getattr(config, "dual_chunk_attention_config", None):
        return "it attends in chunks"
    return None


class PromptCache:
    """Keys after RoPE and values of one prompt's tokens, of each layer that was run."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def put(self, layer: int, at: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the tokens from `at` on, `[n, kv_heads, head_dim]`; returns all up to them."""
        if layer not in self._layers:
            shape = (self._tokens, *keys.shape[1:])
            self._layers[layer] = keys.new_empty(shape), values.new_empty(shape)
        end = at + len(keys)
        kept = self._layers[layer]
        kept[0][at:end], kept[1][at:end] = keys, values
        return kept[0][:end], kept[1][:end]


class FirstLayers:
    """The layers up to some depth, and how the keys of those beyond it are normed and rotated."""

    def __init__(self, model: Any) -> None:
        """`model`: vLLM's, of one of the FAMILIES."""
        self._base = model.model
        self.layers = len(self._base.layers)
        self.epsilon = float(self._base.norm.variance_epsilon)

    def run(
        self, ids: Tensor, at: int, cache: PromptCache, depth: int
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The next tokens, ids `[n]`, of a prompt of which `at` tokens are in the cache.

        Returns the residual stream behind `depth` layers, `[n, hidden]`, and of each of those the
        keys after RoPE and the values, `[n, kv_heads, head_dim]`.
        """
        places = torch.arange(at, at + len(ids), device=ids.device)
        stream = self._base.embed_input_ids(ids)
        rows = []
        added: Tensor | None = None  # what the last layer adds to the stream
        for number in range(depth):
            layer = self._base.layers[number]
            if added is None:
                states = layer.input_layernorm(stream)
            else:
                states, stream = layer.input_layernorm(added, stream)
            attention = layer.self_attn
            query, keys, values = _projected(attention, states, places)
            rows.append((keys, values))
            seen = cache.put(number, at, keys, values)
            mixed = _attend(query, *seen, attention.scaling)
            added, _ = attention.o_proj(mixed.flatten(1))
            states, stream = layer.post_attention_layernorm(added, stream)
            added = layer.mlp(states)
        return stream if added is None else stream + added, rows

    def rotated(self, keys: Tensor, layer: int, first: int) -> Tensor:
        """Keys before RoPE, and before the layer's norm of keys where it has one, `[n, kv_heads,
        head_dim]`, of tokens from the position `first` on: as they stand in the KV cache."""
        attention = self._base.layers[layer].self_attn
        norm = getattr(attention, "k_norm", None)
        keys = (keys if norm is None else norm(keys)).contiguous()
        places = torch.arange(first, first + len(keys), device=keys.device)
        turned, _ = attention.rotary_emb(places, keys.flatten(1), None)
        return turned.view_as(keys)  # type: ignore[no-any-return]  # vLLM's are Any


def _projected(attention: Any, states: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query `[n, heads, head_dim]`, and keys and values `[n, kv_heads, head_dim]`, after RoPE."""
    packed, _ = attention.qkv_proj(states)
    query, keys, values = packed.split(
        [attention.q_size, attention.kv_size, attention.kv_size], dim=-1
    )
    size = attention.head_dim
    if getattr(attention, "k_norm", None) is not None:
        query = attention.q_norm(query.unflatten(-1, (-1, size)).contiguous()).flatten(1)
        keys = attention.k_norm(keys.unflatten(-1, (-1, size)).contiguous()).flatten(1)
    query, keys = attention.rotary_emb(places, query, keys)
    query, keys, values = (each.unflatten(-1, (-1, size)) for each in (query, keys, values))
    return query, keys, values


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Of the last tokens `[n, heads, head_dim]` to all up to themselves, `[m, kv_heads, head_dim]`;
    mixed values `[n, heads, head_dim]`."""
    new, every = len(query), len(keys)
    groups = query.shape[1] // keys.shape[1]
    mask = None
    if new < every:
        mask = torch.ones(new, every, dtype=torch.bool, device=query.device).tril(every - new)
    mixed = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys.repeat_interleave(groups, dim=1).transpose(0, 1)[None],
        values.repeat_interleave(groups, dim=1).transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
    )
    return mixed[0].transpose(0, 1)
