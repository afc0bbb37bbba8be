"""A training on tiny models: its folder's inputs, a recipe, and somebody who watches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from app.engines.embedded.checkpoint import Checkpoint
from app.engines.embedded.draft_folder import fingerprint
from app.engines.embedded.weights import open_checkpoint
from app.training.inputs import Texts
from app.training.recipe import Recipe
from app.training.session import About, Session
from tests.app.engines.embedded.tiny import EOS

OPENING, CLOSING = (1, 2), (3,)
RECIPE = Recipe(
    layers=1,
    source="mixed",
    texts=12,
    invented=6,
    tokens=600,
    batch=8,
    piece=128,
    answer=10,
    every=3,
    learning_rate=5e-3,
    drafting=40,
)


@dataclass
class Watched:
    """Remembers what it was told, and asks for an end after so many steps."""

    stop_after: int | None = None
    said: list[str] = field(default_factory=list)
    done: list[tuple[str, int, int]] = field(default_factory=list)

    def progress(self, what: str, done: int, total: int) -> None:
        self.done.append((what, done, total))

    def say(self, line: str) -> None:
        self.said.append(line)

    @property
    def stopping(self) -> bool:
        steps = sum(what == "training" for what, _, _ in self.done)
        return self.stop_after is not None and steps >= self.stop_after


def texts(count: int, group: int, seed: int, answers: bool = False) -> Texts:
    seeded = torch.Generator().manual_seed(seed)

    def ids(longest: int) -> torch.Tensor:
        length = int(torch.randint(1, longest, (), generator=seeded))
        return torch.randint(256, (length,), generator=seeded)

    nothing = torch.zeros(0, dtype=torch.int64)
    rows = [(ids(12), ids(8) if answers else nothing, group) for _ in range(count)]
    return Texts.of(rows, ["one", "two"])


def write_inputs(folder: Path, target: Checkpoint, count: int = 20, seed: int = 1) -> None:
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    texts(count, 0, seed).save(inputs / "prompts.safetensors")
    texts(4, 0, 2).save(inputs / "held.safetensors")
    texts(10, 1, 3, answers=True).save(inputs / "fixed.safetensors")
    shared = fingerprint(target)
    about = About("tiny", shared, "tiny", shared, (EOS,), OPENING, CLOSING)
    (inputs / "about.json").write_text(json.dumps(vars(about)))


def session(
    folder: Path,
    model: Path,
    watch: Watched | None = None,
    dtype: torch.dtype = torch.float32,
    **changed: Any,
) -> Session:
    """In a folder, whose inputs are written where they are not there yet."""
    target = open_checkpoint(model)
    if not (folder / "inputs").exists():
        write_inputs(folder, target)
    recipe = Recipe.from_dict({**RECIPE.to_dict(), **changed})
    device = torch.device("cpu")
    return Session(folder, recipe, target, target, watch or Watched(), device=device, dtype=dtype)


def log(folder: Path) -> Sequence[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
