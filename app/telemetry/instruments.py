"""The metrics of the table, made with the Prometheus library, in a registry of their own."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeAlias

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from app.telemetry.metrics import METRICS

Labels: TypeAlias = tuple[str, ...]


class Tally(Histogram):
    """A histogram that counts several equal values at once."""

    def observe_often(self, value: float, times: int) -> None:
        # The library has no way to observe a value several times but one by one, each with a lock
        # and a search from the first bucket on; these are the two numbers that it would change.
        self._sum.inc(value * times)
        self._buckets[bisect_left(self._upper_bounds, value)].inc(times)


class Instruments:
    """One of each metric, by its name. `labels`, which takes a lock and makes strings each time,
    is asked once for each child."""

    def __init__(self) -> None:
        # A second series for each one, that nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library does not say
        self.registry = CollectorRegistry()
        self.counters: dict[str, Callable[..., Counter]] = {}
        self.histograms: dict[str, Callable[..., Tally]] = {}
        self._gauges: dict[str, Gauge] = {}
        self._shown = defaultdict[str, set[Labels]](set)
        for name, metric in METRICS.items():
            text, labels, registry = metric.text, metric.labels, self.registry
            if metric.kind == "counter":
                counter = Counter(name, text, labels, registry=registry)
                self.counters[name] = cache(counter.labels) if labels else lambda c=counter: c
            elif metric.kind == "histogram":
                tally = Tally(name, text, labels, buckets=metric.buckets, registry=registry)
                self.histograms[name] = cache(tally.labels) if labels else lambda t=tally: t
            else:
                self._gauges[name] = Gauge(name, text, labels, registry=registry)

    def gauge(self, name: str) -> Gauge:
        """Of a metric without labels."""
        return self._gauges[name]

    def show(self, name: str, values: Mapping[Labels, float]) -> None:
        """What this gauge says from now on, by labels; of what is not among them, nothing."""
        gauge = self._gauges[name]
        for labels in self._shown[name] - values.keys():
            gauge.remove(*labels)
        for labels, value in values.items():
            (gauge.labels(*labels) if labels else gauge).set(value)
        self._shown[name] = set(values)
