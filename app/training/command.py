"""Trainings from the command line: inputs from JSONL files, progress in a terminal."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from app.engines.embedded.checkpoint import Checkpoint
from app.engines.embedded.draft_folder import WEIGHTS, fingerprint
from app.engines.embedded.export import export
from app.engines.embedded.tokenizer import Tokenizer, alike, load_tokenizer
from app.engines.embedded.weights import open_checkpoint
from app.errors import ConfigError
from app.training.answers import Interrupted
from app.training.parts import in_parts, split
from app.training.prompts import HELD_OUT, prepare
from app.training.recipe import Recipe
from app.training.saving import replace_file
from app.training.session import About, Session, check_widths, device_of


@dataclass(frozen=True)
class Named:
    """A model, what it is called, and where its weights are; of a draft, its base's too."""

    name: str
    path: Path
    base: Path | None = None
    base_name: str = ""

    def opened(self) -> Checkpoint:
        return open_checkpoint(self.path, self.base)

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.base or self.path)


@dataclass(frozen=True)
class Choices:
    """What the command was told."""

    target: Named
    start: Named | None
    folder: Path
    prompts: tuple[Path, ...]
    recipe: Mapping[str, Any]  # those of its fields that were given
    longest: int
    pack: bool
    device: str | None
    dtype: str


def run_draft(choices: Choices) -> None:
    """Train, or go on training, in the folder. Raises ConfigError."""
    console = Console(stderr=True)
    try:
        target = choices.target.opened()
        start = target if choices.start is None else choices.start.opened()
        if choices.start is not None:
            check_pair(choices.start, choices.target)
        recipe = _recipe(choices, start)
        if not (choices.folder / "inputs" / "about.json").exists():
            write_inputs(choices, recipe, target, start)
        elif choices.prompts:
            console.print(f"{choices.folder}: has its inputs already; --prompts is not read again")
        said = json.dumps(recipe.to_dict(), indent=2) + "\n"
        replace_file(choices.folder / "recipe.json", said.encode())
        if choices.pack:
            _pack(choices, console)
            return
        dtype = torch.bfloat16 if choices.dtype == "bf16" else torch.float32
        with watching(console) as watch:
            session = Session(
                choices.folder,
                recipe,
                target,
                start,
                watch,
                device=device_of(choices.device),
                dtype=dtype,
            )
            draft = session.train()
    except Interrupted as error:
        console.print(str(error), highlight=False)
        raise SystemExit(130) from error
    except (OSError, ValueError) as error:
        raise ConfigError(reason(error)) from error
    _show(draft, console)


