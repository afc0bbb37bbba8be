"""GET /metrics: what is counted, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from routers import gauges
from routers.deps import front_of

router = APIRouter(tags=["operation"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    front = front_of(request)
    gauges.show(front)
    asks = request.headers
    page = await front.telemetry.scraper.page(
        asks.get("accept", ""), asks.get("accept-encoding", "")
    )
    return Response(page.content, headers=page.headers)
