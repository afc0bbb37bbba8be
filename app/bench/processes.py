"""The processes of a benchmark: a gateway, what it asks, who asks it; and the time they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from app.bench.load import Load, Observed
from app.errors import ConfigError

_NONE: Mapping[str, str] = {}
CLI = ("-c", "from app.cli import main; main()")
"""What python is told for `farthing`, wherever that is installed."""


@dataclass(frozen=True)
class Served:
    """A process that listens."""

    host: str
    port: int
    pid: int


@contextmanager
def serving(
    arguments: Sequence[str],
    settings: Mapping[str, str],
    cores: Set[int] = frozenset(),
    *,
    variables: Mapping[str, str] = _NONE,
    log: Path | None = None,
) -> Iterator[Served]:
    """A python process with these arguments that says on its first line at which URL it is.

    `cores`: those that it may use; none: all. `variables`: others than settings. `log`: where what
    it says on stderr goes; without, it may say little. Raises ConfigError where it does not start.
    """
    others = (f"{name}={value}" for name, value in variables.items())
    with ExitStack() as stack:
        errors = subprocess.PIPE if log is None else stack.enter_context(log.open("w"))
        process = subprocess.Popen(
            [*_environment(settings), *others, sys.executable, "-u", *arguments],
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        pin(process.pid, cores)
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                said = process.communicate()[1] or (log.read_text() if log else "")
                raise ConfigError(f"a server did not start: {said.strip()}")
            url = urlsplit(line.split()[-1])
            yield Served(url.hostname or "", url.port or 0, process.pid)
        finally:
            process.kill()
            with process:  # closes what was not read, and waits for its end
                pass


@dataclass(frozen=True)
class Length:
    """How much is measured."""

    rounds: int
    seconds: float  # at each point in each round
    idle: float  # seconds


@dataclass(frozen=True)
class Clients:
    """The process of those who ask."""

    process: subprocess.Popen[str]

    def observe(self, load: Load, point: str) -> Observed:
        """What they see. Raises ConfigError, naming the point, for an answer that is none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(load)) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline() or '{"error": "the clients have died"}')
        if "error" in found:
            raise ConfigError(f"{point}: {found['error']}")
        return Observed(**found)


@contextmanager
def clients(cores: Set[int]) -> Iterator[Clients]:
    """They may use these cores; none: all."""
    with subprocess.Popen(
        [sys.executable, "-m", "app.bench.load"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            pin(process.pid, cores)
            yield Clients(process)
        finally:
            process.kill()


def wait_until_ready(gateway: Served, workers: int) -> None:
    """Until all workers of a gateway serve, as good as surely. Raises ConfigError."""
    url = f"http://{gateway.host}:{gateway.port}/health/ready"
    for _ in range(600):
        # A connection each: they are spread over the workers.
        if all(httpx.get(url).is_success for _ in range(8 * workers)):
            return
        time.sleep(0.1)
    raise ConfigError(f"not all of {workers} workers have started")


def new_key(settings: Mapping[str, str], *limits: str) -> str:
    """The token of a new API key of the gateway with these settings. Raises ConfigError."""
    create = [*_environment(settings), sys.executable, *CLI, "keys", "create", "bench", *limits]
    made = subprocess.run(create, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise ConfigError(made.stderr.strip())
    return made.stdout.strip()


def apart() -> tuple[Set[int], Set[int]]:
    """A core for what is measured, and those for all else; empty: they cannot be kept apart."""
    found = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (set(found[-1:]), set(found[:-1])) if len(found) > 1 else (set(), set())


def pin(pid: int, cores: Set[int]) -> None:
    """Let a process that has no threads yet run on these cores only."""
    if cores:
        os.sched_setaffinity(pid, cores)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used since it began, all threads; Linux only.

    What /proc/PID/stat tells in hundredths of a second, by the kernel's clock of that process.
    """
    return time.clock_gettime(~pid << 3 | 2) if sys.platform == "linux" else 0.0


def family(pid: int) -> list[int]:
    """A process and those that it has started; Linux only."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = children.read_text().split() if children.exists() else []
    return [pid, *map(int, found)]


def _environment(settings: Mapping[str, str]) -> list[str]:
    return ["env", *(f"FARTHING_{name.upper()}={value}" for name, value in settings.items())]
