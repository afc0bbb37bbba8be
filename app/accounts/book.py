"""One process's way to the ledger: what waits is written together, and nothing gets lost."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from app.accounts.journal import Entry, Journal, adopted
from app.errors import LedgerUnavailable
from app.storage.ledger import Ledger, milliseconds
from app.storage.records import Grant, Op, Refusal, Release, Reserve, Result, Settle

MOST = 256  # operations in one transaction
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0)  # between attempts while the database is away
_AT_ONCE_S = 1.0  # what failed sooner than that is tried once more at once
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
    _leased: dict[str, int] = field(default_factory=dict)  # our reservations' amounts, to renew
    _writer: asyncio.Task[None] | None = None
    _tender: asyncio.Task[None] | None = None
    _work: asyncio.Event = field(default_factory=asyncio.Event)
    _end: asyncio.Event = field(default_factory=asyncio.Event)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _failures: int = 0  # in a row
    _retry_at: float = 0.0  # time.monotonic()

    async def start(self) -> None:
        """Write from now on, and settle what dead processes left."""
        self._writer = asyncio.create_task(self._write())
        self._tender = asyncio.create_task(self._tend())

    async def aclose(self) -> None:
        """Write what waits; what cannot be written stays in the journal."""
        self._end.set()
        self._work.set()
        tasks = [task for task in (self._writer, self._tender) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        self.journal.close()

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
        if self.away or self._end.is_set():
            raise _unavailable()
        asked = _Asked(op, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        self._work.set()
        try:
            async with asyncio.timeout(self.patience_s):
                result: Grant | Refusal = await asked.done
        except (TimeoutError, asyncio.CancelledError) as error:
            # Waiting for it cancelled it, unless it was granted in the same instant.
            if asked.done.done() and not (asked.done.cancelled() or asked.done.exception()):
                self._give_up(asked.done.result(), op.key)
            if isinstance(error, TimeoutError):
                raise _unavailable() from error
            raise
        return result

    def keep(self, entry: Entry) -> asyncio.Future[None]:
        """Settle or release, sooner or later; done when it is kept, settled or in the journal."""
        one = _Owed(entry, asyncio.get_running_loop().create_future())
        if self._writer is not None and self._writer.done():
            self._into_journal([one])  # too late for the database: whoever finds it settles it
            self.journal.close()
            _resolve(one.done, None)
        else:
            self._fresh.append(one)
            self._work.set()
        assert one.done is not None
        return one.done

    async def kept(self, done: asyncio.Future[None]) -> None:
        """Wait for that, but not for ever: a client waits too."""
        await asyncio.wait((done,), timeout=self.patience_s)

    async def _write(self) -> None:
        while not (self._end.is_set() and self._idle()):
            asked: list[_Asked] = []
            entries: list[_Owed] = []
            try:
                await self._something_to_do()
                asked, entries = self._take()
                if time.monotonic() < self._retry_at:
                    self._refuse(asked)
                    await self._note(entries)
                else:
                    await self._settle_and_reserve(asked, entries)
            except Exception:  # whatever it was, others must go on being served
                log.exception("the ledger's writer failed; it goes on")
                self._failed()
                lost = [_Owed(Release(a.op.id, a.op.key)) for a in asked if not a.done.done()]
                self._refuse(asked)
                fresh = [one for one in entries if one.done is not None and not one.done.done()]
                await self._note([*lost, *(one for one in fresh if one not in self._owed)])

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
        ops: list[Op] = [*(one.entry for one in owed), *(one.op for one in asked)]
        try:
            results = await self._apply(ops, again=bool(self._owed))
        except LedgerUnavailable:
            self._failed()
            self._refuse(asked)
            # Whether these were made is not known: if so they are nobody's.
            lost = [_Owed(Release(one.op.id, one.op.key)) for one in asked]
            await self._note([*entries, *lost])
            return
        except Exception:
            if len(ops) < 2:
                raise
            log.exception("one of %d operations on the ledger failed", len(ops))
            self._owed += entries
            await self._one_by_one(asked, owed)
            return
        self._back()
        self._settled(owed)
        for one, result in zip(asked, results[len(owed) :], strict=True):
            self._granted(one, result)

    async def _one_by_one(self, asked: list[_Asked], owed: list[_Owed]) -> None:
        """Find out what can never be written, set it aside, and do the rest."""
        for one in owed:
            try:
                await self._apply([one.entry], again=True)
            except LedgerUnavailable:
                raise
            except Exception:
                log.exception("this can never be settled, and is set aside: %s", one.entry)
                await asyncio.to_thread(self.journal.reject, one.entry)
            self._settled([one])
        for waiting in asked:
            try:
                (result,) = await self._apply([waiting.op], again=True)
            except LedgerUnavailable:
                raise
            except Exception:
                log.exception("this can never be reserved: %s", waiting.op)
                self._refuse([waiting])
            else:
                self._granted(waiting, result)

    def _granted(self, asked: _Asked, result: Result) -> None:
        if result is None:  # it was made, and had expired
            self._refuse([asked])
            return
        if isinstance(result, Grant):
            self._leased[result.id] = result.amount
            if asked.done.cancelled():
                self._give_up(result, asked.op.key)
        _resolve(asked.done, result)

    def _give_up(self, granted: Grant | Refusal, key: str) -> None:
        """Nobody waits for it any more."""
        if isinstance(granted, Grant):
            self.keep(Release(granted.id, key))

    async def _apply(self, ops: Sequence[Op], *, again: bool) -> list[Result]:
        async with self._writing:
            began = time.monotonic()
            try:
                return await self.ledger.apply(ops, self._lease_until(), again=again)
            except LedgerUnavailable:
                if self.away or time.monotonic() - began > _AT_ONCE_S:
                    raise
                # Once more at once: after a restart of the database the old connections fail.
                return await self.ledger.apply(ops, self._lease_until(), again=True)

    def _lease_until(self) -> int:
        return milliseconds() + int(self.lease_s * 1000)

    def _settled(self, owed: Sequence[_Owed]) -> None:
        for one in owed:
            id = one.entry.reservation
            amount = one.entry.amount if isinstance(one.entry, Settle) else self._leased.get(id, 0)
            left = self._leased.get(id, 0) - amount
            if left > 0:
                self._leased[id] = left
            else:
                self._leased.pop(id, None)
            _resolve(one.done, None)
        self._owed = [one for one in self._owed if one not in owed]
        if self._owed:
            self._work.set()
        else:
            self.journal.clear()

    async def _note(self, entries: list[_Owed]) -> None:
        """Into the journal, so that they outlive us."""
        if not entries:
            return
        self._owed += entries
        await asyncio.to_thread(self._into_journal, entries)
        for one in entries:
            _resolve(one.done, None)
            one.done = None

    def _into_journal(self, entries: Sequence[_Owed]) -> None:
        try:
            self.journal.write([one.entry for one in entries])
        except Exception:  # full, gone, or not to be locked: they are in memory still
            log.exception("the journal cannot be written: %s", [one.entry for one in entries])

    def _refuse(self, asked: Sequence[_Asked]) -> None:
        for one in asked:
            if not one.done.done():
                one.done.set_exception(_unavailable())
                one.done.exception()  # perhaps nobody waits any more

    def _back(self) -> None:
        if self.away:
            log.warning("the ledger is back; %d entries to settle", len(self._owed))
        self._failures, self._retry_at = 0, 0.0

    def _failed(self) -> None:
        if not self.away:
            log.error("the ledger is away: only what it has reserved is served until it is back")
        self._retry_at = time.monotonic() + _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1

    async def _tend(self) -> None:
        """Renew our leases; settle what dead processes left: reservations, then journals."""
        while not self._end.is_set():
            for step in (self._renew, self._reap, self._adopt):
                try:
                    await step()
                except LedgerUnavailable:
                    break  # it was said where it was raised
                except Exception:  # whatever it was, leases must go on being renewed
                    log.exception("tending the ledger failed; it goes on")
            with suppress(TimeoutError):
                async with asyncio.timeout(self.lease_s / 4):
                    await self._end.wait()

    async def _renew(self) -> None:
        if self._leased:
            async with self._writing:
                await self.ledger.renew(sorted(self._leased), self._lease_until())

    async def _reap(self) -> None:
        expired = await self.ledger.expired()
        random.shuffle(expired)  # others do the same, and need not wait for each other
        for id, key in expired:
            async with self._writing:  # each by itself: requests come between
                if await self.ledger.settle_expired(id, key):
                    log.warning("reservation %s expired and was settled in full", id)

    async def _adopt(self) -> None:
        for path in self.journal.orphans():
            try:
                with adopted(path) as entries:
                    await self._settle_for_another(entries)
            except OSError:
                log.exception("the journal %s cannot be adopted", path)

    async def _settle_for_another(self, entries: list[Entry]) -> None:
        for entry in entries:
            try:
                await self._apply([entry], again=True)
            except LedgerUnavailable:
                raise
            except Exception:
                log.exception("this can never be settled, and is set aside: %s", entry)
                await asyncio.to_thread(self.journal.reject, entry)
        if entries:
            log.warning("settled %d requests of a gateway that had died", len(entries))


def _resolve(done: asyncio.Future[Any] | None, result: object) -> None:
    if done is not None and not done.done():
        done.set_result(result)


def _unavailable() -> LedgerUnavailable:
    return LedgerUnavailable("The ledger does not answer; try again", retry_after=1)
