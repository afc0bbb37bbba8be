"""A target's answers to prompts, kept in files so that they are written once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from app.training.inputs import Texts, joined, read_texts
from app.training.net import Net
from app.training.text import write

_AT_ONCE = 256  # texts that it writes in one batch


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state."""


class Watch(Protocol):
    """Who is told how it goes, and may end it."""

    def progress(self, what: str, done: int, total: int) -> None: ...

    def say(self, line: str) -> None: ...

    @property
    def stopping(self) -> bool: ...


@dataclass(frozen=True)
class Writer:
    """Lets `net` write, in files of `folder`; what is there already is read."""

    folder: Path
    net: Net
    seed: int
    ends: frozenset[int]
    watch: Watch

    def __call__(self, name: str, asked: Texts, warmth: Tensor, use: int, longest: int) -> Texts:
        """Answers of at most `longest` tokens to these prompts, each at its temperature.

        `use` makes what is drawn another for each use of one seed. Raises Interrupted, OSError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        rows, parts = asked.rows(), []
        device = self.net.embedding.device
        order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
        for number, at in enumerate(range(0, len(order), _AT_ONCE)):
            path = self.folder / f"{name}-{number:04}.safetensors"
            chosen = order[at : at + _AT_ONCE]
            about = {"seed": self.seed, "longest": longest, "asked": asked.digest}
            if path.exists() and read_texts(path)[1] == about:
                parts.append(read_texts(path)[0])
                continue
            if self.watch.stopping:
                raise Interrupted("stopped while the target wrote; the same command goes on")
            self.watch.progress(f"writing: {name}", at, len(rows))
            seeded = torch.Generator(device)
            seeded.manual_seed((self.seed * 8 + use) * 100_000 + number)
            prompts = [rows[index][0] for index in chosen]
            answers = write(self.net, prompts, longest, warmth[chosen], self.ends, seeded)
            groups = [rows[index][2] for index in chosen]
            part = Texts.of(list(zip(prompts, answers, groups, strict=True)), asked.names)
            part.save(path, **about)
            parts.append(part)
        self.watch.progress(f"writing: {name}", len(rows), len(rows))
        return joined(parts)
