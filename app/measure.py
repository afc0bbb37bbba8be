"""The command line's part about figures: farthing bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from app.errors import ConfigError

if TYPE_CHECKING:
    from app.bench.reading import Weights
    from app.engines.embedded.linear import Precision

bench = typer.Typer(help="Measure this machine and its models.", no_args_is_help=True)

Threads = Annotated[int | None, typer.Option(min=1, help="torch's; default: cores but one.")]


Clock = Annotated[
    Literal["wall", "cpu"],
    typer.Option(help="cpu: of the computing thread, where others use the machine."),
]


def _in_a_folder(path: Path | None) -> Path | None:
    """Measuring takes minutes: where the figures cannot be kept is said before it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigError(f"--json: {path.parent} is no folder")
    return path


Json = Annotated[
    Path | None,
    typer.Option("--json", callback=_in_a_folder, help="Write the figures to this file too."),
]


@bench.command()
def engine(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter runs.")] = False,
    json_file: Json = None,
    threads: Threads = None,
) -> None:
    """Compare the embedded engine with transformers on the default weights."""
    from app.bench.engine import run
    from app.catalog import read
    from app.downloads import local_path
    from app.settings import DEFAULT_CONFIG, Settings

    weights = next(iter(read(DEFAULT_CONFIG).models.values()))
    path = local_path(weights, Settings().models_dir)
    run(path, quick=quick, json_file=json_file, threads=threads)


@bench.command()
def model(
    small: Annotated[str, typer.Argument(metavar="A", help="A model of the fleet, the small one.")],
    large: Annotated[str, typer.Argument(metavar="B", help="The large one, of the same family.")],
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="To answer. Default: twenty of ours.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Passages, for their likelihood.")
    ] = None,
    squad: Annotated[Path | None, typer.Option(metavar="FILE.jsonl")] = None,
    truthful_qa: Annotated[Path | None, typer.Option(metavar="FILE.jsonl")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Lines of each file, at most.")] = 100,
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer, at most.")] = 128,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Measure how well A stands in for B: acceptance, likelihood, pace, two tasks."""
    from app.bench.model import Plan
    from app.bench.stand_in import compare

    plan = Plan(prompts, text, squad, truthful_qa, limit, tokens, seed)
    compare(_weights(small), _weights(large), plan, threads=threads, json_file=json_file)


@bench.command()
def speculation(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An embedded model of the fleet.")
    ] = "smollm2-135m-int8",
    draft: Annotated[
        str, typer.Option(help="The model that guesses for it; empty: look-up alone.")
    ] = "smollm2-tiny",
    head: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Acceptance head. Default: the draft's own.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Questions with a category. Default: FARTHING_DATA's spec_bench.jsonl, else ours.",
        ),
    ] = None,
    each: Annotated[
        int | None, typer.Option(min=2, help="Questions of a category, at most. [6, quick: 2]")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Of each answer, at most. [128, quick: 96]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Answers at once.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="Of the answers.")] = 0.0,
    clock: Clock = "wall",
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer ways, questions, tokens.")] = False,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Measure speculation by category: plainly, with fixed lengths, adaptively."""
    from app.bench.speculation import Plan, run
    from app.settings import Settings

    if prompts is None and (data := Settings().data) is not None:
        offered = data / "spec_bench.jsonl"
        prompts = offered if offered.is_file() else None
    plan = Plan(
        prompts=prompts,
        each=each or (2 if quick else 6),
        tokens=tokens or (96 if quick else 128),
        batch=batch,
        temperature=temperature,
        clock=clock,
        quick=quick,
        seed=seed,
    )
    small = _weights(draft) if draft else None
    run(_weights(model), small, plan, head=head, threads=threads, json_file=json_file)


