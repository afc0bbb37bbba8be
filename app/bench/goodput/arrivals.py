"""When requests arrive: windows of a recorded trace, at another pace and as uneven as it was."""

from __future__ import annotations

import csv
import random
import statistics
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

COLUMN = "TIMESTAMP"


def read_trace(path: Path) -> list[float]:
    """When each request came, in seconds since the first, in order: the column TIMESTAMP of a CSV
    file, as in Azure's LLM inference trace of 2023 (Patel et al., Splitwise, 2024).

    Raises FileNotFoundError, and ValueError naming file, line and column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if COLUMN not in (rows.fieldnames or ()):
            raise ValueError(f"{path}: has no column {COLUMN}, when each request came")
        found = [_moment(row[COLUMN], path, rows.line_num) for row in rows]
    if not found:
        raise ValueError(f"{path}: holds no request")
    first = min(found)
    return sorted((moment - first).total_seconds() for moment in found)


def _moment(text: str | None, path: Path, line: int) -> datetime:
    try:
        return datetime.fromisoformat(text or "").replace(tzinfo=None)
    except ValueError as error:
        raise ValueError(f"{path}:{line}: {COLUMN}: {error}") from error


def window(times: Sequence[float], requests: int, rate: float, seed: int) -> list[float]:
    """So many arrivals that follow each other in the trace, from a start drawn by the seed, in
    seconds from the first. Their gaps are all made longer or shorter alike, so that `rate` arrive
    in a second on average. Raises ValueError where the trace is too short, or they all came at
    once."""
    if len(times) < requests:
        raise ValueError(f"the trace has {len(times)} arrivals, and {requests} are to be replayed")
    start = random.Random(f"start {seed}").randrange(len(times) - requests + 1)
    part = times[start : start + requests]
    if requests == 1:
        return [0.0]
    if part[-1] == part[0]:
        raise ValueError(f"{requests} arrivals of the trace came at once, and have no pace")
    times_as_long = (requests - 1) / rate / (part[-1] - part[0])
    return [(each - part[0]) * times_as_long for each in part]


def unevenness(arrivals: Sequence[float]) -> float:
    """The coefficient of variation of the gaps: 0 of a clock, about 1 of a Poisson process; NaN of
    fewer than three arrivals."""
    gaps = [after - before for before, after in zip(arrivals, arrivals[1:], strict=False)]
    return statistics.stdev(gaps) / statistics.fmean(gaps) if len(gaps) > 1 else float("nan")
