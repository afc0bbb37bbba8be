"""The decoder as a module that learns: Llama's and Qwen2's shape, batches of padded sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.engines.embedded.checkpoint import Checkpoint
from app.engines.embedded.folding import ModelConfig, separated

_MATRICES = ("q", "k", "v", "output", "gate", "up", "down")


class Net(nn.Module):
    """A checkpoint's layers, or some of them, between an embedding and a head.

    Ids are int64 `[batch, time]`, padded on the right: attention is causal, so that padding is
    seen by nobody. Hidden states are `[batch, time, hidden]`, normed, as the head takes them.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: Sequence[Layer],
        embedding: Tensor,
        head: Tensor,
        norm: Tensor,
        frequencies: Tensor,
    ) -> None:
        """`embedding`, `head` `[vocabulary, hidden]` and `norm` `[hidden]` are not trained."""
        super().__init__()
        self.config = replace(config, layers=len(layers))
        self.layers = nn.ModuleList(layers)
        self.embedding, self.head, self.norm = embedding, head, norm
        self.frequencies = frequencies

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states of every position."""
        turns = self.turns(torch.arange(ids.shape[1], device=ids.device)[None])
        rows = F.embedding(ids, self.embedding)
        for layer in self.layers:
            rows = layer(rows, turns)
        return self.normed(rows)

    def frozen(self) -> Net:
        """The same, its layers in the embedding's dtype: what writes token after token."""
        dtype, layers = self.embedding.dtype, []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            tensors = {name: p.detach().to(dtype) for name, p in layer.named_parameters()}
            layers.append(Layer(self.config, tensors).requires_grad_(False))
        shared = self.embedding, self.head, self.norm, self.frequencies
        return Net(self.config, layers, *shared)

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """RoPE's cosines and sines `[batch, 1, time, head_dim]` of positions `[batch, time]`."""
        angles = positions[:, None, :, None].float() * self.frequencies
        angles = torch.cat([angles, angles], -1)
        dtype = self.embedding.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def normed(self, rows: Tensor) -> Tensor:
        return _norm(rows, self.norm, self.config.norm_epsilon)


