"""Acceptance heads from the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from app.engines.embedded.checkpoint import Checkpoint
from app.errors import ConfigError
from app.training.acceptance import HeadRecipe
from app.training.acceptance_report import MEASURES
from app.training.acceptance_session import HeadSession, reuse
from app.training.answers import Interrupted
from app.training.command import (
    Choices,
    Named,
    check_asked,
    check_pair,
    reason,
    watching,
    write_inputs,
)
from app.training.recipe import Recipe
from app.training.saving import replace_file
from app.training.session import device_of


@dataclass(frozen=True)
class HeadChoices:
    """What the command was told."""

    draft: Named
    target: Named
    folder: Path
    prompts: tuple[Path, ...]
    texts: Path | None  # another training's folder
    recipe: Mapping[str, Any]  # those of its fields that were given
    longest: int
    device: str | None
    dtype: str


def run_head(choices: HeadChoices) -> None:
    """Train, or go on training, in the folder. Raises ConfigError."""
    console = Console(stderr=True)
    try:
        draft, target = choices.draft.opened(), choices.target.opened()
        check_pair(choices.draft, choices.target)
        recipe = _recipe(choices)
        if not (choices.folder / "inputs" / "about.json").exists():
            _write_inputs(choices, target)
        elif choices.prompts or choices.texts:
            console.print(f"{choices.folder}: has its inputs already; no others are read")
        said = json.dumps(recipe.to_dict(), indent=2) + "\n"
        replace_file(choices.folder / "head_recipe.json", said.encode())
        with watching(console) as watch:
            session = HeadSession(
                choices.folder,
                recipe,
                (choices.draft.name, draft),
                (choices.target.name, target),
                watch,
                device=device_of(choices.device),
                dtype=torch.bfloat16 if choices.dtype == "bf16" else torch.float32,
            )
            path = session.train()
    except Interrupted as error:
        console.print(str(error), highlight=False)
        raise SystemExit(130) from error
    except (OSError, ValueError) as error:
        raise ConfigError(reason(error)) from error
    _show(path, console)


def _recipe(choices: HeadChoices) -> HeadRecipe:
    """That of the folder, where there is one; else the one asked for."""
    if choices.prompts and choices.texts:
        raise ConfigError("--prompts and --texts: a training reads one or the other, not both")
    path = choices.folder / "head_recipe.json"
    if not path.exists():
        recipe = HeadRecipe(**choices.recipe)
        there = (choices.folder / "inputs" / "about.json").exists()
        if not (choices.prompts or choices.texts or there):
            raise ConfigError(
                f"{choices.folder}: is new: name prompts with --prompts, or with --texts the folder"
                " of another training with this target"
            )
        return recipe
    recipe = HeadRecipe.from_dict(json.loads(path.read_text(encoding="utf-8")))
    check_asked(recipe, choices.recipe, path)
    return recipe


def _write_inputs(choices: HeadChoices, target: Checkpoint) -> None:
    if choices.texts is not None:
        reuse(choices.texts, choices.folder)
        return
    given = Choices(
        target=choices.target,
        start=None,
        folder=choices.folder,
        prompts=choices.prompts,
        recipe={},
        longest=choices.longest,
        pack=False,
        device=choices.device,
        dtype=choices.dtype,
    )
    write_inputs(given, Recipe(), target, target)


def _show(path: Path, console: Console) -> None:
    report = json.loads(path.with_name("report.json").read_text("utf-8"))["held_out"]
    for name, found in report.items():
        for way, figures in found.items():
            if not isinstance(figures, dict) or not MEASURES.keys() <= figures.keys():
                continue
            each = [f"{what} {figures[what]['mean']:.3f}" for what in MEASURES]
            console.print(f"{name}, {way}: {', '.join(each)}", highlight=False)
        speeds = [f"{rule} {said['speed']:.3f}" for rule, said in found["speed"].items()]
        console.print(f"{name}, tokens a pass's time: {', '.join(speeds)}", highlight=False)
    Console().print(str(path), highlight=False, soft_wrap=True)
