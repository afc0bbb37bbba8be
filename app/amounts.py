"""Amounts as the JSON of an explanation has them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from app.catalog import PICO


def nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def usd(pico: int | None) -> float | None:
    return None if pico is None else pico / PICO


def gpu_seconds(us: int | None) -> float | None:
    return None if us is None else us / 10**6


def since(moment: float | None, start: float) -> float | None:
    return None if moment is None else round(moment - start, 6)


def foretold_usd(usd: float | None) -> float | None:
    """Of an amount that was never paid, as many digits as money has."""
    return None if usd is None else round(usd, 12)


def seconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def number(value: float | None) -> float | str | None:
    """JSON has no infinity."""
    return value if value is None or math.isfinite(value) else str(value)
