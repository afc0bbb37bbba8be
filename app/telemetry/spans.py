"""Our spans: one for each request, one for each call of an engine, and what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.telemetry.content import Heard, asked
from app.telemetry.counting import PICO
from app.telemetry.ended import Ended, Known
from app.telemetry.gen_ai import OPERATIONS, OURSELVES, error_of, named, operation, writer_of
from app.telemetry.names import EMBEDDED, Names, Server
from app.trail import Attempt, CallRecord
from app.types import HAND_OVERS, Chunk, Decision

Attributes: TypeAlias = dict[str, str | int | float | bool | Sequence[str]]
_LONGEST = 128  # characters of a name that a client chose
_context = TraceContextTextMapPropagator()  # no baggage: what a client says there is for us alone


class RequestSpan:
    """The span of one request."""

    def __init__(self, span: trace.Span, heard: Heard | None) -> None:
        self.span = span
        self.inner = trace.set_span_in_context(span, Context())
        self.headers = _headers(self.inner)
        self.heard = heard  # its answer, where that is to be told
        self.handed_over = 0

    @property
    def ids(self) -> tuple[str, str]:
        """Of the trace and of the span, in hexadecimal digits."""
        known = self.span.get_span_context()
        return trace.format_trace_id(known.trace_id), trace.format_span_id(known.span_id)

    def note(self, chunk: Chunk) -> None:
        if self.heard is not None:
            self.heard.note(chunk)


class Spans:
    """Begins and ends them. What is said of one is said at its end, as far as it can wait."""

    def __init__(
        self,
        tracer: Tracer,
        names: Names,
        providers: Callable[[], Mapping[str, str]],
        content: bool,
    ) -> None:
        self._tracer = tracer
        self._names = names
        self._providers = providers
        self._content = content

    def arrived(self, method: str, trace: Mapping[str, str]) -> RequestSpan:
        # Of its parent, which is the client's; a context of ours would be that of another request.
        parent = _context.extract(trace, Context())
        span = self._tracer.start_span(
            method, parent, SpanKind.SERVER, {"http.request.method": method}
        )
        return RequestSpan(span, Heard() if self._content and span.is_recording() else None)

    def calling(self, answer: Known, record: CallRecord) -> None:
        request = answer.order.span
        if not isinstance(request, RequestSpan):
            return
        here = Server(record.model, EMBEDDED) in self._names.servers
        name = operation(answer)
        span = self._tracer.start_span(
            f"{name} {record.model}",
            request.inner,
            SpanKind.INTERNAL if here else SpanKind.CLIENT,
            {
                "gen_ai.operation.name": name,
                "gen_ai.provider.name": self._providers().get(record.model, OURSELVES),
                "gen_ai.request.model": record.model,
            },
        )
        record.span = span
        record.headers = _headers(trace.set_span_in_context(span, Context()))

    def called(self, record: CallRecord) -> None:
        span = record.span
        if not isinstance(span, trace.Span):
            return
        if span.is_recording():
            offset = time.time_ns() - time.monotonic_ns()
            if record.first is not None:
                span.add_event("farthing.first_token", timestamp=_at(record.first, offset))
            for attempt in record.attempts:
                if attempt.outcome in ("failed", "refused"):
                    span.add_event(
                        "farthing.attempt", _attempt(attempt), _at(attempt.ended, offset)
                    )
            span.set_attributes(_of_call(record))
            if record.outcome in ("failed", "refused"):
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    def decided(self, answer: Known, decision: Decision) -> None:
        request = answer.order.span
        if not isinstance(request, RequestSpan):
            return
        request.handed_over += decision.kind in HAND_OVERS
        if request.span.is_recording():
            request.span.add_event(f"farthing.{decision.kind}", _decision(decision))

    def ended(self, request: RequestSpan, told: Ended) -> None:
        span = request.span
        if span.is_recording():
            span.update_name(f"{told.method} {told.route}".strip())
            span.set_attributes(_of_request(told))
            if told.answer is not None:
                span.set_attributes(_of_answer(told.answer, request))
            if told.failed:
                span.set_status(Status(StatusCode.ERROR))
        span.end()


def _headers(context: Context) -> dict[str, str]:
    carrier: dict[str, str] = {}
    _context.inject(carrier, context)
    return carrier


def _at(moment: float, offset: int) -> int:
    """Nanoseconds since 1970 of a time.monotonic()."""
    return int(moment * 1e9) + offset


def _of_request(told: Ended) -> Attributes:
    found: Attributes = {"url.scheme": told.scheme, "farthing.outcome": told.outcome}
    if told.route:
        # Of no other URL: nobody knows what a client may have written there.
        found |= {"http.route": told.route, "url.path": told.path[:_LONGEST]}
    if told.status:
        found["http.response.status_code"] = told.status
    if told.failed or told.gone:
        found["error.type"] = error_of(told)
    if told.reason:
        found["farthing.reason"] = told.reason
    if told.key:
        found["farthing.key.id"] = told.key
    if name := OPERATIONS.get(told.route):
        found |= {"gen_ai.operation.name": name, "gen_ai.provider.name": OURSELVES}
    if told.ttft is not None:
        found["gen_ai.response.time_to_first_chunk"] = told.ttft
    found["farthing.request.id"] = told.request_id
    return found


def _of_answer(answer: Known, request: RequestSpan) -> Attributes:
    call, bill = answer.order.call, answer.bill
    prompt, cached, completion = answer.tokens
    found: Attributes = {
        "gen_ai.request.model": call.model[:_LONGEST],
        "gen_ai.response.id": call.id,
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.cache_read.input_tokens": cached,
        "gen_ai.usage.output_tokens": completion,
        "farthing.policy": answer.policy_name,
        "farthing.fidelity": answer.fidelity,
        "farthing.estimate.usd": answer.estimate / PICO,
        "farthing.cost.usd": bill.cost / PICO,
        "farthing.switches": request.handed_over,
    }
    if named(answer.preset):
        found["farthing.preset"] = answer.preset
    if answer.budget is not None:
        found["farthing.budget.usd"] = answer.budget / PICO
    if call.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = call.max_tokens
    if call.choices > 1:
        found["gen_ai.request.choice.count"] = call.choices
    if writer := writer_of(answer):
        found |= {"gen_ai.response.model": writer, "farthing.models": sorted(answer.visible)}
    if answer.finishes:
        found["gen_ai.response.finish_reasons"] = list(answer.finishes)
    if request.heard is not None:
        found["gen_ai.input.messages"] = asked(call)
        found["gen_ai.output.messages"] = request.heard.messages()
    return found


def _of_call(record: CallRecord) -> Attributes:
    usage = record.usage
    found: Attributes = {
        "gen_ai.response.model": record.model,
        "gen_ai.usage.input_tokens": usage.prompt,
        "gen_ai.usage.cache_read.input_tokens": usage.cached,
        "gen_ai.usage.output_tokens": usage.completion,
        "farthing.cost.usd": record.cost / PICO,
        "farthing.queue_s": record.queued,
        "farthing.outcome": record.outcome,
    }
    for kind in ("drafted", "accepted", "predicted"):
        if count := getattr(usage, kind):
            found[f"farthing.tokens.{kind}"] = count
    if record.outcome in ("failed", "refused"):
        found["error.type"] = record.why
    elif record.why:
        found["gen_ai.response.finish_reasons"] = [record.why]
    if record.attempts:
        # The one that answered is the last: those before it have events of their own.
        found |= _address(record.attempts[-1].server)
        found["farthing.attempts"] = len(record.attempts)
    return found


def _address(server: str) -> Attributes:
    host, colon, port = server.rpartition(":")
    if colon and port.isdecimal():
        return {"server.address": host.strip("[]"), "server.port": int(port)}
    return {"server.address": server}


def _attempt(attempt: Attempt) -> Attributes:
    found: Attributes = {**_address(attempt.server), "farthing.outcome": attempt.outcome}
    if attempt.outcome == "failed":  # of what was refused the server's words may quote the prompt
        found["farthing.error"] = attempt.error
    return found


def _decision(decision: Decision) -> Attributes:
    found: Attributes = {
        "farthing.to": decision.model,
        "farthing.token": decision.token,
        "farthing.choice": decision.choice,
    }
    for name, value in (
        ("farthing.entropy", decision.entropy),
        ("farthing.threshold", decision.threshold),
        ("farthing.confidence", decision.confidence),
        ("farthing.answers", decision.answers),
        ("farthing.dropped", decision.dropped),
        ("farthing.rest.usd", decision.rest_usd),
    ):
        if value is not None:
            found[name] = value
    return found
