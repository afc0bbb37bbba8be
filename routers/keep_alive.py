"""Comments in a stream of events that has nothing to say for a while: connections live on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

COMMENT = ": keep-alive\n\n"  # which readers of events skip


class KeepAlive:
    """Has `beat` run after each `every` seconds without a `turn`; 0: never.

    One timer a stream, not one a token. `async with` starts and ends it.
    """

    def __init__(self, every: float, beat: Callable[[], Awaitable[None]]) -> None:
        self._every = every
        self._beat = beat
        self._last = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Future[None] | None = None
        self._over = False

    async def __aenter__(self) -> KeepAlive:
        self._wait(self._every)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)

    async def turn(self) -> None:
        """Whoever calls is about to send; a beat under way ends before."""
        self._last = time.monotonic()
        if self._beating is not None:
            await self._beating
            self._beating = None

    def now(self) -> None:
        """A beat at once; none once the last words are being prepared."""
        if not self._over and (self._beating is None or self._beating.done()):
            self._beating = asyncio.ensure_future(self._beat())

    def _wait(self, seconds: float) -> None:
        if self._every:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        left = self._last + self._every - time.monotonic()
        if left <= 0:
            self.now()
            self._last = time.monotonic()
        self._wait(max(left, 0) or self._every)
