"""Trainings of acceptance heads on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from app.engines.embedded.weights import open_checkpoint
from app.training.acceptance import HeadRecipe
from app.training.acceptance_samples import Pair
from app.training.acceptance_session import HeadSession
from app.training.net import read_net
from tests.app.engines.embedded.tiny import EOS
from tests.app.training.runs import Watched, write_inputs

RECIPE = HeadRecipe(depth=1, texts=12, answer=10, batch=64, every=2, longest=3)


def pair(model: Path, drafting: torch.Tensor | None = None) -> Pair:
    """A model, and its first layer as its draft."""
    found = open_checkpoint(model)
    return Pair(read_net(found, [0]), read_net(found), drafting, frozenset((EOS,)))


def head_session(
    folder: Path, model: Path, draft: Path, watch: Watched | None = None, **changed: Any
) -> HeadSession:
    """In a folder, whose inputs are written where they are not there yet."""
    target = open_checkpoint(model)
    if not (folder / "inputs").exists():
        write_inputs(folder, target)
    recipe = HeadRecipe.from_dict({**RECIPE.to_dict(), **changed})
    drafts = ("small", open_checkpoint(draft, model))
    device, watch = torch.device("cpu"), watch or Watched()
    return HeadSession(
        folder, recipe, drafts, ("tiny", target), watch, device=device, dtype=torch.float32
    )