@bench.command()
def lenience(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An embedded model of the fleet.")
    ] = "smollm2-135m-int8",
    draft: Annotated[str, typer.Option(help="The model that guesses for it.")] = "smollm2-tiny",
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Questions. Default: ours.")
    ] = None,
    squad: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Questions with answers.")
    ] = None,
    each: Annotated[int, typer.Option(min=1, help="Questions of a category, at most.")] = 6,
    questions: Annotated[int, typer.Option(min=1, help="Of the task, at most.")] = 100,
    tokens: Annotated[int, typer.Option(min=2, help="Of each answer, at most.")] = 128,
    clock: Clock = "wall",
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """The dial of lenient acceptance: speed, how often the model agrees with what it accepted (its
    own likeliest token there), how close the answer stays to the exact one, a task's score."""
    from app.bench.lenience import Plan, run
    from app.bench.speculation import Plan as Asked

    asked = Asked(prompts=prompts, each=each, tokens=tokens, clock=clock)
    plan = Plan(asked, squad=squad, questions=questions)
    run(_weights(model), _weights(draft), plan, threads=threads, json_file=json_file)


@bench.command()
def ttft(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An embedded model of the fleet.")
    ] = "smollm2-135m-int8",
    predictors: Annotated[
        list[Path] | None,
        typer.Option("--predictor", metavar="FILE", help="Of `farthing train kv-predictor`."),
    ] = None,
    small: Annotated[str, typer.Option(help="A smaller model, alone; empty: none.")] = (
        "smollm2-tiny"
    ),
    squad: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Questions. Default: FARTHING_DATA's squad.jsonl."),
    ] = None,
    articles: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Articles, to be summed up too.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of a prompt.")] = (
        "128,256,512,1024,2048,4096"
    ),
    questions: Annotated[int, typer.Option(min=2, help="Of each length.")] = 60,
    last: Annotated[
        str, typer.Option(help="Tokens at the end that are computed all the same.")
    ] = "24",
    relevant: Annotated[
        str, typer.Option(help="Shares of the rest, that the end asks about: computed too.")
    ] = "0,0.2",
    truncated: Annotated[str, typer.Option(help="Parts of the prompt, its end, alone.")] = "0.5",
    extracted: Annotated[
        str, typer.Option(help="Shares that the end asks about, with that, alone.")
    ] = "0.2",
    short: Annotated[
        str, typer.Option(help="Tokens of prompts that the policy reads exactly.")
    ] = "128,256,383",
    clock: Clock = "wall",
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Measure the first token's time and what it costs in quality, by way to read a prompt."""
    from app.bench.ttft import Plan, run
    from app.settings import Settings

    if squad is None and (data := Settings().data) is not None:
        squad = data / "squad.jsonl"
    plan = Plan(
        squad=squad,
        articles=articles,
        lengths=tuple(int(each) for each in _numbers("lengths", lengths)),
        questions=questions,
        last=tuple(int(each) for each in _numbers("last", last)),
        relevant=_numbers("relevant", relevant),
        truncated=_numbers("truncated", truncated),
        extracted=_numbers("extracted", extracted),
        short=tuple(int(each) for each in _numbers("short", short)),
        clock=clock,
        seed=seed,
    )
    alone = _weights(small) if small else None
    run(_weights(model), alone, predictors or (), plan, threads=threads, json_file=json_file)


