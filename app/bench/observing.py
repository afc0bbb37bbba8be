"""What telemetry costs: gateways with ever more of it switched on, asked in turn, in one run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import httpx
from rich.console import Console
from rich.table import Table

from app.bench import processes
from app.bench.load import Load, Observed
from app.bench.mock_server import BURST, CONTEXT, PACED
from app.bench.processes import Clients, Length, Served
from app.errors import ConfigError
from app.estimates import Estimate, mean, ratio

TOKENS = 64
CLIENTS = 32
WORKERS = 2  # so that metrics are those of several processes
WHOLE, SWITCHED = "whole", "switched"
MODES = (WHOLE, BURST, PACED, SWITCHED)
OFF, ALL = "off", "traces"
_QUIET = {"metrics": "false", "decisions_keep_s": "0", "log_level": "warning"}
_METRICS = {**_QUIET, "metrics": "true"}
_DECISIONS = {**_METRICS, "decisions_keep_s": "604800"}
_LOGS = {**_DECISIONS, "log_level": "info", "access_log": "true", "log_format": "json"}
# Each with all that stands before it.
SIDES: Mapping[str, Mapping[str, str]] = {
    OFF: _QUIET,
    "metrics": _METRICS,
    "decisions": _DECISIONS,
    "logs": _LOGS,
    ALL: _LOGS,
}
_EXPORTED = ("/v1/traces", "/v1/metrics")
_TITLES = {
    WHOLE: "not streamed",
    BURST: "stream at once",
    PACED: "stream, 10 ms a chunk",
    SWITCHED: "stream at once, entropy_switch",
}


FULL = Length(rounds=6, seconds=0.8, idle=4.0)
QUICK = Length(rounds=2, seconds=0.4, idle=1.0)


@dataclass(frozen=True)
class Point:
    side: str
    mode: str


@dataclass(frozen=True)
class Sample:
    """What one round found at a point."""

    observed: Observed
    cpu: float  # seconds of the gateway's processes, less what they use idle


Round: TypeAlias = Mapping[Point, Sample]
Figures: TypeAlias = dict[str, dict[str, dict[str, Any]]]


def run(*, quick: bool = False, json_file: Path | None = None) -> None:
    """Measure, print, and write the figures to `json_file`.

    Every round asks all gateways, one right after the other, and each round begins with another
    one. Raises ConfigError where something does not start or answer, or tells nothing of what it
    was asked to tell.
    """
    length = QUICK if quick else FULL
    with _started() as bench, Console(stderr=True).status("") as status:
        for point in _points(0):
            bench.observe(point, 0.3)  # warm
        bench.rest(length.idle)
        rounds: list[Round] = []
        for number in range(length.rounds):
            status.update(f"round {number + 1} of {length.rounds}")
            rounds.append({p: bench.sample(p, length.seconds) for p in _points(number)})
        bench.check()
        setup = {**asdict(length), "tokens": TOKENS, "clients": CLIENTS, "workers": WORKERS}
        setup |= {"idle_cpu": bench.idle, "pinned": bench.pinned}
    found = figures(rounds)
    _show(found)
    if json_file is not None:
        report = {"setup": setup, "figures": found}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def figures(rounds: Sequence[Round]) -> Figures:
    """By mode and side: CPU of a request and of a chunk over all rounds, and how many times as much
    as with telemetry off a request took in the same round, with 95 % intervals."""
    found: Figures = {}
    for point in rounds[0]:
        samples = [one[point] for one in rounds]
        requests = [float(sample.observed.requests) for sample in samples]
        row: dict[str, Estimate] = {
            "cpu_ms_per_request": ratio([sample.cpu * 1e3 for sample in samples], requests)
        }
        if point.mode != WHOLE:
            chunks = [float(sample.observed.chunks) for sample in samples]
            row["cpu_us_per_chunk"] = ratio([sample.cpu * 1e6 for sample in samples], chunks)
        if point.side != OFF:
            off = Point(OFF, point.mode)
            row["times_off"] = mean([_each(one[point]) / _each(one[off]) for one in rounds])
        by_side = found.setdefault(point.mode, {})
        by_side[point.side] = {name: asdict(value) for name, value in row.items()}
    return found


def _each(sample: Sample) -> float:
    """CPU seconds of a request."""
    return sample.cpu / sample.observed.requests


def _points(number: int) -> list[Point]:
    """All of them; who is first is last in the next round."""
    sides = list(SIDES)
    first = number % len(sides)
    return [Point(side, mode) for mode in MODES for side in (*sides[first:], *sides[:first])]


@dataclass
class _Bench:
    """The processes that take part."""

    upstream: Served
    gateways: Mapping[str, Served]
    logs: Mapping[str, Path]
    clients: Clients
    pinned: bool
    idle: Mapping[str, float]  # CPU seconds a second, by side, while nobody asks

    def rest(self, seconds: float) -> None:
        """Find out what the gateways use by themselves."""
        before = {side: self._cpu(side) for side in SIDES}
        time.sleep(seconds)
        self.idle = {side: (self._cpu(side) - before[side]) / seconds for side in SIDES}

    def sample(self, point: Point, seconds: float) -> Sample:
        before, began = self._cpu(point.side), time.monotonic()
        observed = self.observe(point, seconds)
        idle = self.idle[point.side] * (time.monotonic() - began)
        return Sample(observed, self._cpu(point.side) - before - idle)

    def observe(self, point: Point, seconds: float) -> Observed:
        """What the clients see. Raises ConfigError for an answer that is none."""
        gateway = self.gateways[point.side]
        request = _request(point.mode, gateway)
        load = Load(gateway.host, gateway.port, request, CLIENTS, seconds)
        return self.clients.observe(load, f"{point.side}, {point.mode}")

    def check(self) -> None:
        """Whether each told what it was asked to tell. Raises ConfigError."""
        for side, settings in SIDES.items():
            url = f"http://{self.gateways[side].host}:{self.gateways[side].port}"
            counts = httpx.get(f"{url}/metrics").is_success
            if counts != (settings["metrics"] == "true"):
                raise ConfigError(f"{side}: /metrics is {'there' if counts else 'not there'}")
            body = {"model": BURST, "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
            id = httpx.post(f"{url}/v1/chat/completions", json=body).json()["id"]
            explained = httpx.get(f"{url}/v1/decisions/{id}").is_success
            if explained != (settings["decisions_keep_s"] != "0"):
                raise ConfigError(f"{side}: {'' if explained else 'no '}answers are explained")
            logged = "farthing.access" in self.logs[side].read_text(encoding="utf-8")
            if logged != ("access_log" in settings):
                raise ConfigError(f"{side}: {'requests' if logged else 'no requests'} in the log")
        counted = httpx.get(f"http://{self.upstream.host}:{self.upstream.port}/counts").json()
        for path in _EXPORTED:
            if not counted.get(path):
                raise ConfigError(f"{ALL}: nothing was sent to {path}")

    def _cpu(self, side: str) -> float:
        return sum(map(processes.cpu_seconds, processes.family(self.gateways[side].pid)))


@contextmanager
def _started() -> Iterator[_Bench]:
    measured, others = processes.apart()
    with TemporaryDirectory() as name, ExitStack() as stack:
        upstream = stack.enter_context(
            processes.serving(("-m", "app.bench.mock_server"), {}, others)
        )
        folder, gateways, logs = Path(name), dict[str, Served](), dict[str, Path]()
        url = f"http://{upstream.host}:{upstream.port}"
        for side, settings in SIDES.items():
            place = folder / side
            place.mkdir()
            (place / "farthing.toml").write_text(_config(url), encoding="utf-8")
            given = {**settings, "state_dir": str(place), "config": str(place / "farthing.toml")}
            given |= {"port": "0", "workers": str(WORKERS)}
            logs[side] = place / "log"
            collector = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": url,
                "OTEL_METRIC_EXPORT_INTERVAL": "2000",  # ms
            }
            start = processes.serving(
                (*processes.CLI, "serve"),
                given,
                measured,
                variables=collector if side == ALL else {},
                log=logs[side],
            )
            gateways[side] = stack.enter_context(start)
        for gateway in gateways.values():
            processes.wait_until_ready(gateway, WORKERS)
        clients = stack.enter_context(processes.clients(others))
        yield _Bench(upstream, gateways, logs, clients, bool(measured), {})


def _config(url: str) -> str:
    """A fleet of one upstream that goes by several names, and a preset that watches each token."""
    models = [
        f'[models.{name}]\nengine = "vllm"\nurls = ["{url}"]\nserved = "{served}"\n'
        f'family = "mock"\ncontext = {CONTEXT}\nprice = {{ input = 0.1, output = {output} }}\n'
        for name, served, output in ((BURST, BURST, 0.4), (PACED, PACED, 0.4), ("dear", BURST, 0.8))
    ]
    preset = f'[presets.{SWITCHED}]\npolicy = "entropy_switch"\nsmall = "{BURST}"\nlarge = "dear"\n'
    return "\n".join([*models, preset])


def _request(mode: str, server: Served) -> str:
    """Head and body."""
    body: dict[str, Any] = {
        "model": BURST if mode == WHOLE else mode,
        "messages": [{"role": "user", "content": "Tell me of the lamp on the headland. " * 8}],
        "max_tokens": TOKENS,
        "temperature": 0.2,
    }
    if mode != WHOLE:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    text = json.dumps(body)
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {server.host}:{server.port}",
        "Content-Type: application/json",
        f"Content-Length: {len(text)}",
        "X-Budget-Usd: 0.01",
    ]
    return "\r\n".join([*lines, "", text])


def _show(found: Figures) -> None:
    table = Table(
        "answers", "telemetry", "CPU a request, ms", "CPU a chunk, µs", "times off", box=None
    )
    for mode, by_side in found.items():
        for side, row in by_side.items():
            names = ("cpu_ms_per_request", "cpu_us_per_chunk", "times_off")
            table.add_row(_TITLES[mode], side, *(_cell(row.get(name)) for name in names))
    console = Console()
    console.print(table) if console.is_terminal else Console(width=160).print(table)


def _cell(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else "{:.2f} ({:.2f} to {:.2f})".format(*value.values())
