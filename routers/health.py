"""GET /health, /health/live and /health/ready."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from routers.deps import Front, front_of
from routers.edge import json_response

router = APIRouter(tags=["operation"])


@router.get("/health/live")
async def live() -> Response:
    """200 as long as the process answers at all."""
    return json_response({"status": "live"})


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """200 when requests can be answered: the models are loaded and one at least is healthy."""
    status = _status(front_of(request))
    return json_response({"status": status}, 200 if status == "ready" else 503)


@router.get("/health")
async def health(request: Request) -> Response:
    """As ready, with what each model does."""
    front = front_of(request)
    status = _status(front)
    models = {
        name: {"healthy": load.healthy, "running": load.running, "waiting": load.waiting}
        for name, load in front.loads().items()
    }
    return json_response({"status": status, "models": models}, 200 if status == "ready" else 503)


def _status(front: Front) -> str:
    if front.running.ending:
        return "ending"
    if front.gateway is None:
        return "loading"
    return "ready" if any(load.healthy for load in front.loads().values()) else "unhealthy"
