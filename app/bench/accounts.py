"""What keys and a ledger add to a request's latency, beside a gateway that has neither."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from app.bench import processes
from app.bench.processes import Served
from app.errors import ConfigError

# The gateway as it is, over an engine that answers at once.
PROGRAM = """
from app import server
from app.catalog import read
from app.engines.fake import Fake, Script
from app.factory import create_app
from app.settings import DEFAULT_CONFIG, Settings

fake = Fake({name: Script(["word "] * 8) for name in read(DEFAULT_CONFIG).models})
server.create_app = lambda settings, catalog: create_app(settings, catalog=catalog, engine=fake)
server.serve(Settings(config=DEFAULT_CONFIG, port=0, log_level="error"))
"""
CONCURRENCY = (1, 32)
OFF = "off"


@dataclass(frozen=True)
class Length:
    """How much is measured."""

    requests: int  # of one variant at one concurrency in one round
    rounds: int


FULL = Length(requests=640, rounds=7)
QUICK = Length(requests=128, rounds=3)


@dataclass
class Gateway:
    """A process that serves one variant."""

    served: Served
    request: bytes


def run(*, postgres: str | None = None, quick: bool = False, json_file: Path | None = None) -> None:
    """Measure, print a table, and write the figures to `json_file`.

    Every round measures every variant, one after the other, so that what else the machine does
    falls on all of them. What is added is the difference to `off` in the same round; shown are
    the rounds' median and, beside it, the least and the greatest. `postgres` is the URL of an
    empty database. Raises ConfigError for a gateway that does not start.
    """
    length, console = QUICK if quick else FULL, Console(stderr=True)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        gateways = {
            name: stack.enter_context(_gateway(Path(folder) / name, variables))
            for name, variables in _variants(Path(folder), postgres).items()
        }
        rounds: list[dict[str, dict[str, float]]] = []
        for gateway in gateways.values():
            asyncio.run(_latencies(gateway, 32, 64))  # warm
        for number in range(length.rounds):
            with console.status(f"round {number + 1} of {length.rounds}"):
                rounds.append(
                    {name: _figures(one, length.requests) for name, one in gateways.items()}
                )
    added = _added(rounds)
    _print(added)
    if json_file is not None:
        figures = {"added": added, "rounds": rounds, "requests": length.requests}
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _variants(folder: Path, postgres: str | None) -> dict[str, dict[str, str]]:
    """The settings of each gateway, by name."""
    variants = {OFF: {"ledger": OFF}}
    ledgers = {"sqlite": f"sqlite:///{folder / 'ledger.db'}"}
    if postgres is not None:
        ledgers["postgres"] = postgres
    for name, url in ledgers.items():
        variants[name] = {"ledger": url, "headroom_s": "0"}
        variants[f"{name}, headroom 2 s"] = {"ledger": url, "headroom_s": "2"}
    return variants


@contextmanager
def _gateway(state: Path, settings: Mapping[str, str]) -> Iterator[Gateway]:
    more = {"key_secret": "the secret of a benchmark", "state_dir": str(state), **settings}
    token = "none" if settings["ledger"] == OFF else processes.new_key(more)
    with processes.serving(("-c", PROGRAM), more) as served:
        yield Gateway(served, _request(served.host, token))


def _request(host: str, token: str) -> bytes:
    body = json.dumps(
        {
            "model": "smollm2-135m",
            "messages": [{"role": "user", "content": "why is the sky blue"}],
            "max_tokens": 8,
        }
    ).encode()
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {host}",
        f"Authorization: Bearer {token}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def _figures(gateway: Gateway, requests: int) -> dict[str, float]:
    """Latencies in ms at each concurrency, and the gateway's CPU time in ms a request."""
    figures: dict[str, float] = {}
    for at_once in CONCURRENCY:
        before = processes.cpu_seconds(gateway.served.pid)
        times = asyncio.run(_latencies(gateway, at_once, requests))
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        figures[f"p50_ms_at_{at_once}"] = cuts[49] * 1000
        figures[f"p99_ms_at_{at_once}"] = cuts[98] * 1000
        figures[f"cpu_ms_at_{at_once}"] = (
            (processes.cpu_seconds(gateway.served.pid) - before) / requests * 1000
        )
    return figures


async def _latencies(gateway: Gateway, at_once: int, requests: int) -> list[float]:
    """Seconds from a request's first byte to its answer's last, by `at_once` clients."""
    times: list[float] = []
    left = iter(range(requests))

    async def client() -> None:
        reader, writer = await asyncio.open_connection(gateway.served.host, gateway.served.port)
        for _ in left:
            began = time.perf_counter()
            writer.write(gateway.request)
            head = await reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode().lower().split("\r\n")
            if not status.startswith("http/1.1 200"):
                raise ConfigError(f"the gateway answered {status}")
            (size,) = (line[15:] for line in lines if line.startswith("content-length:"))
            await reader.readexactly(int(size))
            times.append(time.perf_counter() - began)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(at_once)))
    return times


def _added(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """By variant and figure: median, least and greatest difference to `off`."""
    added: dict[str, dict[str, list[float]]] = {}
    for name in rounds[0]:
        for figure in rounds[0][name]:
            gaps = [one[name][figure] - (one[OFF][figure] if name != OFF else 0) for one in rounds]
            spread = [statistics.median(gaps), min(gaps), max(gaps)]
            added.setdefault(name, {})[figure] = [round(value, 3) for value in spread]
    return added


def _print(added: Mapping[str, Mapping[str, list[float]]]) -> None:
    figures = list(next(iter(added.values())))
    table = Table(
        "ms", *(name.replace("_ms_", " ").replace("_", " ") for name in figures), box=None
    )
    for name, row in added.items():
        sign = "" if name == OFF else "+"
        cells = [f"{sign}{mid:.2f} ({low:.2f} to {high:.2f})" for mid, low, high in row.values()]
        table.add_row(name if name == OFF else f"{name}: added", *cells)
    console = Console()
    console.print(table) if console.is_terminal else Console(width=200).print(table)
