"""Every SQL statement about API keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from app.storage.balance import WINDOWS
from app.storage.database import Database
from app.storage.records import KeyRow
from app.storage.tables import accounts, facts, keys


class KeyStore:
    """The keys in a database. Every method raises LedgerUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, id: str) -> KeyRow | None:
        async with self._database.reading() as connection:
            found = await connection.execute(select(keys).where(keys.c.id == id))
            row = found.mappings().first()
        return None if row is None else _key(dict(row))

    async def all(self) -> list[KeyRow]:
        async with self._database.reading() as connection:
            found = await connection.execute(select(keys).order_by(keys.c.created, keys.c.id))
            return [_key(dict(row)) for row in found.mappings()]

    async def count(self) -> int:
        """Keys that there are or were: revoked and expired ones count."""
        async with self._database.reading() as connection:
            return (await connection.execute(select(func.count()).select_from(keys))).scalar_one()

    async def add(self, key: KeyRow, limits: Mapping[str, int | None]) -> bool:
        """A new key and its account, limits in 1e-12 USD by window; False: its id is taken."""
        account: dict[str, Any] = {"key_id": key.id, "running": 0}
        for name in WINDOWS:
            account |= {f"{name}_limit": limits.get(name)}
            account |= {f"{name}_{part}": 0 for part in ("start", "spent", "held")}
        try:
            async with self._database.writing() as connection:
                await connection.execute(insert(keys), [_row(key)])
                await connection.execute(insert(accounts), [account])
        except IntegrityError:
            return False
        return True

    async def change(
        self, id: str, columns: Mapping[str, Any], limits: Mapping[str, int | None] | None = None
    ) -> None:
        """Set these columns of a key, and limits of its account by window."""
        async with self._database.writing() as connection:
            if limits:
                account = {f"{name}_limit": limit for name, limit in limits.items()}
                await connection.execute(
                    update(accounts).where(accounts.c.key_id == id).values(account)
                )
            await connection.execute(update(keys).where(keys.c.id == id).values(dict(columns)))

    async def agree(self, fact: str, value: str) -> bool:
        """Whether this fact has this value; who says it first sets it."""
        try:
            async with self._database.writing() as connection:
                known = select(facts.c.value).where(facts.c.name == fact)
                stored = (await connection.execute(known)).scalar()
                if stored is None:
                    await connection.execute(insert(facts), [{"name": fact, "value": value}])
                    stored = value
        except IntegrityError:
            return await self.agree(fact, value)  # another process was first
        return stored == value


def _row(key: KeyRow) -> dict[str, Any]:
    row = asdict(key)
    return row | {"models": None if key.models is None else list(key.models)}


def _key(row: Mapping[str, Any]) -> KeyRow:
    models = row["models"]
    return KeyRow(**{**row, "models": None if models is None else tuple(models)})
