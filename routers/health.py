"""GET /health, /health/live and /health/ready."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from routers.deps import Front, front_of
from routers.edge import json_response
from routers.schema import gives, unready

router = APIRouter(tags=["operation"])


@router.get("/health/live", openapi_extra=gives("Live"))
async def live() -> Response:
    """200 as long as the process answers at all."""
    return json_response({"status": "live"})


@router.get("/health/ready", openapi_extra=unready("Ready"))
async def ready(request: Request) -> Response:
    """200 when requests can be answered: the models are loaded and one at least is healthy."""
    status = _status(front_of(request))
    return json_response({"status": status}, 200 if status == "ready" else 503)


@router.get("/health", openapi_extra=unready("Health"))
async def health(request: Request) -> Response:
    """As ready, with what each model does, and whether the ledger answers.

    While it does not we are ready all the same: what is reserved already is served.
    """
    front = front_of(request)
    status = _status(front)
    models: dict[str, dict[str, Any]] = {
        name: {"healthy": load.healthy, "running": load.running, "waiting": load.waiting}
        for name, load in front.loads().items()
    }
    for server in front.servers():
        if server.model in models and server.state != "draining":
            states = models[server.model].setdefault("servers", {})
            states[server.state] = states.get(server.state, 0) + 1
    body: dict[str, Any] = {"status": status, "models": models}
    if front.door.accounts is not None:
        book = front.door.accounts.book
        body["ledger"] = {"status": "away" if book.away else "up", "unsettled": book.owed}
    return json_response(body, 200 if status == "ready" else 503)


def _status(front: Front) -> str:
    if front.running.ending:
        return "ending"
    if front.gateway is None:
        return "loading"
    return "ready" if any(load.healthy for load in front.loads().values()) else "unhealthy"
