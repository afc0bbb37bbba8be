"""A way past the framework's routing, for the endpoints that are asked most."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import FarthingError
from routers.edge import on_ours


class Shortcut:
    """Middleware inside of the Edge: a POST to one of these routes is at its endpoint at once.

    Their endpoints take a Request, and return a Response or raise what the Edge and `on_ours`
    answer; they declare nothing that the framework would have to look into. The framework's own
    way stays open to all else that is asked of them: another method, a URL written otherwise.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[APIRoute]) -> None:
        self.app = app
        self._routes = {route.path: route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route: APIRoute | None = None
        if scope["type"] == "http" and scope["method"] == "POST":
            route = self._routes.get(scope["path"].removeprefix(scope["root_path"]))
        if route is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive)
        try:
            response = await route.endpoint(request)
            await response(scope, receive, send)
        except FarthingError as error:
            refusal = await on_ours(request, error)
            await refusal(scope, receive, send)


def install(app: FastAPI, rooms: Iterable[APIRouter]) -> None:
    """To all routes of these; they must be in the app too. Before `edge.install`."""
    routes = [route for room in rooms for route in room.routes if isinstance(route, APIRoute)]
    app.add_middleware(Shortcut, routes=routes)
