"""What a scrape of /metrics costs when a large catalog has been used all over, and who feels it."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from app.bench import processes
from app.bench.mock_server import BURST, CONTEXT, INTERVAL_S, PACED
from app.bench.processes import Served
from app.errors import ConfigError

MODELS, PRESETS, WORKERS = 20, 10, 4
STREAMS = 8  # paced ones, while it is scraped
_POLICIES = ("speculative", "kv_prediction")  # of the presets, in turn
_PATHS = ("/v1/chat/completions", "/v1/messages")
_TOKENS = 48
_AT_ONCE = 16
_SCRAPER = """
import json, sys, time, urllib.request
took, end = [], time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    began = time.perf_counter()
    urllib.request.urlopen(sys.argv[1]).read()
    took.append(time.perf_counter() - began)
print(json.dumps(took))
"""


@dataclass(frozen=True)
class Length:
    """How much is asked."""

    repeats: int  # of each combination, so that every worker has it
    scrapes: int
    seconds: float  # of streams, without scrapes and with them


FULL = Length(repeats=3, scrapes=20, seconds=8.0)
QUICK = Length(repeats=1, scrapes=3, seconds=1.5)


@dataclass(frozen=True)
class Scraped:
    """What was found."""

    series: int
    bytes: int
    zipped: int  # bytes
    seconds: float  # one scrape, median
    longest: float  # seconds
    cpu: float  # seconds of all processes, one scrape


@dataclass(frozen=True)
class Gaps:
    """Between two chunks that come every 10 ms, in ms."""

    p50: float
    p99: float
    most: float
    chunks: int


def run(*, quick: bool = False, json_file: Path | None = None) -> None:
    """Measure, print, and write the figures to `json_file`. Raises ConfigError where something
    does not start or answer."""
    length = QUICK if quick else FULL
    with _started() as gateway:
        scraped, alone, beside = asyncio.run(_measured(gateway, length))
    _show(scraped, alone, beside)
    if json_file is not None:
        sizes = {"models": MODELS, "presets": PRESETS, "workers": WORKERS, "streams": STREAMS}
        found = {"scrape": asdict(scraped), "alone": asdict(alone), "scraped": asdict(beside)}
        report = {"setup": {**asdict(length), **sizes}, **found}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


async def _measured(gateway: Served, length: Length) -> tuple[Scraped, Gaps, Gaps]:
    url = f"http://{gateway.host}:{gateway.port}"
    async with aiohttp.ClientSession(url) as session:
        await _fill(session, length.repeats)
        scraped = await _scraped(session, gateway, length.scrapes)
        alone = await _gaps(session, length.seconds)
        async with _scraping(f"{url}/metrics", length.seconds):
            beside = await _gaps(session, length.seconds)
    return scraped, alone, beside


async def _fill(session: aiohttp.ClientSession, repeats: int) -> None:
    """Every model by itself and by every preset, in two shapes, streamed and whole, and refused for
    want of money."""
    presets = (None, *(f"p{number}" for number in range(PRESETS)))
    bodies = [
        (path, {**_body(f"m{number}"), "stream": stream, **({"policy": preset} if preset else {})})
        for path in _PATHS
        for number in range(MODELS)
        for preset in presets
        for stream in (False, True)
    ]
    waiting = [(path, body, usd) for path, body in bodies for usd in ("1", "0") * repeats]

    async def client() -> None:
        while waiting:
            path, body, usd = waiting.pop()
            # A connection each: else one worker would have all of them.
            headers = {"X-Budget-Usd": usd, "Connection": "close"}
            async with session.post(path, json=body, headers=headers) as answer:
                text = await answer.text()
            if answer.status != (200 if usd == "1" else 402):
                raise ConfigError(f"{path} of {body}: status {answer.status}: {text[:500]}")

    await asyncio.gather(*(client() for _ in range(_AT_ONCE)))


async def _scraped(session: aiohttp.ClientSession, gateway: Served, times: int) -> Scraped:
    pids, took, content = processes.family(gateway.pid), list[float](), b""
    before = sum(map(processes.cpu_seconds, pids))
    for _ in range(times):
        began = time.perf_counter()
        async with session.get("/metrics", headers={"Accept-Encoding": "identity"}) as answer:
            content = await answer.read()
        took.append(time.perf_counter() - began)
    cpu = (sum(map(processes.cpu_seconds, pids)) - before) / times
    series = sum(not line.startswith(b"#") for line in content.splitlines())
    zipped = len(gzip.compress(content, compresslevel=4))
    return Scraped(series, len(content), zipped, median(took), max(took), cpu)


async def _gaps(session: aiohttp.ClientSession, seconds: float) -> Gaps:
    until, gaps = time.monotonic() + seconds, list[float]()

    async def client() -> None:
        while time.monotonic() < until:
            body, last = {**_body("paced"), "stream": True}, None
            headers = {"Connection": "close"}  # the next one is another worker's
            async with session.post(_PATHS[0], json=body, headers=headers) as answer:
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        now = time.perf_counter()
                        gaps.extend(() if last is None else (now - last,))
                        last = now

    await asyncio.gather(*(client() for _ in range(STREAMS)))
    found = sorted(gaps)
    if len(found) < 2:
        raise ConfigError("the streams have no chunks")
    p50, p99 = (found[int(share * (len(found) - 1))] for share in (0.5, 0.99))
    return Gaps(p50 * 1000, p99 * 1000, found[-1] * 1000, len(found))


@asynccontextmanager
async def _scraping(url: str, seconds: float) -> AsyncIterator[None]:
    """Scraped all the while, one right after the other, by a process of its own."""
    command = [sys.executable, "-c", _SCRAPER, url, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as scraper:
        yield
        out, _ = await asyncio.to_thread(scraper.communicate)
        if scraper.returncode or not json.loads(out):
            raise ConfigError("the scraper failed")


def _body(model: str) -> dict[str, Any]:
    content = "Who keeps the lamp on the headland?"
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "max_tokens": _TOKENS}


@contextmanager
def _started() -> Iterator[Served]:
    with (
        TemporaryDirectory() as name,
        processes.serving(("-m", "app.bench.mock_server"), {}) as upstream,
    ):
        folder = Path(name)
        config = folder / "farthing.toml"
        config.write_text(_config(f"http://{upstream.host}:{upstream.port}"), encoding="utf-8")
        settings = {
            "state_dir": str(folder),
            "config": str(config),
            "port": "0",
            "workers": str(WORKERS),
            "log_level": "warning",
        }
        with processes.serving((*processes.CLI, "serve"), settings) as gateway:
            processes.wait_until_ready(gateway, WORKERS)
            yield gateway


def _config(url: str) -> str:
    """A fleet of one upstream that goes by many names, and presets that any of them may have."""
    names = [*((f"m{number}", BURST) for number in range(MODELS)), ("paced", PACED)]
    models = [
        f'[models.{name}]\nengine = "vllm"\nurls = ["{url}"]\nserved = "{served}"\n'
        f'family = "mock"\ncontext = {CONTEXT}\nprice = {{ input = 0.1, output = 0.4 }}\n'
        for name, served in names
    ]
    presets = [
        f'[presets.p{number}]\npolicy = "{_POLICIES[number % 2]}"\ntarget = "m{number}"\n'
        for number in range(PRESETS)
    ]
    return "\n".join([*models, *presets])


def _show(scraped: Scraped, alone: Gaps, beside: Gaps) -> None:
    sizes = f"{MODELS} models, {PRESETS} presets, {WORKERS} workers"
    console, pace = (
        Console(width=100),
        f"{STREAMS} streams, a chunk every {INTERVAL_S * 1000:.0f} ms",
    )
    console.print(
        f"{sizes}: {scraped.series} series, {scraped.bytes / 1e6:.2f} MB"
        f" ({scraped.zipped / 1e3:.0f} kB zipped), {scraped.seconds:.3f} s a scrape"
        f" (at most {scraped.longest:.3f}), {scraped.cpu:.3f} s of CPU"
    )
    table = Table(pace, "p50, ms", "p99, ms", "longest, ms", "chunks", box=None)
    for name, gaps in (("not scraped", alone), ("scraped all the while", beside)):
        cells: Sequence[float] = (gaps.p50, gaps.p99, gaps.most)
        table.add_row(name, *(f"{cell:.1f}" for cell in cells), str(gaps.chunks))
    console.print(table)
