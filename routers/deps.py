"""What the routes stand on: the gateway, the catalog, and the answers under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request
from starlette.types import Receive

from app.accounts.accounts import Accounts
from app.budget import ENDED, Account
from app.catalog import Catalog
from app.errors import EngineUnavailable
from app.gateway import Answer, Gateway
from app.storage.records import KeyRow
from app.telemetry.counting import Telemetry
from app.telemetry.exports import Exports, Observers, Span
from app.telemetry.names import NOBODY, Who
from app.types import Load
from routers.bounds import Bounds
from routers.doors import Door
from routers.wordings import Wording, openai

T = TypeVar("T")


class ClientGone(Exception):
    """The client left before its answer was whole. Nobody is told: nobody is there."""


class Running:
    """The answers under way: each ends when its client leaves, all when the server must."""

    def __init__(self) -> None:
        self.ending = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def end(self) -> None:
        """End all of them now, and refuse further ones."""
        self.ending = True
        for task in self._tasks:
            task.cancel(ENDED)

    async def run(self, work: Coroutine[Any, Any, T], receive: Receive) -> T:
        """What `work` returns; it has been cancelled and has cleaned up when this raises.

        The request's body must have been read. Raises ClientGone, EngineUnavailable when the
        server ends, and what `work` raises.
        """
        if self.ending:
            work.close()
            raise _ending()
        task = asyncio.current_task()
        assert task is not None
        gone = asyncio.ensure_future(_disconnected(receive, task))
        self._tasks.add(task)
        try:
            return await work
        except asyncio.CancelledError as cancelled:
            if self.ending:
                task.uncancel()
                raise _ending() from cancelled
            if gone.done():
                task.uncancel()
                raise ClientGone from cancelled
            raise
        finally:
            self._tasks.discard(task)
            gone.cancel()


class Server(Protocol):
    """One server of a model, for whoever operates it."""

    @property
    def model(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...


@dataclass
class Front:
    """One per app; the factory fills it."""

    catalog: Catalog
    telemetry: Telemetry
    bounds: Bounds = field(default_factory=Bounds)
    keep_alive_s: float = 15.0  # of silence, before a stream has a comment; 0: never
    door: Door = field(default_factory=Door)
    running: Running = field(default_factory=Running)
    gateway: Gateway | None = None  # None until the engine has loaded
    servers: Callable[[], Sequence[Server]] = tuple
    policies: Callable[[], Mapping[str, Mapping[str, Any]]] = dict  # their options, as JSON Schema
    created: int = field(default_factory=lambda: int(time.time()))
    exports: Exports | None = None  # to a collector, where one is configured

    @property
    def observer(self) -> Observers:
        """Who is told of answers."""
        return Observers(self.telemetry, self.exports)

    def loads(self) -> dict[str, Load]:
        """How busy each model is; empty while they load."""
        if self.gateway is None:
            return {}
        return {name: self.gateway.engine.load(name) for name in self.catalog.models}

    def opened(self) -> Gateway:
        """The gateway. Raises EngineUnavailable while the models load."""
        if self.gateway is None:
            raise EngineUnavailable("The models are still loading", retry_after=1)
        return self.gateway


@dataclass
class Visit:
    """What is known of one HTTP request before any route saw it."""

    request_id: str  # the client's, or ours
    arrived: float  # time.monotonic()
    worded: Wording = openai
    who: Who = NOBODY  # who answered it, for the metrics
    reason: str = ""  # and why nobody did, or not to the end
    account: Account | None = None  # who pays, once that is known
    trace: Mapping[str, str] = field(default_factory=dict)  # headers that say whose trace it is in
    span: Span | None = None  # its own place there
    answer: Answer | None = None
    first: float | None = None  # when the answer's first token came; time.monotonic()
    gone: bool = False  # its client left


def install(app: FastAPI, front: Front) -> None:
    app.state.front = front


def front_of(request: Request) -> Front:
    front: Front = request.app.state.front
    return front


def visit_of(request: Request) -> Visit:
    visit: Visit = request.state.visit
    return visit


async def account_of(request: Request) -> Account:
    """Who pays for this request. Raises InvalidKey, Forbidden, LedgerUnavailable."""
    visit = visit_of(request)
    visit.account = await front_of(request).door.account(request.headers, _address(request))
    return visit.account


async def admin_of(request: Request) -> tuple[Accounts, KeyRow]:
    """The ledger and who manages it. Raises InvalidKey, Forbidden, LedgerUnavailable."""
    return await front_of(request).door.admin(request.headers)


def _address(request: Request) -> str | None:
    return None if request.client is None else request.client.host


async def _disconnected(receive: Receive, task: asyncio.Task[Any]) -> None:
    """End this task when its client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def _ending() -> EngineUnavailable:
    return EngineUnavailable("The server is shutting down", retry_after=1)
