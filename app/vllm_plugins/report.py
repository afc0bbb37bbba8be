"""ASGI middleware for vLLM's API server that writes our reports into the event streams it serves.

Named to vLLM by `--middleware app.vllm_plugins.report.EntropyReport`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from app.vllm_plugins import asks
from app.vllm_plugins.channel import Placed, Receiver, Seen

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEADER = asks.CALL_HEADER.lower().encode()
_WAITING = 65_536  # entropies of one call that wait for its next chunk

logger = logging.getLogger("vllm.farthing")


class EntropyReport:
    """Passes everything on as it is, and puts before a chunk the reports of its tokens.

    A request whose header X-Farthing-Call names its call gets them, as comments, in an answer
    that is an event stream. Nothing waits for a report: one that comes late stands before a later
    chunk, one that was lost is missing.
    """

    def __init__(self, app: App, path: str | None = None) -> None:
        """`path` of the socket; default: the environment's, and without one nothing is reported."""
        self._app = app
        self._path = path or os.environ.get(asks.SOCKET_VARIABLE)
        self._receiver: Receiver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, Stream] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._path and scope["type"] == "lifespan":
            await self._app(scope, receive, self._at_lifespan(send))
            return
        call = _call(scope) if self._path and scope["type"] == "http" else None
        if call is None or call in self._streams:
            await self._app(scope, receive, send)
            return
        self._listen()
        stream = self._streams[call] = Stream(send, self.drain)
        try:
            await self._app(scope, receive, stream.send)
        finally:
            del self._streams[call]

    def drain(self) -> None:
        """Give what has come to the streams it belongs to."""
        if self._receiver is None:
            return
        for seen in self._receiver.drain():
            stream = self._streams.get(seen.call)
            if stream is not None:
                stream.take(seen)

    def close(self) -> None:
        """Take the socket away; the next request would bind another."""
        if self._receiver is not None and self._loop is not None:
            self._loop.remove_reader(self._receiver.fileno())
            self._receiver.close()
        self._receiver = None

    def _at_lifespan(self, send: Send) -> Send:
        async def watched(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._listen()
            elif message["type"].startswith("lifespan.shutdown"):
                self.close()
                remove_folder(self._path)
            await send(message)

        return watched

    def _listen(self) -> None:
        if self._receiver is not None or not self._path:
            return
        try:
            receiver = Receiver(self._path)
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(receiver.fileno(), self.drain)
        except OSError:
            logger.exception("entropies cannot be reported: %s", self._path)
            self._path = None
        else:
            self._receiver = receiver


class Stream:
    """One answer on its way out, and the reports that wait for its next chunk."""

    def __init__(self, send: Send, drain: Callable[[], None]) -> None:
        self._send = send
        self._drain = drain
        self._waiting: dict[int, Seen] = {}  # by index of the token
        self._placed: Placed | None = None
        self._next = 0  # index of the first token that has not been reported
        self._events = False  # whether the answer is an event stream
        self._between = True  # whether what was sent so far ends with an event

    def take(self, seen: Seen | Placed) -> None:
        """Keep it for the next chunk. What is told of a token again replaces what was told."""
        if isinstance(seen, Placed):
            self._placed = seen
        elif seen.token >= self._next and len(self._waiting) < _WAITING:
            self._waiting[seen.token] = seen

    async def send(self, message: Message) -> None:
        """Send an ASGI message of the answer on, reports before it."""
        if message["type"] == "http.response.start":
            self._events = _is_event_stream(message)
        elif self._events and message.get("body"):
            body = message["body"]
            if self._between:
                self._drain()
                if self._waiting or self._placed is not None:
                    message = {**message, "body": self._reports() + body}
            self._between = body.endswith(b"\n\n")
        await self._send(message)

    def _reports(self) -> bytes:
        """What waits, as comments, each of tokens that follow one another."""
        comments, run = list[bytes](), list[Seen]()
        if self._placed is not None:
            _, predicted, computed = self._placed
            comments.append(asks.format_placed(asks.Placed(predicted, computed)))
            self._placed = None
        for token in sorted(self._waiting):
            seen = self._waiting[token]
            if run and token != run[-1].token + 1:
                comments.append(_comment(run))
                run = []
            run.append(seen)
            if seen.mean is not None:
                break  # what an engine that runs ahead saw behind the end was never written
        if run:
            comments.append(_comment(run))
            self._next = run[-1].token + 1
        self._waiting.clear()
        return b"".join(comments)


def _comment(run: list[Seen]) -> bytes:
    bits = tuple(seen.bits for seen in run)
    return asks.format_report(asks.Report(run[0].token, bits, run[-1].mean))


def _call(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == _HEADER:
            return str(value.decode("latin-1")) or None
    return None


def _is_event_stream(start: Message) -> bool:
    """Whether comments may be put into the body that this begins."""
    headers = {bytes(name).lower(): bytes(value) for name, value in start.get("headers", ())}
    kind = headers.get(b"content-type", b"").lower()
    bound = headers.keys() & {b"content-length", b"content-encoding"}
    return kind.startswith(b"text/event-stream") and not bound


def remove_folder(path: str | None) -> None:
    """Of a socket whose folder was made for it alone."""
    folder = Path(path or "").parent
    if folder.name.startswith(asks.SOCKET_FOLDER):
        with suppress(OSError):
            folder.rmdir()
