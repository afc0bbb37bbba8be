"""The middleware writes entropies before the chunks they belong to, and changes nothing else."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from app.vllm_plugins import asks, report
from app.vllm_plugins.asks import Report, format_placed, parse_report
from app.vllm_plugins.channel import Placed, Seen, Sender
from app.vllm_plugins.report import EntropyReport, Stream

Step = str | tuple[Seen | Placed, ...]  # a chunk, or what the engine tells before the next


def seen(token: int, bits: float = 1.0, mean: float | None = None, call: str = "c") -> Seen:
    return Seen(call, token, bits, mean)


class Server:
    """A vLLM that plays a script: it sends chunks, and tells of tokens, in this order."""

    def __init__(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.script: list[Step] = []
        self.kind = "text/event-stream; charset=utf-8"
        self.gate: asyncio.Event | None = None  # where it waits before it ends
        self._sender = Sender(path)
        monkeypatch.setenv(asks.SOCKET_VARIABLE, path)
        app = Starlette(routes=[Route("/", self._answer), Route("/plain", self._plain)])
        self.middleware = EntropyReport(app)

    async def _answer(self, request: Request) -> Response:
        return StreamingResponse(self._chunks(), media_type=self.kind)

    async def _plain(self, request: Request) -> Response:
        self._sender.send([seen(0)])
        return PlainTextResponse("data: x\n\n", media_type="text/event-stream")

    async def _chunks(self) -> AsyncIterator[str]:
        for step in self.script:
            if isinstance(step, str):
                yield step
            else:
                self._sender.send(list(step))
        if self.gate is not None:
            await self.gate.wait()

    async def ask(self, call: str | None = "c", path: str = "/") -> str:
        headers = {} if call is None else {asks.CALL_HEADER: call}
        transport = httpx.ASGITransport(self.middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as client:
            response = await client.get(path, headers=headers)
        assert response.status_code == 200
        return response.text

    def close(self) -> None:
        self.middleware.close()
        self._sender._socket.close()


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "socket")


@pytest.fixture
async def server(path: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    server = Server(path, monkeypatch)
    server.middleware._listen()
    yield server
    server.close()


def read(body: str) -> list[str | Report]:
    """The events and reports of an event stream, in order."""
    events = body.split("\n\n")
    assert events.pop() == ""
    return [parse_report(event.encode()) or event for event in events]


async def test_each_token_s_entropy_stands_before_its_chunk(server: Server) -> None:
    server.script = [(seen(0, 0.5),), "data: a\n\n", (seen(1, 1.5),), "data: b\n\n"]
    assert read(await server.ask()) == [Report(0, (0.5,)), "data: a", Report(1, (1.5,)), "data: b"]


async def test_tokens_of_one_chunk_are_told_together(server: Server) -> None:
    first = [(seen(1, 2.0),), (seen(0, 1.0),), (seen(2, 3.0), seen(9, call="d"))]
    server.script = [*first, "data: abc\n\n", (seen(5),), (seen(3),), "data: d\n\n"]
    assert read(await server.ask()) == [
        Report(0, (1.0, 2.0, 3.0)), "data: abc", Report(3, (1.0,)), Report(5, (1.0,)), "data: d",
    ]  # fmt: skip


async def test_what_is_told_again_replaces_what_was_told(server: Server) -> None:
    early = [(seen(0, 1.0, mean=1.0),), (seen(0, 2.0),)]  # a prompt that is read in two pieces
    server.script = [*early, "data: a\n\n", (seen(0, 7.0), seen(1)), "data: b\n\n"]
    assert read(await server.ask()) == [Report(0, (2.0,)), "data: a", Report(1, (1.0,)), "data: b"]


async def test_where_the_call_was_stopped_the_mean_is_told_and_nothing_after(
    server: Server,
) -> None:
    server.script = [(seen(0), seen(1, 3.0, mean=2.0)), (seen(2),), "data: a\n\n"]
    assert read(await server.ask()) == [Report(0, (1.0, 3.0), 2.0), "data: a"]


async def test_what_was_put_in_place_is_told_once(server: Server) -> None:
    placed = (Placed("c", 40, 2), Placed("d", 7, 0))
    server.script = [placed, (seen(0),), "data: a\n\n", "data: b\n\n"]
    told = format_placed(asks.Placed(40, 2)).decode().strip()
    lines = [line for line in (await server.ask()).splitlines() if line]
    assert lines[0] == told and parse_report(lines[1].encode()) == Report(0, (1.0,))
    assert lines[2:] == ["data: a", "data: b"]


async def test_a_chunk_does_not_wait_for_a_report(server: Server) -> None:
    server.script = ["data: a\n\n", "data: b\n\n", (seen(0), seen(1)), "data: [DONE]\n\n"]
    expected = ["data: a", "data: b", Report(0, (1.0, 1.0)), "data: [DONE]"]
    assert read(await server.ask()) == expected


async def test_an_event_is_never_cut(server: Server) -> None:
    server.script = [(seen(0),), "data: a", (seen(1),), "b", "c\n\n", "data: d\n\n", "data: e"]
    first, second = (f': farthing {{"first":{n},"bits":[1.0],"mean":null}}\n\n' for n in (0, 1))
    assert await server.ask() == f"{first}data: abc\n\n{second}data: d\n\ndata: e"


@pytest.mark.parametrize("call", [None, "", "d"])
async def test_other_requests_are_passed_on_as_they_are(server: Server, call: str | None) -> None:
    server.script = [(seen(0),), "data: a\n\n"]
    assert await server.ask(call) == "data: a\n\n"


async def test_what_is_no_event_stream_is_passed_on_as_it_is(server: Server) -> None:
    server.script = [(seen(0),), "{}\n\n"]
    server.kind = "application/json"
    assert await server.ask() == "{}\n\n"
    assert await server.ask(path="/plain") == "data: x\n\n"  # its length was announced


async def test_calls_at_once_get_their_own(server: Server) -> None:
    server.script = [(seen(0, 1.0, call="a"), seen(0, 2.0, call="b")), "data: x\n\n"]
    server.gate = asyncio.Event()
    running = asyncio.create_task(server.ask("a"))
    while not server.middleware._streams:
        await asyncio.sleep(0)
    server.gate.set()
    assert read(await server.ask("b")) == [Report(0, (2.0,)), "data: x"]
    # a is told of both its own and what came while b was served, each token once
    assert read(await running) == [Report(0, (1.0,)), "data: x"]


async def test_the_same_call_twice_is_reported_to_the_first(server: Server) -> None:
    first = server.middleware._streams["c"] = Stream(_nothing, lambda: None)
    server.script = [(seen(0),), "data: x\n\n"]
    assert await server.ask() == "data: x\n\n"
    assert server.middleware._streams == {"c": first}


async def test_an_ended_or_broken_call_is_forgotten(server: Server) -> None:
    await server.ask()
    assert not server.middleware._streams
    server.gate = asyncio.Event()
    running = asyncio.create_task(server.ask())
    while not server.middleware._streams:
        await asyncio.sleep(0)
    running.cancel()  # as a server does when its client has gone
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not server.middleware._streams


async def test_what_comes_between_chunks_is_taken_by_the_loop(server: Server) -> None:
    server.script = [tuple(seen(token) for token in range(40))]
    server.gate = asyncio.Event()
    running = asyncio.create_task(server.ask())
    while not (streams := server.middleware._streams):
        await asyncio.sleep(0)
    (stream,) = streams.values()
    async with asyncio.timeout(5):
        while len(stream._waiting) < 40:
            await asyncio.sleep(0.001)
    server.gate.set()
    await running


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_WAITING", 3)
    stream = Stream(_nothing, lambda: None)
    for token in range(9):
        stream.take(seen(token))
    assert sorted(stream._waiting) == [0, 1, 2]


async def _nothing(message: Any) -> None:
    pass


Lifespan = Callable[[str], Awaitable[None]]


async def lifespan(middleware: EntropyReport, *sent: str) -> list[str]:
    passed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for kind in sent:
            await send({"type": kind})

    async def send(message: Any) -> None:
        passed.append(message["type"])

    middleware._app = app
    await middleware({"type": "lifespan"}, _receive, send)
    return passed


async def _receive() -> Any:
    raise AssertionError("nobody listens to what a client sends")


async def test_the_socket_is_there_from_start_to_end() -> None:
    folder = Path(tempfile.gettempdir()) / f"{asks.SOCKET_FOLDER}test"
    middleware = EntropyReport(_never, str(folder / "entropy"))
    assert await lifespan(middleware, "lifespan.startup.complete") == ["lifespan.startup.complete"]
    assert (folder / "entropy").is_socket()
    await lifespan(middleware, "lifespan.shutdown.complete")
    assert not folder.exists()


async def test_a_folder_of_someone_else_s_stays(path: str) -> None:
    middleware = EntropyReport(_never, path)
    await lifespan(middleware, "lifespan.startup.complete", "lifespan.shutdown.complete")
    assert Path(path).parent.exists()
    assert not Path(path).exists()


async def test_a_socket_that_cannot_be_bound_breaks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("yes"))])
    middleware = EntropyReport(app, str(tmp_path / "file" / "socket"))
    transport = httpx.ASGITransport(middleware)
    async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as client:
        for _ in range(2):
            answer = await client.get("/", headers={asks.CALL_HEADER: "c"})
            assert answer.text == "yes"
    assert len(caplog.records) == 1


async def test_without_a_path_there_are_no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(asks.SOCKET_VARIABLE, raising=False)
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("yes"))])
    middleware = EntropyReport(app)
    transport = httpx.ASGITransport(middleware)
    async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as client:
        assert (await client.get("/", headers={asks.CALL_HEADER: "c"})).text == "yes"
    assert middleware._receiver is None


async def _never(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError
