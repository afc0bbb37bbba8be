"""What every request gets: an id, a count, and any error in OpenAI's shape."""

from __future__ import annotations

import json
import logging
import math
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPMethod, HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.budget import Rate
from app.errors import BadRequest, FarthingError, HeadersTooLarge, InvalidKey, TooSlow
from app.telemetry import logs
from app.telemetry.counting import NO_ROUTE, Telemetry, reason_of
from app.telemetry.ended import Ended, note
from app.telemetry.exports import Exports
from app.telemetry.names import OTHER
from app.telemetry.safely import safely
from routers.bounds import Bounds
from routers.deps import ClientGone, Visit
from routers.wordings import Wording, openai, wording

_SANE_ID = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,126}[\x21-\x7e])?")
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_METHODS = frozenset(HTTPMethod)  # whatever else a client calls one
_TRACESTATE = re.compile(r"[\x20-\x7e]{0,512}")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told of requests, beside the metrics."""

    exports: Exports | None = None
    access_log: bool = False


class Edge:
    """The middleware around all others, but for what pages in browsers are told."""

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        bounds: Bounds,
        prefix: str = "",
        told: Told | None = None,
    ) -> None:
        """`prefix`: of our paths at a reverse proxy, whether it hands it on or takes it away."""
        self.app = app
        self.prefix = prefix
        self.telemetry = telemetry
        self.bounds = bounds
        self.told = told or Told()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit(_request_id(scope), time.monotonic(), wording(scope["path"]))
        visit.trace = _trace(scope)
        within = self._traced(visit, scope["method"])
        scope.setdefault("state", {})["visit"] = visit
        scope["root_path"] = self.prefix
        # What only we say of an answer cannot come from a client.
        scope["headers"] = [h for h in scope["headers"] if not h[0].startswith(b"x-farthing-")]
        header = (b"x-request-id", visit.request_id.encode())
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        with logs.inside(within):
            try:
                self.bounds.check_headers(scope)
                with self.telemetry.in_flight():
                    await self.app(scope, receive, tagged)
            except HeadersTooLarge as error:
                visit.reason = reason_of(error)
                await refusal(error, visit.worded)(scope, receive, tagged)
            except (ClientGone, ClientDisconnect):
                visit.gone = True
            except Exception:  # the process edge: whatever a bug raises is a 500
                log.exception("a request failed")
                bug = FarthingError("Internal server error")
                visit.reason = reason_of(bug)
                if status:
                    raise  # too late for an answer: the server drops the connection
                await refusal(bug, visit.worded)(scope, receive, tagged)
            finally:
                safely(self._ended, scope, visit, status)

    def _traced(self, visit: Visit, method: str) -> logs.Inside:
        """Begin its span, if there are to be any; and within what its log lines stand."""
        if self.told.exports is not None:
            name = method if method in _METHODS else "_OTHER"
            visit.span = safely(self.told.exports.arrived, name, visit.trace)
        if visit.span is None:
            return logs.Inside(visit.request_id, visit.trace.get("traceparent", "")[3:35])
        visit.trace = visit.span.headers
        return logs.Inside(visit.request_id, *visit.span.ids)

    def _ended(self, scope: Scope, visit: Visit, status: int) -> None:
        route = getattr(scope.get("route"), "path", "")
        now = time.monotonic()
        seconds = now - visit.arrived
        safely(self.telemetry.requested, route or OTHER, visit.who, status, seconds)
        if visit.reason:
            safely(self.telemetry.refused, visit.reason)
        exports, first = self.told.exports, visit.first
        if exports is None and not self.told.access_log:
            return
        ended = Ended(
            method=scope["method"] if scope["method"] in _METHODS else "_OTHER",
            route=route,
            path=scope["path"],
            scheme=scope["scheme"],
            status=status,
            seconds=seconds,
            request_id=visit.request_id,
            ttft=None if first is None else first - visit.arrived,
            who=visit.who,
            reason=visit.reason,
            gone=visit.gone,
            key="" if visit.account is None else visit.account.id,
            answer=visit.answer,
        )
        if exports is not None:
            safely(exports.ended, visit.span, ended)
        if self.told.access_log:
            note(ended)


def install(
    app: FastAPI,
    telemetry: Telemetry,
    bounds: Bounds,
    prefix: str = "",
    origins: Sequence[str] = (),
    told: Told | None = None,
) -> None:
    """Every error of this app takes OpenAI's shape; pages of `origins` may ask."""
    app.add_middleware(Edge, telemetry=telemetry, bounds=bounds, prefix=prefix, told=told)
    if origins:  # outermost: a browser shows a page no answer, an error neither, without its header
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=("*",),
            expose_headers=("*",),
        )
    app.add_exception_handler(FarthingError, on_ours)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)


def json_response(
    content: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(_encode(content), status, headers, media_type="application/json")


def rate_headers(rates: Sequence[Rate]) -> dict[str, str]:
    """Where an account stands, in OpenAI's form."""
    headers: dict[str, str] = {}
    for rate in rates:
        headers[f"x-ratelimit-limit-{rate.kind}"] = str(rate.limit)
        headers[f"x-ratelimit-remaining-{rate.kind}"] = str(rate.remaining)
        headers[f"x-ratelimit-reset-{rate.kind}"] = f"{rate.reset:.3f}s"
    return headers


def refusal(error: FarthingError, worded: Wording = openai) -> Response:
    """The answer that tells a client of this error, and whether to try again."""
    headers: dict[str, str] = {}
    if error.retry is not None:
        headers["x-should-retry"] = "true" if error.retry else "false"
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, InvalidKey):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooSlow):
        headers["Connection"] = "close"  # the rest of it is not waited for
    return json_response(worded(error), error.status, headers)


async def on_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, FarthingError)
    visit: Visit = request.state.visit
    visit.reason = reason_of(error)
    if error.status >= 500:
        log.warning("%s: %s", type(error).__name__, error.message)
    response = refusal(error, visit.worded)
    if visit.account is not None:
        response.headers.update(rate_headers(visit.account.rates))
    return response


async def _on_http(request: Request, error: Exception) -> Response:
    """What the framework refuses: no such URL, or not with this method."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:200]}"
    ours = BadRequest(f"{HTTPStatus(error.status_code).phrase}: {what}")
    visit: Visit = request.state.visit
    visit.reason = NO_ROUTE
    response = json_response(visit.worded(ours), error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])  # the first is where: path, query
    ours = BadRequest(f"{param}: {first['msg']}", param=param)
    visit: Visit = request.state.visit
    visit.reason = reason_of(ours)
    return refusal(ours)


def _request_id(scope: Scope) -> str:
    """The client's, where it may stand in a header and a log line; else ours."""
    sent = [value for name, value in scope["headers"] if name == b"x-request-id"]
    text = sent[0].decode("latin-1") if len(sent) == 1 else ""
    return text if _SANE_ID.fullmatch(text) else f"req-{uuid.uuid4().hex}"


def _trace(scope: Scope) -> dict[str, str]:
    """The trace that the client says its request is part of (W3C Trace Context)."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in (b"traceparent", b"tracestate"):
            text = value.decode("latin-1").strip()
            known = found.get(name.decode())
            found[name.decode()] = text if known is None else f"{known},{text}"
    if not _TRACEPARENT.fullmatch(found.get("traceparent", "")):
        return {}
    if not _TRACESTATE.fullmatch(found.get("tracestate", "")):
        del found["tracestate"]
    return found
