"""The endpoints that are asked most are reached past the routing, and answer alike."""

import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from httpx import ASGITransport, AsyncClient

from app.catalog import read
from app.errors import BadRequest
from app.settings import DEFAULT_CONFIG
from app.telemetry.counting import Telemetry
from routers import deps, edge, shortcut
from routers.bounds import Bounds
from routers.deps import Front

room = APIRouter()


@room.post("/asked")
async def asked(request: Request) -> Response:
    if request.headers.get("x-refuse"):
        raise BadRequest("not like this", param="x-refuse")
    return Response(request.scope["route"].path)


async def routing(scope, receive, send):
    raise AssertionError("the framework was asked")


def app(shortened=True, prefix=""):
    app = FastAPI(redirect_slashes=False)
    deps.install(app, Front(read(DEFAULT_CONFIG), Telemetry()))
    if shortened:
        shortcut.install(app, (room,))
    edge.install(app, Telemetry(), Bounds(), prefix)
    app.include_router(room)
    return app


async def answer(app, method="POST", path="/asked", **headers):
    async with AsyncClient(transport=ASGITransport(app), base_url="http://gateway") as client:
        found = await client.request(method, path, headers={"x-request-id": "r", **headers})
    return found.status_code, found.text, dict(found.headers)


async def test_a_post_does_not_pass_the_routing():
    short = shortcut.Shortcut(routing, room.routes)
    assert (await answer(short))[:2] == (200, "/asked")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/asked", {}, 200),
        ("POST", "/asked", {"x-refuse": "1"}, 400),
        ("GET", "/asked", {}, 405),
        ("POST", "/asked/", {}, 404),
    ],
)
async def test_every_answer_is_as_without_it(method, path, headers, status):
    short = await answer(app(), method, path, **headers)
    assert short == await answer(app(shortened=False), method, path, **headers)
    assert short[0] == status


@pytest.mark.parametrize("path", ["/asked", "/behind/asked"])
async def test_a_prefix_may_be_there_or_not(path):
    assert (await answer(app(prefix="/behind"), path=path))[0] == 200
