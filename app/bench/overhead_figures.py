"""What the samples of `farthing bench overhead` say, as figures and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from app.bench.load import Observed
from app.bench.mock_server import BURST, PACED
from app.estimates import Estimate, mean, ratio

DIRECT = "direct"  # without the gateway
WHOLE = "whole"
"""An answer that is not streamed; the mock server's two names are streams."""


@dataclass(frozen=True)
class Point:
    """One way to the upstream, one mode, so many clients."""

    side: str
    mode: str
    at_once: int


@dataclass(frozen=True)
class Sample:
    """What one round found at a point."""

    observed: Observed
    cpu: float  # seconds of the gateway's, less what it uses idle


Round: TypeAlias = Mapping[Point, Sample]
Figures: TypeAlias = dict[str, dict[str, dict[int, dict[str, dict[str, float]]]]]
"""By side, mode and clients: each figure as mean, low and high."""


def figures(rounds: Sequence[Round]) -> Figures:
    """Means over the rounds with 95 % intervals; CPU time is shared out over all of them."""
    found: Figures = {}
    for point in rounds[0]:
        by_mode = found.setdefault(point.side, {}).setdefault(point.mode, {})
        by_mode[point.at_once] = {
            name: asdict(value) for name, value in _figures(point, rounds).items()
        }
    return found


def _figures(point: Point, rounds: Sequence[Round]) -> dict[str, Estimate]:
    samples = [one[point] for one in rounds]
    seen = [sample.observed for sample in samples]
    waits = [_waits(point, each) for each in seen]
    found = {
        "p50_ms": mean([p50 for p50, _ in waits]),
        "p99_ms": mean([p99 for _, p99 in waits]),
        "requests_per_s": mean([each.requests / each.seconds for each in seen]),
    }
    if point.mode != WHOLE:
        found["chunks_per_s"] = mean([each.chunks / each.seconds for each in seen])
    if point.side == DIRECT:
        return found
    other = Point(DIRECT, point.mode, point.at_once)
    directly = [_waits(point, one[other].observed) for one in rounds]
    for number, name in enumerate(("added_p50_ms", "added_p99_ms")):
        found[name] = mean([a[number] - b[number] for a, b in zip(waits, directly, strict=True)])
    cpu = [sample.cpu for sample in samples]
    found["cpu_ms_per_request"] = ratio([s * 1e3 for s in cpu], [each.requests for each in seen])
    if point.mode != WHOLE:
        found["cpu_us_per_chunk"] = ratio([s * 1e6 for s in cpu], [each.chunks for each in seen])
    return found


def _waits(point: Point, seen: Observed) -> tuple[float, float]:
    """Median and p99 in ms: of an answer; of a paced one, until its first chunk."""
    if point.mode == PACED:
        return seen.first_p50_ms, seen.first_p99_ms
    return seen.p50_ms, seen.p99_ms


_COLUMNS = {
    "added_p50_ms": "added p50, ms",
    "added_p99_ms": "added p99, ms",
    "cpu_ms_per_request": "CPU a request, ms",
    "cpu_us_per_chunk": "CPU a chunk, µs",
    "requests_per_s": "requests/s",
    "chunks_per_s": "chunks/s",
}
_MODES = {WHOLE: "not streamed", BURST: "stream at once", PACED: "stream, 10 ms a chunk"}


def show(found: Figures) -> None:
    """A line for each point; of the direct way what there is of it."""
    table = Table("upstream", "answers", "clients", *_COLUMNS.values(), box=None)
    for side, modes in found.items():
        for mode, by_clients in modes.items():
            for at_once, row in by_clients.items():
                cells = (_cell(row.get(name)) for name in _COLUMNS)
                table.add_row(side, _MODES[mode], str(at_once), *cells)
    console = Console()
    console.print(table) if console.is_terminal else Console(width=200).print(table)


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    digits = 0 if value["mean"] >= 1000 else 1 if value["mean"] >= 10 else 2
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*value.values(), d=digits)