@bench.command()
def edits(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An embedded model of the fleet.")
    ] = "smollm2-135m-int8",
    code: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl", help="Functions. Default: FARTHING_DATA's humaneval.jsonl."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=64, help="Of a file, about.")] = 1024,
    edits: Annotated[int, typer.Option(min=3, help="A third of each kind.")] = 100,
    answer: Annotated[int, typer.Option(min=1, help="Tokens written, at most.")] = 64,
    clock: Clock = "wall",
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Measure what moving the tokens behind an edit of a file saves (PIE), and what it costs."""
    from app.bench.edits import Plan, run
    from app.settings import Settings

    if code is None and (data := Settings().data) is not None:
        code = data / "humaneval.jsonl"
    plan = Plan(code, tokens=tokens, edits=edits, answer=answer, clock=clock, seed=seed)
    run(_weights(model), plan, threads=threads, json_file=json_file)


@bench.command()
def switching(
    small: Annotated[str, typer.Argument(metavar="A", help="The small model of a gateway.")],
    large: Annotated[str, typer.Argument(metavar="B", help="The large one, embedded.")],
    url: Annotated[str, typer.Option(help="The gateway.")] = "http://127.0.0.1:8080",
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="For agreement and likelihood.")
    ] = None,
    squad: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Questions with answers.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Lines of each file, at most.")] = 60,
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer, at most.")] = 96,
    raise_at: Annotated[str, typer.Option(help="The thresholds, bits.")] = "1,2,3,4,5",
    json_file: Json = None,
) -> None:
    """A curve of entropy switching, beside each model alone on the same money."""
    from app.bench.switching import Plan, run
    from app.catalog import read
    from app.settings import Settings

    levels = _numbers("raise_at", raise_at)
    settings, judge = Settings(), _weights(large)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    small = read(settings.config_file()).model(small).name  # an answer does not tell by aliases
    plan = Plan(small, judge.name, levels, prompts=prompts, squad=squad, limit=limit, tokens=tokens)
    run(url, judge, plan, key=key, json_file=json_file)


@bench.command()
def throughput(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Of the gateway; or presets.")
    ],
    url: Annotated[str, typer.Option(help="The gateway.")] = "http://127.0.0.1:8080",
    calls: Annotated[str, typer.Option(help="How many run at once.")] = "1,2,4,8,16",
    rounds: Annotated[int, typer.Option(min=2, help="Of all models, in turn.")] = 5,
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 64,
    json_file: Json = None,
) -> None:
    """Measure models by how many calls run, and print their `throughput` for farthing.toml."""
    from app.bench.throughput import Plan, run
    from app.settings import Settings

    secret = Settings().api_key
    plan = Plan(tuple(dict.fromkeys(models)), counts("calls", calls), rounds, tokens)
    run(url, plan, key=secret.get_secret_value() if secret else None, json_file=json_file)


@bench.command()
def accounts(
    postgres: Annotated[
        str | None, typer.Option(metavar="URL", help="An empty database, to measure that too.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer requests.")] = False,
    json_file: Json = None,
) -> None:
    """Measure what keys and a ledger add to a request, beside a gateway without them."""
    from app.bench.accounts import run

    run(postgres=postgres, quick=quick, json_file=json_file)


@bench.command()
def scrape(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer requests and scrapes.")] = False,
    json_file: Json = None,
) -> None:
    """Measure a scrape of /metrics of a large catalog, and whether streams stall meanwhile."""
    from app.bench.scrape import run

    run(quick=quick, json_file=json_file)


@bench.command()
def overhead(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter rounds.")] = False,
    telemetry: Annotated[
        bool, typer.Option("--telemetry", help="Measure what metrics, traces and logs cost of it.")
    ] = False,
    json_file: Json = None,
) -> None:
    """Measure what the gateway adds to a request and to a chunk, beside its upstream alone."""
    from app.bench import observing
    from app.bench import overhead as adding

    chosen = observing if telemetry else adding
    chosen.run(quick=quick, json_file=json_file)


@bench.command()
def servers(
    small: Annotated[str, typer.Option(metavar="URL", help="A vLLM server.")],
    large: Annotated[str, typer.Option(metavar="URL", help="Another, with the same tokenizer.")],
    small_name: Annotated[str, typer.Option(help="What its model is called there.")],
    large_name: Annotated[str, typer.Option(help="What its model is called there.")],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter runs.")] = False,
    json_file: Json = None,
) -> None:
    """Measure hand-overs between two vLLM servers, and what logprobs cost."""
    from app.bench.servers import run

    run(
        small,
        large,
        small_name=small_name,
        large_name=large_name,
        quick=quick,
        json_file=json_file,
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Raises ConfigError."""
    try:
        return tuple(float(part) for part in text.split(",") if part)
    except ValueError as error:
        raise ConfigError(f"{option}: must look like 1,2,3, not {text!r}") from error


def counts(option: str, text: str) -> tuple[int, ...]:
    """Raises ConfigError."""
    found = _numbers(option, text)
    if not found or any(each < 1 or not each.is_integer() for each in found):
        raise ConfigError(f"{option}: must be whole numbers of at least 1, not {text!r}")
    return tuple(sorted({int(each) for each in found}))


def _weights(name: str) -> Weights:
    """Where an embedded model of the fleet is. Raises ConfigError, UnknownModel."""
    from app.bench.reading import Weights
    from app.catalog import read
    from app.downloads import find
    from app.settings import Settings

    settings = Settings()
    found = find(name, read(settings.config_file()), settings.models_dir)
    precision = cast("Precision", found.card.precision)  # the catalog has no other for embedded
    return Weights(found.card.name, found.path, found.base, precision)