def reason(error: Exception) -> str:
    """What a user is told of an OSError or ValueError."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _recipe(choices: Choices, start: Checkpoint) -> Recipe:
    """That of the folder, where there is one; else the one asked for."""
    path = choices.folder / "recipe.json"
    if not path.exists():
        recipe = Recipe(**choices.recipe)
        recipe.chosen(start.config.layers)
        if not choices.prompts:
            raise ConfigError(f"{choices.folder}: is new: name prompts to learn on with --prompts")
        return recipe
    recipe = Recipe.from_dict(json.loads(path.read_text(encoding="utf-8")))
    check_asked(recipe, choices.recipe, path)
    return recipe


def check_asked(recipe: object, asked: Mapping[str, Any], path: Path) -> None:
    """Raises ConfigError where the run that the folder holds has another recipe than asked for."""
    for name, value in asked.items():
        if getattr(recipe, name) != value:
            raise ConfigError(
                f"{path}: this run has {name} {getattr(recipe, name)!r}, not {value!r};"
                " begin another in another folder"
            )


def check_pair(start: Named, target: Named) -> None:
    """Raises ConfigError where they have different tokenizers."""
    if not alike(start.tokenizer(), target.tokenizer()):
        raise ConfigError(
            f"{start.name} and {target.name} have different tokenizers: a draft's tokens must be"
            " its target's"
        )


def write_inputs(choices: Choices, recipe: Recipe, target: Checkpoint, start: Checkpoint) -> None:
    """The folder's prompts, and what is said about them. Raises ConfigError, OSError, ValueError.

    Only of `fixed`, the recipe's source, is there more to know than of every other.
    """
    tokenizer = choices.target.tokenizer()
    answered = tokenizer.special_ids()["eos_token_id"]
    assert isinstance(answered, list)
    if not answered:
        raise ConfigError(f"{choices.target.name}: has no token that ends an answer")
    check_widths(start, target)
    found = prepare(choices.prompts, tokenizer, choices.longest, _end(tokenizer))
    if not len(found.held):
        raise ConfigError(
            f"--prompts: of every {HELD_OUT} prompts of a file one is held out to judge by,"
            f" and no file has {HELD_OUT}"
        )
    if recipe.source == "fixed" and not len(found.fixed):
        raise ConfigError("--source fixed: the prompts' files hold no reference answers")
    folder = choices.folder / "inputs"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("prompts", "held", "fixed"):
        getattr(found, name).save(folder / f"{name}.safetensors")
    origin = choices.start or choices.target
    about = About(
        choices.target.name,
        fingerprint(target),
        origin.base_name or origin.name,
        fingerprint(start),
        tuple(answered),
        tuple(found.opening.tolist()),
        tuple(found.closing.tolist()),
    )
    replace_file(folder / "about.json", (json.dumps(vars(about), indent=2) + "\n").encode())


def _end(tokenizer: Tokenizer) -> int:
    """The token that this template puts behind an assistant's words."""
    said = [{"role": "user", "content": "Why?"}]
    before = tokenizer.chat(said)
    after = tokenizer.chat([*said, {"role": "assistant", "content": "So."}, *said])
    ends = [id for id in after[len(before) :] if id in tokenizer.eos_ids]
    return ends[0] if ends else min(tokenizer.eos_ids)


def _pack(choices: Choices, console: Console) -> None:
    inputs = choices.folder / "inputs"
    for what, named in (("target", choices.target), ("start", choices.start)):
        if named is not None and not in_parts(inputs / what / WEIGHTS):
            export(
                named.name,
                named.path,
                inputs / what,
                "bf16",
                force=True,
                console=console,
                base=named.base,
            )
            split(inputs / what / WEIGHTS)
    command = ["python", "-m", "app.training", str(choices.folder)]
    console.print("next, where torch, numpy and safetensors are:", shlex.join(command))


def _show(draft: Path, console: Console) -> None:
    held = json.loads((draft / "config.json").read_text("utf-8"))["training"]["held_out"]
    for name, found in held.items():
        what = "acceptance, " + name.replace("_", ", ") + " head"
        console.print(
            f"{what}: {found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})",
            highlight=False,
        )
    print_line = Console()
    print_line.print(str(draft), highlight=False, soft_wrap=True)


class _Bar:
    """Tells of progress in a bar; SIGINT and SIGTERM end the run in good order."""

    def __init__(self, bar: Progress) -> None:
        self.stopping = False
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def progress(self, what: str, done: int, total: int) -> None:
        task = self._tasks.get(what)
        if task is None:
            task = self._tasks[what] = self._bar.add_task(what, total=total, completed=done)
        self._bar.update(task, completed=min(done, total))

    def say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False)

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.say("stopping after this step")
        self.stopping = True


@contextmanager
def watching(console: Console) -> Iterator[_Bar]:
    """Progress in bars; who trains looks at `stopping`, which a signal sets."""
    columns: Sequence[Any] = (
        TextColumn("{task.description:20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    numbers = (signal.SIGINT, signal.SIGTERM)
    with Progress(*columns, console=console) as bar:
        watch = _Bar(bar)
        before = [signal.signal(number, watch.stop) for number in numbers]
        try:
            yield watch
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
