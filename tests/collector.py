"""An OpenTelemetry collector for tests: it takes OTLP over HTTP, as real ones do, and keeps it."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = {1: "internal", 2: "server", 3: "client"}
STATUSES = {0: "unset", 1: "ok", 2: "error"}


@dataclass
class Event:
    name: str
    attributes: dict[str, Any]
    time: int  # nanoseconds since 1970


@dataclass
class Span:
    name: str
    kind: str
    trace: str
    id: str
    parent: str  # empty: none
    state: str  # its tracestate
    attributes: dict[str, Any]
    events: list[Event]
    status: str
    began: int
    ended: int
    resource: dict[str, Any]

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]


@dataclass
class Point:
    """What is known of one histogram or counter under one set of labels."""

    labels: dict[str, Any]
    count: int
    sum: float
    bounds: tuple[float, ...]


@dataclass
class Collector:
    """Its URL is for OTEL_EXPORTER_OTLP_ENDPOINT."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)  # every body, unpacked
    headers: list[dict[str, str]] = field(default_factory=list)
    status: int = 200  # what it answers
    _metrics: dict[str, list[Point]] = field(default_factory=dict)

    def wait(self, condition: Callable[[], Any], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it did not come: {[span.name for span in self.spans]}"
            time.sleep(0.01)

    def trace(self, *names: str) -> list[Span]:
        """The spans of these names, once each has come."""
        self.wait(lambda: {*names} <= {span.name for span in self.spans})
        return [next(span for span in self.spans if span.name == name) for name in names]

    def metric(self, name: str) -> list[Point]:
        self.wait(lambda: name in self._metrics)
        return self._metrics[name]

    def take(self, path: str, body: bytes) -> None:
        self.raw.append(body)
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = attributes(resource.resource.attributes)
                for scope in resource.scope_spans:
                    self.spans += [_span(span, about) for span in scope.spans]
        else:
            for found in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in found.scope_metrics:
                    for metric in scope.metrics:
                        self._metrics[metric.name] = list(_points(metric))


@contextmanager
def collector() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            if found.status == 200:
                found.take(self.path, body)
            self.send_response(found.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass  # it is not what is tested

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


def _span(span: Any, resource: dict[str, Any]) -> Span:
    events = [Event(e.name, attributes(e.attributes), e.time_unix_nano) for e in span.events]
    return Span(
        name=span.name,
        kind=KINDS[span.kind],
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        state=span.trace_state,
        attributes=attributes(span.attributes),
        events=events,
        status=STATUSES[span.status.code],
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        resource=resource,
    )


def _points(metric: Any) -> Iterator[Point]:
    if metric.WhichOneof("data") == "sum":
        for point in metric.sum.data_points:
            yield Point(attributes(point.attributes), 1, point.as_double or point.as_int, ())
    else:
        for point in metric.histogram.data_points:
            bounds = tuple(point.explicit_bounds)
            yield Point(attributes(point.attributes), point.count, point.sum, bounds)
