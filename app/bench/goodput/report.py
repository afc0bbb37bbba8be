"""What a replay has found: as tables, as JSON, and as a picture of what was foretold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.bench.calibrate import plots
from app.bench.calibrate.frontier import Price
from app.bench.goodput.figures import Figure, Times
from app.bench.goodput.foretold import Error, errors, pairs
from app.bench.goodput.outcomes import WHYS, Outcome
from app.bench.paired import Comparison
from app.estimates import Estimate

JSON, TEXT, PICTURE = "report.json", "report.txt", "foretold.png"
_WIDE = 160  # columns of the text
_AMOUNTS: Mapping[Price, tuple[str, str]] = {
    "cost": ("cost", "USD"),
    "seconds": ("latency", "s"),
    "first_s": ("first token", "s"),
}


def write(
    rows: Sequence[Figure],
    found: Sequence[Outcome],
    auto: str,
    said: Mapping[str, Any],
    out: Path,
) -> None:
    """Report, text and picture into this folder, and the text to the terminal. `said`: what was
    asked for. Raises OSError."""
    planned = [one for one in found if one.way == auto]
    foretold = errors(planned)
    told = {
        "asked": said,
        "figures": [asdict(row) for row in rows],
        "foretold": {what: asdict(error) for what, error in foretold.items()},
        "pairs": {what: [asdict(pair) for pair in pairs(planned, what)] for what in foretold},
    }
    (out / JSON).write_text(json.dumps(told, indent=2, default=str) + "\n", encoding="utf-8")
    lines = [*_lines(rows, foretold, auto), *_pictured(planned, foretold, out)]
    with (out / TEXT).open("w", encoding="utf-8") as file:
        for console in (Console(), Console(file=file, width=_WIDE)):
            for table in _tables(rows, auto):
                console.print(table)
            for line in lines:
                console.print(line, markup=False, highlight=False, soft_wrap=True)


def _pictured(
    planned: Sequence[Outcome], foretold: Mapping[Price, Error], out: Path
) -> Iterator[str]:
    if plots.foretold({what: pairs(planned, what) for what in foretold}, out / PICTURE):
        yield f"Expected beside actual: {out / PICTURE}"


def _tables(rows: Sequence[Figure], auto: str) -> Iterator[Table]:
    kept = _table("farthing bench goodput", "in time, budget", "and right", "worth in time")
    for row in rows:
        kept.add_row(row.way, *map(_interval, (row.met, row.right, row.value)))
    yield kept
    if others := [row for row in rows if row.against is not None]:
        less = _table(
            f"{auto}, less each other way", "in time, budget", "and right", "worth in time"
        )
        for row in others:
            assert row.against is not None
            each = row.against.met, row.against.right, row.against.value
            less.add_row(row.way, *map(_difference, each))
        yield less
    taken = _table("what they gave and cost", "quality", "USD", "of budget", "over budget")
    times = _table("seconds", "first p50", "p95", "whole p50", "p95")
    for row in rows:
        taken.add_row(row.way, *_taken(row))
        times.add_row(row.way, *_times(row.first), *_times(row.seconds))
    yield taken
    yield times
    classes = list(dict.fromkeys(name for row in rows for name in sorted(row.classes)))
    each_class = _table("right, in time and budget, by class", *classes)
    for row in rows:
        shares = (
            f"{row.classes[name].right.mean:.3f} of {row.classes[name].met.mean:.3f}"
            for name in classes
        )
        each_class.add_row(row.way, *shares)
    yield each_class
    whys = [why for why in WHYS if any(why in row.why_not for row in rows)]
    if whys:
        missed = _table("requests that were not", *whys)
        for row in rows:
            missed.add_row(row.way, *(str(row.why_not.get(why, 0)) for why in whys))
        yield missed


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title)
    table.add_column("way", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _taken(row: Figure) -> tuple[str, ...]:
    return (
        f"{row.quality.mean:.3f}",
        "" if row.cost is None else f"{row.cost.mean:.2e}",
        "" if row.used is None else f"{row.used.mean:.2f}",
        str(row.over),
    )


def _times(times: Times | None) -> tuple[str, str]:
    return ("", "") if times is None else (f"{times.p50:.3f}", f"{times.p95:.3f}")


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} {estimate.low:.2f}-{estimate.high:.2f}"


def _difference(found: Comparison) -> str:
    off = found.difference
    return f"{off.mean:+.3f} p={found.p:.3f}\n{off.low:+.3f} to {off.high:+.3f}"


def _lines(rows: Sequence[Figure], foretold: Mapping[Price, Error], auto: str) -> Iterator[str]:
    over = {row.way: row.over for row in rows if row.over}
    if over:
        told = ", ".join(f"{way} {count}" for way, count in over.items())
        yield f"BUDGETS WERE NOT KEPT, which must not be: {told}. Please report it."
    else:
        known = sum(row.requests - row.unknown for row in rows)
        yield f"No request cost more than its budget, of {known} whose cost is known."
    if unknown := sum(row.unknown for row in rows):
        yield f"What {unknown} requests cost nobody can say: they broke off, and there is no log."
    yield from _won(rows, auto)
    for row in rows[:1]:
        told = ", ".join(f"{name} {share:.0%}" for name, share in row.chosen.items())
        yield f"{row.way} was answered by: {told}"
    yield from _errors(foretold)
    late = max(rows, key=lambda row: row.lag)
    yield f"Requests were sent {late.lag:.3f} s too late at most ({late.way})."


def _won(rows: Sequence[Figure], auto: str) -> Iterator[str]:
    others = [row for row in rows if row.against is not None]
    if not others:
        return
    for what, name in (("met", "in time and budget"), ("right", "right, in time and budget")):
        each = [getattr(row.against, what) for row in others]
        more = sum(one.difference.mean > 0 for one in each)
        sure = sum(one.difference.low > 0 for one in each)
        yield f"{auto} has more {name} than {more} of {len(others)} other ways, surely than {sure}."


def _errors(foretold: Mapping[Price, Error]) -> Iterator[str]:
    for what, error in foretold.items():
        name, unit = _AMOUNTS[what]
        parts = [f"expected {error.expected:.3g} {unit}, actual {error.actual:.3g}"]
        parts.append(f"mean absolute error {error.absolute:.3g}")
        if error.relative is not None:
            parts.append(f"of the actual {error.relative:.0%} on average")
        if error.below is not None:
            parts.append(f"{error.below:.0%} below what 98 of 100 should not pass")
        yield f"Foretold {name}, {error.answers} answers: {'; '.join(parts)}"
    if not foretold:
        yield "What was expected of the planner's choices is not known: the gateway keeps no log."
