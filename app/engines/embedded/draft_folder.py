"""A draft's folder: layers of its own, beside the embedding and head of the model it shares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.engines.embedded.checkpoint import FOLDER_NAMES, Checkpoint
from app.engines.embedded.folding import Layout

FORMAT = "farthing-draft/1"
WEIGHTS = "model.safetensors"
DRAFTING = "drafting_ids"  # int32: the tokens that a trimmed head knows
_SHARED = ("embedding", "norm", "head")
_SAMPLED = 64  # of how many rows of the shared tables one is compared


class DraftFolder:
    """A TensorSource: what the folder holds, and the rest from the base."""

    def __init__(self, path: str | Path, base: Checkpoint) -> None:
        """Raises FileNotFoundError, and ValueError where folder and base do not fit."""
        self.path = Path(path)
        self.about = read_about(self.path)
        self._base = base
        self._own = read_tensors(self.path / WEIGHTS)
        self._check()
        names = FOLDER_NAMES, base.layout.names
        self._shared = {names[0][part]: names[1][part] for part in _SHARED}
        if base.layout.tied:
            del self._shared[FOLDER_NAMES["head"]]

    @property
    def names(self) -> Iterable[str]:
        scales = {name for name in self._own if name.endswith("_scale")}
        return (self._own.keys() - scales - {DRAFTING}) | self._shared.keys()

    def tensor(self, name: str) -> Tensor:
        """The named tensor as fp32 in memory of its own. Raises KeyError for an unknown name."""
        if name in self._shared:
            return self._base.source.tensor(self._shared[name])
        stored = self._own[name].float()
        scale = self._own.get(f"{name}_scale")
        return stored.clone() if scale is None else stored * scale

    @property
    def drafting(self) -> Tensor | None:
        """The ids, int64, of the trimmed head; None where there is none."""
        ids = self._own.get(DRAFTING)
        return None if ids is None else ids.long()

    def checkpoint(self) -> Checkpoint:
        """The draft as a checkpoint like any other."""
        base = self._base
        return replace(
            base,
            config=replace(base.config, layers=int(self.about["layers"])),
            source=self,
            layout=Layout(FOLDER_NAMES, base.layout.tied, interleaved=False),
        )

    def _check(self) -> None:
        if self.about["base"]["shared"] != fingerprint(self._base):
            of = self.about["base"]["name"]
            raise ValueError(
                f"{self.path}: is a draft of {of}, whose embedding it shares, and not of"
                f" {self._base.source.path}; name the right model as its base"
            )
        digest = sha256(self.path / WEIGHTS)
        if digest != self.about["sha256"]:
            raise ValueError(
                f"{self.path / WEIGHTS}: SHA-256 is {digest}, config.json says"
                f" {self.about['sha256']}: it was damaged or changed"
            )


def read_about(folder: Path) -> Mapping[str, Any]:
    """What the folder's config.json says. Raises FileNotFoundError, ValueError."""
    path = folder / "config.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{path}: is not a draft's ({FORMAT})")
    base = about.get("base")
    told = isinstance(base, dict) and {"name", "shared"} <= base.keys()
    if not (told and isinstance(about.get("layers"), int) and "sha256" in about):
        raise ValueError(f"{path}: must tell base.name, base.shared, layers and sha256")
    return about


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, as it is stored. Raises ValueError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error


def fingerprint(base: Checkpoint) -> str:
    """Tells models apart by what a draft shares: SHA-256 of some rows of it, as bf16."""
    digest = hashlib.sha256()
    for part in _SHARED[: 2 if base.layout.tied else 3]:
        tensor = base.source.tensor(base.layout.names[part])
        rows = tensor if tensor.ndim == 1 else tensor[::_SAMPLED]
        digest.update(rows.bfloat16().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_draft(path: Path) -> bool:
    """Whether this is such a folder, by what its config.json says."""
    config = path / "config.json"
    return config.is_file() and FORMAT in config.read_text(encoding="utf-8", errors="replace")


def layer_tensor(index: int, part: str) -> str:
    """The name under which a draft's folder holds this part of a layer, as `q` or `q_bias`."""
    what = part.removesuffix("_bias")
    name = FOLDER_NAMES[what].format(index)
    if what not in ("q", "k", "v"):
        return name
    return f"{name}.{'weight' if what == part else 'bias'}"
