"""What a request cost and took, model by model, and what its account is told of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.catalog import GpuSeconds, Price
from app.types import Usage


@dataclass(frozen=True, slots=True)
class Line:
    """What one model was paid for in one request."""

    model: str
    usage: Usage  # billed: catch-up and discarded tokens included
    cost: int  # 1e-12 USD
    visible: int = 0  # tokens of the answer that it wrote
    gpu_us: int | None = None  # accelerator-microseconds, idealized, rounded up; None: not known


@dataclass(frozen=True, slots=True)
class Bill:
    """What a request cost, and what its client sees of it."""

    prompt: int  # tokens of the prompt, once
    cached: int  # of these, read from a prefix cache by the first call
    completion: int  # tokens of the answer
    lines: tuple[Line, ...]  # one per model
    cost: int  # 1e-12 USD, the sum of the lines
    prices: str  # version of the price table
    overhead: float  # seconds of our own time

    @property
    def gpu_us(self) -> int | None:
        """Accelerator-microseconds, the sum of the lines; None where one of them does not know."""
        known = [line.gpu_us for line in self.lines if line.gpu_us is not None]
        return sum(known) if len(known) == len(self.lines) else None


def version(prices: Mapping[str, Price], gpu: Mapping[str, GpuSeconds]) -> str:
    """A short name for these tables, so that what was settled can be explained later."""
    tariffs = [*prices.items(), *gpu.items()]
    table = sorted((name, tariff.model_dump_json()) for name, tariff in tariffs)
    return hashlib.sha256(repr(table).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one request did with its account's money."""

    bill: Bill
    outcome: str
    id: str = ""  # ours
    request_id: str = ""  # what its client knows it by
    explain: Callable[[], str] | None = None  # why it came out so: JSON, without a word of it
