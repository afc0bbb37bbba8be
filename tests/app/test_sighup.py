"""SIGHUP: real processes read their file anew, alone and as several workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.servers import free_port

PROGRAM = """
from app.server import serve
from app.settings import Settings

if __name__ == "__main__":
    serve(Settings())
"""


def table(name: str) -> str:
    """A model of a server that is not there: its name is all that is asked for."""
    return (
        f'[models.{name}]\nengine = "openai"\nkind = "ollama"\nfamily = "f"\ncontext = 10\n'
        f'urls = ["http://127.0.0.1:{free_port()}"]\nprice = {{ input = 1, output = 2 }}\n'
    )


class Process:
    def __init__(self, folder: Path, workers: int) -> None:
        self.file, self._log = folder / "fleet.toml", (folder / "log").open("w+")
        self.file.write_text(table("old"))
        ours = {
            "FARTHING_CONFIG": str(self.file),
            "FARTHING_LEDGER": "off",
            "FARTHING_PORT": "0",
            "FARTHING_STATE_DIR": str(folder),
            "FARTHING_WORKERS": str(workers),
            "PYTHONPATH": os.getcwd(),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", PROGRAM],
            env={**os.environ, **ours}, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        lines = (line for line in self.process.stdout if line.startswith("Farthing is ready at"))
        self.url = next(lines, self.said()).split()[-1]

    def said(self) -> str:
        return Path(self._log.name).read_text()

    def models(self) -> list[str]:
        """As one new connection is told: whichever worker takes it."""
        listed = httpx.get(f"{self.url}/v1/models", timeout=10).json()["data"]
        return [entry["id"] for entry in listed]

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._log.close()


@pytest.fixture(params=[1, 2])
def process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, request.param)
    yield process
    process.end()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def all_say(process: Process, *models: str) -> Callable[[], bool]:
    return lambda: all(process.models() == list(models) for _ in range(12))


def in_the_end(process: Process, *models: str) -> None:
    """A worker that is still starting hears no signal, so send it until all have heard."""

    def heard() -> bool:
        process.hang_up()
        return all_say(process, *models)()

    until(heard)


def test_the_file_is_read_anew_and_a_bad_one_changes_nothing(process: Process) -> None:
    until(all_say(process, "old"))
    process.file.write_text(table("new"))
    in_the_end(process, "new")
    process.file.write_text("[models.broken]")
    process.hang_up()
    until(lambda: "the configuration stays as it was" in process.said())
    assert "[models.broken]" in process.said()
    assert all_say(process, "new")()
    process.file.write_text(table("newest"))
    in_the_end(process, "newest")
    assert process.process.poll() is None
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(20) == 0
    assert "Traceback" not in process.said()
