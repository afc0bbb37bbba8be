"""The command line's part about weights: farthing train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.errors import ConfigError

if TYPE_CHECKING:
    from app.training.command import Named

train = typer.Typer(help="Make small models for large ones.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="A model of the fleet, a GGUF file, or a folder.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")]


@train.command()
def draft(
    target: Model,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="All of the run goes there.")],
    prompts: Annotated[
        list[Path] | None, typer.Option(metavar="FILE.jsonl", help="To learn on; repeatable.")
    ] = None,
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
    answer: Annotated[int | None, typer.Option(help="Tokens of one, at most. [192]")] = None,
    batch: Annotated[int | None, typer.Option(help="Texts a step. [8]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest. [0.001]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn. [0]")] = None,
    longest: Annotated[
        int, typer.Option(min=1, help="Tokens of a prompt; the rest is left out.")
    ] = 384,
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


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"kept: must look like 0,1,28,29, not {text!r}") from error
