"""Money of a key that this process holds ahead of need, so that a request need not wait for it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field

from app.accounts.book import Book
from app.errors import LedgerUnavailable
from app.storage.ledger import milliseconds
from app.storage.records import Grant, Refusal, Release, Reserve


@dataclass
class _Slice:
    """A reservation of which parts go to requests."""

    grant: Grant
    key: str
    free: int
    used: float  # time.monotonic() of the last request that was given a part
    lease_until: float  # time.monotonic(); beyond it others may have settled it in full

    def gives(self, amount: int, now: float) -> bool:
        in_time = now < self.lease_until and milliseconds() < self.grant.good_until * 1000
        return in_time and self.free >= amount


@dataclass
class Headroom:
    """Slices of keys' rests: what a key's requests reserved in the last `seconds`, again.

    With `seconds` 0 there are none, and every request waits for the ledger.
    """

    book: Book
    seconds: float = 0.0
    _slices: dict[str, list[_Slice]] = field(default_factory=lambda: defaultdict(list))
    _recent: dict[str, deque[tuple[float, int]]] = field(default_factory=lambda: defaultdict(deque))
    _filling: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _tidying: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self.seconds:
            self._tidying = asyncio.create_task(self._tidy())

    async def aclose(self) -> None:
        """Give back all that no request has."""
        tasks = [*self._filling.values(), *([self._tidying] if self._tidying else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slices in self._slices.values():
            for part in slices:
                self._give_back(part)
        self._slices.clear()

    async def reserve(self, op: Reserve, *, ahead: bool) -> Grant | Refusal:
        """The part of a slice where there is one, else a reservation. Raises LedgerUnavailable.

        `ahead` says whether this key may hold more than its requests need.
        """
        if not (self.seconds and ahead and op.want):
            return await self.book.reserve(op)
        now = time.monotonic()
        target = self._note(op, now)
        for part in self._slices[op.key]:
            if part.gives(op.want, now):
                part.free -= op.want
                part.used = now
                if sum(p.free for p in self._slices[op.key]) < target / 2:
                    self._fill(op.key, target)
                return Grant(part.grant.id, op.want, part.grant.windows, part.grant.good_until)
        granted = await self.book.reserve(op)
        self._fill(op.key, target)
        return granted

    def _note(self, op: Reserve, now: float) -> int:
        """What this key's requests reserved lately, this one included."""
        recent = self._recent[op.key]
        recent.append((now, op.want))
        while recent[0][0] < now - self.seconds:
            recent.popleft()
        return sum(amount for _, amount in recent)

    def _fill(self, key: str, target: int) -> None:
        if key not in self._filling and not self.book.away:
            task = asyncio.create_task(self._add(key, target))
            self._filling[key] = task
            task.add_done_callback(lambda _: self._filling.pop(key, None))

    async def _add(self, key: str, target: int) -> None:
        asked = time.monotonic()
        op = Reserve(f"slice-{uuid.uuid4().hex}", key, 0, 0, ahead=target)
        with suppress(LedgerUnavailable):
            granted = await self.book.reserve(op)
            if isinstance(granted, Grant):
                until = asked + self.book.lease_s
                part = _Slice(granted, key, granted.amount, asked, until)
                if part.free:
                    self._slices[key].append(part)
                else:
                    self._give_back(part)

    async def _tidy(self) -> None:
        """Give back what is not used, and what is no longer good."""
        while True:
            await asyncio.sleep(self.seconds / 2)
            now = time.monotonic()
            for key, slices in list(self._slices.items()):
                for part in list(slices):
                    if not part.gives(1, now) or part.used < now - self.seconds:
                        slices.remove(part)
                        self._give_back(part)
                    elif not self.book.away:
                        part.lease_until = now + self.book.lease_s * 3 / 4
                if not slices and key not in self._filling:
                    del self._slices[key]
                    self._recent.pop(key, None)

    def _give_back(self, part: _Slice) -> None:
        free, part.free = part.free, 0
        if free or not part.grant.amount:
            self.book.keep(Release(part.grant.id, part.key, free, part.grant.windows))
