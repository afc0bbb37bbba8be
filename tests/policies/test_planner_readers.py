"""What `auto` learns of its machine from answers whose clients read slowly."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from app.catalog import Catalog
from app.types import Call, Chunk
from tests.policies.autos import Loaded, auto, engine, fleet, soon, taken
from tests.policies.measured import known, law, way


@dataclass
class Clock:
    """Goes on only when it is told to."""

    now: float


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(time.monotonic())
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@dataclass(kw_only=True)
class Slow(Loaded):
    """Takes some seconds to each token."""

    clock: Clock
    each: float

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        async with aclosing(super().generate(call)) as chunks:
            async for chunk in chunks:
                self.clock.now += self.each * len(chunk.tokens)
                yield chunk


def promised(latency: float) -> Catalog:
    """The better way takes so long, as it was measured; the other one a second."""
    large = way(fleet(), "large", 1.0, latency=law(latency))
    return known(fleet(), large, way(fleet(), "server", 0.5, latency=law(1.0)))


async def learned(catalog: Catalog, clock: Clock, each: float, reads: float, end: float) -> None:
    """`each`: seconds of the engine to a token; `reads`: of the client to each, `end`: to the
    last, behind which it asks for no more."""
    fake = Slow(engine().scripts, clock=clock, each=each)
    for _ in range(20):
        async with aclosing(auto(catalog, fake, arrived=clock.now)) as answer:
            async for chunk in answer:
                clock.now += end if chunk.finish else reads
                if chunk.finish:
                    break


@pytest.mark.parametrize(
    ("latency", "each", "reads", "end", "limit", "name"),
    [
        (1.0, 0.01, 60.0, 60.0, 5, "large"),  # no slow client makes a machine slow
        (1.0, 0.0, 0.0, 900.0, 5, "large"),  # nor one that is slow at the end
        (1.0, 0.5, 60.0, 60.0, 5, "server"),  # but what was waited for was the engine's
        (40.0, 0.001, 60.0, 60.0, 30, "server"),  # it may have worked ahead: it need not be quick
        (40.0, 0.0, 0.1, 60.0, 30, "large"),  # it took no more than four seconds
    ],
)
async def test_what_is_learned_is_the_engines(
    clock: Clock, latency: float, each: float, reads: float, end: float, limit: float, name: str
) -> None:
    catalog = promised(latency)
    await learned(catalog, clock, each, reads, end)
    assert await taken(catalog, deadline=soon(limit)) == name
