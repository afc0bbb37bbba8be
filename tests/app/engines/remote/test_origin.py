"""One server over real HTTP: what its failures mean, and that it learns when nobody listens."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from app.engines.remote.origin import Arrivals, Origin, Patience, error_of, refusal_in_stream
from app.errors import (
    BadRequest,
    ContextOverflow,
    EngineError,
    EngineLost,
    EngineUnavailable,
    EngineUnsupported,
    FarthingError,
    Overloaded,
)

KEY = "sk-very-secret"
QUICK = Patience(connect=0.5, small=0.3, silence=0.3)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler, patience: Patience = QUICK) -> AsyncIterator[Origin]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    server = TestServer(app)
    await server.start_server()
    origin = Origin(f"http://127.0.0.1:{server.port}", "m", KEY, patience)
    try:
        yield origin
    finally:
        await origin.aclose()
        await server.close()


def answering(status: int = 200, body: Any = None, **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=content, headers=named)

    return handler


async def failed(origin: Origin, stream: bool = True) -> FarthingError:
    """How a request fails; its message must not tell where the server is, or our key."""
    with pytest.raises(FarthingError) as raised:
        if stream:
            async with (
                origin.stream("/v1/x", {}) as response,
                Arrivals(response, origin.patience.silence) as arrivals,
            ):
                while await arrivals.next():
                    pass
        else:
            await origin.json("/v1/x", {})
    message = raised.value.message
    assert "127.0.0.1" not in message and KEY not in message and "/v1/x" not in message
    return raised.value


TABLE = [
    (400, BadRequest, "the server's words"),
    (413, BadRequest, "the server's words"),
    (415, BadRequest, "the server's words"),
    (422, BadRequest, "the server's words"),
    (401, EngineUnavailable, "refuses our credentials"),
    (403, EngineUnavailable, "refuses our credentials"),
    (404, EngineUnsupported, "does not serve this"),
    (405, EngineUnsupported, "does not serve this"),
    (501, EngineUnsupported, "does not serve this"),
    (408, EngineLost, "status 408"),
    (429, Overloaded, "busy"),
    (500, EngineLost, "status 500"),
    (502, EngineLost, "status 502"),
    (503, EngineUnavailable, "not available"),
    (504, EngineLost, "status 504"),
    (204, EngineLost, "status 204"),
    (301, EngineLost, "status 301"),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("status", "kind", "words"), TABLE)
async def test_what_a_status_means(
    status: int, kind: type[FarthingError], words: str, stream: bool
) -> None:
    body = {"error": {"message": "the server's words", "param": "top_k"}}
    async with served(answering(status, body, Location="/elsewhere")) as origin:
        error = await failed(origin, stream)
    assert type(error) is kind and words in error.message
    if kind is BadRequest:
        assert error.param == "top_k"
    else:  # what it says of itself is for the log
        assert "the server's words" not in error.message


async def test_a_server_that_has_another_model_now_is_none_of_this_model() -> None:
    """vLLM's words; the client is not to blame, and another replica may have it."""
    body = {"error": {"message": "The model `x` does not exist.", "param": "model", "code": 404}}
    async with served(answering(404, body)) as origin:
        assert type(await failed(origin)) is EngineUnavailable


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0", 0.0), ("99999", 600.0), ("soon", 1.0), ("-1", 1.0), ("", 1.0), (None, 1.0)],
)
async def test_when_to_come_back(status: int, header: str | None, seconds: float) -> None:
    headers = {} if header is None else {"Retry_After": header}
    async with served(answering(status, {}, **headers)) as origin:
        assert (await failed(origin)).retry_after == seconds


@pytest.mark.parametrize(
    "words", ["This model's maximum context length is 5 tokens", "max_model_len is 5"]
)
async def test_a_prompt_that_is_too_long_is_told_by_its_own_error(words: str) -> None:
    async with served(answering(400, {"error": {"message": words}})) as origin:
        assert isinstance(await failed(origin), ContextOverflow)


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        (b'{"error": {"message": "no", "param": "n", "code": 400}}', "no", "n", 400),
        (b'{"object": "error", "message": "no", "param": null, "code": 400}', "no", None, 400),
        (b'{"detail": "Not Found"}', "Not Found", None, None),
        (b'{"error": "no"}', "no", None, None),
        (b'{"error": {"code": "invalid"}}', "{'code': 'invalid'}", None, None),
        (b"[1]", "[1]", None, None),
        (b"plain \xff", "plain \ufffd", None, None),
        (b"", "", None, None),
    ],
)
def test_errors_in_all_their_shapes(
    body: bytes, message: str, param: str | None, code: int | None
) -> None:
    assert error_of(body) == (message, param, code)


def test_an_error_in_a_stream_is_the_clients_only_at_its_begin() -> None:
    told = b'{"error": {"message": "top_k is odd", "code": 400, "param": "top_k"}}'
    first = refusal_in_stream("m", told, begun=False)
    assert isinstance(first, BadRequest) and first.param == "top_k"
    later = refusal_in_stream("m", told, begun=True)
    assert isinstance(later, EngineError) and "odd" not in later.message
    broken = refusal_in_stream("m", told.replace(b"400", b"500"), begun=False)
    assert isinstance(broken, EngineError) and "odd" not in broken.message


async def test_the_key_goes_to_the_server_and_json_as_json() -> None:
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.method, request.headers.get("Authorization"), await request.text()))
        return web.json_response({"path": request.path})

    async with served(handler) as origin:
        assert await origin.json("/v1/models") == {"path": "/v1/models"}
        assert await origin.json("/v1/x", {"text": "é"}) == {"path": "/v1/x"}
        assert await origin.text("/metrics") == '{"path": "/metrics"}'
        origin.key = None
        await origin.json("/v1/models")
    assert seen == [
        ("GET", f"Bearer {KEY}", ""),
        ("POST", f"Bearer {KEY}", '{"text":"é"}'),
        ("GET", f"Bearer {KEY}", ""),
        ("GET", None, ""),
    ]


