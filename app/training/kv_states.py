"""What a KV predictor learns from: states of a cheap pass, and the true keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from app.nets.kv_predictor import normed
from app.training.net import Layer, Net


@torch.inference_mode()
def states(net: Net, ids: Tensor, depths: Iterable[int]) -> tuple[dict[int, Tensor], Tensor]:
    """Of one text's ids, int64 `[time]`: the residual stream behind so many layers, divided by its
    root mean square, `[time, hidden]`; and the keys before RoPE and the values of all layers,
    `[time, layers, 2, width]`."""
    turns = net.turns(torch.arange(len(ids), device=ids.device)[None])
    wanted, told, made = set(depths), dict[int, Tensor](), []
    rows = torch.nn.functional.embedding(ids[None], net.embedding)
    for depth, layer in enumerate(net.layers):
        assert isinstance(layer, Layer)
        if depth in wanted:
            told[depth] = normed(rows[0].float(), net.config.norm_epsilon)
        made.append(layer.keys_and_values(rows)[0])
        rows = layer(rows, turns)
    return told, torch.stack(made, 1)


def flat(keys_and_values: Tensor, kept: int) -> Tensor:
    """Of the layers from `kept` on, `[time, layers, 2, width]` to `[time, outputs]`."""
    return keys_and_values[:, kept:].flatten(1)


def keys_and_values(net: Net, ids: Tensor) -> Tensor:
    """Of one text's ids, int64 `[time]`: keys before RoPE and values, `[time, layers, 2,
    width]`."""
    return states(net, ids, ())[1]


def packed(
    texts: Iterable[Tensor], opening: Tensor, closing: Tensor, longest: int
) -> Iterable[Tensor]:
    """Chats of about `longest` tokens: what users said, several one behind another where they are
    short. `opening` and `closing` are the template's ids around it."""
    room = longest - len(opening) - len(closing)
    parts: list[Tensor] = []
    for text in texts:
        said = text[len(opening) : len(text) - len(closing)][:room]
        if parts and sum(map(len, parts)) + len(said) > room:
            yield torch.cat([opening, *parts, closing])
            parts = []
        parts.append(said)
    if parts:
        yield torch.cat([opening, *parts, closing])


def by_layer(explained: list[float], kept: int) -> Mapping[str, dict[str, float]]:
    """R^2 of each layer's keys and values."""
    pairs = zip(explained[::2], explained[1::2], strict=True)
    return {str(kept + at): {"keys": k, "values": v} for at, (k, v) in enumerate(pairs)}
