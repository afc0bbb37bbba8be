"""Every SQL statement about responses that clients may name again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from app.storage.database import Database
from app.storage.ledger import milliseconds
from app.storage.records import Kept, Owner
from app.storage.tables import responses

_MANY = 500  # rows in one statement: the lock is money's too


class ResponseStore:
    """The responses in a database. Every method raises LedgerUnavailable.

    Times are in milliseconds. What has expired is as if it were not there.
    """

    def __init__(self, database: Database, clock: Callable[[], int] = milliseconds) -> None:
        self._database = database
        self._clock = clock

    async def add(self, id: str, owner: Owner, kept: Kept, keep: int) -> None:
        """A new response, kept for so long; it may be tried again."""
        now = self._clock()
        row = {
            "id": id,
            "key_id": owner.key,
            "tenant": owner.tenant,
            "created": now,
            "cancel": False,
            **_columns(kept),
            "expires": now + keep,
        }
        before = delete(responses).where(*self._mine(id, owner))

        def work(connection: Connection) -> None:
            connection.execute(before)
            connection.execute(insert(responses), [row])

        await self._database.write(work)

    async def replace(self, id: str, owner: Owner, kept: Kept, keep: int) -> bool:
        """What has become of one that was added; False: it is there no more."""
        row = {**_columns(kept), "expires": self._clock() + keep}
        changed = update(responses).where(*self._mine(id, owner)).values(row)
        return await self._database.write(lambda c: c.execute(changed).rowcount) > 0

    async def find(self, id: str, owner: Owner) -> Kept | None:
        query = select(responses.c.ended, responses.c.content).where(*self._mine(id, owner))
        rows = await self._database.read(lambda c: c.execute(query).all())
        return Kept(rows[0].ended, rows[0].content) if rows else None

    async def delete(self, id: str, owner: Owner) -> bool:
        """Whether there was one."""
        gone = delete(responses).where(*self._mine(id, owner))
        return await self._database.write(lambda c: c.execute(gone).rowcount) > 0

    async def cancel(self, id: str, owner: Owner) -> None:
        """Ask whoever runs it to end it."""
        mine = self._mine(id, owner)
        asked = update(responses).where(*mine, ~responses.c.ended).values(cancel=True)
        await self._database.write(lambda c: c.execute(asked).rowcount)

    async def cancelled(self, ids: Sequence[str]) -> list[str]:
        """Those of these, under way, that shall be ended."""
        query = select(responses.c.id).where(responses.c.id.in_(ids), responses.c.cancel)
        return list(await self._database.read(lambda c: c.execute(query).scalars().all()))

    async def renew(self, ids: Sequence[str], keep: int) -> None:
        """These are still under way."""
        running = (responses.c.id.in_(ids), ~responses.c.ended)
        later = update(responses).where(*running).values(expires=self._clock() + keep)
        await self._database.write(lambda c: c.execute(later).rowcount)

    async def sweep(self, most: int) -> int:
        """Delete what has expired, and each key's oldest beyond `most` bytes; how many."""
        later = func.sum(responses.c.size).over(
            partition_by=responses.c.key_id,
            order_by=(responses.c.created.desc(), responses.c.id),
            rows=(None, 0),
        )
        now = self._clock()
        live = select(responses.c.id, later.label("size")).where(responses.c.expires > now)
        sizes = live.subquery()
        expired = select(responses.c.id).where(responses.c.expires <= now)
        beyond = select(sizes.c.id).where(sizes.c.size > most)

        def find(connection: Connection) -> list[str]:
            return [id for query in (expired, beyond) for id in connection.execute(query).scalars()]

        found = await self._database.read(find)
        for start in range(0, len(found), _MANY):
            await self._database.write(partial(_delete, found[start : start + _MANY]))
        return len(found)

    def _mine(self, id: str, owner: Owner) -> tuple[ColumnElement[bool], ...]:
        return (
            responses.c.id == id,
            responses.c.key_id == owner.key,
            responses.c.tenant == owner.tenant,
            responses.c.expires > self._clock(),
        )


def _columns(kept: Kept) -> dict[str, object]:
    return {"ended": kept.ended, "content": kept.content, "size": len(kept.content)}


def _delete(ids: Sequence[str], connection: Connection) -> None:
    connection.execute(delete(responses).where(responses.c.id.in_(ids)))
