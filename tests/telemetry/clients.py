"""Clients of a gateway: each request as it ended for who asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.gateways import pico
from tests.telemetry.wishes import Wish


@dataclass
class Told:
    """What its client knows of an answer."""

    wish: Wish
    status: int | None = None  # None: there was none
    headers: Mapping[str, str] = field(default_factory=dict)  # in any case
    id: str | None = None  # ours
    usage: dict[str, Any] | None = None  # None: the price was not told
    code: str | None = None  # of an error in place of the answer, or amid it
    lost: bool = False  # the connection broke

    @property
    def cost(self) -> int | None:
        """1e-12 USD."""
        return None if self.usage is None else pico(self.usage["cost"])

    @property
    def left(self) -> bool:
        return self.wish.leaves is not None and self.usage is None and self.code is None


async def ask_all(
    url: str,
    token: str,
    wishes: Sequence[Wish],
    begun: Callable[[int], bool] = lambda seed: True,
    at_once: int = 24,
    told: list[Told] | None = None,
) -> list[Told]:
    """All of them, so many at once; `begun`: whether a server works on the one with this seed;
    `told`: empty, to see what they are told meanwhile."""
    told = [] if told is None else told
    told += map(Told, wishes)
    waiting = list(enumerate(wishes))
    headers = {"Authorization": f"Bearer {token}"}
    connector = aiohttp.TCPConnector(limit=0)
    limit = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(url, connector=connector, timeout=limit) as session:

        async def client() -> None:
            while waiting:
                number, wish = waiting.pop()
                asking = asyncio.create_task(_ask(session, wish, headers, told[number]))
                while wish.leaves == 0 and not (begun(wish.body["seed"]) or asking.done()):
                    await asyncio.sleep(0.01)
                if wish.leaves == 0:
                    asking.cancel()
                await asyncio.wait((asking,))
                if not asking.cancelled():
                    asking.result()

        await asyncio.gather(*(client() for _ in range(at_once)))
    return told


async def _ask(
    session: aiohttp.ClientSession, wish: Wish, headers: dict[str, str], told: Told
) -> None:
    headers = {**headers, **wish.headers}
    try:
        async with session.post(wish.path, json=wish.body, headers=headers) as answer:
            told.status, told.headers = answer.status, answer.headers
            if answer.content_type == "text/event-stream":
                await _read(answer, told)
            else:
                _note(told, await answer.json())
    except aiohttp.ClientError:
        told.lost = True


async def _read(answer: aiohttp.ClientResponse, told: Told) -> None:
    """Events to the last one, or until its client leaves."""
    number = 0
    async for line in answer.content:
        if not line.startswith(b"data: {"):
            continue
        _note(told, json.loads(line[6:]))
        number += 1
        if told.wish.leaves is not None and number >= told.wish.leaves:
            answer.close()
            return


def _note(told: Told, content: dict[str, Any]) -> None:
    """What a body or an event says, in whichever shape."""
    for inner in (content, content.get("response"), content.get("message")):
        if not isinstance(inner, dict):
            continue
        told.id = inner.get("id") or told.id
        usage = inner.get("usage")
        if isinstance(usage, dict) and "cost_details" in usage:
            told.usage = usage
        if isinstance(error := inner.get("error"), dict):
            told.code = error.get("code") or error["type"]