class Layer(nn.Module):
    """One layer; matrices `[out, in]`, rows of q and k in Hugging Face's order."""

    attention_norm: Tensor
    mlp_norm: Tensor
    output: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor

    def __init__(self, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(
        self,
        rows: Tensor,
        turns: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor] | None = None,
        at: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Rows `[batch, time, hidden]`; with a cache, its keys and values from `at` on are set."""
        queries, keys, values = self._project(_norm(rows, self.attention_norm, self._epsilon))
        queries, keys = _turn(queries, turns), _turn(keys, turns)
        if cache is not None:
            end = at + rows.shape[1]
            cache[0][:, :, at:end], cache[1][:, :, at:end] = keys, values
            keys, values = cache[0][:, :, :end], cache[1][:, :, :end]
        if rows.shape[1] == 1 and mask is not None:
            seen = _attend(queries, keys, values, mask)
        else:
            seen = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
            )
        return self._finished(rows, seen)

    def behind(self, rows: Tensor, turns: tuple[Tensor, Tensor], given: Tensor) -> Tensor:
        """Rows `[batch, time, hidden]` that stand behind tokens whose keys before RoPE and values
        are given, `[batch, before, 2, kv_heads * head_dim]`; `turns` are of all positions."""
        queries, keys, values = self._project(_norm(rows, self.attention_norm, self._epsilon))
        before = given.shape[1]
        split = given.view(*given.shape[:3], -1, self.config.head_dim).permute(2, 0, 3, 1, 4)
        keys, values = torch.cat([split[0], keys], 2), torch.cat([split[1], values], 2)
        late = turns[0][:, :, before:], turns[1][:, :, before:]
        shown = torch.ones(rows.shape[1], keys.shape[2], dtype=torch.bool, device=rows.device)
        seen = F.scaled_dot_product_attention(
            _turn(queries, late),
            _turn(keys, turns),
            values,
            attn_mask=shown.tril(before),
            enable_gqa=True,
        )
        return self._finished(rows, seen)

    def _finished(self, rows: Tensor, seen: Tensor) -> Tensor:
        """The layer's output, of its input and what attention saw, `[batch, heads, time, dim]`."""
        rows = rows + F.linear(seen.transpose(1, 2).flatten(2), self.output.to(rows.dtype))
        inner = _norm(rows, self.mlp_norm, self._epsilon)
        gate = F.linear(inner, self.gate.to(rows.dtype))
        up = F.linear(inner, self.up.to(rows.dtype))
        return rows + F.linear(F.silu(gate) * up, self.down.to(rows.dtype))

    def keys_and_values(self, rows: Tensor) -> Tensor:
        """What it makes of rows `[batch, time, hidden]`: keys before RoPE, and values, `[batch,
        time, 2, kv_heads * head_dim]`."""
        _, keys, values = self._project(_norm(rows, self.attention_norm, self._epsilon))
        both = torch.stack([keys, values], 2)  # [batch, heads, 2, time, head_dim]
        return both.permute(0, 3, 2, 1, 4).flatten(3)

    @property
    def _epsilon(self) -> float:
        return self.config.norm_epsilon

    def _project(self, rows: Tensor) -> list[Tensor]:
        parts = []
        for name in ("q", "k", "v"):
            bias = getattr(self, f"{name}_bias", None)
            weight = getattr(self, name).to(rows.dtype)
            part = F.linear(rows, weight, None if bias is None else bias.to(rows.dtype))
            parts.append(part.view(*part.shape[:2], -1, self.config.head_dim).transpose(1, 2))
        return parts


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """One query a row; on a CPU a fifth of the time of torch's attention, which is for many."""
    grouped = queries.view(len(queries), keys.shape[1], -1, queries.shape[-1])
    scores = (grouped @ keys.transpose(-1, -2)).float() * queries.shape[-1] ** -0.5
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
    return (weights.to(values.dtype) @ values).view(queries.shape)


def _norm(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return F.rms_norm(rows.float(), rows.shape[-1:], weight.float(), epsilon).to(rows.dtype)


def _turn(rows: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    first, second = rows.chunk(2, -1)
    return rows * turns[0] + torch.cat([-second, first], -1) * turns[1]


def read_layers(found: Checkpoint, kept: Sequence[int]) -> list[Layer]:
    """These layers of a checkpoint, fp32, in this order."""
    return [Layer(found.config, _tensors(found, index)) for index in kept]


def _tensors(found: Checkpoint, index: int) -> dict[str, Tensor]:
    config, names = found.config, found.layout.names
    tensors = {}
    for part in ("attention_norm", "mlp_norm", *_MATRICES):
        name = names[part].format(index) + (".weight" if part in ("q", "k", "v") else "")
        tensors[part] = found.source.tensor(name)
        bias = names[part].format(index) + ".bias"
        if part in ("q", "k", "v") and bias in found.source.names:
            tensors[f"{part}_bias"] = found.source.tensor(bias)
    if found.layout.interleaved:
        for part, heads in (("q", config.heads), ("k", config.kv_heads)):
            for name in (part, f"{part}_bias"):
                if name in tensors:
                    tensors[name] = separated(tensors[name], heads)
    return tensors


def read_net(found: Checkpoint, kept: Sequence[int] | None = None) -> Net:
    """A checkpoint, fp32, with all of its layers or these only."""
    names = found.layout.names
    embedding = found.source.tensor(names["embedding"])
    return Net(
        found.config,
        read_layers(found, range(found.config.layers) if kept is None else kept),
        embedding,
        embedding if found.layout.tied else found.source.tensor(names["head"]),
        found.source.tensor(names["norm"]),
        found.inverse_frequencies,
    )
