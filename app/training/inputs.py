"""What a training run reads: prompts and texts as token ids, in files that need no tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from app.training.saving import replace_file

_TENSORS = ("ids", "starts", "prompts", "groups")


@dataclass(frozen=True)
class Texts:
    """Prompts, each with the ids of an answer behind it, or with none."""

    ids: Tensor  # int32, all of them, end to end
    starts: Tensor  # int64 [texts + 1]
    prompts: Tensor  # int64 [texts], how many ids of each are its prompt
    groups: Tensor  # int64 [texts], where it is from: an index into the names
    names: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[tuple[Tensor, Tensor, int]], names: Sequence[str]) -> Texts:
        """From (prompt, answer, group), ids int64."""
        both = [torch.cat([prompt, answer]).int() for prompt, answer, _ in rows]
        lengths = torch.tensor([0, *(len(ids) for ids in both)])
        return cls(
            torch.cat(both) if both else torch.zeros(0, dtype=torch.int32),
            lengths.cumsum(0),
            torch.tensor([len(prompt) for prompt, _, _ in rows], dtype=torch.int64),
            torch.tensor([group for _, _, group in rows], dtype=torch.int64),
            tuple(names),
        )

    def __len__(self) -> int:
        return len(self.prompts)

    def text(self, index: int) -> Tensor:
        """Prompt and answer, int64."""
        return self.ids[self.starts[index] : self.starts[index + 1]].long()

    def prompt(self, index: int) -> Tensor:
        return self.text(index)[: int(self.prompts[index])]

    def rows(self) -> list[tuple[Tensor, Tensor, int]]:
        """What `of` was given."""
        cut = [(self.text(i), int(self.prompts[i]), int(self.groups[i])) for i in range(len(self))]
        return [(text[:at], text[at:], group) for text, at, group in cut]

    @cached_property
    def digest(self) -> str:
        """Tells these texts from others: SHA-256 of their ids, and of where each begins."""
        parts = self.ids, self.starts, self.prompts
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()

    @cached_property
    def _members(self) -> list[Tensor]:
        return [
            torch.nonzero(self.groups == group).flatten() for group in torch.unique(self.groups)
        ]

    def draw(self, count: int, seeded: torch.Generator) -> list[int]:
        """Indices: first a group, each as likely, then one of its texts, each as likely."""
        chosen = torch.randint(len(self._members), (count,), generator=seeded).tolist()
        members = [self._members[group] for group in chosen]
        return [int(m[torch.randint(len(m), (), generator=seeded)]) for m in members]

    def save(self, path: Path, **about: Any) -> None:
        """Write a safetensors file; it appears when it is complete."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        said = {"names": json.dumps(self.names), "about": json.dumps(about)}
        replace_file(path, save(tensors, said))


def read_texts(path: Path) -> tuple[Texts, dict[str, Any]]:
    """A file that `save` wrote, and what was said about it.

    Raises FileNotFoundError, and ValueError where it is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        names = tuple(json.loads(said["names"]))
        return Texts(**tensors, names=names), json.loads(said["about"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a file of texts: {error}") from error


def joined(parts: Sequence[Texts]) -> Texts:
    """All texts of these, whose names are the same."""
    rows = [row for part in parts for row in part.rows()]
    return Texts.of(rows, parts[0].names)
