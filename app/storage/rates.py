"""Counters of rate limits in the ledger, for several processes without a Redis between them."""

from __future__ import annotations

from typing import Any

from limits.aio.storage import Storage
from sqlalchemy import delete, select, text

from app.errors import LedgerUnavailable
from app.storage.database import Database
from app.storage.ledger import milliseconds
from app.storage.tables import rates

# What SQLite and PostgreSQL both understand. Counts on, or begins anew where the window is over.
_COUNT = text("""
    INSERT INTO rates (key, count, expires) VALUES (:key, :amount, :expires)
    ON CONFLICT (key) DO UPDATE SET
        count = CASE WHEN rates.expires <= :now THEN excluded.count
                ELSE rates.count + excluded.count END,
        expires = CASE WHEN rates.expires <= :now THEN excluded.expires ELSE rates.expires END
    RETURNING count
""")


class LedgerStorage(Storage):
    """The storage interface of the `limits` library over the table `rates`."""

    STORAGE_SCHEME = None  # made by hand, not from a URI

    def __init__(self, database: Database) -> None:
        super().__init__(wrap_exceptions=True)
        self._database = database

    @property
    def base_exceptions(self) -> type[Exception]:
        return LedgerUnavailable

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = milliseconds()
        values = {"key": key, "amount": amount, "now": now, "expires": now + expiry * 1000}
        return int(await self._database.write(lambda c: c.execute(_COUNT, values).scalar_one()))

    async def get(self, key: str) -> int:
        row = await self._row(key)
        return int(row["count"]) if row else 0

    async def get_expiry(self, key: str) -> float:
        row = await self._row(key)
        return (row["expires"] if row else milliseconds()) / 1000

    async def check(self) -> bool:
        await self._row("")
        return True

    async def reset(self) -> int:
        return await self._database.write(lambda c: c.execute(delete(rates)).rowcount)

    async def clear(self, key: str) -> None:
        one = delete(rates).where(rates.c.key == key)
        await self._database.write(lambda c: c.execute(one).rowcount)

    async def _row(self, key: str) -> dict[str, Any] | None:
        """The counter of a window that is not over."""
        running = select(rates).where(rates.c.key == key, rates.c.expires > milliseconds())
        rows = await self._database.read(lambda c: c.execute(running).mappings().all())
        return dict(rows[0]) if rows else None
