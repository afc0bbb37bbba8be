"""Sends spans and metrics to an OpenTelemetry collector, in batches, from threads of its own."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from app.telemetry.ended import Ended, Known
from app.telemetry.exports import Span, Wish
from app.telemetry.gen_ai import Meters
from app.telemetry.names import Names
from app.telemetry.spans import RequestSpan, Spans
from app.trail import CallRecord
from app.types import Decision

log = logging.getLogger(__name__)
FLUSH_S = 3.0  # for what has not been sent when the gateway ends
_INSTANCE = "service.instance.id"
_TALKATIVE = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal", "urllib3")


class Collector:
    """Where it is, and how often it is sent to: the SDK reads OTEL_* by itself."""

    def __init__(
        self,
        wish: Wish,
        names: Names,
        providers: Callable[[], Mapping[str, str]],
        version: str,
    ) -> None:
        for name in _TALKATIVE:  # one line for each failure; an outage has many: see _Outage
            logging.getLogger(name).setLevel(logging.CRITICAL)
        resource = _resource(wish.workers, version)
        self._spans: Spans | None = None
        self._meters: Meters | None = None
        self._closing: list[Callable[[], None]] = []
        self._giving_up: list[Callable[[], None]] = []
        if wish.traces:
            traced = TracerProvider(resource=resource, shutdown_on_exit=False)
            spans = _SpanExporter()
            traced.add_span_processor(BatchSpanProcessor(spans))
            tracer = traced.get_tracer("farthing", version)
            self._spans = Spans(tracer, names, providers, wish.content)
            self._closing.append(traced.shutdown)
            self._giving_up.append(spans.shutdown)
        if wish.metrics:
            metrics = _MetricExporter()
            reader = PeriodicExportingMetricReader(metrics)
            metered = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
            self._meters = Meters(metered.get_meter("farthing", version), names, providers)
            self._closing.append(metered.shutdown)
            self._giving_up.append(metrics.shutdown)

    def arrived(self, method: str, trace: Mapping[str, str]) -> Span | None:
        return None if self._spans is None else self._spans.arrived(method, trace)

    def calling(self, answer: Known, record: CallRecord) -> None:
        if self._spans is not None:
            self._spans.calling(answer, record)

    def called(self, answer: Known, record: CallRecord) -> None:
        if self._spans is not None:
            self._spans.called(record)
        if self._meters is not None:
            self._meters.called(answer, record)

    def decided(self, answer: Known, decision: Decision) -> None:
        if self._spans is not None:
            self._spans.decided(answer, decision)

    def ended(self, span: Span | None, request: Ended) -> None:
        if self._spans is not None and isinstance(span, RequestSpan):
            self._spans.ended(span, request)
        if self._meters is not None:
            self._meters.ended(request)

    def close(self) -> None:
        threads = [threading.Thread(target=each, daemon=True) for each in self._closing]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(FLUSH_S)
        for thread, give_up in zip(threads, self._giving_up, strict=True):
            if thread.is_alive():
                log.warning("the collector did not take all that there was in time")
                give_up()


class _Outage:
    """Says when the collector is away, once, and when it is back."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._away = False

    def note(self, ok: bool) -> None:
        if ok == self._away:
            self._away = not ok
            if ok:
                log.info("the collector takes our %s again", self._what)
            else:
                log.warning("the collector does not take our %s: they are lost", self._what)


class _SpanExporter(OTLPSpanExporter):
    def __init__(self) -> None:
        super().__init__()
        self._outage = _Outage("spans")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        self._outage.note(result is SpanExportResult.SUCCESS)
        return result


class _MetricExporter(OTLPMetricExporter):
    def __init__(self) -> None:
        super().__init__()
        self._outage = _Outage("metrics")

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        result = super().export(metrics_data, timeout_millis, **kwargs)
        self._outage.note(result is MetricExportResult.SUCCESS)
        return result


def _resource(workers: int, version: str) -> Resource:
    """Who we are: what the environment says of it counts, but each process has an id of its own."""
    ours = Resource.create({"service.name": "farthing", "service.version": version})
    told = OTELResourceDetector().detect()
    instance = told.attributes.get(_INSTANCE)
    if instance is None:
        own = str(uuid.uuid4())
    else:
        own = f"{instance}-{os.getpid()}" if workers > 1 else str(instance)
    return ours.merge(told).merge(Resource({_INSTANCE: own}))
