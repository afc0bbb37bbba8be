"""GET /v1/usage: what a key has spent, by day, model and policy."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from fastapi import APIRouter, Request, Response

from app.accounts.account import KeyAccount
from app.accounts.accounts import Accounts
from app.accounts.reports import as_csv, counts, group, groups, period
from app.catalog import PICO
from app.errors import BadRequest, Forbidden
from app.storage.records import UsageRow
from routers.costs import gpu_seconds
from routers.deps import account_of, front_of
from routers.edge import json_response
from routers.schema import gives

router = APIRouter(tags=["accounts"])
_OWN = ("day", "model", "policy", "tenant")


@router.get("/v1/usage", openapi_extra=gives("UsageReport", "text/csv"))
async def usage(
    request: Request,
    by: str = "day,model,policy",
    since: date | None = None,
    until: date | None = None,
    format: str = "json",
) -> Response:
    """Spending of the key that asks, grouped; `since` and `until` are days (UTC), both counted."""
    account, accounts = await account_of(request), front_of(request).door.accounts
    if accounts is None or not isinstance(account, KeyAccount):
        raise Forbidden("There is no ledger (FARTHING_LEDGER=off), and so no usage is kept")
    return await report(accounts, account.id, groups(by, _OWN), since, until, format)


async def report(
    accounts: Accounts,
    key: str | None,
    by: Sequence[str],
    since: date | None,
    until: date | None,
    format: str,
) -> Response:
    """The usage of one key, or of all, as JSON or CSV."""
    if format not in ("json", "csv"):
        raise BadRequest("format: must be json or csv", param="format")
    span = period(since, until)
    rows = await accounts.usage(by, key=key, **span)
    if format == "csv":
        return Response(as_csv(by, rows), media_type="text/csv; charset=utf-8")
    (total,) = await accounts.usage((), key=key, **span)
    body: dict[str, Any] = {"object": "list", "data": [_shown(row) for row in rows]}
    return json_response({**body, "total": _shown(total)})


def _shown(row: UsageRow) -> dict[str, Any]:
    return {**group(row), **counts(row), "cost": row.cost / PICO, **gpu_seconds(row.gpu_us)}
