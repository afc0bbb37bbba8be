"""What a server does on a connection to answer one request, step by step: faults change it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Head:
    """Status and headers. Without a length the body goes in chunks."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass(frozen=True)
class Raw:
    """Bytes as they are, outside of any framing."""

    data: bytes


@dataclass(frozen=True)
class Pause:
    seconds: float


class Do(Enum):
    END = auto()  # the body is whole; the connection may serve again
    CLOSE = auto()  # no more bytes, but in order: what was sent arrives
    RESET = auto()
    STALL = auto()  # nothing, until the client leaves


Step: TypeAlias = Head | Raw | Pause | Do | bytes


class ClientLeft(Exception):
    pass


@dataclass(eq=False)
class Line:
    """A connection on which a server does its steps."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pace: Callable[[], float]  # seconds before each write of a body
    served: int = 0  # requests
    _chunked: bool = False

    async def do(self, steps: Sequence[Step]) -> bool:
        """Whether the connection can serve again. Raises ClientLeft."""
        for step in steps:
            if isinstance(step, Do):
                return await self._end(step)
            if isinstance(step, Pause):
                await self.wait(step.seconds)
            elif isinstance(step, Head):
                self._send(_head(step))
                self._chunked = step.length is None
            elif isinstance(step, Raw):
                self._send(step.data)
            else:
                await self.wait(self.pace())
                framed = b"%x\r\n%s\r\n" % (len(step), step) if self._chunked else step
                self._send(framed)
                await self.writer.drain()
            # A turn of the loop for each: what is written in one call can arrive in one piece.
            await asyncio.sleep(0)
        raise AssertionError("an answer without an end")

    async def _end(self, step: Do) -> bool:
        if step is Do.STALL:
            await self.wait(3600)
        if step is Do.END and self._chunked:
            self._send(b"0\r\n\r\n")
        if step is Do.RESET:
            # What was written must be on its way: a reset would throw it away.
            await self.writer.drain()
            await asyncio.sleep(0.02)
            self.reset()
        return step is Do.END

    async def wait(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while not self._alone():
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                return
            await asyncio.sleep(min(left, 0.005))
        raise ClientLeft

    def _alone(self) -> bool:
        """Whether the client has left: in order, or by a reset."""
        return self.reader.at_eof() or self.writer.transport.is_closing()

    def reset(self) -> None:
        connection = self.writer.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    def _send(self, data: bytes) -> None:
        if self._alone():
            raise ClientLeft
        self.writer.write(data)


def _head(head: Head) -> bytes:
    lines = [f"HTTP/1.1 {head.status} X", "server: uvicorn", "vary: Origin"]
    lines += [f"{name}: {value}" for name, value in head.headers.items()]
    framing = "transfer-encoding: chunked"
    lines.append(framing if head.length is None else f"content-length: {head.length}")
    return "\r\n".join([*lines, "", ""]).encode()


def event(content: Any) -> bytes:
    """As vLLM writes one; bytes are a comment and stand for themselves."""
    if isinstance(content, bytes):
        return content
    return b"data: " + _compact(content) + b"\n\n"


def _compact(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def events(contents: Sequence[Any]) -> list[Step]:
    head = Head(200, {"content-type": "text/event-stream; charset=utf-8"})
    return [head, *map(event, contents), b"data: [DONE]\n\n", Do.END]


def document(content: Any, status: int = 200, **headers: str) -> list[Step]:
    body = content.encode() if isinstance(content, str) else _compact(content)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    head = Head(status, {"content-type": "application/json", **named}, len(body))
    return [head, body, Do.END]
