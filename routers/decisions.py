"""GET /v1/decisions/{id}: why an answer came out as it did, for whose it is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from app.accounts.account import KeyAccount
from app.errors import Forbidden, UnknownAnswer
from app.storage.records import Owner
from routers.deps import account_of, front_of
from routers.edge import json_response
from routers.schema import gives

router = APIRouter(tags=["decisions"])


@router.get("/v1/decisions/{id:path}", openapi_extra=gives("Decisions"))
async def decisions(request: Request, id: str) -> Response:
    """The plan of an answer, what was weighed against it, every decision, call and cost.

    `id` is the answer's, or the `X-Request-Id` that it came with: then of several the newest one.
    A key sees its own answers, an administrator's all of them. Raises UnknownAnswer.
    """
    account, accounts = await account_of(request), front_of(request).door.accounts
    if accounts is None or not isinstance(account, KeyAccount):
        raise Forbidden("There is no ledger (FARTHING_LEDGER=off), and so no decisions are kept")
    admin = account.key is not None and account.key.admin
    owner = None if admin else Owner(account.id, account.tenant)
    found = await accounts.explanations.find(id, owner)
    if found is None:
        raise UnknownAnswer("id: there is no such answer, or it is kept no longer", param="id")
    return json_response(found.document if admin else _discreet(found.document))


def _discreet(document: dict[str, Any]) -> dict[str, Any]:
    """Without the servers' addresses, which are for administrators."""
    names: dict[str, str] = {}
    for call in document.get("calls", ()):
        for attempt in call["attempts"]:
            name = names.setdefault(attempt["server"], f"server {len(names) + 1}")
            attempt["server"] = name
    return document
