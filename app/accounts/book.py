"""One process's way to the ledger: what waits is written together, and nothing gets lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from app.accounts.journal import Entry, Journal, adopted
from app.errors import LedgerUnavailable
from app.storage.ledger import Ledger, milliseconds
from app.storage.records import Grant, Op, Refusal, Release, Reserve, Result

MOST = 256  # operations in one transaction
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0)  # between attempts while the database is away
log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Asked:
    """A reservation that somebody waits for."""

    op: Reserve
    done: asyncio.Future[Any]


@dataclass(eq=False)
class _Owed:
    """A settlement or release that the database has not got yet."""

    entry: Entry
    done: asyncio.Future[Any] | None = None  # resolved once it is kept, there or in the journal


@dataclass
class Book:
    """Reserves, settles and releases for all requests of this process.

    One task writes, so that all that waits goes into one transaction, and no two transactions of
    a process wait for each other. While the database is away reservations fail at once, and what
    was served is kept in the journal until it can be settled.
    """

    ledger: Ledger
    journal: Journal
    lease_s: float = 60.0
    patience_s: float = 2.0  # for an answer of the database, from a request's point of view
    _asked: list[_Asked] = field(default_factory=list)
    _fresh: list[_Owed] = field(default_factory=list)  # not tried yet
    _owed: list[_Owed] = field(default_factory=list)  # failed before, and in the journal
    _leased: dict[str, int] = field(default_factory=dict)  # amounts of our reservations, to renew
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _work: asyncio.Event = field(default_factory=asyncio.Event)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _failures: int = 0  # in a row
    _retry_at: float = 0.0  # time.monotonic()
    _closing: bool = False

    async def start(self) -> None:
        """Write from now on, and settle what dead processes left."""
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._tend())]

    async def aclose(self) -> None:
        """Write what waits; what cannot be written stays in the journal."""
        self._closing = True
        self._work.set()
        writer, tender = self._tasks
        tender.cancel()
        await asyncio.gather(writer, tender, return_exceptions=True)
        await self.ledger.database.aclose()

    @property
    def away(self) -> bool:
        """Whether the database did not answer last time."""
        return self._failures > 0

    @property
    def owed(self) -> int:
        """Settlements and releases that are not in the database yet."""
        return len(self._owed) + len(self._fresh)

    async def reserve(self, op: Reserve) -> Grant | Refusal:
        """What the ledger grants. Raises LedgerUnavailable."""
        if self.away or self._closing:
            raise _unavailable()
        asked = _Asked(op, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        self._work.set()
        try:
            async with asyncio.timeout(self.patience_s):
                result: Grant | Refusal = await asked.done
        except (TimeoutError, asyncio.CancelledError) as error:
            # Waiting for it cancelled it, unless it was granted in the same instant.
            if not asked.done.cancelled() and isinstance(granted := asked.done.result(), Grant):
                self.keep(Release(granted.id, op.key, granted.amount, granted.windows))
            if isinstance(error, TimeoutError):
                raise _unavailable() from error
            raise
        return result

    def keep(self, entry: Entry) -> asyncio.Future[None]:
        """Settle or release, sooner or later; done when it is kept, settled or in the journal."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fresh.append(_Owed(entry, done))
        self._work.set()
        return done

    async def kept(self, done: asyncio.Future[None]) -> None:
        """Wait for that, but not for ever: a client waits too."""
        await asyncio.wait((done,), timeout=self.patience_s)

    async def _write(self) -> None:
        while not (self._closing and self._idle()):
            await self._something_to_do()
            asked, entries = self._take()
            if time.monotonic() < self._retry_at:
                self._refuse(asked)
                await self._note(entries)
            else:
                await self._settle_and_reserve(asked, entries)

    def _idle(self) -> bool:
        return not (self._asked or self._fresh or (self._owed and not self.away))

    async def _something_to_do(self) -> None:
        """Returns when there is work, or when what failed may be tried again."""
        wait = self._retry_at - time.monotonic() if self.away else None
        if wait is None or wait > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._work.wait()
        self._work.clear()

    def _take(self) -> tuple[list[_Asked], list[_Owed]]:
        entries, self._fresh = self._fresh[:MOST], self._fresh[MOST:]
        room = MOST - len(entries)
        asked, self._asked = self._asked[:room], self._asked[room:]
        if self._asked or self._fresh:
            self._work.set()
        return [one for one in asked if not one.done.cancelled()], entries

    async def _settle_and_reserve(self, asked: list[_Asked], entries: list[_Owed]) -> None:
        owed = [*self._owed[: MOST - len(entries)], *entries]
        ops: list[Op] = [*(o.entry for o in owed), *(w.op for w in asked)]
        try:
            results = await self._apply(ops)
        except LedgerUnavailable:
            self._failed()
            self._refuse(asked)
            # Whether these were made is not known: if so they are nobody's.
            lost = [_Owed(Release(w.op.id, w.op.key)) for w in asked]
            await self._note([*entries, *lost])
            return
        except Exception:  # a bug in one request must not stop all others
            log.exception("%d operations on the ledger failed", len(ops))
            await self._one_by_one(asked, owed)
            return
        self._back()
        self._settled(owed)
        for waiting, result in zip(asked, results[len(owed) :], strict=True):
            self._granted(waiting, result)

    async def _one_by_one(self, asked: list[_Asked], owed: list[_Owed]) -> None:
        """Find out what cannot be written at all, and do the rest."""
        if len(asked) + len(owed) == 1:
            self._refuse(asked)
            for one in owed:
                log.error("this can never be settled, and is not: %s", one.entry)
            self._settled(owed)
            return
        self._owed = [o for o in self._owed if o not in owed]
        for one in owed:
            await self._settle_and_reserve([], [one])
        for waiting in asked:
            await self._settle_and_reserve([waiting], [])

    def _granted(self, waiting: _Asked, result: Result) -> None:
        if isinstance(result, Grant):
            self._leased[result.id] = result.amount
            if waiting.done.cancelled():
                self.keep(Release(result.id, waiting.op.key, result.amount, result.windows))
        _resolve(waiting.done, result)

    async def _apply(self, ops: Sequence[Op]) -> list[Result]:
        async with self._writing:
            try:
                return await self.ledger.apply(ops, self._lease_until())
            except LedgerUnavailable:
                if self.away:
                    raise
                # Once more at once: after a restart of the database the old connections fail.
                return await self.ledger.apply(ops, self._lease_until())

    def _lease_until(self) -> int:
        return milliseconds() + int(self.lease_s * 1000)

    def _settled(self, owed: Sequence[_Owed]) -> None:
        for one in owed:
            id, amount = one.entry.reservation, one.entry.amount
            left = 0 if amount is None else self._leased.get(id, 0) - amount
            if left > 0:
                self._leased[id] = left
            else:
                self._leased.pop(id, None)
            _resolve(one.done, None)
        self._owed = [o for o in self._owed if o not in owed]
        if self._owed:
            self._work.set()
        else:
            self.journal.clear()

    async def _note(self, entries: list[_Owed]) -> None:
        """Into the journal, so that they outlive us."""
        if not entries:
            return
        try:
            await asyncio.to_thread(self.journal.write, [o.entry for o in entries])
        except OSError:
            log.exception("the journal cannot be written; %d entries are in memory", len(entries))
        for one in entries:
            _resolve(one.done, None)
            one.done = None
        self._owed += entries

    def _refuse(self, asked: Sequence[_Asked]) -> None:
        for waiting in asked:
            if not waiting.done.done():
                waiting.done.set_exception(_unavailable())
                waiting.done.exception()  # perhaps nobody waits any more

    def _back(self) -> None:
        if self.away:
            log.warning("the ledger is back; %d entries to settle", len(self._owed))
        self._failures, self._retry_at = 0, 0.0

    def _failed(self) -> None:
        if not self.away:
            log.error(
                "the ledger is away: only what is reserved already is served until it is back"
            )
        self._retry_at = time.monotonic() + _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1

    async def _tend(self) -> None:
        """Adopt dead processes' journals and reservations, renew our own."""
        while True:
            try:
                await self._adopt()
                async with self._writing:
                    if self._leased:
                        await self.ledger.renew(sorted(self._leased), self._lease_until())
                    await self.ledger.reap()
            except LedgerUnavailable:
                pass  # it was said where it was raised
            except Exception:  # whatever it was, leases must go on being renewed
                log.exception("leases could not be tended")
            await asyncio.sleep(self.lease_s / 4)

    async def _adopt(self) -> None:
        for path in self.journal.orphans():
            with adopted(path) as entries:
                for start in range(0, len(entries or ()), MOST):
                    await self._apply((entries or [])[start : start + MOST])
                if entries:
                    log.warning("settled %d requests of a gateway that had died", len(entries))


def _resolve(done: asyncio.Future[Any] | None, result: object) -> None:
    if done is not None and not done.done():
        done.set_result(result)


def _unavailable() -> LedgerUnavailable:
    return LedgerUnavailable("The ledger does not answer; try again", retry_after=1)
