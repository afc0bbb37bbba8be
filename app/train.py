"""The command line's part about weights: farthing train."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.errors import ConfigError

if TYPE_CHECKING:
    from app.training.command import Named
    from app.types import Engine

train = typer.Typer(help="Make small models for large ones.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="A model of the fleet, a GGUF file, or a folder.")]
Prompts = Annotated[
    list[Path] | None, typer.Option(metavar="FILE.jsonl", help="To learn on; repeatable.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="All of the run goes there.")]
Answer = Annotated[int | None, typer.Option(help="Tokens of one, at most. [192]")]
LearningRate = Annotated[float | None, typer.Option(help="At its highest. [0.001]")]
Seed = Annotated[int | None, typer.Option(help="Of all that is drawn. [0]")]
Longest = Annotated[int, typer.Option(min=1, help="Tokens of a prompt; the rest is left out.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")]


@train.command()
def draft(
    target: Model,
    folder: Folder,
    prompts: Prompts = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Whose layers it begins with. Default: the target's."),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="How many are kept, evenly. [6]")] = None,
    kept: Annotated[str | None, typer.Option(metavar="0,1,29", help="Or which.")] = None,
    source: Annotated[
        Literal["draft", "target", "fixed", "mixed"] | None,
        typer.Option(help="Who writes what it learns on; mixed: draft and target. [target]"),
    ] = None,
    divergence: Annotated[
        Literal["forward_kl", "reverse_kl", "jsd", "tvd"] | None,
        typer.Option(help="What is minimised. [forward_kl]"),
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Of jsd. [0.5]")] = None,
    tokens: Annotated[int | None, typer.Option(help="Of answers, learned on. [4000000]")] = None,
    texts: Annotated[int | None, typer.Option(help="That the target writes. [4000]")] = None,
    invented: Annotated[int | None, typer.Option(help="Prompts that it invents. [1000]")] = None,
    answer: Answer = None,
    batch: Annotated[int | None, typer.Option(help="Texts a step. [8]")] = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    longest: Longest = 384,
    pack: Annotated[
        bool, typer.Option("--pack", help="Only write what `python -m app.training DIR` needs.")
    ] = False,
    device: Device = None,
    dtype: Annotated[Literal["bf16", "fp32"], typer.Option(help="Of the arithmetic.")] = "bf16",
) -> None:
    """Distil a small model from a large one, as DistillSpec says; again, to go on with it."""
    from app.training.command import Choices, run_draft

    given = {
        "layers": layers,
        "kept": None if kept is None else _indices(kept),
        "source": source,
        "divergence": divergence,
        "beta": beta,
        "tokens": tokens,
        "texts": texts,
        "invented": invented,
        "answer": answer,
        "batch": batch,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    run_draft(
        Choices(
            target=_opened(target),
            start=None if start is None else _opened(start),
            folder=folder,
            prompts=tuple(prompts or ()),
            recipe={name: value for name, value in given.items() if value is not None},
            longest=longest,
            pack=pack,
            device=device,
            dtype=dtype,
        )
    )


@train.command()
def acceptance_head(
    draft: Annotated[str, typer.Argument(help="A model of the fleet, or a draft's folder.")],
    target: Model,
    folder: Folder,
    prompts: Prompts = None,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Or another training's folder, for its target's texts."),
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Residual blocks. [3]")] = None,
    tied: Annotated[
        bool | None, typer.Option("--tied", help="All of them one block, as SpecDec++'s are.")
    ] = None,
    extras: Annotated[
        bool | None,
        typer.Option("--extras/--no-extras", help="Tell it of q beside the state. [extras]"),
    ] = None,
    sees: Annotated[
        Literal["before", "after"] | None,
        typer.Option(help="The state before the guess, or after it (SpecDec++). [before]"),
    ] = None,
    made: Annotated[
        Literal["mixed", "rounds"] | None,
        typer.Option(help="From SpecDec++'s mixed texts, or from drafts as made. [mixed]"),
    ] = None,
    mixing: Annotated[
        float | None, typer.Option(help="Share of the target's tokens in mixed texts. [0.15]")
    ] = None,
    rejection_weight: Annotated[float | None, typer.Option(help="In the loss. [6]")] = None,
    number: Annotated[int | None, typer.Option("--number", help="Of texts read. [800]")] = None,
    answer: Answer = None,
    epochs: Annotated[int | None, typer.Option(help="[3]")] = None,
    batch: Annotated[int | None, typer.Option(help="Guesses a step. [512]")] = None,
    learning_rate: LearningRate = None,
    cost: Annotated[
        float | None,
        typer.Option(help="Time of a guess by that of a pass, for the default level. [0.2]"),
    ] = None,
    seed: Seed = None,
    longest: Longest = 384,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Of a draft's folder. Default: TARGET.")
    ] = None,
    device: Device = None,
    dtype: Annotated[Literal["bf16", "fp32"], typer.Option(help="Of both models.")] = "bf16",
) -> None:
    """Teach a head how likely a draft's guess is to be kept (SpecDec++); again, to go on."""
    from app.training.acceptance_command import HeadChoices, run_head

    given = {
        "depth": depth,
        "tied": tied,
        "extras": extras,
        "sees": sees,
        "made": made,
        "mixing": mixing,
        "rejection_weight": rejection_weight,
        "texts": number,
        "answer": answer,
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "cost": cost,
        "seed": seed,
    }
    run_head(
        HeadChoices(
            draft=_draft(draft, base or target),
            target=_opened(target),
            folder=folder,
            prompts=tuple(prompts or ()),
            texts=texts,
            recipe={name: value for name, value in given.items() if value is not None},
            longest=longest,
            device=device,
            dtype=dtype,
        )
    )


