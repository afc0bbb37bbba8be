"""/admin: keys, servers and everybody's usage, for those who have an administrator's key."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from app.accounts.accounts import GROUPS
from app.accounts.keyring import Held, checked
from app.accounts.keys import KeySpec
from app.accounts.reports import groups
from app.catalog import PICO
from routers import body
from routers.deps import admin_of, front_of
from routers.edge import json_response
from routers.schema import gives, has_body, has_changes
from routers.usage import report

router = APIRouter(prefix="/admin", tags=["administration"])
_KEPT_BY_NOBODY = {"Cache-Control": "no-store"}


@router.get("/keys", openapi_extra=gives("Keys"))
async def keys(request: Request) -> Response:
    """Every key that there is or was, with its limits and where it stands."""
    accounts, _ = await admin_of(request)
    held = await accounts.keyring.all()
    return json_response({"object": "list", "data": [shown(one) for one in held]})


@router.get("/servers", openapi_extra=gives("Servers"))
async def servers(request: Request) -> Response:
    """Every server behind the gateway, how it does, and why it is not used where it is not."""
    await admin_of(request)
    listed = [
        {
            "model": server.model,
            "url": server.url,
            "state": server.state,
            "reason": server.reason or None,
            "running": server.running,
            "waiting": server.waiting,
        }
        for server in front_of(request).servers()
    ]
    return json_response({"object": "list", "data": listed})


@router.post("/keys", status_code=201, openapi_extra=has_body(KeySpec) | gives("Key", status=201))
async def create(request: Request) -> Response:
    """A new key. Its token is in this answer and nowhere else, ever."""
    accounts, _ = await admin_of(request)
    spec = checked(await body.read(request, front_of(request).bounds))
    key, token = await accounts.keyring.create(spec)
    content = {**shown(await accounts.keyring.show(key.id)), "token": token}
    return json_response(content, 201, _KEPT_BY_NOBODY)


@router.get("/keys/{id}", openapi_extra=gives("Key"))
async def key(request: Request, id: str) -> Response:
    accounts, _ = await admin_of(request)
    return json_response(shown(await accounts.keyring.show(id)))


@router.patch("/keys/{id}", openapi_extra=has_changes(KeySpec) | gives("Key"))
async def change(request: Request, id: str) -> Response:
    """Set some of a key's fields; null takes a limit away."""
    accounts, _ = await admin_of(request)
    changes = await body.read(request, front_of(request).bounds)
    return json_response(shown(await accounts.keyring.change(id, changes)))


@router.post("/keys/{id}/rotate", openapi_extra=gives("Key"))
async def rotate(request: Request, id: str, grace_s: float = 0.0) -> Response:
    """A new token for the same key; the old one opens the door for `grace_s` more."""
    accounts, _ = await admin_of(request)
    token = await accounts.keyring.rotate(id, grace_s)
    content = {**shown(await accounts.keyring.show(id)), "token": token}
    return json_response(content, headers=_KEPT_BY_NOBODY)


@router.delete("/keys/{id}", openapi_extra=gives("Key"))
async def revoke(request: Request, id: str) -> Response:
    """The key opens no door any more; what it spent stays known."""
    accounts, _ = await admin_of(request)
    await accounts.keyring.revoke(id)
    return json_response(shown(await accounts.keyring.show(id)))


@router.get("/usage", openapi_extra=gives("UsageReport", "text/csv"))
async def usage(
    request: Request,
    by: str = "day,key",
    key: str | None = None,
    since: date | None = None,
    until: date | None = None,
    format: str = "json",
) -> Response:
    """Spending of all keys or of one, grouped; days are UTC, both counted."""
    accounts, _ = await admin_of(request)
    return await report(accounts, key, groups(by, GROUPS), since, until, format)


def shown(held: Held) -> dict[str, Any]:
    """A key as people may see it: everything but its token."""
    key, account = held.key, held.account
    return {
        "id": key.id,
        "object": "key",
        "created": _moment(key.created),
        "revoked": None if key.revoked is None else _moment(key.revoked),
        **held.fields(),
        "spent_usd": {window: pico / PICO for window, pico in account.spent.items()},
        "held_usd": account.held["total"] / PICO,
        "running": account.running,
    }


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
