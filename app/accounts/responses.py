"""What clients may name again: responses that were kept, and those under way here or elsewhere."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from app.errors import LedgerUnavailable
from app.storage.records import Kept, Owner
from app.storage.responses import ResponseStore

_LEASE_MS = 30_000  # one under way is forgotten when its process has not renewed it for so long
_RENEWED_S = 10.0
_SWEPT_S = 60.0
_EARLY = 32 * 2**20  # bytes after which it is swept before its time
log = logging.getLogger(__name__)


class Stoppable(Protocol):
    """An answer under way."""

    @property
    def ended(self) -> bool: ...
    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, as its owner may see it."""

    ended: bool
    content: dict[str, Any]


class Responses:
    """The responses of all keys, as one process has them. Raises LedgerUnavailable.

    Whoever is asked to cancel one that another process runs notes it in the store, where that
    process looks while it has any under way.
    """

    def __init__(self, store: ResponseStore, keep_s: float, most: int, look_s: float = 1.0) -> None:
        """`most`: bytes kept for a key. With `keep_s` 0 nothing is ever kept."""
        self._store = store
        self._keep = int(keep_s * 1000)
        self._most = most
        self._look = look_s
        self._running: dict[str, Stoppable] = {}
        self._unswept = 0
        self._tender: asyncio.Task[None] | None = None

    @property
    def on(self) -> bool:
        return self._keep > 0

    def start(self) -> None:
        if self.on:
            self._tender = asyncio.create_task(self._tend())

    async def aclose(self) -> None:
        if self._tender is not None:
            self._tender.cancel()
            await asyncio.gather(self._tender, return_exceptions=True)

    async def begin(
        self, id: str, owner: Owner, content: Mapping[str, Any], answer: Stoppable
    ) -> None:
        """One that its owner may name from now on, and cancel."""
        kept = Kept(False, _encode(content))
        self._unswept += len(kept.content)
        await self._store.add(id, owner, kept, _LEASE_MS)
        self._running[id] = answer

    async def keep(
        self, id: str, owner: Owner, content: Mapping[str, Any], *, begun: bool = False
    ) -> bool:
        """Whether this response, which has ended, can be named from now on.

        One that has `begun` cannot where its owner has deleted it meanwhile.
        """
        kept = Kept(True, _encode(content))
        self._unswept += len(kept.content)
        self._running.pop(id, None)
        if begun:
            return await self._store.replace(id, owner, kept, self._keep)
        await self._store.add(id, owner, kept, self._keep)
        return True

    async def find(self, id: str, owner: Owner) -> Stored | None:
        kept = await self._store.find(id, owner)
        return None if kept is None else Stored(kept.ended, json.loads(kept.content))

    async def delete(self, id: str, owner: Owner) -> bool:
        """Whether there was one; one under way goes on, and is not kept."""
        return await self._store.delete(id, owner)

    async def cancel(self, id: str, owner: Owner) -> Stored | None:
        """End one under way, and what has become of it; still under way if it takes too long."""
        found = await self.find(id, owner)
        if found is None or found.ended:
            return found
        await self._store.cancel(id, owner)
        if id in self._running:
            self._running[id].stop()
        end = time.monotonic() + 3 * self._look
        while found is not None and not found.ended and time.monotonic() < end:
            await asyncio.sleep(self._look / 20)
            found = await self.find(id, owner)
        return found

    async def _tend(self) -> None:
        renewed = swept = time.monotonic()
        while True:
            await asyncio.sleep(self._look)
            now = time.monotonic()
            try:
                if now - renewed > _RENEWED_S:
                    renewed = now
                    await self._renew()
                await self._end_cancelled()
                if now - swept > _SWEPT_S or self._unswept > _EARLY:
                    swept, self._unswept = now, 0
                    await self._sweep()
            except LedgerUnavailable:
                pass  # it has been logged; the next round tries again
            except Exception:  # a task of the process: it must not end with what went wrong once
                log.exception("responses are not tended")

    async def _renew(self) -> None:
        self._running = {id: a for id, a in self._running.items() if not a.ended}
        if self._running:
            await self._store.renew(list(self._running), _LEASE_MS)

    async def _end_cancelled(self) -> None:
        if not self._running:
            return
        for id in await self._store.cancelled(list(self._running)):
            if id in self._running:
                self._running[id].stop()

    async def _sweep(self) -> None:
        if swept := await self._store.sweep(self._most):
            log.info("swept %d responses", swept)


def _encode(content: Mapping[str, Any]) -> str:
    # Escaped throughout: PostgreSQL's text knows no U+0000.
    return json.dumps(content, separators=(",", ":"))
