"""Reserve, settle, release, renew, reap: every transaction that moves money."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    bindparam,
    delete,
    func,
    select,
    true,
    update,
)

from app.storage.balance import WINDOWS, Balance, windows_at
from app.storage.database import Database
from app.storage.explanations import write_explanations
from app.storage.prepared import Among, Prepared, inserting
from app.storage.records import (
    AccountRow,
    Explained,
    Grant,
    Line,
    Op,
    Owner,
    Refusal,
    Release,
    Reserve,
    Result,
    Settle,
    Settlement,
    Windows,
)
from app.storage.tables import accounts, lines, reservations, settlements

_MANY = 500  # values in one statement

_LOCK = Among(
    lambda keys: (
        select(accounts)
        .where(accounts.c.key_id.in_(keys))
        .order_by(accounts.c.key_id)
        .with_for_update()
    )
)
_NAMED = Among(lambda ids: select(reservations).where(reservations.c.id.in_(ids)))
_SETTLED = Among(lambda ids: select(settlements).where(settlements.c.id.in_(ids)))
_BALANCE = Prepared(
    update(accounts)
    .where(accounts.c.key_id == bindparam("of"))
    .values(
        {
            name: bindparam(name)
            for name in (
                "running",
                *(f"{w}_{part}" for w in WINDOWS for part in ("start", "spent", "held")),
            )
        }
    )
)
_RESIZE = Prepared(
    update(reservations).where(reservations.c.id == bindparam("of")).values(amount=bindparam("to"))
)
_END = Among(lambda ids: delete(reservations).where(reservations.c.id.in_(ids)))
_RESERVE = inserting(reservations)
_SETTLE = inserting(settlements)
_PAY = inserting(lines)


def milliseconds() -> int:
    return time.time_ns() // 10**6


class Ledger:
    """The money of all keys. Any number of processes may have one on the same database.

    Every operation may be repeated after a failure whose outcome is unknown: a reservation is
    made once, a request is settled once. Only operations that were certainly never tried may be
    applied with `again` False, which looks less up.
    """

    def __init__(
        self, database: Database, process: str = "", clock: Callable[[], int] = milliseconds
    ) -> None:
        self.database = database
        self._process = process
        self._clock = clock

    async def apply(
        self, ops: Sequence[Op], lease_until: int, *, again: bool = True
    ) -> list[Result]:
        """Do all of these in one transaction, in order; reservations live until `lease_until`.

        Raises LedgerUnavailable when nothing, or all of it, was done: repeat it. With nothing to
        do it tries whether the ledger answers.
        """

        def work(connection: Connection) -> list[Result]:
            batch = _Batch(connection, self._clock(), self._process, lease_until)
            batch.read(ops, again)
            results = [batch.do(op) for op in ops]
            batch.write()
            return results

        return await self.database.write(work)

    async def renew(self, ids: Iterable[str], lease_until: int) -> None:
        """Keep these reservations of this process for longer."""
        known = list(ids)

        def work(connection: Connection) -> None:
            for start in range(0, len(known), _MANY):
                some = reservations.c.id.in_(known[start : start + _MANY])
                mine = reservations.c.process == self._process
                changed = update(reservations).where(some, mine).values(lease_until=lease_until)
                connection.execute(changed)

        await self.database.write(work)

    async def expired(self) -> list[tuple[str, str]]:
        """Reservations whose lease has run out, oldest first, and their keys."""
        out = reservations.c.lease_until < self._clock()
        query = (
            select(reservations.c.id, reservations.c.key_id)
            .where(out)
            .order_by(reservations.c.lease_until)
            .limit(_MANY)
        )
        rows = await self.database.read(lambda connection: connection.execute(query).all())
        return [(id, key) for id, key in rows]

    async def settle_expired(self, id: str, key: str) -> bool:
        """Settle this reservation in full, if its lease has still run out.

        Its process has died or cannot reach us. What it spent may be more than it last told, but
        not more than it reserved.
        """
        return await self.database.write(partial(_settle_lost, id, key, self._clock()))

    async def account(self, key: str) -> AccountRow | None:
        """What a key may spend and has spent, as of now."""
        return (await self._accounts(accounts.c.key_id == key)).get(key)

    async def accounts(self) -> dict[str, AccountRow]:
        """The same of all keys."""
        return await self._accounts(true())

    async def _accounts(self, which: ColumnElement[bool]) -> dict[str, AccountRow]:
        query = select(accounts).where(which)
        rows = await self.database.read(lambda connection: _rows(connection.execute(query)))
        return {row["key_id"]: Balance(row, self._clock() // 1000).shown() for row in rows}

    async def open_reservations(self) -> int:
        """How many there are, of all processes."""
        query = select(func.count()).select_from(reservations)
        return await self.database.read(lambda connection: connection.execute(query).scalar_one())


class _Batch:
    """One transaction's reads, what follows from them, and its writes."""

    def __init__(self, connection: Connection, now: int, process: str, until: int) -> None:
        self._connection = connection
        self._now = now
        self._process = process
        self._lease_until = until
        self._balances: dict[str, Balance] = {}
        self._held: dict[str, dict[str, Any]] = {}  # reservations, as rows
        self._before: dict[str, int] = {}  # their amounts before
        self._settled: dict[str, dict[str, Any]] = {}  # settlements, as rows; empty: new ones
        self._new: list[tuple[Settlement, Windows]] = []

    def read(self, ops: Sequence[Op], again: bool) -> None:
        """Lock the accounts, always in the same order, and read what the operations name."""
        self._balances = _locked(self._connection, {op.key for op in ops}, self._now)
        named = {op.reservation for op in ops if not isinstance(op, Reserve)}
        asked = set[str]()
        if again:  # some of it may have been done
            named |= {op.id for op in ops if isinstance(op, Reserve)}
            asked |= {op.settlement.id for op in ops if isinstance(op, Settle)}
            asked |= {_refund_id(id) for id in named}
        if named:
            rows = _NAMED.rows(self._connection, sorted(named))
            self._held = {row["id"]: row for row in rows}
            self._before = {id: row["amount"] for id, row in self._held.items()}
        asked |= named - set(self._before)  # one that expired was settled under its own id
        if asked:
            rows = _SETTLED.rows(self._connection, sorted(asked))
            self._settled = {row["id"]: row for row in rows}

    def do(self, op: Op) -> Result:
        if isinstance(op, Reserve):
            return self._reserve(op)
        if isinstance(op, Settle):
            self._settle(op)
        else:
            self._release(op)
        return None

    def write(self) -> None:
        """Everything that the operations changed."""
        _write_balances(self._connection, self._balances.values())
        self._write_reservations()
        _write_settlements(self._connection, self._new, self._now)

    def _reserve(self, op: Reserve) -> Result:
        balance = self._balances[op.key]
        row = self._held.get(op.id)
        if row is None and op.id in self._settled:
            # Made by an attempt whose outcome was not known, and expired before this one.
            self._release(Release(op.id, op.key))
            return None
        if row is None:
            amount = balance.reserve(op)
            if isinstance(amount, Refusal):
                return amount
            row = {
                "id": op.id,
                "key_id": op.key,
                "process": self._process,
                "amount": amount,
                "minute": balance.windows.minute,
                "day": balance.windows.day,
                "month": balance.windows.month,
                "lease_until": self._lease_until,
                "policy": op.policy,
                "model": op.model,
            }
            self._held[op.id] = row
        return Grant(op.id, row["amount"], _windows(row), balance.good_until())

    def _settle(self, op: Settle) -> None:
        settled = op.settlement
        if settled.id in self._settled:
            return
        self._settled[settled.id] = {}
        self._new.append((settled, op.windows))
        self._give_back(op.reservation, op.key, op.amount, op.windows, settled.cost, settled.id)

    def _release(self, op: Release) -> None:
        row, expired = self._held.get(op.reservation), self._settled.get(op.reservation)
        if row is not None:
            amount, windows = row["amount"], _windows(row)
        elif expired and _refund_id(op.reservation) not in self._settled:
            # The minute is long over; the day is that of the settlement.
            amount = expired["cost"]
            windows = replace(windows_at(expired["day"]), minute=0)
        else:
            return
        self._give_back(op.reservation, op.key, amount, windows, 0, op.reservation)

    def _give_back(
        self, reservation: str, key: str, amount: int, windows: Windows, cost: int, by: str
    ) -> None:
        balance, row = self._balances[key], self._held.get(reservation)
        if row is not None:
            amount = min(amount, row["amount"])
            row["amount"] -= amount
            ended = row["amount"] == 0
            balance.settle(windows, amount, cost, ended=ended)
            if ended:
                del self._held[reservation]
        elif reservation in self._settled and amount:
            # It expired and was settled in full. Now we know better: take that part back.
            balance.settle(windows, 0, cost - amount, ended=False)
            lost = self._settled[reservation]
            refund = Settlement(
                _refund_id(by), key, lost["policy"], lost["model"], "recovered", cost=-amount
            )
            self._settled[refund.id] = {}
            self._new.append((refund, windows))
        else:
            balance.settle(windows, 0, cost, ended=False)

    def _write_reservations(self) -> None:
        connection = self._connection
        new = [row for id, row in self._held.items() if id not in self._before]
        if new:
            _RESERVE.run(connection, new)
        changed = [
            {"of": id, "to": row["amount"]}
            for id, row in self._held.items()
            if self._before.get(id, row["amount"]) != row["amount"]
        ]
        if changed:
            _RESIZE.run(connection, changed)
        gone = sorted(set(self._before) - set(self._held))
        if gone:
            _END.run(connection, gone)


