"""One client's connection: how long it may take to ask, to be silent, and not to read."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from app.errors import BadRequest, FarthingError, HeadersTooLarge, TooSlow

EXTENSION = "farthing.half_closed"  # in a scope's extensions: a dict for the key `probe`
_UNSENT = 16 * 1024  # bytes that the system may hold back for a client; else megabytes
_LINGER_S = 5.0  # for the rest of a body that was refused before it was read
_LOOK_S = 0.2  # between two looks at whether a client that says no more is there at all


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds, and how large the head of its request may be."""

    idle: float = 75.0  # between two requests, and before the first
    head: float = 30.0  # for a request's head, from its first byte
    stall: float = 60.0  # in which it takes nothing of what it is sent
    head_bytes: int = 64 * 1024


def protocol(patience: Patience) -> type[asyncio.Protocol]:
    """What uvicorn makes for every connection."""
    return type("Connection", (Connection,), {"patience": patience})


class Connection(HttpToolsProtocol):
    """uvicorn's own, which by itself waits for ever and reads any head to its end.

    A client that has ended its sending, and waits for its answer, is served. One that has left
    altogether looks the same until something is sent to it: `probe`, which whoever streams an
    answer may put into the scope's extension, sends what the stream's reader ignores.
    """

    patience = Patience()
    _slow: asyncio.TimerHandle | None = None  # what will end a head, or a body nobody reads
    _stalled: asyncio.TimerHandle | None = None
    _come = 0  # heads, and pieces of bodies
    _in_head = True
    _held = 0  # bytes since: of a head, or of what may follow the last piece of a body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # as uvicorn narrows it
        self.timeout_keep_alive = self.patience.idle  # type: ignore[assignment]  # it may be a part
        self._idle()
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # So little that a slow reader is felt at once, and is seen to read.
            line: socket.socket = transport.get_extra_info("socket")
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._relax()
        self._unstall()

    def data_received(self, data: bytes) -> None:
        before = (self._in_head, self._come)
        super().data_received(data)
        if before[1] != self._come or self.transport.is_closing():
            return
        self._held += len(data)
        if self._held > self.patience.head_bytes:
            limit = self.patience.head_bytes
            message = f"The request's headers are larger than {limit} bytes"
            self._refuse(HeadersTooLarge(message, param="headers"))
        elif before[0] and self._slow is None:
            self._slow = self.loop.call_later(self.patience.head, self._late)

    def on_headers_complete(self) -> None:
        self._come += 1
        self._in_head, self._held = False, 0
        self._relax()
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        self.scope["extensions"] = {EXTENSION: {}}

    def on_body(self, body: bytes) -> None:
        self._come += 1
        self._held = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head, self._held = True, 0
        self._relax()
        super().on_message_complete()
        if self.cycle.response_complete:
            self._idle()  # the end of a body that was refused has come after its answer

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._last_words()
        if self.cycle.response_complete and self.cycle.more_body and self._slow is None:
            # What is left of the body is read and dropped, so that the answer is not lost in a
            # reset; but not for ever.
            self._slow = self.loop.call_later(_LINGER_S, self.timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._unstall()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._last_words()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own type
        """Whether this connection stays open for what it has yet to be sent."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        if self.pipeline:
            pass  # amid an earlier answer there is no place for a probe
        elif not cycle.response_started:
            if cycle.scope["http_version"] != "1.1":
                return False  # there is nothing that such a client would ignore
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            probe = cycle.scope["extensions"][EXTENSION].get("probe")
            if callable(probe):
                probe()
        cycle.keep_alive = False
        self._look()
        return True

    def send_400_response(self, msg: str) -> None:
        """Instead of uvicorn's plain text."""
        self._refuse(BadRequest(msg))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            app = partial(_unframed, app, cycle)
        super()._start_asgi_task(cycle, app)

    def _idle(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self.patience.idle, self.timeout_keep_alive_handler
        )

    def _late(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._refuse(TooSlow("The request's headers took too long to arrive"))
        else:  # amid an answer it may be no head at all, but an end of line too much
            self._slow = self.loop.call_later(self.patience.head, self._late)

    def _look(self) -> None:
        """Close this connection if what was sent last came back as refused."""
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        line: socket.socket = self.transport.get_extra_info("socket")
        if line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(_LOOK_S, self._look)

    def _stall(self, unsent: int) -> None:
        self._stalled = self.loop.call_later(self.patience.stall, self._is_stalled, unsent)

    def _last_words(self) -> None:
        """A connection that closes waits for what is unsent, but not for ever either."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and self._stalled is None:
            self._stall(unsent)

    def _is_stalled(self, unsent: int) -> None:
        rest = self.transport.get_write_buffer_size()
        if rest < unsent:
            self._stall(rest)
        else:
            self.transport.abort()

    def _unstall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _relax(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _refuse(self, error: FarthingError) -> None:
        """The last words on a connection on which no request came to be."""
        if self.cycle is None or self.cycle.response_complete:
            said = {name: getattr(error, name) for name in ("message", "type", "param", "code")}
            body = json.dumps({"error": said}).encode()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n"
            self.transport.write(STATUS_LINE[error.status] + head % len(body) + b"\r\n" + body)
        self.transport.close()


async def _unframed(
    app: Any, cycle: RequestResponseCycle, scope: Any, receive: Any, send: Any
) -> None:
    """For HTTP/1.0, which knows no chunks: what has no length ends with its connection."""
    unframed = False

    async def plainly(message: Any) -> None:
        nonlocal unframed
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            unframed = b"content-length" not in names
            if unframed:
                cycle.chunked_encoding = False
        elif unframed:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    await app(scope, receive, plainly)
