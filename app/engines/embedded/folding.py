"""The tensors a decoder computes with: a checkpoint's, with all that can be done once folded in."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

Architecture = Literal["llama", "qwen2"]


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of one decoder; all of them counts, save `norm_epsilon`."""

    architecture: Architecture
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int  # the longest sequence, in tokens, that the model was made for
    norm_epsilon: float


@dataclass(frozen=True)
class LayerWeights:
    """One layer's matrices, fp32, `[out, in]`.

    Three things are folded in, so that the decoder need not do them for each token:
    - each norm's weight, and sqrt(hidden), into the columns of the matrix that follows it: the
      decoder divides by `sqrt(sum(x^2) + hidden * epsilon)` and is done;
    - the attention scale `1 / sqrt(head_dim)` into the rows (and bias) of q;
    - the rows of q and k stand in the order in which RoPE's pairs are neighbours.
    """

    qkv: Tensor  # [(heads + 2 * kv_heads) * head_dim, hidden]
    qkv_bias: Tensor | None  # [(heads + 2 * kv_heads) * head_dim]
    output: Tensor  # [hidden, heads * head_dim]
    gate_up: Tensor  # [2 * intermediate, hidden]
    down: Tensor  # [hidden, intermediate]


@dataclass(frozen=True)
class Weights:
    """A model's tensors, fp32, to be shared between decoders of several precisions.

    An fp32 decoder uses these very tensors; drop the object once all decoders are built.
    """

    embedding: Tensor  # [vocabulary, hidden]
    layers: tuple[LayerWeights, ...]
    norm: Tensor  # [hidden], the final norm's
    head: Tensor  # [vocabulary, hidden]; the embedding itself where they are tied
    inverse_frequencies: Tensor  # [head_dim / 2], RoPE's radians per position
    drafting: Tensor | None = None  # int64, the ids of the tokens that it drafts; None: all


class TensorSource(Protocol):
    """A checkpoint of any format: fp32 tensors by name."""

    path: Path

    @property
    def names(self) -> Iterable[str]: ...

    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Layout:
    """How a checkpoint names and orders its tensors."""

    names: Mapping[str, str]  # what a tensor is: its name, `{}` standing for the layer
    tied: bool  # the head is the embedding
    interleaved: bool  # RoPE's pairs are neighbours already


def fold(
    config: ModelConfig, source: TensorSource, layout: Layout, inverse_frequencies: Tensor
) -> Weights:
    """Take every tensor out of `source`, one layer at a time, and fold it.

    Raises ValueError, naming file and tensor, where one is missing, misshapen or left over.
    """
    tensors = CheckedTensors(source)
    table = (config.vocabulary, config.hidden)
    embedding = tensors.take(layout.names["embedding"], table)
    weights = Weights(
        embedding=embedding,
        layers=tuple(_layer(config, tensors, layout, i) for i in range(config.layers)),
        norm=tensors.take(layout.names["norm"], (config.hidden,)),
        head=embedding if layout.tied else tensors.take(layout.names["head"], table),
        inverse_frequencies=inverse_frequencies,
    )
    tensors.finish(ignored=layout.names["head"])  # beside a tied embedding, a copy of it
    return weights


class CheckedTensors:
    """A source's tensors, each taken once and checked; one left at the end is an error."""

    def __init__(self, source: TensorSource) -> None:
        self.path = source.path
        self._source = source
        # Angles are worked out from the configuration; old checkpoints and llama3 store them too.
        self._left = {name for name in source.names if not name.endswith(_ANGLES)}

    def holds(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._left:
            raise ValueError(f"{self.path}: tensor {name!r} is missing")
        self._left.remove(name)
        tensor = self._source.tensor(name)
        if tensor.shape != shape:
            found, wanted = list(tensor.shape), list(shape)
            raise ValueError(f"{self.path}: tensor {name!r} has shape {found}, not {wanted}")
        return tensor

    def finish(self, ignored: str) -> None:
        """What nobody took would be a part of the model that we left out in silence."""
        left = self._left - {ignored}
        if left:
            raise ValueError(f"{self.path}: not supported: tensor {min(left)!r}")


_ANGLES = ("rotary_emb.inv_freq", "rope_freqs.weight")


def _layer(
    config: ModelConfig, tensors: CheckedTensors, layout: Layout, index: int
) -> LayerWeights:
    names = {part: name.format(index) for part, name in layout.names.items()}
    hidden, intermediate = config.hidden, config.intermediate
    attention_norm = tensors.take(names["attention_norm"], (hidden,)) * math.sqrt(hidden)
    mlp_norm = tensors.take(names["mlp_norm"], (hidden,)) * math.sqrt(hidden)
    qkv, qkv_bias = _qkv(config, tensors, names, layout.interleaved)
    gate = tensors.take(names["gate"], (intermediate, hidden))
    up = tensors.take(names["up"], (intermediate, hidden))
    return LayerWeights(
        qkv=qkv.mul_(attention_norm),
        qkv_bias=qkv_bias,
        output=tensors.take(names["output"], (hidden, config.heads * config.head_dim)),
        gate_up=torch.cat([gate, up]).mul_(mlp_norm),
        down=tensors.take(names["down"], (hidden, intermediate)),
    )


def _qkv(
    config: ModelConfig, tensors: CheckedTensors, names: Mapping[str, str], interleaved: bool
) -> tuple[Tensor, Tensor | None]:
    weights, biases = [], []
    for part, heads in (("q", config.heads), ("k", config.kv_heads), ("v", config.kv_heads)):
        name, rows = names[part], heads * config.head_dim

        def ready(tensor: Tensor, part: str = part, heads: int = heads) -> Tensor:
            if part != "v" and not interleaved:
                tensor = paired(tensor, heads)
            return tensor * config.head_dim**-0.5 if part == "q" else tensor

        weights.append(ready(tensors.take(f"{name}.weight", (rows, config.hidden))))
        if tensors.holds(f"{name}.bias"):
            biases.append(ready(tensors.take(f"{name}.bias", (rows,))))
    if len(biases) not in (0, 3):
        raise ValueError(f"{tensors.path}: not supported: a bias on some of {names['q']}, k, v")
    return torch.cat(weights), torch.cat(biases) if biases else None


def separated(rows: Tensor, heads: int) -> Tensor:
    """Undo `paired`: each head's pairs lie half a head apart again."""
    half = len(rows) // heads // 2
    return rows.view(heads, half, 2, -1).transpose(1, 2).reshape(rows.shape)


def paired(rows: Tensor, heads: int) -> Tensor:
    """Bring each head's rows i and i + head_dim / 2 together: a pair is then one complex number."""
    half = len(rows) // heads // 2
    return rows.view(heads, 2, half, -1).transpose(1, 2).reshape(rows.shape)
