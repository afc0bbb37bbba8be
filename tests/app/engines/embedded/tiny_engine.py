"""The engine on the tiny model: calls to ask of it, and ways to look at what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from app.catalog import ModelCard, Price
from app.engines.embedded.engine import EmbeddedEngine
from app.types import Call, Chunk, Message, Sampling, Usage

GREEDY = Sampling(temperature=0, ignore_eos=True)
HELLO: tuple[Message, ...] = ({"role": "user", "content": "hello"},)
CALL = Call("tiny", HELLO, max_tokens=12, sampling=GREEDY)
FREE = Price(input=0, output=0)
OUTBOX = 8


def card(name: str, **more: Any) -> ModelCard:
    given = {"engine": "embedded", "weights": "x", "family": "tiny", "price": FREE}
    return ModelCard(name=name, **{**given, **more})


CARDS = [card("tiny"), card("tiny-int8", precision="int8"), card("short", context=64)]
Start = Callable[..., Awaitable[EmbeddedEngine]]


async def idle(engine: EmbeddedEngine) -> None:
    """Wait until nothing runs; fails where something leaked."""
    for _ in range(500):
        schedulers = [served.scheduler for served in engine.models.values()]
        if not any(s.running or s.waiting or s.memory.running_bytes for s in schedulers):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a sequence leaked")


async def collect(stream: AsyncGenerator[Chunk]) -> list[Chunk]:
    async with aclosing(stream):
        return [chunk async for chunk in stream]


def ids(chunks: Sequence[Chunk]) -> list[int]:
    return [token.id for chunk in chunks for token in chunk.tokens]


def total(chunks: Sequence[Chunk]) -> Usage:
    return sum((chunk.usage for chunk in chunks), Usage())


def text(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)
