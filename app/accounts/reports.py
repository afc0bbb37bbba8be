"""Usage as people read it: which groups, which days, and the table as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import Any

from app.catalog import seconds, usd
from app.errors import BadRequest
from app.storage.records import UsageRow

_DAY_S = 86400
COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")


def groups(by: str, known: Sequence[str]) -> list[str]:
    """Names of groups, commas between. Raises BadRequest."""
    names = [name.strip() for name in by.split(",") if name.strip()]
    for name in names:
        if name not in known or names.count(name) > 1:
            raise BadRequest(f"by: must be some of {', '.join(known)}", param="by")
    return names


def period(since: date | None, until: date | None) -> dict[str, int | None]:
    """These days (UTC), both counted, in seconds as the ledger wants them."""
    return {
        "since": None if since is None else _seconds(since),
        "until": None if until is None else _seconds(until) + _DAY_S,
    }


def group(row: UsageRow) -> dict[str, str]:
    return {
        name: str(datetime.fromtimestamp(value, UTC).date()) if name == "day" else value
        for name, value in row.group.items()
    }


def counts(row: UsageRow) -> dict[str, int]:
    return dict(zip(COUNTS, (row.requests, row.prompt, row.cached, row.completion), strict=True))


def headings(by: Sequence[str]) -> list[str]:
    return [*by, *COUNTS, "cost_usd", "gpu_seconds"]


def cells(row: UsageRow) -> list[Any]:
    """Under the headings; amounts are exact decimals, and empty where they are not known."""
    taken = "" if row.gpu_us is None else seconds(row.gpu_us)
    return [*group(row).values(), *counts(row).values(), usd(row.cost), taken]


def as_csv(by: Sequence[str], rows: Sequence[UsageRow]) -> str:
    """A table with a line of headings (RFC 4180)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(headings(by))
    for row in rows:
        names = [_inert(value) for value in group(row).values()]
        writer.writerow([*names, *cells(row)[len(names) :]])
    return out.getvalue()


def _inert(cell: str) -> str:
    """A name that a spreadsheet would take for a formula, as the text that it is."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _seconds(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())
