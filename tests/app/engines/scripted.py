"""Servers in memory that do as they are told, and a clock that jumps to what happens next."""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from app.catalog import ModelCard, Price
from app.engines.fleet import Fleet
from app.errors import EngineUnavailable
from app.types import Call, Capabilities, Chunk, Load, Token, Usage

T = TypeVar("T")
FREE = Price(input=0, output=0)


class _Jump(selectors.DefaultSelector):
    """Never waits: moves its time on instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("everything waits, and nothing will happen any more")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def clock() -> float:
    return asyncio.get_running_loop().time()


def run(test: Callable[[], Awaitable[T]]) -> T:
    """Run this test in virtual time; it must leave no task behind."""

    async def alone() -> T:
        result = await test()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left behind: {left}"
        return result

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(alone())


async def settle() -> None:
    """Let everything happen that can happen now."""
    for _ in range(50):
        await asyncio.sleep(0)


def token(text: str) -> Chunk:
    return Chunk(f"{text} ", (Token(0),), usage=Usage(completion=1))


END = Chunk(finish="stop")
Step = Chunk | Exception | float | asyncio.Event  # say, fail, sleep, wait


@dataclass(eq=False)
class Server:
    """A Backend. What it does is in its fields, which tests change while it runs."""

    url: str = "http://a:8000"
    idempotent: bool = True
    fingerprint: str | None = None
    up: bool = True
    probing: Exception | float | None = None  # fail, or take so many seconds
    pulsing: Exception | float | None = None
    load_: Load = Load()
    abilities: Capabilities = Capabilities("f", 1000, "exact", True, True, 1)
    counts: int | Exception = 7
    counting: asyncio.Event | None = None  # what a count waits for
    plays: deque[Sequence[Any]] = field(default_factory=deque)  # of the next calls
    always: Sequence[Step] = (token("a"), token("b"), END)  # of all others
    asked: list[Call] = field(default_factory=list)
    counted: list[Call] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)  # when
    pulses: list[float] = field(default_factory=list)
    running: int = 0
    most: int = 0  # that ran at once
    closed: int = 0

    async def _check(self, told: Exception | float | None) -> None:
        if not self.up:
            raise EngineUnavailable("it is down")
        if isinstance(told, Exception):
            raise told
        await asyncio.sleep(told or 0.0)

    async def probe(self) -> None:
        self.probes.append(clock())
        await self._check(self.probing)

    async def pulse(self) -> Load:
        self.pulses.append(clock())
        await self._check(self.pulsing)
        return self.load_

    async def aclose(self) -> None:
        assert not self.running
        self.closed += 1

    def capabilities(self, model: str) -> Capabilities:
        return self.abilities

    def load(self, model: str) -> Load:
        return self.load_

    async def count(self, call: Call) -> int:
        self.counted.append(call)
        await self._check(None)
        if self.counting is not None:
            self.running += 1
            await self.counting.wait()
            self.running -= 1
        if isinstance(self.counts, Exception):
            raise self.counts
        return self.counts

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        self.asked.append(call)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._check(None)
            for step in self.plays.popleft() if self.plays else self.always:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
        finally:
            self.running -= 1


def card(name: str, *urls: str, **keys: Any) -> ModelCard:
    keys = {"engine": "vllm", "family": "f", "price": FREE, "urls": urls, **keys}
    return ModelCard(name=name, **keys)


def call(text: str = "hello", model: str = "m", **keys: Any) -> Call:
    return Call(model, ({"role": "user", "content": text},), **keys)


class Servers(dict[str, Server]):
    """By URL. Called with a card and a URL it is what a Fleet makes its backends with."""

    def __init__(self, *servers: Server) -> None:
        super().__init__({server.url: server for server in servers})
        self.made: list[tuple[str, str]] = []

    def __call__(self, card: ModelCard, url: str) -> Server:
        self.made.append((card.name, url))
        return self[url]

    def fleet(self, *cards: ModelCard, **keys: Any) -> Fleet:
        """Of these cards; of one model with all servers if there are none."""
        cards = cards or (card("m", *self),)
        keys = {"random": Random(1), "clock": clock, **keys}
        return Fleet.build(cards, self, keys.pop("engines", None), **keys)

    @asynccontextmanager
    async def started(self, *cards: ModelCard, **keys: Any) -> AsyncGenerator[Fleet]:
        fleet = self.fleet(*cards, **keys)
        await fleet.start()
        try:
            yield fleet
        finally:
            await fleet.aclose()


def servers(*names: str, **fields: Any) -> Servers:
    return Servers(*(Server(f"http://{name}:8000", **fields) for name in names))


async def said(fleet: Fleet, asked: Call) -> str:
    """The whole answer's text."""
    async with aclosing(fleet.generate(asked)) as stream:
        return "".join([chunk.text async for chunk in stream]).strip()


async def opened(fleet: Fleet, asked: Call) -> AsyncGenerator[Chunk]:
    """The stream, after its first chunk."""
    stream = fleet.generate(asked)
    await anext(stream)
    return stream
