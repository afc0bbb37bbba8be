"""Sends an answer, whole or as events, and ends it when its client leaves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Protocol

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from app.budget import Account
from app.errors import DeadlineExceeded, EngineError, FarthingError
from app.gateway import Answer
from app.telemetry.counting import Telemetry, reason_of
from app.telemetry.safely import safely
from app.types import HAND_OVERS, Chunk
from routers import body
from routers.costs import end_headers, start_headers
from routers.deps import ClientGone, Front, Visit, account_of, front_of, visit_of
from routers.edge import json_response
from routers.keep_alive import COMMENT, KeepAlive
from routers.scribe import ChatScribe, TextScribe
from routers.wire import Asked, ChatRequest, CompletionRequest, understand

log = logging.getLogger(__name__)


class Writer(Protocol):
    """Writes one answer down in a shape that its client reads."""

    id: str

    def gather(self, chunk: Chunk) -> None:
        """Note a chunk of an answer that goes out whole."""

    async def whole(self, finish: Chunk) -> object:
        """The body of what was gathered, when the bill is final; `finish`: the last one."""

    def opening(self, first: Chunk) -> str:
        """Events before those of the first chunk."""

    def content(self, chunk: Chunk) -> str | bytes:
        """The events of this chunk, if it makes any."""

    def ending(self, finish: Chunk) -> str:
        """The last events of a choice that is not the last to end."""

    async def closing(self, finish: Chunk) -> str:
        """The last events, when the bill is final."""

    async def broken(self, error: FarthingError) -> str:
        """The last events of a stream that ends with this error: the status has gone out."""


async def respond(
    request: Request,
    shape: type[ChatRequest] | type[CompletionRequest],
    scribe: type[ChatScribe] | type[TextScribe],
) -> Response:
    """The answer to a request for a generation. Raises FarthingError for what is refused."""
    account = await account_of(request)
    document = await body.read(request, front_of(request).bounds)
    asked = understand(shape, document, request.headers, visit_of(request).arrived)
    answer = begin(request, asked, account)
    return await deliver(request, answer, scribe(answer, asked), stream=asked.stream)


def begin(request: Request, asked: Asked, account: Account) -> Answer:
    """What was asked, under way once it is iterated. Raises FarthingError for what is refused."""
    front, visit = front_of(request), visit_of(request)
    order = replace(
        asked.order,
        request_id=visit.request_id,
        stream=asked.stream,
        arrived=visit.arrived,
        trace=visit.trace,
        span=visit.span,
    )
    answer = visit.answer = front.opened().answer(order, account)
    visit.who = front.telemetry.who(answer)
    return answer


async def deliver(request: Request, answer: Answer, writer: Writer, *, stream: bool) -> Response:
    """The response that carries this answer, as events or whole."""
    front = front_of(request)
    pace = Pace(front.telemetry, visit_of(request))
    if stream:
        return Streamed(answer, writer, pace, front, visit_of(request))
    return await front.running.run(_whole(answer, writer, pace), request.receive)


class Pace:
    """Times an answer's tokens, and counts how hard they were to call."""

    def __init__(self, telemetry: Telemetry, visit: Visit) -> None:
        self._telemetry = telemetry
        self._visit = visit
        self._tell = None if visit.span is None else visit.span.note
        self._who = visit.who
        self._arrived = visit.arrived
        self._last: dict[int, float] = {}  # when a choice's last tokens came
        self._taken: dict[int, str] = {}  # who took over a choice, and has yet to write
        self._between = telemetry.next_tokens(visit.who)
        self._entropies: dict[str, Callable[[float], None]] = {}  # by writer

    def note(self, chunk: Chunk) -> None:
        safely(self._note, chunk)

    def _note(self, chunk: Chunk) -> None:
        if chunk.echo:
            return
        if self._tell is not None:
            self._tell(chunk)
        if chunk.decision is not None and chunk.decision.kind in HAND_OVERS:
            self._taken[chunk.index] = chunk.decision.model
        tokens = len(chunk.tokens) if chunk.raw is None else chunk.usage.completion
        if not tokens or (chunk.finish and not self._last):
            return  # an answer that comes in one piece does not say when it began
        now = time.monotonic()
        last = self._last.get(chunk.index)
        if last is not None:
            self._between((now - last) / tokens, tokens)
            if self._taken and (to := self._taken.pop(chunk.index, None)) is not None:
                self._telemetry.handed_over(self._who, to, now - last)
        elif not self._last:
            self._visit.first = now
            self._telemetry.first_token(self._who, now - self._arrived)
        self._last[chunk.index] = now
        for token in chunk.tokens:
            if token.entropy is not None:
                self._entropy(chunk.model, token.entropy[0])

    def _entropy(self, model: str, bits: float) -> None:
        note = self._entropies.get(model)
        if note is None:
            note = self._entropies[model] = self._telemetry.entropies(self._who, model)
        note(bits)


