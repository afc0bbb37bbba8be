"""What goes to an OpenTelemetry collector, where one is configured; else no SDK is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from app.errors import ConfigError, to_install
from app.telemetry.counting import Telemetry
from app.telemetry.ended import Ended, Known
from app.telemetry.names import Names
from app.telemetry.safely import safely
from app.trail import CallRecord
from app.types import Chunk, Decision

_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be exported."""

    traces: bool = False
    metrics: bool = False
    content: bool = False  # prompts and answers are part of the traces
    workers: int = 1  # processes that export the same service

    def __bool__(self) -> bool:
        return self.traces or self.metrics


class Span(Protocol):
    """One request's place in its trace."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By which whoever we ask knows it."""
        ...

    @property
    def ids(self) -> tuple[str, str]:
        """Of the trace and of the span, in hexadecimal digits."""
        ...

    def note(self, chunk: Chunk) -> None:
        """A chunk of its answer."""


class Exporter(Protocol):
    """Tells a collector. Its methods do not wait for it, and raise nothing."""

    def arrived(self, method: str, trace: Mapping[str, str]) -> Span | None:
        """A request; `trace`: the headers in which its client says whose trace it is part of."""

    def calling(self, answer: Known, record: CallRecord) -> None: ...
    def called(self, answer: Known, record: CallRecord) -> None: ...
    def decided(self, answer: Known, decision: Decision) -> None: ...

    def ended(self, span: Span | None, request: Ended) -> None:
        """The request."""

    def close(self) -> None:
        """Send what has not been sent, or give it up; within seconds."""


class Exports:
    """An Exporter that begins with `open`: threads and connections are each worker's own."""

    def __init__(self, wish: Wish, names: Names) -> None:
        """Raises ConfigError where what it takes is not installed."""
        try:
            missing = [name for name in _NEEDED if find_spec(name) is None]
        except ModuleNotFoundError as error:
            missing = [str(error.name)]
        if missing:
            raise ConfigError(
                f"OTEL_* variables ask for exports, but {missing[0]} is not installed:"
                f" run `{to_install('otel')}` in farthing's folder, or set OTEL_SDK_DISABLED=true"
            )
        self.providers: Mapping[str, str] = {}  # who runs each model, in OpenTelemetry's words
        self._wish = wish
        self._names = names
        self._to: Exporter | None = None

    def open(self, version: str) -> None:
        # Only now: it brings in the SDK, and starts threads.
        module: Any = import_module("app.telemetry.collector")
        self._to = module.Collector(self._wish, self._names, lambda: self.providers, version)

    def close(self) -> None:
        to, self._to = self._to, None
        if to is not None:
            to.close()

    def arrived(self, method: str, trace: Mapping[str, str]) -> Span | None:
        return None if self._to is None else self._to.arrived(method, trace)

    def calling(self, answer: Known, record: CallRecord) -> None:
        if self._to is not None:
            self._to.calling(answer, record)

    def called(self, answer: Known, record: CallRecord) -> None:
        if self._to is not None:
            self._to.called(answer, record)

    def decided(self, answer: Known, decision: Decision) -> None:
        if self._to is not None:
            self._to.decided(answer, decision)

    def ended(self, span: Span | None, request: Ended) -> None:
        if self._to is not None:
            self._to.ended(span, request)


@dataclass(frozen=True, slots=True)
class Observers:
    """Those who observe answers, as one: where one of them fails the others are told all the
    same, and the answer goes on."""

    telemetry: Telemetry
    exports: Exports | None = None

    def calling(self, answer: Known, record: CallRecord) -> None:
        safely(self.telemetry.calling, answer, record)
        if self.exports is not None:
            safely(self.exports.calling, answer, record)

    def called(self, answer: Known, record: CallRecord) -> None:
        safely(self.telemetry.called, answer, record)
        if self.exports is not None:
            safely(self.exports.called, answer, record)

    def decided(self, answer: Known, decision: Decision) -> None:
        safely(self.telemetry.decided, answer, decision)
        if self.exports is not None:
            safely(self.exports.decided, answer, decision)

    def answered(self, answer: Known, outcome: str) -> None:
        safely(self.telemetry.answered, answer, outcome)
