"""Stands in for the `tests.utils` of vLLM's own tests: each test runs against a server, and again
through a gateway before it.

`tests.vllm.entrypoints` puts this file there; it runs in vLLM's interpreter and imports nothing of
ours. It is a pytest plugin too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from openai._models import FinalRequestOptions
from vllm.model_executor.model_loader import weight_utils
from vllm.transformers_utils import repo_utils

VLLM_PATH = Path(__file__).parent.parent
ROCM_EXTRA_ARGS: list[str] = []
MODEL = "smollm2"  # a folder where the tests run, and what the server calls it
SIDES = ("@direct", "@gateway")
# Flags of theirs with a value, and without: for a GPU, or of another model.
_DROPPED = {
    *("--dtype", "--gpu-memory-utilization", "--max-num-seqs", "--port", "--max-lora-rank"),
    *("--max-cpu-loras", "--seed", "--load-format", "--limit-mm-per-prompt"),
    *("--reasoning-parser", "--reasoning-config"),
}
_SWITCHES = {"--enforce-eager", "--enable-lora", "--trust-remote-code"}
_LENGTHS = (128, 512, 2048, 8192)  # of a context; few, so that tests share their servers
# Unless a test says otherwise: a small model may not find an answer's end, nor the same one twice.
_GENERATION = '{"max_new_tokens": 300, "temperature": 0}'
_STARTS_IN = 600.0  # seconds
_side = SIDES[0]


class Pair:
    """A vLLM server of these flags, and a gateway before it."""

    def __init__(self, flags: list[str], names: list[str], environment: dict[str, str]) -> None:
        self.urls = dict(
            zip(SIDES, (f"http://127.0.0.1:{_free_port()}" for _ in SIDES), strict=True)
        )
        self._processes: list[subprocess.Popen[bytes]] = []
        ports = [url.rpartition(":")[2] for url in self.urls.values()]
        farthing, logs = os.environ["BOTH_SIDES_FARTHING"], Path(os.environ["BOTH_SIDES_LOGS"])
        server = [farthing, "serve-vllm", MODEL, "--no-plugins"]
        server += ["--python", os.environ["BOTH_SIDES_PYTHON"], "--port", ports[0]]
        server += ["--cores", os.environ["BOTH_SIDES_CORES"]]
        server += ["--", *flags, "--override-generation-config", _GENERATION]
        server += ["--served-model-name", *names]
        lets_forget = {"VLLM_SERVER_DEV_MODE": "1"}
        self._start(server, logs / f"vllm-{ports[0]}.log", environment | lets_forget)
        fleet = logs / f"farthing-{ports[1]}.toml"
        fleet.write_text(_fleet(names, self.urls[SIDES[0]]), "utf-8")
        gateway = [farthing, "serve", "--config", str(fleet), "--port", ports[1]]
        own = {"FARTHING_NO_AUTH": "1", "FARTHING_STATE_DIR": str(logs)}
        self._start(gateway, logs / f"gateway-{ports[1]}.log", own)
        try:
            for url, path in zip(self.urls.values(), ("/health", "/health/ready"), strict=True):
                self._wait(url + path)
        except BaseException:
            self.close()
            raise

    def forget(self) -> None:
        """What a test finds in the prefix cache shall not be the other side's."""
        httpx.post(f"{self.urls[SIDES[0]]}/reset_prefix_cache", timeout=60).raise_for_status()

    def close(self) -> None:
        for process in reversed(self._processes):
            with suppress(ProcessLookupError):
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _start(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        inherited = {**os.environ, "PYTHONPATH": os.environ["BOTH_SIDES_PATH"]}
        with log.open("wb") as out:
            self._processes.append(
                subprocess.Popen(
                    command,
                    env=inherited | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # and so all that it starts can be ended
                )
            )

    def _wait(self, url: str) -> None:
        end = time.monotonic() + _STARTS_IN
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(url).status_code == 200:
                    return
            assert all(process.poll() is None for process in self._processes), f"{url}: ended"
            assert time.monotonic() < end, f"{url}: not ready in {_STARTS_IN:g} s"
            time.sleep(0.5)


_running: dict[str, Pair] = {}  # the one that was asked for last, by its flags


class _NamesTheModel(openai.AsyncOpenAI):
    """A gateway has several: where a test leaves out which, it is the one that there is."""

    async def _prepare_options(self, options: FinalRequestOptions) -> FinalRequestOptions:
        if isinstance(options.json_data, dict):
            options.json_data.setdefault("model", MODEL)
        return options


class RemoteOpenAIServer:
    """What vLLM's tests start, as far as they use it."""

    DUMMY_API_KEY = "token-abc123"
    show_hidden_metrics = True
    uds = None

    def __init__(
        self,
        model: str,
        vllm_serve_args: list[str],
        *,
        env_dict: dict[str, str] | None = None,
        override_hf_configs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        flags, names = _adapted(vllm_serve_args)
        if override_hf_configs is not None:
            flags += ["--hf-overrides", json.dumps(override_hf_configs)]
        environment = env_dict or {}
        key = json.dumps([flags, names, environment])
        if key not in _running:
            _close()
            _running[key] = Pair(flags, names, environment)
        self._pair = _running[key]

    def __enter__(self) -> RemoteOpenAIServer:
        return self

    def __exit__(self, *_: object) -> None:
        """The next test may want the same."""

    @property
    def url_root(self) -> str:
        return self._pair.urls[_side]

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def port(self) -> int:
        return int(self.url_root.rpartition(":")[2])

    def url_for(self, *parts: str) -> str:
        return "/".join([self.url_root, *(part.strip("/") for part in parts if part)])

    def get_client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url_for("v1"), **_client(options))

    def get_async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return _NamesTheModel(base_url=self.url_for("v1"), **_client(options))

    def get_client_anthropic(self, **options: Any) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url_root, **_client(options))

    def get_async_client_anthropic(self, **options: Any) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(base_url=self.url_root, **_client(options))