async def finished(answer: Answer, note: Callable[[Chunk], None] | None = None) -> Chunk:
    """The last chunk of an answer that goes out whole; `note` is told of each.

    Raises EngineError where it broke off, DeadlineExceeded where it was cut.
    """
    finish: Chunk | None = None
    async with aclosing(answer):
        async for chunk in answer:
            if note is not None:
                note(chunk)
            if chunk.finish is not None:
                finish = chunk
    if finish is None:
        raise EngineError("The answer broke off")
    if finish.reason == "deadline":
        raise DeadlineExceeded("The deadline passed before the answer was whole")
    return finish


async def _whole(answer: Answer, writer: Writer, pace: Pace) -> Response:
    def note(chunk: Chunk) -> None:
        pace.note(chunk)
        writer.gather(chunk)

    content = await writer.whole(await finished(answer, note))
    return json_response(content, headers={**start_headers(answer), **end_headers(answer)})


class Streamed(Response):
    """An answer as server-sent events.

    Status and headers go out with the first chunk, so that a refusal keeps its status; or, where
    that is long in coming, with the first comment that keeps the connection alive, once the
    answer has been admitted. One task drives the answer from its first chunk to its last.
    """

    media_type = "text/event-stream"

    def __init__(
        self, answer: Answer, writer: Writer, pace: Pace, front: Front, visit: Visit
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self._answer = answer
        self._writer = writer
        self._pace = pace
        self._visit = visit
        self._running = front.running
        self._silence = front.keep_alive_s
        self._starting = False
        self._started = False
        self._opened = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._running.run(self._pump(scope, send), receive)
        except ClientGone:
            self._visit.gone = True
            if not self._started:
                raise
        except FarthingError as error:
            if not self._started:
                raise
            await self._break_off(send, error)
        except Exception:  # the process edge: a bug must still end the stream
            if not self._started:
                raise
            log.exception("answer %s broke off", self._writer.id)
            await self._break_off(send, FarthingError("Internal server error"))

    async def _pump(self, scope: Scope, send: Send) -> None:
        finish: Chunk | None = None
        alive = KeepAlive(self._silence, partial(self._comment, send))
        # app/connections.py: what tells a client that has left from one that only says no more.
        half_closed = scope.get("extensions", {}).get("farthing.half_closed", {})
        half_closed["probe"] = alive.now
        async with aclosing(self._answer), alive:
            async for chunk in self._answer:
                await alive.turn()
                if not self._opened:
                    await self._open(send, chunk)
                self._pace.note(chunk)
                if finish is not None:
                    await _send(send, self._writer.ending(finish))
                    finish = None
                if chunk.finish is not None:
                    # The last one is kept back until the bill is final.
                    finish = chunk
                    continue
                frame = self._writer.content(chunk)
                if frame:
                    await _send(send, frame)
        if finish is None:
            raise EngineError("The answer broke off")
        await _send(send, await self._writer.closing(finish), more=False)

    async def _start(self, send: Send) -> None:
        self.init_headers(
            {
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                **start_headers(self._answer),
            }
        )
        headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._starting = True
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        finally:
            self._starting = False
        self._started = True

    async def _open(self, send: Send, first: Chunk) -> None:
        if not self._started:
            await self._start(send)
        self._opened = True
        opening = self._writer.opening(first)
        if opening:
            await _send(send, opening)

    async def _comment(self, send: Send) -> None:
        if not self._answer.admitted or self._starting:
            return  # it may yet be refused, with a status; or the client takes nothing now
        if not self._started:
            await self._start(send)
        await _send(send, COMMENT)

    async def _break_off(self, send: Send, error: FarthingError) -> None:
        self._visit.reason = reason_of(error)
        await _send(send, await self._writer.broken(error), more=False)


async def _send(send: Send, text: str | bytes, *, more: bool = True) -> None:
    body = text.encode() if isinstance(text, str) else text
    await send({"type": "http.response.body", "body": body, "more_body": more})
