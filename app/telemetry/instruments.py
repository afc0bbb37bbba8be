"""The metrics of the table, made with the Prometheus library, in a registry of their own."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TypeAlias

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from app.telemetry import allocated
from app.telemetry.metrics import METRICS, PROCESS
from app.telemetry.processes import GONE, Together

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

    def __init__(self, shared: Path | None = None) -> None:
        """`shared`: the folder of several processes, where `processes.VARIABLE` names it too."""
        if shared is not None:
            allocated.install()
        else:
            allocated.in_memory()
        # A second series for each one, that nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library does not say
        self.registry = CollectorRegistry()
        self.counters: dict[str, Callable[..., Counter]] = {}
        self.histograms: dict[str, Callable[..., Tally]] = {}
        self._gauges: dict[str, Gauge] = {}
        self._shown = defaultdict[str, set[Labels]](set)
        self._process = ProcessCollector(registry=None)
        self._cpu_s = 0.0  # as of last time
        self._shared = shared is not None
        told = self._process.collect()  # not every system tells of its processes
        for name in METRICS:
            if told or name not in PROCESS:
                self._make(name)
        self.show_process()
        if shared is not None:
            self.registry = CollectorRegistry()  # the others' numbers, and ours from our files
            self.registry.register(Together(shared))

    def _make(self, name: str) -> None:
        metric, registry = METRICS[name], self.registry
        labels = metric.labels
        # In a file it would stand beside each number: whoever reads it knows the table.
        text = "" if self._shared else metric.text
        if metric.kind == "counter":
            counter = Counter(name, text, labels, registry=registry)
            self.counters[name] = cache(counter.labels) if labels else lambda: counter
        elif metric.kind == "histogram":
            tally = Tally(name, text, labels, buckets=metric.buckets, registry=registry)
            self.histograms[name] = cache(tally.labels) if labels else lambda: tally
        else:
            # Each process's value by itself: `Together` leaves out what is gone.
            self._gauges[name] = Gauge(
                name, text, labels, registry=registry, multiprocess_mode="liveall"
            )

    def gauge(self, name: str) -> Gauge:
        """Of a metric without labels."""
        return self._gauges[name]

    def show(self, name: str, values: Mapping[Labels, float]) -> None:
        """What this gauge says from now on, by labels; of what is not among them, nothing."""
        gauge = self._gauges[name]
        for labels in self._shown[name] - values.keys():
            if self._shared:
                gauge.labels(*labels).set(GONE)
            else:
                gauge.remove(*labels)
        for labels, value in values.items():
            (gauge.labels(*labels) if labels else gauge).set(value)
        self._shown[name] = set(values)

    def show_process(self) -> None:
        """What the system knows of this process."""
        for family in self._process.collect():
            (sample,) = family.samples
            if family.type == "counter":
                self.counters[sample.name]().inc(max(sample.value - self._cpu_s, 0.0))
                self._cpu_s = sample.value
            else:
                self._gauges[sample.name].set(sample.value)