RemoteOpenAIServerCustom = RemoteOpenAIServer


def _client(options: dict[str, Any]) -> dict[str, Any]:
    key = RemoteOpenAIServer.DUMMY_API_KEY
    return {"timeout": 600, "api_key": key, "max_retries": 0, **options}


def _adapted(theirs: list[str]) -> tuple[list[str], list[str]]:
    """The flags for a CPU and our model, and the names it is served by."""
    flags: list[str] = []
    names: list[str] = []
    further: list[str] = []
    words = iter(theirs)
    for word in words:
        if word in _SWITCHES:
            continue
        if word in _DROPPED:
            next(words)
        elif word == "--served-model-name":
            names.append(next(words))
        elif word in ("--lora-modules", "--lora-module"):
            # No adapter of our model can be had: its name is one more name of the model.
            value = next(words)
            further.append(json.loads(value)["name"] if "{" in value else value.partition("=")[0])
        elif word in ("--max-model-len", "--max_model_len"):
            wanted = min(int(next(words)), _LENGTHS[-1])
            flags += ["--max-model-len", str(min(n for n in _LENGTHS if n >= wanted))]
        else:
            flags.append(word)
    return flags, [*(names or [MODEL]), *further]


def _fleet(names: list[str], url: str) -> str:
    """A farthing.toml with this one model."""
    lines = [f'[models."{names[0]}"]', 'engine = "vllm"', f'urls = ["{url}"]', 'family = "smollm2"']
    lines += [f"aliases = {json.dumps(names[1:])}", "price = { input = 0.01, output = 0.05 }", ""]
    return "\n".join(lines)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _close() -> None:
    while _running:
        _running.popitem()[1].close()


class _Hub:
    """No hub can be asked: whatever is downloaded is the model."""

    def snapshot_download(self, *_: Any, **__: Any) -> str:
        return MODEL


def pytest_configure(config: pytest.Config) -> None:
    repo_utils.hf_api = _Hub
    weight_utils.download_weights_from_hf = lambda *_, **__: MODEL
    config.option.asyncio_mode = "strict"


@pytest.fixture(autouse=True, params=SIDES)
def both_sides(request: pytest.FixtureRequest) -> None:
    global _side
    _side = request.param
    for pair in _running.values():
        pair.forget()


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only what asks a server is of use here."""
    items[:] = [item for item in items if _asks_a_server(item)]


def _asks_a_server(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    code = getattr(getattr(item, "function", None), "__code__", None)
    names = [*fixtures, *(code.co_names if code is not None else ())]
    return any(re.search("server|client", name, re.IGNORECASE) for name in names)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """A line for each test and side, for `tests.vllm.entrypoints` to compare."""
    report = yield
    if report.when == "call" or report.outcome != "passed":
        side = next((side for side in SIDES if side in item.nodeid), SIDES[0])
        crash = getattr(report.longrepr, "reprcrash", None)
        said = crash.message if crash is not None else str(report.longrepr or "")
        line = {
            "test": re.sub(rf"-?{side}-?", "", item.nodeid).replace("[]", ""),
            "node": item.nodeid,
            "side": side,
            "outcome": report.outcome,
            "said": said[:2000],
        }
        with Path(os.environ["BOTH_SIDES_RESULTS"]).open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
    return report


def pytest_sessionfinish() -> None:
    _close()