async def test_redirects_are_not_followed_so_that_the_key_stays_here() -> None:
    paths: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        paths.append(request.path)
        raise web.HTTPTemporaryRedirect("/elsewhere")

    async with served(handler) as origin:
        assert isinstance(await failed(origin), EngineLost)
    assert paths == ["/v1/x"]


async def test_a_compressed_answer_is_read() -> None:
    body = gzip.compress(b'{"a": 1}')
    async with served(answering(200, body, Content_Encoding="gzip")) as origin:
        assert await origin.json("/v1/models") == {"a": 1}


async def test_an_answer_that_is_no_json_is_an_error_of_the_engine() -> None:
    async with served(answering(200, b"<html>")) as origin:
        assert "no JSON" in (await failed(origin, stream=False)).message


async def test_a_server_that_is_not_there_did_nothing() -> None:
    async with served(answering()) as origin:
        pass
    error = await failed(origin)
    await origin.aclose()
    assert isinstance(error, EngineUnavailable) and error.retry_after
    assert "cannot be reached" in error.message


async def test_a_server_that_hangs_up_before_it_answers_may_have_worked() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with served(handler) as origin:
        assert type(await failed(origin)) is EngineLost


@pytest.mark.parametrize("stream", [True, False])
async def test_a_server_that_says_nothing_is_given_up(stream: bool) -> None:
    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with served(handler) as origin:
        error = await failed(origin, stream)
    assert type(error) is EngineLost and "does not answer" in error.message


def streaming(*pieces: bytes, then: str = "wait", left: asyncio.Event | None = None) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        transport = request.transport
        assert transport is not None
        if then == "break":
            transport.abort()
        try:
            while then == "wait" and not transport.is_closing():
                await asyncio.sleep(0.01)
        finally:
            if left is not None and transport.is_closing():
                left.set()
        return response

    return handler


@pytest.mark.parametrize(("then", "words"), [("break", "broke off"), ("wait", "sent nothing")])
async def test_what_fails_in_mid_answer_is_neither_refused_nor_lost(then: str, words: str) -> None:
    async with served(streaming(b"data: 1\n\n", then=then)) as origin:
        error = await failed(origin)
    assert type(error) is EngineError
    assert words in error.message and "mid-answer" in error.message


async def test_a_silence_counts_only_while_somebody_waits_for_what_comes() -> None:
    """A client that reads slowly holds us up: that is no fault of the server."""
    async with (
        served(streaming(b"data: 1\n\n", then="end"), QUICK) as origin,
        origin.stream("/v1/x", {}) as response,
        Arrivals(response, 0.05) as arrivals,
    ):
        assert await arrivals.next() == b"data: 1\n\n"
        await asyncio.sleep(0.2)
        assert await arrivals.next() == b""


async def test_who_stops_reading_closes_the_connection_at_once() -> None:
    left = asyncio.Event()
    async with served(streaming(b"data: 1\n\n", left=left), Patience()) as origin:
        async with origin.stream("/v1/x", {}) as response:
            assert await response.content.readany() == b"data: 1\n\n"
        await asyncio.wait_for(left.wait(), 1.0)


async def test_who_is_cancelled_closes_the_connection_at_once() -> None:
    left, got = asyncio.Event(), asyncio.Event()

    async with served(streaming(b"data: 1\n\n", left=left), Patience()) as origin:

        async def read() -> AsyncIterator[bytes]:
            async with origin.stream("/v1/x", {}) as response:
                while data := await response.content.readany():
                    yield data

        async def pump() -> None:
            async with aclosing(read()) as pieces:
                async for _ in pieces:
                    got.set()

        task = asyncio.ensure_future(pump())
        await got.wait()
        task.cancel()
        await asyncio.wait_for(left.wait(), 1.0)
        assert task.cancelled()


async def test_who_is_cancelled_before_the_answer_closes_the_connection_too() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        asked.set()
        try:
            await asyncio.sleep(30)  # aiohttp cancels it when the connection is gone
        finally:
            left.set()
        return web.Response()

    async with served(handler, Patience()) as origin:
        task = asyncio.ensure_future(origin.json("/v1/x", {}))
        await asked.wait()
        task.cancel()
        await asyncio.wait_for(left.wait(), 1.0)


async def test_what_is_read_to_its_end_gives_its_connection_back() -> None:
    peers: set[Any] = set()

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.json_response({})

    async with served(handler) as origin:
        for _ in range(5):
            await origin.json("/v1/models")
    assert len(peers) == 1


@pytest.mark.parametrize(("level", "says"), [(logging.INFO, False), (logging.DEBUG, True)])
async def test_where_it_is_goes_to_the_log_without_the_key(
    caplog: Any, level: int, says: bool
) -> None:
    """What a server says may quote the prompt: only who debugs sees it."""
    with caplog.at_level(level):
        async with served(answering(500, {"error": "boom"})) as origin:
            await failed(origin)
    assert origin.url in caplog.text and "status 500" in caplog.text
    assert ("boom" in caplog.text) == says
    assert KEY not in caplog.text


async def test_what_is_sent_to_a_server_goes_out_at_once() -> None:
    """Else a request in two writes could wait for the acknowledgement of the first, 40 ms."""

    async def unfinished(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(30)
        return response

    async with served(unfinished) as origin, origin.stream("/x", {}) as response:
        assert response.connection is not None and response.connection.transport is not None
        line = response.connection.transport.get_extra_info("socket")
        assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