def _locked(connection: Connection, keys: set[str], now: int) -> dict[str, Balance]:
    rows = _LOCK.rows(connection, sorted(keys))
    return {row["key_id"]: Balance(row, now // 1000) for row in rows}


def _settle_lost(id: str, key: str, now: int, connection: Connection) -> bool:
    balances = _locked(connection, {key}, now)
    rows = _NAMED.rows(connection, [id])
    if not rows or rows[0]["lease_until"] >= now:
        return False  # renewed or settled, before its account was locked
    row = rows[0]
    windows, amount = _windows(row), row["amount"]
    balances[key].settle(windows, amount, amount, ended=True)
    _write_balances(connection, balances.values())
    _END.run(connection, [id])
    if amount:
        lost = Settlement(id, key, row["policy"], row["model"], "expired", cost=amount)
        _write_settlements(connection, [(lost, windows)], now)
    return True


def _write_balances(connection: Connection, balances: Iterable[Balance]) -> None:
    rows = [balance.columns() for balance in balances]
    if not rows:
        return
    _BALANCE.run(connection, [{**row, "of": row.pop("key_id")} for row in rows])


def _write_settlements(
    connection: Connection, new: Sequence[tuple[Settlement, Windows]], now: int
) -> None:
    if not new:
        return
    rows = [
        {
            "id": settled.id,
            "key_id": settled.key,
            "at": now,
            "day": windows.day,
            "policy": settled.policy,
            "model": settled.model,
            "tenant": settled.tenant,
            "outcome": settled.outcome,
            "prompt": settled.prompt,
            "completion": settled.completion,
            "cost": settled.cost,
            "gpu_us": settled.gpu_us,
            "prices": settled.prices,
        }
        for settled, windows in new
    ]
    _SETTLE.run(connection, rows)
    paid = [{"settlement_id": s.id, **_fields(line)} for s, _ in new for line in s.lines]
    if paid:
        _PAY.run(connection, paid)
    explained = [
        Explained(s.id, Owner(s.key, s.tenant), s.explanation)
        for s, _ in new
        if s.explanation is not None
    ]
    write_explanations(connection, explained, now)


def _rows(found: CursorResult[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in found.mappings()]


def _fields(record: Line) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def _refund_id(id: str) -> str:
    return f"{id}.back"


def _windows(row: Mapping[str, Any]) -> Windows:
    return Windows(row["minute"], row["day"], row["month"])
