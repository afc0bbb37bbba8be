"""The middleware says what may be asked of speculation, and refuses what is malformed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from app.vllm_plugins import asks
from app.vllm_plugins.asks import Speculating
from app.vllm_plugins.door import SpeculationDoor

STATE = Speculating(longest=6, sampled=False, level=0.7)


async def _echo(request: Request) -> JSONResponse:
    body = await request.body()
    return JSONResponse({"length": len(body), "path": request.url.path})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / f"{asks.SOCKET_FOLDER}x"
    folder.mkdir()
    return folder / "speculation"


@pytest.fixture
async def http(path: Path) -> AsyncIterator[httpx.AsyncClient]:
    route = Route("/{rest:path}", _echo, methods=["GET", "POST"])
    transport = httpx.ASGITransport(SpeculationDoor(Starlette(routes=[route]), str(path)))
    async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as client:
        yield client


async def test_it_says_what_the_worker_does(http: httpx.AsyncClient, path: Path) -> None:
    path.write_text(STATE.to_json())
    answer = await http.get(asks.SPECULATES_PATH)
    assert (answer.status_code, Speculating.read(answer.json())) == (200, STATE)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"longest": 0, "sampled": true}'])
async def test_without_our_worker_there_is_nothing(
    http: httpx.AsyncClient, path: Path, text: str | None
) -> None:
    if text is not None:
        path.write_text(text)
    answer = await http.get(asks.SPECULATES_PATH)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == 404


@pytest.mark.parametrize("field", ["vllm_xargs", "sampling_params"])
async def test_malformed_asks_are_refused(http: httpx.AsyncClient, field: str) -> None:
    wrong: dict[str, Any] = {asks.SPEC_K: -1}
    body = {field: wrong if field == "vllm_xargs" else {"extra_args": wrong}}
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (400, "vllm_xargs")
    assert asks.SPEC_K in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        rb'{"vllm_xargs": {"\u0073pec_k": -1}}',
        rb'{"vllm_xargs": {"spec\u005fk": -1}}',
        '{"vllm_xargs": {"spec_k": -1}}'.encode("utf-16"),
        '{"vllm_xargs": {"spec_k": -1}}'.encode("utf-32-be"),
    ],
)
async def test_they_are_known_however_they_are_spelled(
    http: httpx.AsyncClient, body: bytes
) -> None:
    headers = {"content-type": "application/json"}
    answer = await http.post("/v1/completions", content=body, headers=headers)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'["spec_k"]',
        b'{"vllm_xargs": "spec_k"}',
        b'{"vllm_xargs": {"spec_k": 3, "spec_stop": 0.5, "other": "x"}}',
        b'{"prompt": "what is spec_k?", "sampling_params": 3}',
        b'{"prompt": "' + b"x" * 100_000 + b'"}',
    ],
    ids=len,
)
async def test_all_else_is_passed_on_whole(http: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = await http.post("/v1/completions", content=body, headers=headers)
    assert answer.json() == {"length": len(body), "path": "/v1/completions"}
    assert (await http.get("/health")).json()["path"] == "/health"


async def test_what_is_no_json_is_not_read(http: httpx.AsyncClient) -> None:
    content = b'{"vllm_xargs": {"spec_k": -1}}'
    answer = await http.post("/upload", content=content, headers={"content-type": "text/plain"})
    assert answer.json()["length"] == len(content)


async def test_a_body_in_pieces_is_put_together_and_a_leaver_is_heard() -> None:
    body = json.dumps({"vllm_xargs": {asks.SPEC_K: 2}}).encode()
    pieces: list[dict[str, Any]] = [
        {"type": "http.request", "body": body[:9], "more_body": True},
        {"type": "http.request", "body": body[9:], "more_body": False},
        {"type": "http.disconnect"},
    ]
    heard = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.extend([await receive() for _ in range(3)])

    waiting = iter(pieces)

    async def receive() -> Any:
        return next(waiting)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await SpeculationDoor(app, "nowhere")(scope, receive, send)
    assert heard == pieces


async def test_the_file_goes_with_the_server(path: Path) -> None:
    path.write_text(STATE.to_json())
    told = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})
        assert path.exists()
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message: Any) -> None:
        told.append(message["type"])

    await SpeculationDoor(app, str(path))({"type": "lifespan"}, _never, send)
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert not path.parent.exists()


async def _never() -> Any:
    raise AssertionError


@pytest.mark.parametrize(
    "given",
    [
        None, [], {}, {"longest": True, "sampled": True}, {"longest": 5},
        {"longest": 5, "sampled": 1}, {"longest": 5, "sampled": True, "level": "x"},
        {"longest": 5, "sampled": True, "level": 2},
    ],
)  # fmt: skip
def test_what_is_no_state_is_none(given: Any) -> None:
    assert Speculating.read(given) is None
