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
from app.storage.records import Grant, Refusal, Release, Reserve, Settle, Settlement


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
class _Recent:
    """What was reserved lately, and their sum."""

    amount: int = 0
    _each: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, when: float, amount: int) -> None:
        self._each.append((when, amount))
        self.amount += amount

    def forget(self, before: float) -> None:
        while self._each and self._each[0][0] < before:
            self.amount -= self._each.popleft()[1]


@dataclass
class Headroom:
    """Slices of keys' rests: what a key's requests reserved in the last `seconds`, again.

    With `seconds` 0 there are none, and every request waits for the ledger.
    """

    book: Book
    seconds: float = 0.0
    _slices: dict[str, list[_Slice]] = field(default_factory=lambda: defaultdict(list))
    _recent: dict[str, _Recent] = field(default_factory=lambda: defaultdict(_Recent))
    _filling: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _tidying: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self.seconds:
            self._tidying = asyncio.create_task(self._tidy())

    async def aclose(self) -> None:
        """Give back all that no request has; from now on nothing is held ahead."""
        self.seconds = 0
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
                self._fill(op, target)
                return Grant(part.grant.id, op.want, part.grant.windows, part.grant.good_until)
        granted = await self.book.reserve(op)
        if isinstance(granted, Grant) and granted.amount == op.want:
            self._fill(op, target)
        return granted

    def _note(self, op: Reserve, now: float) -> int:
        """What this key's requests reserved lately, this one included."""
        recent = self._recent[op.key]
        recent.add(now, op.want)
        recent.forget(now - self.seconds)
        return recent.amount

    def _fill(self, op: Reserve, target: int) -> None:
        """Add a slice in the background, once the last is half used.

        So no more than one and a half are held, a tenth of what the key has left.
        """
        slices = self._slices[op.key]
        enough = min(target, slices[-1].grant.amount) if slices else target
        free = sum(part.free for part in slices)
        if free < enough / 2 and op.key not in self._filling and not self.book.away:
            task = asyncio.create_task(self._add(op, target))
            self._filling[op.key] = task
            task.add_done_callback(lambda _: self._filling.pop(op.key, None))

    async def _add(self, op: Reserve, target: int) -> None:
        asked = time.monotonic()
        with suppress(LedgerUnavailable):
            granted = await self.book.reserve(
                Reserve(f"slice-{uuid.uuid4().hex}", op.key, 0, 0, ahead=target)
            )
            if isinstance(granted, Grant):
                until = asked + self.book.lease_s
                part = _Slice(granted, op.key, granted.amount, asked, until)
                if part.free >= op.want:
                    self._slices[op.key].append(part)
                else:
                    self._give_back(part)  # too small to be of use: let others have it

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
        if free == part.grant.amount:
            self.book.keep(Release(part.grant.id, part.key))
        elif free:
            # Requests still hold the rest. A settlement of nothing, so that it is done once.
            nothing = Settlement(f"{part.grant.id}.free", part.key, outcome="released")
            self.book.keep(Settle(part.grant.id, free, part.grant.windows, nothing))
