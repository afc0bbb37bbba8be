"""One real gateway for all clients: a process of its own, the default fleet, keys on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from pytest_asyncio import is_async_test

ROOT = Path(__file__).parents[2]
FARTHING = Path(os.environ.get("FARTHING_TEST_COMMAND") or ROOT / ".venv" / "bin" / "farthing")
STARTS_IN = 300.0  # seconds
MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Gateway:
    """A gateway that is ready, and the administrator's key of it."""

    url: str
    admin: str

    @property
    def base(self) -> str:
        """What clients call base_url."""
        return f"{self.url}/v1"

    def new_key(self, name: str, **limits: Any) -> str:
        return str(self.http("POST", "/admin/keys", json={"name": name, **limits})["token"])

    def usage(self, key: str) -> dict[str, Any]:
        """What this key has spent in all: requests, tokens and USD."""
        return dict(self.http("GET", "/v1/usage", key)["total"])

    def http(self, method: str, path: str, key: str = "", **more: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {key or self.admin}"}
        answer = httpx.request(method, self.url + path, headers=headers, timeout=60, **more)
        answer.raise_for_status()
        return dict(answer.json())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop, as programs have one: LangChain keeps its connections for the next call."""
    for item in filter(is_async_test, items):
        item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    kept = {"FARTHING_MODELS_DIR": str(Path.home() / ".cache" / "farthing" / "models")}
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("FARTHING_")},
        **{name: os.environ.get(name, text) for name, text in kept.items()},
        "FARTHING_STATE_DIR": str(folder),
        "FARTHING_KEEP_ALIVE_S": "0.01",  # every stream is full of comments, which clients skip
    }
    command = [FARTHING, "serve", "--first-key", "--port", "0"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        yield ready(process, folder / "log")
        assert process.poll() is None, f"the gateway died:\n{(folder / 'log').read_text()}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def ready(process: subprocess.Popen[bytes], log: Path) -> Gateway:
    """As soon as it says so itself."""
    end = time.monotonic() + STARTS_IN
    while time.monotonic() < end and process.poll() is None:
        said = log.read_text()
        if found := re.search(r"Farthing is ready at (\S+)", said):
            (admin,) = re.findall(r"^sk-farthing-\S+$", said, re.MULTILINE)
            return Gateway(found[1], admin)
        time.sleep(0.1)
    raise AssertionError(f"the gateway did not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def key(gateway: Gateway) -> str:
    """Of a client: with a limit, far away, so that all that is asked passes the ledger."""
    return gateway.new_key("clients", usd_per_day="1", max_budget_usd="0.01")


@pytest.fixture
def sdk(gateway: Gateway, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=gateway.base, api_key=key, max_retries=0, timeout=60) as client:
        yield client


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)
