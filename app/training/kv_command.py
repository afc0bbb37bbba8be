"""KV predictors from the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from app.engines.embedded.checkpoint import Checkpoint
from app.engines.embedded.tokenizer import alike
from app.errors import ConfigError
from app.training.answers import Interrupted
from app.training.command import Choices, Named, check_asked, reason, watching, write_inputs
from app.training.kv_recipe import KVRecipe
from app.training.kv_session import KVSession
from app.training.recipe import Recipe
from app.training.saving import replace_file
from app.training.session import device_of


@dataclass(frozen=True)
class KVChoices:
    """What the command was told."""

    base: Named
    auxiliary: Named | None
    folder: Path
    prompts: tuple[Path, ...]
    recipe: Mapping[str, Any]  # those of its fields that were given
    device: str | None
    dtype: str


def run_kv(choices: KVChoices) -> None:
    """Train, or go on training, in the folder. Raises ConfigError."""
    console = Console(stderr=True)
    try:
        base = choices.base.opened()
        auxiliary = _auxiliary(choices)
        recipe = _recipe(choices)
        if not (choices.folder / "inputs" / "about.json").exists():
            given = Choices(
                target=choices.base,
                start=None,
                folder=choices.folder,
                prompts=choices.prompts,
                recipe={},
                longest=recipe.longest,
                pack=False,
                device=choices.device,
                dtype=choices.dtype,
            )
            write_inputs(given, Recipe(), base, base)
        elif choices.prompts:
            console.print(f"{choices.folder}: has its inputs already; --prompts is not read again")
        said = json.dumps(recipe.to_dict(), indent=2) + "\n"
        replace_file(choices.folder / "kv_recipe.json", said.encode())
        with watching(console) as watch:
            session = KVSession(
                choices.folder,
                recipe,
                (choices.base.name, base),
                auxiliary,
                watch,
                device=device_of(choices.device),
                dtype=torch.bfloat16 if choices.dtype == "bf16" else torch.float32,
            )
            paths = session.train()
    except Interrupted as error:
        console.print(str(error), highlight=False)
        raise SystemExit(130) from error
    except (OSError, ValueError) as error:
        raise ConfigError(reason(error)) from error
    _show(choices.folder / "report.json", console)
    for path in paths:
        Console().print(str(path), highlight=False, soft_wrap=True)


def _auxiliary(choices: KVChoices) -> tuple[str, Checkpoint] | None:
    """Raises ConfigError where it has another tokenizer than the base."""
    named = choices.auxiliary
    if named is None:
        return None
    if not alike(named.tokenizer(), choices.base.tokenizer()):
        raise ConfigError(
            f"--auxiliary: {named.name} and {choices.base.name} have different tokenizers"
        )
    return named.name, named.opened()


def _recipe(choices: KVChoices) -> KVRecipe:
    """That of the folder, where there is one; else the one asked for."""
    path, asked = choices.folder / "kv_recipe.json", dict(choices.recipe)
    if choices.auxiliary is not None:
        asked = {"kept": (), **asked, "auxiliary": choices.auxiliary.name}
    if not path.exists():
        if not choices.prompts and not (choices.folder / "inputs" / "about.json").exists():
            raise ConfigError(f"{choices.folder}: is new: name prompts to learn on with --prompts")
        return KVRecipe(**asked)
    recipe = KVRecipe.from_dict(json.loads(path.read_text(encoding="utf-8")))
    check_asked(recipe, asked, path)
    if recipe.auxiliary and choices.auxiliary is None:
        raise ConfigError(f"{path}: name this run's --auxiliary {recipe.auxiliary} to go on")
    return recipe


def _show(path: Path, console: Console) -> None:
    report = json.loads(path.read_text("utf-8"))["predictors"]
    for name, found in report.items():
        console.print(f"{name}: {found['share']:.0%} of the prefill's work", highlight=False)
        for way in ("closed_form", "tuned"):
            for layer, each in found.get(way, {}).get("explained", {}).items():
                told = f"keys {each['keys']:.3f}, values {each['values']:.3f}"
                console.print(f"  {way}, layer {layer}: R2 of {told}", highlight=False)
            if "nats" in found.get(way, {}):
                console.print(f"  {way}: {found[way]['nats']:.4f} nats behind it", highlight=False)
