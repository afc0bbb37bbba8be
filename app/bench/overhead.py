"""What the gateway costs from socket to socket, beside asking its upstream directly, in one run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from app.bench import processes
from app.bench.load import Load, Observed
from app.bench.mock_server import BURST, CONTEXT, PACED
from app.bench.overhead_figures import DIRECT, WHOLE, Point, Sample, figures, show
from app.bench.processes import Clients, Length, Served

TOKENS = 64  # of every answer; a stream's chunks
CONCURRENCY = (1, 32, 128)
KINDS = ("openai", "vllm")  # how the gateway's file calls its upstream
MODES = (WHOLE, BURST, PACED)
_QUESTION = "Tell me of the lamp on the headland, who lit it first, and what it cost to keep it. "


FULL = Length(rounds=5, seconds=2.0, idle=6.0)
QUICK = Length(rounds=2, seconds=0.4, idle=1.0)


def run(*, quick: bool = False, json_file: Path | None = None) -> None:
    """Measure, print a table, and write the figures to `json_file`.

    Every round measures all sides, one right after the other, so that what else the machine does
    falls on all of them. Raises ConfigError where something does not start or answer.
    """
    length, console = QUICK if quick else FULL, Console(stderr=True)
    points = [Point(s, m, n) for m in MODES for n in CONCURRENCY for s in (DIRECT, *KINDS)]
    rounds: list[dict[Point, Sample]] = []
    with _started() as bench, console.status("") as status:
        for point in points:
            bench.observe(point, 0.2)  # warm
        bench.rest(length.idle)
        for number in range(length.rounds):
            status.update(f"round {number + 1} of {length.rounds}")
            rounds.append({point: bench.sample(point, length.seconds) for point in points})
        setup = {**asdict(length), "tokens": TOKENS, "idle_cpu": bench.idle, "pinned": bench.pinned}
    found = figures(rounds)
    show(found)
    if json_file is not None:
        samples = [
            [{**asdict(point), **asdict(sample)} for point, sample in one.items()] for one in rounds
        ]
        report = {"setup": setup, "figures": found, "rounds": samples}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@dataclass
class _Bench:
    """The processes that take part."""

    upstream: Served
    gateway: Served
    token: str  # of an API key
    clients: Clients
    pinned: bool
    idle: float = 0.0  # the gateway's CPU seconds a second while nobody asks

    def rest(self, seconds: float) -> None:
        """Find out what the gateway uses by itself."""
        before = processes.cpu_seconds(self.gateway.pid)
        time.sleep(seconds)
        self.idle = (processes.cpu_seconds(self.gateway.pid) - before) / seconds

    def sample(self, point: Point, seconds: float) -> Sample:
        before = processes.cpu_seconds(self.gateway.pid)
        began = time.monotonic()
        observed = self.observe(point, seconds)
        idle = self.idle * (time.monotonic() - began)
        used = processes.cpu_seconds(self.gateway.pid) - before - idle
        return Sample(observed, 0.0 if point.side == DIRECT else used)

    def observe(self, point: Point, seconds: float) -> Observed:
        """What the clients see. Raises ConfigError for an answer that is none."""
        server = self.upstream if point.side == DIRECT else self.gateway
        request = _request(point, server, self.token)
        load = Load(server.host, server.port, request, point.at_once, seconds)
        return self.clients.observe(load, f"{point.side}, {point.mode}")


@contextmanager
def _started() -> Iterator[_Bench]:
    measured, others = processes.apart()
    with TemporaryDirectory() as name, ExitStack() as stack:
        upstream = stack.enter_context(
            processes.serving(("-m", "app.bench.mock_server"), {}, others)
        )
        folder = Path(name)
        config = folder / "farthing.toml"
        config.write_text(_config(f"http://{upstream.host}:{upstream.port}"), encoding="utf-8")
        settings = {
            "state_dir": str(folder),
            "config": str(config),
            "port": "0",
            "log_level": "warning",
        }
        token = processes.new_key(settings, "--usd-per-day", "1000", "--max-budget-usd", "1")
        gateway = stack.enter_context(
            processes.serving((*processes.CLI, "serve"), settings, measured)
        )
        clients = stack.enter_context(processes.clients(others))
        yield _Bench(upstream, gateway, token, clients, bool(measured))


def _config(url: str) -> str:
    """A fleet of one upstream that goes by several names."""
    return "\n".join(
        f"""
[models.{kind}-{served}]
engine = "{kind}"
urls = ["{url}"]
served = "{served}"
family = "{kind}"
context = {CONTEXT}
price = {{ input = 0.1, output = 0.4 }}
"""
        for kind in KINDS
        for served in (BURST, PACED)
    )


def _request(point: Point, server: Served, token: str) -> str:
    """Head and body; what only the gateway reads is sent to the upstream too."""
    served = PACED if point.mode == PACED else BURST
    body: dict[str, Any] = {
        "model": served if point.side == DIRECT else f"{point.side}-{served}",
        "messages": [
            {"role": "system", "content": "You answer in plain words."},
            {"role": "user", "content": _QUESTION * 5},
        ],
        "max_tokens": TOKENS,
        "temperature": 0.2,
    }
    if point.mode != WHOLE:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    text = json.dumps(body)
    head: Mapping[str, object] = {
        "Host": f"{server.host}:{server.port}",
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Content-Length": len(text),
        "X-Budget-Usd": "0.01",
    }
    lines = [f"{name}: {value}" for name, value in head.items()]
    return "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines, "", text])
