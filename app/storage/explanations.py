"""Every SQL statement about why answers came out as they did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, or_, select

from app.storage.database import Database
from app.storage.prepared import inserting
from app.storage.records import Explained, Explanation, Owner
from app.storage.tables import explanations

_MANY = 100  # rows in one statement, up to 64 KiB each: the lock is money's too
_EXPLAIN = inserting(explanations)


def write_explanations(connection: Connection, new: Sequence[Explained], now: int) -> None:
    """Keep these from now on, which is in milliseconds."""
    if not new:
        return
    rows = [
        {
            "id": one.id,
            "key_id": one.owner.key,
            "tenant": one.owner.tenant,
            "request_id": one.explanation.request_id,
            "at": now,
            "expires": now + one.explanation.keep,
            "size": len(one.explanation.content),
            "content": one.explanation.content,
        }
        for one in new
    ]
    _EXPLAIN.run(connection, rows)


class ExplanationStore:
    """The explanations in a database. Every method raises LedgerUnavailable.

    What has expired is as if it were not there.
    """

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        """`clock`: milliseconds."""
        self._database = database
        self._clock = clock

    async def add(self, new: Sequence[Explained]) -> None:
        """These, of answers that are not settled."""
        now = self._clock()
        await self._database.write(lambda c: write_explanations(c, new, now))

    async def find(self, id: str, owner: Owner | None) -> Explained | None:
        """That of the answer with this id, else of the newest one whose client gave it this id.

        `owner`: whose it must be; None: anybody's.
        """
        live: list[ColumnElement[bool]] = [explanations.c.expires > self._clock()]
        if owner is not None:
            live.append(explanations.c.key_id == owner.key)
            live.append(explanations.c.tenant == owner.tenant)
        ours = select(explanations).where(explanations.c.id == id, *live)
        theirs = (
            select(explanations)
            .where(explanations.c.request_id == id, *live)
            .order_by(explanations.c.at.desc(), explanations.c.id.desc())  # as its index has them
            .limit(1)
        )

        def work(connection: Connection) -> Row[Any] | None:
            return connection.execute(ours).first() or connection.execute(theirs).first()

        row = await self._database.read(work)
        if row is None:
            return None
        return _explained(row)

    async def page(
        self, key: str | None, since: int, until: int, after: tuple[int, str] = (0, "")
    ) -> tuple[list[Explained], tuple[int, str] | None]:
        """Those of answers in these milliseconds, `until` excluded, a few at a time in the order in
        which they expire; and after which the next ones come, None: there are no more.

        `key`: whose they must be; None: anybody's.
        """
        table = explanations.c
        behind = or_(table.expires > after[0], and_(table.expires == after[0], table.id > after[1]))
        query = (
            select(explanations)
            .where(behind, table.expires > self._clock(), table.at >= since, table.at < until)
            .order_by(table.expires, table.id)
            .limit(_MANY)
        )
        if key is not None:
            query = query.where(table.key_id == key)
        rows = await self._database.read(lambda c: c.execute(query).all())
        last = (rows[-1].expires, rows[-1].id) if len(rows) == _MANY else None
        return [_explained(row) for row in rows], last

    async def sweep(self, most: int | None) -> int:
        """Delete what has expired, and the oldest beyond `most` bytes; how many.

        To sum up the bytes takes a look at each: None leaves that out.
        """
        swept = await self._delete(self._clock())
        if most is not None and (gone := await self._database.read(partial(_beyond, most))):
            swept += await self._delete(gone)
        return swept

    async def _delete(self, gone: int) -> int:
        swept = count = await self._database.write(partial(_delete, gone))
        while count == _MANY:
            count = await self._database.write(partial(_delete, gone))
            swept += count
        return swept


def _explained(row: Row[Any]) -> Explained:
    kept = Explanation(row.request_id, row.expires - row.at, row.content)
    return Explained(row.id, Owner(row.key_id, row.tenant), kept)


def _beyond(most: int, connection: Connection) -> int:
    """What expires then or before is beyond so many bytes; 0: nothing is."""
    if (connection.execute(select(func.sum(explanations.c.size))).scalar() or 0) <= most:
        return 0  # as a rule, and found out in a tenth of the time
    newer = func.sum(explanations.c.size).over(
        order_by=explanations.c.expires.desc(), range_=(None, 0)
    )
    sizes = select(explanations.c.expires, newer.label("size")).subquery()
    query = select(func.max(sizes.c.expires)).where(sizes.c.size > most)
    return connection.execute(query).scalar() or 0


def _delete(gone: int, connection: Connection) -> int:
    expired = (
        select(explanations.c.id)
        .where(explanations.c.expires <= gone)
        .order_by(explanations.c.expires)
        .limit(_MANY)
    )
    found = delete(explanations).where(explanations.c.id.in_(expired))
    return connection.execute(found).rowcount
