"""GET /metrics: what is counted, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from app.telemetry.counting import CONTENT_TYPE
from routers import gauges
from routers.deps import front_of

router = APIRouter(tags=["operation"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    front = front_of(request)
    gauges.show(front)
    return Response(front.telemetry.scrape(), media_type=CONTENT_TYPE)
