"""Every SQL statement about API keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, func, insert, select, update
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
        query = select(keys).where(keys.c.id == id)
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return _key(dict(rows[0])) if rows else None

    async def all(self) -> list[KeyRow]:
        query = select(keys).order_by(keys.c.created, keys.c.id)
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [_key(dict(row)) for row in rows]

    async def count(self) -> int:
        """Keys that there are or were: revoked and expired ones count."""
        query = select(func.count()).select_from(keys)
        return await self._database.read(lambda c: c.execute(query).scalar_one())

    async def add(self, key: KeyRow, limits: Mapping[str, int | None]) -> bool:
        """A new key and its account, limits in 1e-12 USD by window; False: its id is taken."""
        account: dict[str, Any] = {"key_id": key.id, "running": 0}
        for name in WINDOWS:
            account |= {f"{name}_limit": limits.get(name)}
            account |= {f"{name}_{part}": 0 for part in ("start", "spent", "held")}

        def work(connection: Connection) -> None:
            connection.execute(insert(keys), [_row(key)])
            connection.execute(insert(accounts), [account])

        try:
            await self._database.write(work)
        except IntegrityError:
            return False
        return True

    async def change(
        self,
        id: str,
        columns: Mapping[str, Any],
        limits: Mapping[str, int | None] | None = None,
        *,
        instead_of: bytes | None = None,
    ) -> bool:
        """Set these columns of a key, and limits of its account by window.

        Nothing is set, and this is False, where its digest is not `instead_of`.
        """
        which = [keys.c.id == id]
        if instead_of is not None:
            which.append(keys.c.digest == instead_of)

        def work(connection: Connection) -> bool:
            # The key's row first, so that its digest is looked at under its lock.
            chosen = update(keys).where(*which).values({"id": id, **columns})
            if connection.execute(chosen).rowcount == 0:
                return False
            if limits:
                account = {f"{name}_limit": limit for name, limit in limits.items()}
                connection.execute(update(accounts).where(accounts.c.key_id == id).values(account))
            return True

        return await self._database.write(work)

    async def fact(self, name: str, value: str) -> str:
        """The value of this fact; who says it first sets it."""

        def work(connection: Connection) -> str:
            known = select(facts.c.value).where(facts.c.name == name)
            stored = connection.execute(known).scalar()
            if stored is None:
                connection.execute(insert(facts), [{"name": name, "value": value}])
            return stored or value

        try:
            return await self._database.write(work)
        except IntegrityError:
            return await self.fact(name, value)  # another process was first


def _row(key: KeyRow) -> dict[str, Any]:
    row = asdict(key)
    return row | {"models": None if key.models is None else list(key.models)}


def _key(row: Mapping[str, Any]) -> KeyRow:
    models = row["models"]
    return KeyRow(**{**row, "models": None if models is None else tuple(models)})
