"""The command line's part about strategies: farthing bench policies, compression, goodput."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from app.errors import ConfigError
from app.measure import Json


def policies(
    way: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=MODEL;POLICY;OPTION=VALUE",
            help="A way to answer: a model or preset, or a policy with options over it; repeatable."
            " NAME=MODEL;n=8: so many answers at once, for pass@k.",
        ),
    ],
    task: Annotated[
        list[str],
        typer.Option(
            metavar="TASK=FILE.jsonl",
            help="gsm8k, humaneval, squad, hotpot_qa, cnn_dm or truthful_qa; repeatable.",
        ),
    ],
    url: Annotated[str, typer.Option(help="The gateway.")] = "http://127.0.0.1:8080",
    small: Annotated[
        str | None, typer.Option(metavar="NAME", help="The way to compare the others with.")
    ] = None,
    large: Annotated[
        str | None, typer.Option(metavar="NAME", help="The other one; cost and time by its.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Questions of each task, at most.")] = 60,
    seed: Annotated[int, typer.Option(help="Of what is drawn, and of sampling.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Times that each question is asked.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Of the answers.")] = 0.0,
    spread: Annotated[
        float, typer.Option(min=0, max=2, help="Of those asked for n at once.")
    ] = 0.7,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 4,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="What was answered goes there; a later run goes on from it.",
        ),
    ] = None,
    json_file: Json = None,
) -> None:
    """Measure strategies: quality, cost and time beside a small and a large model alone."""
    from app.bench.policies import Plan, run
    from app.bench.ways import Sampled, parse
    from app.settings import Settings

    plan = Plan(
        ways=tuple(map(parse, way)),
        tasks=files(task),
        small=small,
        large=large,
        limit=limit,
        seed=seed,
        seeds=seeds,
        together=concurrency,
        sampled=Sampled(temperature, spread),
        answers=answers,
    )
    key = Settings().api_key
    run(url, plan, key=key.get_secret_value() if key else None, json_file=json_file)


Running = Annotated[str | None, typer.Option(help="A gateway that runs. Default: one of its own.")]
Fleet = Annotated[
    Path | None,
    typer.Option("--config", help="The fleet's file. Default: ./farthing.toml, else our own."),
]
Out = Annotated[
    Path, typer.Option(metavar="DIR", help="What was found; a later run goes on from it.")
]
Trace = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.csv",
        help="When requests came: its column TIMESTAMP."
        " Default: FARTHING_DATA's azure_trace_conv.csv.",
    ),
]
Rivals = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=MODEL;POLICY;OPTION=VALUE]",
        help="What auto is compared with: a model, a preset, or a policy with options;"
        " repeatable. Default: every model and preset of the fleet.",
    ),
]
Graded = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND=FILE.jsonl",
        help="Questions of one kind; repeatable. Default: those that come with Farthing.",
    ),
]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME;first_token=S;latency=S;usd=USD;weight=N",
        help="A class of requests; repeatable. Default: three, for the default fleet.",
    ),
]


def goodput(
    trace: Trace = None,
    way: Rivals = None,
    auto: Annotated[
        str, typer.Option(metavar="NAME[=MODEL;...]", help="What is compared, with options.")
    ] = "auto",
    task: Graded = None,
    slo: Classes = None,
    requests: Annotated[int, typer.Option(min=2, help="Of each window of the trace.")] = 100,
    rate: Annotated[float, typer.Option(min=1e-6, help="Arrivals/s, on average.")] = 1.0,
    seeds: Annotated[int, typer.Option(min=1, help="Windows.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the first one, and all that is drawn.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 64,
    right: Annotated[
        float, typer.Option(min=0, max=1, help="Least worth of an answer that counts as right.")
    ] = 0.5,
    url: Running = None,
    config: Fleet = None,
    out: Out = Path("goodput"),
) -> None:
    """Replay a trace: how many requests auto answers in time, within budget and right, beside
    every fixed model and preset."""
    from app.bench.goodput.command import Wishes, run
    from app.bench.goodput.demands import DEFAULT, parse
    from app.bench.ways import named
    from app.settings import Settings

    settings = Settings() if config is None else Settings(config=config)
    if trace is None:
        if settings.data is None:
            raise ConfigError("--trace: name a file of arrivals, a CSV with a column TIMESTAMP")
        trace = settings.data / "azure_trace_conv.csv"

    run(
        Wishes(
            trace=trace,
            config=settings.config_file(),
            out=out,
            ways=tuple(map(named, way or ())),
            auto=named(auto),
            tasks=files(task or ()),
            slos=tuple(map(parse, slo)) if slo else DEFAULT,
            requests=requests,
            rate=rate,
            seeds=seeds,
            seed=seed,
            max_tokens=max_tokens,
            right=right,
            url=url,
            key=settings.api_key.get_secret_value() if settings.api_key else None,
        )
    )


def files(task: Sequence[str]) -> dict[str, Path]:
    """The file of each task, from what `--task` said. Raises ConfigError."""
    found: dict[str, Path] = {}
    for each in task:
        name, equals, file = each.partition("=")
        if not (name and equals and file):
            raise ConfigError(f"--task: must look like gsm8k=FILE.jsonl, not {each!r}")
        if name in found:
            raise ConfigError(f"--task: {name} has one file; put all of its questions there")
        found[name] = Path(file)
    return found


def compression(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model that answers.")],
    url: Annotated[str, typer.Option(help="The gateway.")] = "http://127.0.0.1:8080",
    scorer: Annotated[str, typer.Option(help="Default: the policy's own choice.")] = "",
    squad: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Questions with answers.")
    ] = None,
    hotpot: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="The same, over several texts.")
    ] = None,
    padded: Annotated[
        int, typer.Option(min=0, help="Ask SQuAD's among others' texts too: words in all.")
    ] = 0,
    ratio: Annotated[
        list[float] | None, typer.Option(min=0.01, max=0.99, help="Shares that are left.")
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Measure summaries too.")] = False,
    questions: Annotated[int, typer.Option(min=1, help="Of each set, at most.")] = 60,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    json_file: Json = None,
) -> None:
    """F1 of answers about texts that were cut by surprisal, at the end and at random."""
    from app.bench.compression import WAYS, Plan, run
    from app.settings import Settings

    settings = Settings()
    key = settings.api_key.get_secret_value() if settings.api_key else None
    plan = Plan(
        model,
        scorer=scorer,
        squad=squad,
        hotpot=hotpot,
        padded=padded,
        ratios=tuple(ratio or (0.8, 0.5)),
        ways=tuple(way for way in WAYS if summary or way != "summary"),
        questions=questions,
        seed=seed,
    )
    run(url, plan, key=key, json_file=json_file)
