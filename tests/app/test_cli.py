"""The command line: options beat the environment, and mistakes are one line, not a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from app.cli import main, module_map, with_map
from app.errors import ConfigError, FarthingError, to_install
from app.settings import Settings
from app.telemetry.metrics import as_markdown

ROOT = Path(__file__).parents[2]
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FARTHING_{name.upper()}", raising=False)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What was asked of the server, which does not start here."""
    asked: list[Any] = []
    server = ModuleType("app.server")
    server.__dict__["serve"] = asked.append
    monkeypatch.setitem(sys.modules, "app.server", server)
    return iter([asked])


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(args)
    return int(ended.value.code or 0)


def test_serve_takes_options_above_the_environment(
    monkeypatch: pytest.MonkeyPatch, served: Iterator[list[Any]], tmp_path: Path
) -> None:
    monkeypatch.setenv("FARTHING_PORT", "9000")
    monkeypatch.setenv("FARTHING_LOG_LEVEL", "debug")
    fleet = str(tmp_path / "fleet.toml")
    assert run("serve", "--port", "9001", "--config", fleet, "--host", "::1") == 0
    assert run("serve", "--no-auth", "--workers", "3", "--first-key") == 0
    first, second = next(served)
    assert (first.host, first.port, first.log_level) == ("::1", 9001, "debug")
    assert (str(first.config), first.no_auth, first.workers) == (fleet, False, 1)
    assert (second.host, second.port, second.no_auth) == ("127.0.0.1", 9000, True)
    assert (second.workers, second.first_key) == (3, True)


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("serve", "--port", "70000"), 2, "port (FARTHING_PORT): Input should be less than"),
        (("serve", "--log-level", "loud"), 2, "log_level (FARTHING_LOG_LEVEL): Input should be"),
        (("models", "list", "--config", "no.toml"), 1, "no.toml: cannot be read"),
        (("models", "pull", "gpt-5"), 1, "The model 'gpt-5' does not exist; there are: smollm2"),
        (("chat", "--budget-usd", "lots"), 1, "a budget is an amount of USD"),
        (("chat", "--url", "http://127.0.0.1:1"), 1, "no gateway answers at http://127.0.0.1:1"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    capfd: Output, served: Iterator[list[Any]], args: tuple[str, ...], status: int, message: str
) -> None:
    assert run(*args) == status
    out, err = capfd.readouterr()
    assert err.startswith(f"farthing: {message}")
    assert (out, err.count("\n")) == ("", 1)


def test_a_variable_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: Output, served: Iterator[list[Any]]
) -> None:
    monkeypatch.setenv("FARTHING_MAX_RUNNING", "many")
    assert run("serve") == 2
    assert "FARTHING_MAX_RUNNING" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (
            ConfigError("fleet.toml: [models]: nothing"),
            1,
            "farthing: fleet.toml: [models]: nothing\n",
        ),
        (ModuleNotFoundError("no torch", name="torch"), 1, to_install("embedded")),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_ends_the_server_ends_it_quietly(
    monkeypatch: pytest.MonkeyPatch,
    capfd: Output,
    served: Iterator[list[Any]],
    raised: BaseException,
    status: int,
    message: str,
) -> None:
    def fail(settings: Settings) -> None:
        raise raised

    monkeypatch.setattr(sys.modules["app.server"], "serve", fail)
    assert run("serve") == status
    err = capfd.readouterr().err
    assert message in err
    assert bool(err) == bool(message)


def test_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, served: Iterator[list[Any]]
) -> None:
    def fail(settings: Settings) -> None:
        raise ModuleNotFoundError("no such module", name="app.novel")

    monkeypatch.setattr(sys.modules["app.server"], "serve", fail)
    with pytest.raises(ModuleNotFoundError):
        main(["serve"])


def test_models_list_shows_prices_and_what_is_here(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FARTHING_MODELS_DIR", str(tmp_path))
    assert run("models", "list", "--config", str(ROOT / "app" / "farthing.toml")) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["smollm2-135m", "fp32", "smollm2", "0.04", "0.2", "to", "be", "pulled"] in rows
    assert ["economy", "entropy_switch"] in rows


def test_models_pull_pulls_what_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pulled: list[Any] = []
    monkeypatch.setattr("app.downloads.pull", lambda *args: pulled.append(args))
    monkeypatch.setenv("FARTHING_MODELS_DIR", str(tmp_path))
    fleet = ("--config", str(ROOT / "app" / "farthing.toml"))
    assert run("models", "pull", "smollm2-135m", *fleet) == 0
    assert run("models", "pull", "smollm2-tiny", *fleet) == 0
    assert run("models", "pull", *fleet) == 0
    (one, models_dir, _), (draft, _, _), (every, _, _) = pulled
    assert ([card.name for card in one], models_dir) == (["smollm2-135m"], tmp_path)
    assert [card.name for card in draft] == ["smollm2-135m", "smollm2-tiny"]  # and its base
    assert len(every) == 3


def test_bench_engine_is_handed_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    bench = ModuleType("app.bench.engine")
    bench.__dict__["run"] = lambda path, **options: asked.update(options, weights=path.name)
    monkeypatch.setitem(sys.modules, "app.bench.engine", bench)
    assert run("bench", "engine", "--quick", "--json", "figures.json") == 0
    weights = "SmolLM2-135M-Instruct.Q4_1.gguf"
    figures = Path("figures.json")
    assert asked == {"weights": weights, "quick": True, "json_file": figures, "threads": None}


def test_the_map_is_printed_or_written(tmp_path: Path, capsys: Output) -> None:
    assert run("map") == 0
    assert capsys.readouterr().out == module_map() + "\n"
    page = tmp_path / "page.md"
    old = "before\n<!-- metrics -->\nold\n<!-- /metrics -->\n<!-- map -->\n<!-- /map -->\nafter\n"
    page.write_text(old, encoding="utf-8")
    assert run("map", "--into", str(page)) == 0
    text = page.read_text(encoding="utf-8")
    assert text == (
        f"before\n<!-- metrics -->\n{as_markdown()}\n<!-- /metrics -->\n"
        f"<!-- map -->\n```\n{module_map()}\n```\n<!-- /map -->\nafter\n"
    )
    assert with_map(text) == text
    with pytest.raises(FarthingError, match="no place for the map"):
        with_map("no markers")


def test_the_map_has_each_module_once_below_its_package() -> None:
    lines = module_map().splitlines()
    assert lines[0].startswith("app/ ")
    assert [line.split()[0] for line in lines if line.startswith("policies")] == ["policies/"]
    assert "  cli.py                     The command line: farthing serve, chat" in module_map()
    count = sum(len(list((ROOT / room).rglob("*.py"))) for room in ("app", "routers", "policies"))
    assert len(lines) == count


def test_help_needs_no_heavy_module() -> None:
    program = (
        "import sys, app.cli; "
        "print(*{'torch', 'fastapi', 'httpx', 'app.factory', 'app.settings'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("args", [("--help",), ("--version",)])
def test_help_and_version_end_well(capsys: Output, args: tuple[str, ...]) -> None:
    assert run(*args) == 0
    assert "farthing" in capsys.readouterr().out
