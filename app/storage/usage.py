"""Spending for people: settlements summed by day, model, policy, key or tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Integer, case, distinct, func, select, type_coerce

from app.errors import BadRequest
from app.storage.database import Database
from app.storage.records import UsageRow
from app.storage.tables import lines, settlements

GROUPS = ("day", "model", "policy", "key", "tenant")
_MOST = 10_000  # groups in one answer


class UsageStore:
    """What was spent. Raises LedgerUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def spent(
        self,
        by: Sequence[str],
        *,
        key: str | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> list[UsageRow]:
        """Sums by these groups, for settlements of days from `since` to before `until`, seconds.

        Every settlement has one row a model; one that no answer accounts for has one in all,
        whose model is the one that was asked for. Raises BadRequest for an impossible key.
        """
        if key is not None and not key.isprintable():  # PostgreSQL has no text for some of these
            raise BadRequest("key: must be the id of an API key", param="key")
        model: ColumnElement[str] = func.coalesce(lines.c.model, settlements.c.model)
        columns: dict[str, ColumnElement[Any]] = {
            "day": settlements.c.day,
            "model": model,
            "policy": settlements.c.policy,
            "key": settlements.c.key_id,
            "tenant": settlements.c.tenant,
        }
        groups = [columns[name].label(name) for name in by]
        answers = case((settlements.c.prices != "", settlements.c.id))
        sums = [
            func.count(distinct(answers)).label("requests"),
            _sum(lines.c.prompt).label("prompt"),
            _sum(lines.c.cached).label("cached"),
            _sum(lines.c.completion).label("completion"),
            _sum(func.coalesce(lines.c.cost, settlements.c.cost)).label("cost"),
            func.sum(lines.c.gpu_us).label("gpu_us"),
        ]
        source = settlements.outerjoin(lines, lines.c.settlement_id == settlements.c.id)
        query = select(*groups, *sums).select_from(source)
        if key is not None:
            query = query.where(settlements.c.key_id == key)
        if since is not None:
            query = query.where(settlements.c.day >= since)
        if until is not None:
            query = query.where(settlements.c.day < until)
        if groups:
            query = query.group_by(*(columns[name] for name in by))
            query = query.order_by(*(columns[name] for name in by)).limit(_MOST)
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [
            UsageRow(
                {name: row[name] for name in by},
                row["requests"],
                int(row["prompt"]),
                int(row["cached"]),
                int(row["completion"]),
                int(row["cost"]),
                None if row["gpu_us"] is None else int(row["gpu_us"]),
            )
            for row in rows
        ]


def _sum(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return type_coerce(func.coalesce(func.sum(column), 0), Integer)
