"""A model of straw, with the parts that vLLM's have: as much of them as our layers touch."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

HEADS, KV_HEADS, SIZE, HIDDEN = 4, 2, 8, 24
EPSILON = 1e-5


def rms(rows: Tensor) -> Tensor:
    return rows / torch.sqrt(rows.square().mean(-1, keepdim=True) + EPSILON)


def turned(places: Tensor, rows: Tensor) -> Tensor:
    """Hugging Face's RoPE of `[n, heads, SIZE]`."""
    frequencies = 100.0 ** -(torch.arange(0, SIZE, 2) / SIZE)
    angles = (places[:, None] * frequencies).repeat(1, 2)[:, None]
    left, right = rows.chunk(2, -1)
    return rows * angles.cos() + torch.cat([-right, left], -1) * angles.sin()


class Norm(nn.Module):
    """As vLLM's: adds what a layer adds to the stream, in place."""

    variance_epsilon = EPSILON

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, rows: Tensor, stream: Tensor | None = None) -> Any:
        if stream is None:
            return rms(rows) * self.weight
        stream += rows
        return rms(stream) * self.weight, stream


class Linear(nn.Linear):
    def forward(self, rows: Tensor) -> Any:
        return super().forward(rows), None


class Rotary(nn.Module):
    def forward(self, places: Tensor, query: Tensor, keys: Tensor | None) -> Any:
        rotated = [
            None if rows is None else turned(places, rows.unflatten(-1, (-1, SIZE))).flatten(1)
            for rows in (query, keys)
        ]
        return tuple(rotated)


class Attention(nn.Module):
    def __init__(self, bias: bool, normed: bool) -> None:
        super().__init__()
        self.q_size, self.kv_size, self.head_dim = HEADS * SIZE, KV_HEADS * SIZE, SIZE
        self.scaling = 1 / math.sqrt(SIZE)
        self.qkv_proj = Linear(HIDDEN, self.q_size + 2 * self.kv_size, bias=bias)
        self.o_proj = Linear(self.q_size, HIDDEN, bias=False)
        self.rotary_emb = Rotary()
        if normed:
            self.q_norm, self.k_norm = Norm(SIZE), Norm(SIZE)


class Layer(nn.Module):
    def __init__(self, bias: bool, normed: bool) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(HIDDEN), Norm(HIDDEN)
        self.self_attn = Attention(bias, normed)
        self.mlp = nn.Sequential(nn.Linear(HIDDEN, 32), nn.SiLU(), nn.Linear(32, HIDDEN))


class Base(nn.Module):
    def __init__(self, layers: int, bias: bool, normed: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, HIDDEN)
        self.layers = nn.ModuleList(Layer(bias, normed) for _ in range(layers))
        self.norm = Norm(HIDDEN)

    def embed_input_ids(self, ids: Tensor) -> Tensor:
        found: Tensor = self.embedding(ids)
        return found


def model(layers: int = 3, bias: bool = False, normed: bool = False) -> Any:
    torch.manual_seed(0)
    return SimpleNamespace(model=Base(layers, bias, normed).requires_grad_(False).eval())


def reference(base: Any, ids: Tensor, depth: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The stream behind `depth` layers, and their keys and values, of a whole prompt."""
    stream, rows, places = base.embedding(ids), [], torch.arange(len(ids))
    future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    for layer in base.layers[:depth]:
        own = layer.self_attn
        packed, _ = own.qkv_proj(layer.input_layernorm(stream))
        sizes = [own.q_size, own.kv_size, own.kv_size]
        parts = packed.split(sizes, -1)
        query, keys, values = (part.unflatten(-1, (-1, SIZE)) for part in parts)
        if hasattr(own, "k_norm"):
            query, keys = own.q_norm(query), own.k_norm(keys)
        query, keys = turned(places, query), turned(places, keys)
        rows.append((keys, values))
        groups = HEADS // KV_HEADS
        mixed = []
        for head in range(HEADS):
            scores = query[:, head] @ keys[:, head // groups].T * own.scaling
            weights = scores.masked_fill(future, -torch.inf).softmax(-1)
            mixed.append(weights @ values[:, head // groups])
        added, _ = own.o_proj(torch.cat(mixed, -1))
        stream = stream + added
        stream = stream + layer.mlp(rms(stream) * layer.post_attention_layernorm.weight)
    return stream, rows
