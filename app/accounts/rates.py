"""Requests and tokens per minute of a key, counted by the `limits` library."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import StorageError
from redis.exceptions import RedisError

from app.budget import Rate, RateKind
from app.errors import RateLimited
from app.storage.records import KeyRow

T = TypeVar("T")
_RETRY_S = 1.0
_REDIS_S = 1.0  # to connect, and for an answer
log = logging.getLogger(__name__)


class RedisCounters(RedisStorage):
    """Counters in a Redis. Where it does not answer in time it is away."""

    STORAGE_SCHEME: list[str] = []  # made by hand, not from a URI

    def __init__(self, url: str) -> None:
        super().__init__(
            f"async+{url}",
            wrap_exceptions=True,
            implementation="redispy",
            socket_timeout=_REDIS_S,
            socket_connect_timeout=_REDIS_S,
        )
        bridge: Any = self.bridge
        self._connection: Any = bridge.get_connection()

    async def get_expiry(self, key: str) -> float:
        """To the millisecond; the library's own is up to half a second too early."""
        left: int = await self._connection.pttl(self.bridge.prefixed_key(key))
        return time.time() + max(left, 0) / 1000

    async def aclose(self) -> None:
        with suppress(RedisError):
            await self._connection.aclose()


class Rates:
    """Windows of a minute that begin with the first request: their end is known exactly.

    While the storage does not answer each process counts for itself.
    """

    def __init__(self, storage: Storage) -> None:
        self._shared = FixedWindowRateLimiter(storage)
        self._own = FixedWindowRateLimiter(MemoryStorage())
        self._adding: set[asyncio.Task[None]] = set()
        self._retry_at = 0.0  # time.monotonic(); until then the storage is not asked

    async def admit(self, key: KeyRow, tokens: int, states: list[Rate]) -> None:
        """Count a request that will read and write this many tokens; add to `states`.

        Raises RateLimited, with a true `retry_after`, where a limit forbids it.
        """
        for kind, item, cost in _limits(key, tokens):
            allowed, state = await self._try(partial(_hit, item, key.id, kind, cost))
            states.append(state)
            if not allowed:
                raise _refused(state, cost)

    def add(self, key: KeyRow, tokens: int) -> None:
        """Count tokens that were written beyond what was admitted; in the background."""
        if key.tokens_per_minute is not None and tokens > 0:
            task = asyncio.create_task(self._add(key, key.tokens_per_minute, tokens))
            self._adding.add(task)
            task.add_done_callback(self._adding.discard)

    async def _add(self, key: KeyRow, limit: int, tokens: int) -> None:
        item = _per_minute(limit, "tokens")
        await self._try(lambda limiter: limiter.hit(item, key.id, cost=tokens))

    async def aclose(self) -> None:
        """Count what is still to be counted."""
        await asyncio.gather(*self._adding, return_exceptions=True)
        if isinstance(self._shared.storage, RedisCounters):
            await self._shared.storage.aclose()

    async def _try(self, ask: Callable[[FixedWindowRateLimiter], Awaitable[T]]) -> T:
        if time.monotonic() >= self._retry_at:
            try:
                return await ask(self._shared)
            except StorageError as error:
                log.warning("rates are counted in this process only: %s", error)
                self._retry_at = time.monotonic() + _RETRY_S
        return await ask(self._own)


def _limits(key: KeyRow, tokens: int) -> list[tuple[RateKind, RateLimitItem, int]]:
    found: list[tuple[RateKind, RateLimitItem, int]] = []
    if key.requests_per_minute is not None:
        found.append(("requests", _per_minute(key.requests_per_minute, "requests"), 1))
    if key.tokens_per_minute is not None:
        found.append(("tokens", _per_minute(key.tokens_per_minute, "tokens"), tokens))
    return found


def _per_minute(amount: int, kind: RateKind) -> RateLimitItem:
    return RateLimitItemPerMinute(amount, namespace=f"farthing-{kind}")


async def _hit(
    item: RateLimitItem, key: str, kind: RateKind, cost: int, limiter: FixedWindowRateLimiter
) -> tuple[bool, Rate]:
    # A refused hit counts too. One request more changes nothing, many tokens would shut out the
    # rest of the minute: so these are tested first.
    allowed = kind == "requests" or await limiter.test(item, key, cost=cost)
    allowed = allowed and await limiter.hit(item, key, cost=cost)
    stats = await limiter.get_window_stats(item, key)
    reset = max(stats.reset_time - time.time(), 0.0)
    return allowed, Rate(kind, item.amount, stats.remaining, reset)


def _refused(state: Rate, cost: int) -> RateLimited:
    what = f"This key's limit is {state.limit} {state.kind} per minute"
    if cost > state.limit:
        error = RateLimited(
            f"{what}; this request alone needs {cost} (prompt and max_tokens)", param="max_tokens"
        )
        error.retry = False
        return error
    return RateLimited(
        f"{what}, of which {state.remaining} are left; this request needs {cost}",
        param=f"{state.kind}_per_minute",
        retry_after=state.reset,
    )
