"""The launcher: what it runs, and what vLLM will and will not find on its path."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.cli import main as farthing
from app.vllm_plugins import launch
from app.vllm_plugins.asks import SOCKET_FOLDER, SOCKET_VARIABLE
from app.vllm_plugins.room import LONGEST_SOCKET, private_path

ROOT = Path(__file__).parents[3]
Make = Callable[..., Path]
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("VLLM_", "FARTHING_", "PYTHON")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes an interpreter that answers the probe as told, and runs all else as this one does."""

    def make(version: str | None = "0.32.0", cpu: bool = True, plugin: bool = False) -> Path:
        path = tmp_path / "bin" / "python"
        path.parent.mkdir(exist_ok=True)
        found = shlex.quote(json.dumps({"version": version, "cpu": cpu, "plugin": plugin}))
        path.write_text(
            f'#!/bin/sh\n[ "$2" = -c ] && exec echo {found}\nexec {sys.executable} "$@"\n'
        )
        path.chmod(0o755)
        return path

    return make


def plan(python: Path, *args: str) -> launch.Start:
    own, further = launch._split(["models/tiny/", "--python", str(python), *args])
    return launch.plan(launch.parser().parse_args(own), further, os.environ)


def options(start: launch.Start) -> dict[str, str | None]:
    """The flags that vLLM is given, later ones winning."""
    found: dict[str, str | None] = {}
    words = [*start.command[4:], "--"]
    for word, following in zip(words, words[1:], strict=False):
        if word.startswith("--"):
            found[word] = None if following.startswith("--") else following
    return found


def test_the_server_has_what_the_gateway_needs(make: Make) -> None:
    python = make()
    start = plan(python)
    assert start.command[:4] == [str(python), "-P", "-m", launch.SERVER]
    assert options(start) == {
        "--model": "models/tiny/",
        "--served-model-name": "tiny",
        "--host": "127.0.0.1",
        "--port": "8000",
        "--enable-scale-out": None,
        "--enable-prompt-tokens-details": None,
        "--enable-per-request-metrics": None,
        "--enable-prefix-caching": None,
        "--max-logprobs": "20",
        "--shutdown-timeout": "10",
        "--block-size": "32",
        "--enforce-eager": None,
        "--middleware": launch.MIDDLEWARE,
        "--logits-processors": launch.PROCESSOR,
    }
    folder, socket = (start.environment.pop(name) for name in ("PYTHONPATH", SOCKET_VARIABLE))
    assert start.environment == {
        "PYTHONSAFEPATH": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
    }
    assert Path(folder).is_dir()
    assert Path(socket).parent.name.startswith(SOCKET_FOLDER)
    assert not Path(socket).parent.exists()
    assert start.notes == []


def test_options_and_further_flags(make: Make) -> None:
    own = ["--served-model-name", "n", "--host", "::", "--port", "9", "--max-logprobs", "5"]
    further = ["--block-size", "64", "--no-enforce-eager", "--port", "10"]
    start = plan(make(), *own, "--cores", "0-3,6", "--", *further)
    assert start.command[-5:] == further
    found = options(start)
    assert (found["--served-model-name"], found["--host"], found["--max-logprobs"]) == (
        "n",
        "::",
        "5",
    )
    assert (found["--block-size"], found["--port"]) == ("64", "10")
    assert start.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-3,6"


def test_what_is_set_already_stays(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_NO_USAGE_STATS", SOCKET_VARIABLE):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("PYTHONPATH", f"/mine{os.pathsep}")
    start = plan(make())
    assert start.environment.keys() == {"PYTHONSAFEPATH", "PYTHONPATH"}
    assert start.environment["PYTHONPATH"].split(os.pathsep)[1:] == ["/mine"]


def test_on_a_gpu_nothing_is_said_of_cpus(make: Make) -> None:
    start = plan(make(cpu=False))
    assert not options(start).keys() & {"--block-size", "--enforce-eager", "--dtype"}
    assert start.environment["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert not any("CPU" in name for name in start.environment)
    with pytest.raises(launch.Unusable, match="--cores"):
        plan(make(cpu=False), "--cores", "0")


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ('{"dtype": "float32"}', "float32"),
        ('{"torch_dtype": "float32"}', "float32"),
        ('{"dtype": "bfloat16"}', None),
        ("[]", None),
        ("{", None),
    ],
)
def test_float32_weights_are_served_as_they_are(make: Make, config: str, dtype: str | None) -> None:
    folder = Path("models/tiny")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)
    assert options(plan(make())).get("--dtype") == dtype


