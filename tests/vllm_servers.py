"""Real vLLM servers for tests: the default model, exported, each server on a core of its own."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

import app.engines.embedded
from app.settings import DEFAULT_CONFIG, Settings
from app.vllm_plugins.asks import SOCKET_VARIABLE
from tests.servers import free_port

ROOT = Path(__file__).parent.parent
FARTHING = Path(sys.executable).with_name("farthing")
OWN_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
VARIABLE = "FARTHING_TEST_VLLM_PYTHON"
MODEL = "smollm2-135m"
STARTS_IN = 400.0  # seconds; 50 on an idle machine


@dataclass(frozen=True)
class VLLMServer:
    """A server that has answered a request."""

    url: str
    name: str  # of the model it serves
    folder: Path  # of the model
    log: Path
    process: subprocess.Popen[bytes]


def python() -> Path:
    """The interpreter that has vLLM."""
    path = Path(os.environ.get(VARIABLE) or OWN_PYTHON)
    assert path.exists(), f"{path} is not there: run `make install-vllm`, or set {VARIABLE}"
    return path


def exported(precision: str, model: str = MODEL) -> Path:
    """A model of the default fleet as a folder that vLLM loads, made anew when the code that
    makes it is, or the fleet."""
    package = Path(app.engines.embedded.__file__ or "").parent
    names = ("checkpoint", "draft_folder", "export", "folding", "linear", "safetensors_file")
    names += ("safetensors_folder", "tokenizer", "weights")
    code = b"".join((package / f"{name}.py").read_bytes() for name in names)
    code += DEFAULT_CONFIG.read_bytes()
    cache = Settings().models_dir.expanduser().parent / "test-exports"
    folder = cache / hashlib.sha256(code).hexdigest()[:12] / f"{model}-{precision}"
    if not (folder / "config.json").exists():
        command = [FARTHING, "export-model", model, folder, "--precision", precision]
        _run([*map(str, command), "--config", str(ROOT / "app" / "farthing.toml")])
    return folder


@contextmanager
def serving(
    precision: str,
    core: int,
    logs: Path,
    further: Sequence[str] = (),
    model: str = MODEL,
    own: Sequence[str] = (),
    path: str | None = None,
) -> Iterator[VLLMServer]:
    """A server of this model in this precision, on this core.

    `further`: vLLM's flags; `own`: the launcher's; `path`: a PYTHONPATH for it.
    """
    folder, port = exported(precision, model), free_port()
    log = logs / f"vllm-{folder.name}.log"
    command = [str(FARTHING), "serve-vllm", str(folder), "--python", str(python())]
    command += ["--cores", str(core), "--port", str(port), *own]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--", "--max-model-len", "2048", *further],
            cwd=logs,
            env=os.environ | ({} if path is None else {"PYTHONPATH": path}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # and so all that it starts can be ended
        )
    server = VLLMServer(f"http://127.0.0.1:{port}", folder.name, folder, log, process)
    try:
        _wait(server)
        yield server
        if process.poll() is None:  # a test may have killed it
            _ends_by_itself(server)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ends_by_itself(server: VLLMServer) -> None:
    """Told to end, it takes its children and its socket along."""
    socket = _variable(server.process.pid, SOCKET_VARIABLE)
    server.process.terminate()
    server.process.wait(60)
    assert socket is None or not Path(socket).parent.exists()
    end = time.monotonic() + 10
    while left := _group(server.process.pid):
        assert time.monotonic() < end, f"processes {left} are left of {server.name}"
        time.sleep(0.1)


def _variable(pid: int, name: str) -> str | None:
    """Of this process's environment."""
    pairs = (
        entry.partition(b"=") for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )
    return next((os.fsdecode(value) for key, _, value in pairs if key == name.encode()), None)


def _group(leader: int) -> list[int]:
    """The processes of its group that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


def _wait(server: VLLMServer) -> None:
    """Until it is healthy and has computed something: the first logprobs take seconds."""
    end = time.monotonic() + STARTS_IN
    with httpx.Client(base_url=server.url, timeout=120) as http:
        while not _healthy(http):
            assert server.process.poll() is None, _last_words(server)
            assert time.monotonic() < end, f"not ready in {STARTS_IN} s: {_last_words(server)}"
            time.sleep(0.5)
        body = {"model": server.name, "prompt": [1, 2, 3], "max_tokens": 2, "logprobs": 20}
        answer = http.post("/v1/completions", json=body)
        assert answer.status_code == 200, f"{answer.text} {_last_words(server)}"


def _healthy(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def _last_words(server: VLLMServer) -> str:
    return "\n".join([str(server.log), *server.log.read_text("utf-8").splitlines()[-30:]])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
