"""One process's way to the ledger: what waits is written together, and nothing gets lost."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.accounts.journal import Entry, Journal
from app.errors import LedgerUnavailable
from app.storage.ledger import Ledger, milliseconds
from app.storage.records import Grant, Op, Refusal, Release, Reserve, Result, Settle


class Watcher(Protocol):
    """Who is told of what is written to the ledger."""

    def wrote(self, seconds: float) -> None:
        """One transaction took so long."""

    def settled(self, count: int) -> None:
        """So many settlements reached it."""


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
    tried: bool = False  # whether it may have been done already
    noted: bool = False  # whether it is in the journal
    since: float = field(default_factory=time.monotonic)


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
    watcher: Watcher | None = None
    _asked: list[_Asked] = field(default_factory=list)
    _owed: list[_Owed] = field(default_factory=list)
    _leased: dict[str, int] = field(default_factory=dict)  # our reservations' amounts, to renew
    _writer: asyncio.Task[None] | None = None
    _tenders: list[asyncio.Task[None]] = field(default_factory=list)
    _work: asyncio.Event = field(default_factory=asyncio.Event)
    _end: asyncio.Event = field(default_factory=asyncio.Event)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _failures: int = 0  # in a row
    _retry_at: float = 0.0  # time.monotonic()

    async def start(self) -> None:
        """Write from now on, and settle what dead processes left."""
        self._writer = asyncio.create_task(self._write())
        # Each by itself: however much there is to settle for the dead, our leases are renewed.
        steps = (self._renew, self._reap, self._adopt)
        self._tenders = [asyncio.create_task(self._tend(step)) for step in steps]

    async def aclose(self) -> None:
        """Write what waits; what cannot be written stays in the journal."""
        self._end.set()
        self._work.set()
        if self._writer is not None:
            await asyncio.gather(self._writer, *self._tenders, return_exceptions=True)
        self._into_journal(self._owed)
        self.journal.close()

    @property
    def away(self) -> bool:
        """Whether the database did not answer last time."""
        return self._failures > 0

    @property
    def owed(self) -> int:
        """Settlements and releases that are not in the database yet."""
        return len(self._owed)

    @property
    def lag(self) -> float:
        """For how many seconds the oldest of these has waited; 0: there is none."""
        return time.monotonic() - self._owed[0].since if self._owed else 0.0

    @property
    def held(self) -> int:
        """Reservations of requests of ours that are under way."""
        return len(self._leased)

    async def reserve(self, op: Reserve) -> Grant | Refusal:
        """What the ledger grants. Raises LedgerUnavailable."""
        if self.away or self._end.is_set():
            raise LedgerUnavailable
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
                raise LedgerUnavailable from error
            raise
        return result

    def keep(self, entry: Entry) -> asyncio.Future[None]:
        """Settle or release, sooner or later; done when it is kept, settled or in the journal."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owed.append(_Owed(entry, done))
        self._work.set()
        if self._writer is not None and self._writer.done():
            self._into_journal(self._owed)  # too late for the database: whoever finds it settles it
            self.journal.close()
            _resolve(done, None)
        return done

    async def kept(self, done: asyncio.Future[None]) -> None:
        """Wait for that, but not for ever: a client waits too."""
        await asyncio.wait((done,), timeout=self.patience_s)

    async def _write(self) -> None:
        while not (self._end.is_set() and self._idle()):
            await self._something_to_do()
            asked, self._asked = self._asked[:MOST], self._asked[MOST:]
            asked = [one for one in asked if not one.done.cancelled()]
            try:
                if time.monotonic() >= self._retry_at:
                    await self._settle_and_reserve(asked)
                else:
                    self._refuse(asked)
            except LedgerUnavailable:
                self._failed()
                self._give_up_all(asked)
            except Exception:  # whatever it was, others must go on being served
                log.exception("the ledger's writer failed; it goes on")
                self._give_up_all(asked)
                await asyncio.sleep(_BACKOFF_S[0])
            if self.away:
                await self._note()
            if self._asked or (self._owed and not self.away):
                self._work.set()

    def _idle(self) -> bool:
        return not self._asked and (self.away or not self._owed)

    async def _something_to_do(self) -> None:
        """Returns when there is work, or when what failed may be tried again."""
        wait = self._retry_at - time.monotonic() if self.away else None
        if wait is None or wait > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._work.wait()
        self._work.clear()

    async def _settle_and_reserve(self, asked: list[_Asked]) -> None:
        owed = self._owed[:MOST]
        again = any(one.tried for one in owed)
        for entry in owed:
            entry.tried = True
        ops: list[Op] = [*(one.entry for one in owed), *(one.op for one in asked)]
        try:
            results = await self._apply(ops, again=again)
        except LedgerUnavailable:
            raise
        except Exception:
            if not ops:
                raise
            log.exception("one of %d operations on the ledger failed", len(ops))
            await self._one_by_one(asked, owed)
            return
        self._back()
        self._settled(owed)
        for one, result in zip(asked, results[len(owed) :], strict=True):
            self._granted(one, result)

    async def _one_by_one(self, asked: list[_Asked], owed: list[_Owed]) -> None:
        """Find out what can never be written, set it aside, and do the rest."""
        for one in owed:
            await self._settle_or_set_aside(one.entry)
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
        self._back()

    async def _settle_or_set_aside(self, entry: Entry) -> None:
        try:
            await self._apply([entry], again=True)
        except LedgerUnavailable:
            raise
        except Exception:
            log.exception("this can never be settled, and is set aside: %s", entry)
            await asyncio.to_thread(self.journal.reject, entry)

    def _granted(self, asked: _Asked, result: Result) -> None:
        if result is None:  # it was made, and had expired
            self._refuse([asked])
            return
        if isinstance(result, Grant):
            self._leased[result.id] = result.amount
            if asked.done.cancelled():
                self._give_up(result, asked.op.key)
        _resolve(asked.done, result)

    def _give_up_all(self, asked: Sequence[_Asked]) -> None:
        """Whether these were made is not known: if so they are nobody's."""
        for one in asked:
            if one.done.cancelled() or not one.done.done():
                self._owed.append(_Owed(Release(one.op.id, one.op.key)))
        self._refuse(asked)

    def _give_up(self, granted: Grant | Refusal, key: str) -> None:
        """Nobody waits for it any more."""
        if isinstance(granted, Grant):
            self.keep(Release(granted.id, key))

    async def _apply(self, ops: Sequence[Op], *, again: bool) -> list[Result]:
        async with self._writing:
            began = time.monotonic()
            try:
                results = await self.ledger.apply(ops, self._lease_until(), again=again)
            except LedgerUnavailable:
                if self.away or time.monotonic() - began > _AT_ONCE_S:
                    raise
                # Once more at once: after a restart of the database the old connections fail.
                results = await self.ledger.apply(ops, self._lease_until(), again=True)
        if self.watcher is not None and ops:
            self.watcher.wrote(time.monotonic() - began)
            self.watcher.settled(sum(isinstance(op, Settle) for op in ops))
        return results

    def _lease_until(self) -> int:
        return milliseconds() + int(self.lease_s * 1000)

    def _settled(self, owed: Sequence[_Owed]) -> None:
        for one in owed:
            entry, held = one.entry, self._leased.get(one.entry.reservation, 0)
            left = held - entry.amount if isinstance(entry, Settle) else 0
            if left > 0:
                self._leased[entry.reservation] = left
            else:
                self._leased.pop(entry.reservation, None)
            _resolve(one.done, None)
        settled = {id(one) for one in owed}
        self._owed = [one for one in self._owed if id(one) not in settled]
        if not any(one.noted for one in self._owed):
            self.journal.clear()

    async def _note(self) -> None:
        """What is owed goes into the journal; nobody needs to wait any longer."""
        owed = list(self._owed)
        await asyncio.to_thread(self._into_journal, owed)
        for one in owed:
            _resolve(one.done, None)

    def _into_journal(self, owed: Sequence[_Owed]) -> None:
        """So that it outlives us. Where that fails it is in memory, and tried again."""
        new = [one for one in owed if not one.noted]
        if not new:
            return
        try:
            self.journal.write([one.entry for one in new])
        except Exception:  # full, gone, or not to be locked
            log.exception("the journal cannot be written: %s", [one.entry for one in new])
        else:
            for one in new:
                one.noted = True

    def _refuse(self, asked: Sequence[_Asked]) -> None:
        for one in asked:
            if not one.done.done():
                one.done.set_exception(LedgerUnavailable())
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

    async def _tend(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do this every quarter of a lease."""
        while not self._end.is_set():
            try:
                await step()
            except LedgerUnavailable:
                pass  # it was said where it was raised
            except Exception:  # whatever it was, it must go on being done
                log.exception("tending the ledger failed; it goes on")
            with suppress(TimeoutError):
                async with asyncio.timeout(self.lease_s / 4):
                    await self._end.wait()

    async def _renew(self) -> None:
        """Our leases, while their requests run."""
        if self._leased:
            async with self._writing:
                await self.ledger.renew(sorted(self._leased), self._lease_until())

    async def _reap(self) -> None:
        """Dead processes' reservations, when their leases have run out."""
        expired = await self.ledger.expired()
        random.shuffle(expired)  # others do the same, and need not wait for each other
        for id, key in expired:
            if self._end.is_set():
                return
            async with self._writing:  # each by itself: requests come between
                if await self.ledger.settle_expired(id, key):
                    log.warning("reservation %s expired and was settled in full", id)

    async def _adopt(self) -> None:
        """Dead processes' journals."""
        for orphan in self.journal.orphans():
            try:
                entries = await asyncio.to_thread(orphan.claim)
                if entries and await self._settle_for_another(entries):
                    log.warning("settled %d requests of a gateway that had died", len(entries))
                    orphan.settled()
            except OSError:
                log.exception("a journal cannot be adopted")
            finally:
                orphan.release()

    async def _settle_for_another(self, entries: list[Entry]) -> bool:
        """Whether all of them are done with: not if we must end first."""
        for start in range(0, len(entries), MOST):
            if self._end.is_set():
                return False
            some = entries[start : start + MOST]
            try:
                await self._apply(some, again=True)
            except LedgerUnavailable:
                raise
            except Exception:
                log.exception("one of %d entries of a journal failed", len(some))
                for entry in some:
                    await self._settle_or_set_aside(entry)
        return True


def _resolve(done: asyncio.Future[Any] | None, result: object) -> None:
    if done is not None and not done.done():
        done.set_result(result)