@pytest.mark.parametrize(
    ("flags", "dtype"), [("avx512f amx_tile amx_int8", None), ("avx512f", "float32")]
)
def test_int8_weights_are_not_computed_with_in_float32_where_tiles_are(
    make: Make, monkeypatch: pytest.MonkeyPatch, flags: str, dtype: str | None
) -> None:
    folder, processor = Path("models/tiny"), Path("cpuinfo")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"dtype": "float32", "quantization_config": {}}')
    processor.write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(launch, "CPUINFO", processor)
    assert options(plan(make())).get("--dtype") == dtype
    (folder / "config.json").write_text('{"dtype": "float32"}')
    assert options(plan(make())).get("--dtype") == "float32"


@pytest.mark.parametrize(
    ("flags", "variables", "why"),
    [
        (["--speculative-config", "{}"], {}, "speculative decoding"),
        (["--speculative_config.method=ngram"], {}, "speculative decoding"),
        (["-sc", "{}"], {}, "speculative decoding"),
        (["--spec-method", "ngram"], {}, "speculative decoding"),
        (["--logits-processors", "mine:Own"], {}, launch.PROCESSOR),
        ([], {"VLLM_USE_V2_MODEL_RUNNER": "1"}, "model runner V2"),
    ],
)
def test_where_the_plugin_cannot_work_it_is_left_out_and_said(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    variables: dict[str, str],
    why: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    start = plan(make(), "--", *flags)
    assert not {"PYTHONPATH", SOCKET_VARIABLE} & start.environment.keys()
    assert not {launch.MIDDLEWARE, launch.PROCESSOR} & set(start.command)
    (note,) = start.notes
    assert note.startswith("the entropy plugin is left out: ")
    assert why in note


def test_with_another_vllm_the_plugin_is_left_out(make: Make) -> None:
    start = plan(make("0.33.0"))
    assert launch.PROCESSOR not in start.command
    assert start.notes == [
        "the entropy plugin is left out: it knows vLLM 0.32.x, and there is vLLM 0.33.0"
    ]


def test_without_plugins_nothing_of_ours_is_there(make: Make) -> None:
    start = plan(make(), "--no-plugins")
    assert "app." not in " ".join(start.command)
    assert start.environment.keys() == {
        "PYTHONSAFEPATH", "VLLM_NO_USAGE_STATS", "VLLM_CPU_KVCACHE_SPACE",
    }  # fmt: skip
    assert start.notes == []


def test_a_processor_that_is_installed_there_is_not_named_again(make: Make) -> None:
    start = plan(make(plugin=True))
    assert launch.PROCESSOR not in start.command
    assert launch.MIDDLEWARE in start.command
    assert SOCKET_VARIABLE in start.environment


def test_several_api_servers_get_no_reports(make: Make) -> None:
    start = plan(make(), "--", "--api-server-count=2")
    assert launch.PROCESSOR in start.command
    assert SOCKET_VARIABLE not in start.environment
    assert "no entropies are reported" in start.notes[0]


def probe(room: str, cwd: Path) -> dict[str, Any]:
    """What a Python that starts like vLLM finds."""
    program = """
import importlib.util, json, sys
import app, app.vllm_plugins.asks
others = ("policies", "routers", "app.cli", "marker")
found = [name for name in others if importlib.util.find_spec(name)]
print(json.dumps({"app": app.__file__, "other": found}))
"""
    done = subprocess.run(
        [sys._base_executable, "-P", "-S", "-c", program],  # type: ignore[attr-defined]
        cwd=cwd,
        env={"PYTHONPATH": room},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_app_in_the_current_directory_does_not_win(make: Make, tmp_path: Path) -> None:
    for name in ("app", "policies", "routers"):
        (tmp_path / "work" / name).mkdir()
        (tmp_path / "work" / name / "__init__.py").write_text("raise SystemExit(9)")
    (tmp_path / "work" / "marker.py").touch()
    room = plan(make()).environment["PYTHONPATH"]
    assert probe(room, tmp_path / "work") == {"app": f"{room}/app/__init__.py", "other": []}


def test_the_room_is_made_once_and_mended(make: Make, tmp_path: Path) -> None:
    first, again = (plan(make()).environment["PYTHONPATH"] for _ in range(2))
    assert first == again
    assert [path.name for path in (tmp_path / "cache" / "farthing").iterdir()] == [Path(first).name]
    (Path(first) / "app" / "vllm_plugins" / "asks.py").write_text("spoilt")
    mended = plan(make()).environment["PYTHONPATH"]
    assert probe(mended, tmp_path)["app"].startswith(mended)
    sources = {p.relative_to(ROOT) for p in (ROOT / "app" / "vllm_plugins").rglob("*.py")}
    found = {p.relative_to(mended) for p in Path(mended).rglob("*.py")}
    assert found - {p for p in found if p.parts[1] == "nets"} == {*sources, Path("app/__init__.py")}


def test_a_home_that_cannot_be_written_to_is_no_hindrance(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    room = plan(make()).environment["PYTHONPATH"]
    assert Path(room).parent == tmp_path
    assert probe(room, tmp_path)["app"].startswith(room)


def test_a_long_temporary_folder_still_gives_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/" + "long" * 30)
    assert len(private_path("entropy")) < LONGEST_SOCKET


def test_the_interpreter_is_found(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without = make(None).rename(tmp_path / "without")
    monkeypatch.setattr(sys, "executable", str(without))
    with pytest.raises(launch.Unusable, match="make install-vllm"):
        launch.find(None)
    launch.OWN_VENV.parent.mkdir(parents=True)
    launch.OWN_VENV.symlink_to(make())
    found = launch.find(None)
    assert found.path == Path.cwd() / launch.OWN_VENV
    monkeypatch.setattr(sys, "executable", str(make("0.32.1")))
    assert launch.find(None).version == "0.32.1"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "cannot be run"),
        ("echo 'unknown option -P' >&2; exit 2", "unknown option -P"),
        ("""echo '{"version": null, "cpu": false, "plugin": false}'""", "has no vLLM"),
    ],
)
def test_an_interpreter_that_does_not_do_is_named(
    tmp_path: Path, script: str | None, message: str
) -> None:
    path = tmp_path / "python"
    if script is not None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    with pytest.raises(launch.Unusable, match=message) as refused:
        launch.find(path)
    assert str(path) in str(refused.value)


def test_the_probe_itself_runs_here() -> None:
    found = launch._probe(Path(sys.executable))
    assert found is None or found.version.startswith("0.32.")


@pytest.mark.parametrize("cores", ["", "a", "0-", "-1", "0;1", "0 1"])
def test_cores_that_vllm_would_not_read_are_refused(make: Make, cores: str) -> None:
    with pytest.raises(launch.Unusable, match="--cores"):
        plan(make(), f"--cores={cores}")


def test_a_dry_run_prints_a_command_that_could_be_run(make: Make, capfd: Output) -> None:
    python = make()
    command = [
        "serve-vllm",
        "m",
        "--python",
        str(python),
        "--dry-run",
        "--",
        "--spec-tokens",
        "a b",
    ]
    with pytest.raises(SystemExit) as ended:
        farthing(command)
    assert ended.value.code == 0
    out, err = capfd.readouterr()
    words = shlex.split(out)
    assert words[0] == "env"
    assert words[words.index("-P") - 1] == str(python)
    assert words[-2:] == ["--spec-tokens", "a b"]
    assert err.startswith("farthing: the entropy plugin is left out: vLLM runs no logits")


def test_what_cannot_be_done_is_one_line(make: Make, capfd: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        farthing(["serve-vllm", "m", "--python", str(make(None))])
    out, err = capfd.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("farthing: ")


def test_help_says_what_vllm_is_given(capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        farthing(["serve-vllm", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    start = ["--enable-scale-out", "--enable-prompt-tokens-details", "--enable-per-request-metrics"]
    for flag in (*start, "--enable-prefix-caching", "--block-size 32", "VLLM_CPU_KVCACHE_SPACE=2"):
        assert flag in text


def test_the_process_becomes_the_server(make: Make, tmp_path: Path) -> None:
    """With the standard library alone; signals go to the server itself."""
    python = make()
    server = tmp_path / "server"
    server.write_text(
        f'#!/bin/sh\n[ "$2" = -c ] && exec {python} "$@"\n'
        "echo $$ $VLLM_NO_USAGE_STATS $*\nexec sleep 60\n"
    )
    server.chmod(0o755)
    process = subprocess.Popen(
        [sys._base_executable, "-S", "-m", "app.vllm_plugins.launch", "m", "--python", server],  # type: ignore[attr-defined]
        env={"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        pid, stats, *words = process.stdout.readline().split()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
    assert (int(pid), stats) == (process.pid, "1")
    assert words[:5] == ["-P", "-m", launch.SERVER, "--model", "m"]
