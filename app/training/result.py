"""What a run leaves behind: a draft's folder, its layers in int8, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from app.engines.embedded.checkpoint import Checkpoint
from app.engines.embedded.draft_folder import (
    DRAFTING,
    FORMAT,
    WEIGHTS,
    fingerprint,
    layer_tensor,
    sha256,
)
from app.engines.embedded.linear import quantized
from app.training.inputs import Texts
from app.training.net import Layer, Net
from app.training.saving import replace_file


def write_draft(
    folder: Path,
    draft: Net,
    base: Checkpoint,
    name: str,
    drafting: Tensor | None,
    training: Mapping[str, Any],
) -> None:
    """Write the folder that `DraftFolder` reads; `name` is what the base is called.

    `drafting` are the ids of the trimmed head, `training` is kept for whoever asks how.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(draft.layers):
        assert isinstance(layer, Layer)
        for part, parameter in layer.named_parameters():
            stored = parameter.detach().float().cpu()
            tensor = layer_tensor(index, part)
            if stored.ndim == 2:
                levels, scale = quantized(stored)
                tensors |= {tensor: levels, f"{tensor}_scale": scale}
            else:
                tensors[tensor] = stored
    if drafting is not None:
        tensors[DRAFTING] = drafting.int()
    replace_file(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    about = {
        "format": FORMAT,
        "base": {"name": name, "shared": fingerprint(base)},
        "layers": len(draft.layers),
        "sha256": sha256(folder / WEIGHTS),
        "training": dict(training),
    }
    replace_file(folder / "config.json", (json.dumps(about, indent=2) + "\n").encode())


def stored(draft: Net) -> None:
    """Round the layers, in place, to what the folder holds of them."""
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.ndim == 2:
                levels, scale = quantized(parameter.cpu())
                parameter.copy_(levels * scale)


def most_written(texts: Sequence[Texts], count: int, vocabulary: int) -> Tensor:
    """The `count` tokens that these texts have most often, ids ascending.

    Among those that they have as often, and never, the lower id goes first: the merges of a
    tokenizer were made in the order of how often they were of use.
    """
    seen = torch.zeros(vocabulary, dtype=torch.int64)
    for each in texts:
        seen += torch.bincount(each.ids.long(), minlength=vocabulary)
    order = torch.sort(seen, descending=True, stable=True).indices
    return order[:count].sort().values