@train.command()
def kv_predictor(
    base: Model,
    folder: Folder,
    prompts: Prompts = None,
    kept: Annotated[
        str | None,
        typer.Option(
            metavar="18,15,8", help="Of the base's layers the first so many are run; one of each."
        ),
    ] = None,
    auxiliary: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Or a small model that tells of the prompt."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="That the closed form is fitted on. [300000]")
    ] = None,
    ridge: Annotated[float | None, typer.Option(help="Its penalty on weights. [0.001]")] = None,
    longest: Annotated[int | None, typer.Option(help="Tokens of a text. [1024]")] = None,
    steps: Annotated[int | None, typer.Option(help="Of tuning by gradients. [0]")] = None,
    units: Annotated[int | None, typer.Option(help="Of an MLP that tuning teaches. [0]")] = None,
    examples: Annotated[int | None, typer.Option(help="That tuning draws. [320]")] = None,
    batch: Annotated[int | None, typer.Option(help="Of them a step. [4]")] = None,
    answer: Annotated[int | None, typer.Option(help="Tokens that tuning judges by. [112]")] = None,
    first: Annotated[
        int | None, typer.Option(help="Tokens of a prompt that are computed all the same. [4]")
    ] = None,
    divergence: Annotated[
        float | None, typer.Option(help="Weight of the divergence from the base itself. [1]")
    ] = None,
    entropy: Annotated[
        float | None, typer.Option(help="Of the cross-entropy of what stands behind. [0]")
    ] = None,
    consistency: Annotated[
        float | None, typer.Option(help="Of the L1 distance to the true KV. [0]")
    ] = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    device: Device = None,
    dtype: Annotated[Literal["bf16", "fp32"], typer.Option(help="Of the base.")] = "fp32",
) -> None:
    """Teach maps what a model's later layers would keep of a prompt (KV Prediction); again, to go
    on."""
    from app.training.kv_command import KVChoices, run_kv

    given = {
        "kept": None if kept is None else _indices(kept),
        "tokens": tokens,
        "ridge": ridge,
        "longest": longest,
        "steps": steps,
        "units": units,
        "examples": examples,
        "batch": batch,
        "answer": answer,
        "first": first,
        "divergence": divergence,
        "entropy": entropy,
        "consistency": consistency,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    run_kv(
        KVChoices(
            base=_opened(base),
            auxiliary=None if auxiliary is None else _draft(auxiliary, base),
            folder=folder,
            prompts=tuple(prompts or ()),
            recipe={name: value for name, value in given.items() if value is not None},
            device=device,
            dtype=dtype,
        )
    )


@train.command()
def confidence(
    model: Annotated[str, typer.Argument(help="A model of the fleet: embedded, or of a server.")],
    folder: Folder,
    prompts: Annotated[
        list[Path],
        typer.Option(metavar="FILE.jsonl", help="Questions with known answers; repeatable."),
    ],
    task: Annotated[
        list[str],
        typer.Option(help="Of each file: gsm8k, humaneval, squad, hotpot_qa or truthful_qa."),
    ],
    number: Annotated[
        int | None, typer.Option(help="Of each file's questions, drawn by the seed. [all]")
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of the questions that it is judged by. [0.4]")
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(metavar="8,16,32,64", help="Tokens after which it has a word. [8,16,32,64]"),
    ] = None,
    self_check: Annotated[
        bool | None,
        typer.Option("--self-check", help="Ask the model about each of its answers too."),
    ] = None,
    together: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 32,
    seed: Seed = None,
) -> None:
    """Fit how likely a model's answers are right, by their tokens; again, to go on."""
    from app.training.confidence.command import ConfidenceChoices, run_confidence

    if len(task) != len(prompts):
        raise ConfigError(f"--task: {len(task)} for {len(prompts)} files: name one for each")
    if len(set(task)) < len(task):
        raise ConfigError("--task: each once; put all questions of one task in one file")
    given = {
        "number": number,
        "held_out": held_out,
        "checkpoints": None if checkpoints is None else _indices(checkpoints, "checkpoints"),
        "self_check": self_check,
        "seed": seed,
    }
    choices = ConfidenceChoices(
        model=model,
        folder=folder,
        prompts=tuple(zip(task, prompts, strict=True)),
        recipe={name: value for name, value in given.items() if value is not None},
        together=together,
    )

    async def served() -> None:
        async with _serving(model) as (engine, name):
            await run_confidence(replace(choices, model=name), engine)

    asyncio.run(served())


@asynccontextmanager
async def _serving(model: str) -> AsyncIterator[tuple[Engine, str]]:
    """An engine for this model of the fleet and no other, and the model's own name."""
    from app.catalog import Catalog, read
    from app.serving import Serving
    from app.settings import Settings

    settings = Settings()
    fleet = read(settings.config_file())
    card = fleet.model(model)
    cards = {name: fleet.models[name] for name in (card.name, card.base) if name}
    serving = Serving(settings, Catalog(cards, {}, fleet.source))
    try:
        yield await serving.start(), card.name
    finally:
        await serving.aclose()


@train.command()
def curves(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Of one run, or more.")],
    picture: Annotated[Path, typer.Option("--out", help="The PNG.")] = Path("curves.png"),
) -> None:
    """Draw loss and held-out acceptance of runs over the tokens learned."""
    from app.training.curves import draw

    draw(folders, picture)
    typer.echo(picture)


def _opened(name: str) -> Named:
    """A model by its name in the fleet, or by the path of its file or folder."""
    from app.catalog import read
    from app.downloads import find
    from app.settings import Settings
    from app.training.command import Named

    if Path(name).exists():
        return Named(Path(name).stem, Path(name))
    settings = Settings()
    found = find(name, read(settings.config_file()), settings.models_dir)
    return Named(found.card.name, found.path, found.base, found.card.base)


def _draft(name: str, base: str) -> Named:
    """As `_opened`; a draft's folder by its path has no base but the one given."""
    from app.engines.embedded.draft_folder import is_draft
    from app.training.command import Named

    found = _opened(name)
    if found.base is None and is_draft(found.path):
        other = _opened(base)
        return Named(found.path.resolve().name, found.path, other.path, other.name)
    return found


def _indices(text: str, option: str = "kept") -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option}: must look like 0,1,28,29, not {text!r}") from error
