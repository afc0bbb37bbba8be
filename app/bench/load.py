"""The clients of a benchmark, in a process of their own: many requests over kept connections."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

import httptools
import uvloop

_EVENT_END = b"\n\n"
_BESIDES = 2  # of a stream's events: the usage at its end, and [DONE]


@dataclass(frozen=True)
class Load:
    """What is asked of whom, by how many at once."""

    host: str
    port: int
    request: str  # head and body
    at_once: int
    seconds: float  # after them no further request begins


@dataclass(frozen=True)
class Observed:
    """What came of it."""

    requests: int
    seconds: float  # to the last answer's end
    chunks: int  # events of all streams, but for the usage and [DONE]
    p50_ms: float  # of requests, first byte to last
    p99_ms: float
    first_p50_ms: float  # of their answers' first bytes after the head
    first_p99_ms: float


class Failed(Exception):
    """An answer that is none: then there is nothing to measure."""


@dataclass
class _Tally:
    times: list[float] = field(default_factory=list)  # seconds of each request
    firsts: list[float] = field(default_factory=list)
    chunks: int = 0


class _Client(asyncio.Protocol):
    """Asks again as soon as it is answered."""

    def __init__(self, load: Load, until: float, tally: _Tally) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = load.request.encode()
        self._until = until
        self._tally = tally
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._began = self._first = 0.0  # time.perf_counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(Failed(f"the connection was lost: {error}"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._first = self._first or time.perf_counter()
        self._body.append(body)

    def on_message_complete(self) -> None:
        now, body = time.perf_counter(), b"".join(self._body)
        status = self._parser.get_status_code()
        if status != 200 or b'"error"' in body:
            self.done.set_exception(Failed(f"status {status}: {body[:500].decode()}"))
            self._transport.close()
            return
        self._tally.times.append(now - self._began)
        self._tally.firsts.append(self._first - self._began)
        self._tally.chunks += max(body.count(_EVENT_END) - _BESIDES, 0)
        if now < self._until:
            self._ask()
        else:
            self.done.set_result(None)
            self._transport.close()

    def _ask(self) -> None:
        self._body, self._first = [], 0.0
        self._began = time.perf_counter()
        self._transport.write(self._request)


async def drive(load: Load) -> Observed:
    """Put this load on a server. Raises Failed for an answer other than a good one, OSError."""
    loop, tally, began = asyncio.get_running_loop(), _Tally(), time.perf_counter()
    clients = [_Client(load, began + load.seconds, tally) for _ in range(load.at_once)]
    await asyncio.gather(
        *(loop.create_connection(lambda c=client: c, load.host, load.port) for client in clients)  # type: ignore[misc]
    )
    await asyncio.gather(*(client.done for client in clients))
    return _observed(tally, time.perf_counter() - began)


def _observed(tally: _Tally, seconds: float) -> Observed:
    p50, p99 = _quantiles(tally.times)
    first_p50, first_p99 = _quantiles(tally.firsts)
    return Observed(len(tally.times), seconds, tally.chunks, p50, p99, first_p50, first_p99)


def _quantiles(times: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile in ms."""
    cuts = statistics.quantiles([*times, *times], n=100, method="inclusive")  # one is enough
    return cuts[49] * 1000, cuts[98] * 1000


def main() -> None:
    """Answer each line of stdin, a Load in JSON, with a line: an Observed, or an error."""
    for line in sys.stdin:
        try:
            found: object = asdict(uvloop.run(drive(Load(**json.loads(line)))))
        except (Failed, OSError) as error:
            found = {"error": str(error)}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
