"""The command line's farthing calibrate: what every way to answer is worth, costs and takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.comparing import Fleet, Out, Running, files
from app.measure import counts


def calibrate(
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=FILE.jsonl",
            help="Prompts of one kind; repeatable. Default: those that come with Farthing.",
        ),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[;OPTION=VALUE]",
            help="Measure this preset, model or setting; repeatable. Default: all.",
        ),
    ] = None,
    dials: Annotated[
        int | None,
        typer.Option(
            min=0, help="Settings of each dial beside the preset's own, at most. [all, quick: 0]"
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Prompts of each kind, at most. [all, quick: 1]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Times that each prompt is asked.")] = 1,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="At which all is asked; 0: greedily.")
    ] = 0.0,
    levels: Annotated[
        str | None, typer.Option(help="Requests at once. [1,4,8, quick: 1,4]")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few short prompts, presets as they are: minutes.")
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="It judges what has no reference. Default: the best"),
    ] = None,
    usd: Annotated[
        str | None, typer.Option(metavar="USD", help="Most that all of it may cost.")
    ] = None,
    url: Running = None,
    config: Fleet = None,
    out: Out = Path("calibration"),
    seed: Annotated[int, typer.Option(help="Of what is drawn, and of sampling.")] = 0,
) -> None:
    """Measure what every model and preset is worth, costs and takes: the profile of `auto`."""
    from app.bench.calibrate.command import run
    from app.bench.calibrate.measuring import Wishes
    from app.settings import DEFAULT_CONFIG, Settings
    from routers.terms import pico_usd

    settings = Settings() if config is None else Settings(config=config)
    run(
        Wishes(
            config=settings.config_file(),
            ours=settings.config_file() == DEFAULT_CONFIG,
            out=out,
            tasks=files(task or ()),
            presets=tuple(preset or ()),
            dials=dials,
            limit=limit or (1 if quick else None),
            seeds=seeds,
            temperature=temperature,
            levels=counts("--levels", levels or ("1,4" if quick else "1,4,8")),
            seed=seed,
            usd=None if usd is None else pico_usd(usd, "--usd"),
            judge=judge,
            quick=quick,
            url=url,
            key=settings.api_key.get_secret_value() if settings.api_key else None,
        )
    )
