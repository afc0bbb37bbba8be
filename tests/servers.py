"""Real PostgreSQL and Redis servers for tests: their own, on free ports of this machine."""

from __future__ import annotations

import asyncio
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg

_numbers = itertools.count()


class Missing(Exception):
    """A program that a test needs is not installed."""


# Below those that systems hand out by themselves: nobody else takes one that is free for a while.
_PORTS = range(20_000, 32_000)
_GIVEN: set[int] = set()


def free_port() -> int:
    """One that nobody listens on, and that no test has been given before, also where several
    processes run the tests."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ours = set(_PORTS[worker::workers]) - _GIVEN
    while True:
        port = random.SystemRandom().choice(tuple(ours))
        _GIVEN.add(port)
        ours.discard(port)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def program(name: str, *folders: str) -> str:
    """The path of this program. Raises Missing."""
    for folder in folders:
        for path in sorted(Path("/").glob(f"{folder}/{name}"), reverse=True):
            return str(path)
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


class Postgres:
    """A server that can be stopped, killed, frozen and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._data = folder / "data"
        self._pg_ctl = program("pg_ctl", "usr/lib/postgresql/*/bin")
        # PostgreSQL refuses to run as root.
        self._user: dict[str, Any] = {"user": "postgres"} if os.getuid() == 0 else {}
        if self._user:
            shutil.chown(folder, "postgres")
        self._run(
            program("initdb", "usr/lib/postgresql/*/bin"),
            *("-D", str(self._data), "-U", "farthing", "-A", "trust", "-E", "UTF8", "-N"),
        )

    def start(self) -> None:
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1"
        log = self._folder / "log"
        self._run(self._pg_ctl, "-D", str(self._data), "-o", options, "-l", str(log), "-w", "start")

    def restore(self) -> None:
        """Running again, whatever a test has done to it."""
        self.thaw()
        if not (self._data / "postmaster.pid").exists():
            self.start()

    def stop(self, mode: str = "fast") -> None:
        """`fast` breaks off what runs, `immediate` is a crash."""
        self._run(self._pg_ctl, "-D", str(self._data), "-m", mode, "-w", "stop")

    def freeze(self) -> None:
        """Every process of it stops where it is: connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://farthing@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"ledger{next(_numbers)}"

        async def make() -> None:
            connection = await asyncpg.connect(self.url())
            await connection.execute(f"CREATE DATABASE {name}")
            await connection.close()

        asyncio.run(make())
        return self.url(name)

    def _signal(self, number: signal.Signals) -> None:
        pid = self._data / "postmaster.pid"
        master = int(pid.read_text().split()[0]) if pid.exists() else -1
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with suppress(OSError):
                    parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                    if str(master) in (folder.name, parent):
                        os.kill(int(folder.name), number)

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, cwd=self._folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, **self._user,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server; it goes with all its data. Raises Missing."""
    program("pg_ctl", "usr/lib/postgresql/*/bin")
    if os.getuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            raise Missing("there is no user postgres") from None
    with tempfile.TemporaryDirectory(prefix="farthing-pg-") as folder:
        server = Postgres(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")


@contextmanager
def redis() -> Iterator[str]:
    """The URL of a running server. Raises Missing."""
    port = free_port()
    command = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*command, "--dir", folder, "--appendonly", "no"], stdout=subprocess.DEVNULL
        )
        try:
            _wait_for(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def _wait_for(port: int) -> None:
    end = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end, f"nothing listens on {port}"
        time.sleep(0.02)
