"""Every metric we define, in one registry of its own for each app."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from app.types import Decision, Load, Usage

M = TypeVar("M", Counter, Histogram)
CONTENT_TYPE = CONTENT_TYPE_LATEST
PICO = 10**12  # money reaches us in 1e-12 USD
OTHER = "other"
NONE = "none"  # the policy of a request that no policy answered
_HAND_OVERS = ("switch", "steer", "failover")  # of the kinds of decisions

# vLLM's own lists, so that its dashboards' queries fit ours.
_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_DURATION = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_OVERHEAD = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)


class Line(Protocol):
    """What one model was paid for."""

    @property
    def model(self) -> str: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def cost(self) -> int: ...
    @property
    def visible(self) -> int: ...


class Bill(Protocol):
    @property
    def lines(self) -> Sequence[Line]: ...
    @property
    def cost(self) -> int: ...
    @property
    def overhead(self) -> float: ...


class Answered(Protocol):
    """What is counted of an answer, once it has ended."""

    @property
    def policy(self) -> str: ...
    @property
    def budget(self) -> int | None: ...
    @property
    def decisions(self) -> Sequence[Decision]: ...
    @property
    def bill(self) -> Bill: ...


def _child(metric: M) -> Callable[..., M]:
    """`metric.labels`, which takes a lock and makes strings each time, once for each child."""
    return cache(metric.labels)


class Gaps(Collector):
    """A histogram by policy that counts several equal values at once: tokens that came together.

    Observed and scraped on the event loop alone.
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = defaultdict[str, list[int]](lambda: [0] * (len(bounds) + 1))
        self._sums = defaultdict[str, float](float)

    def observe(self, policy: str, seconds: float, times: int) -> None:
        self._counts[policy][bisect_left(self._bounds, seconds)] += times
        self._sums[policy] += seconds * times

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=["policy"])
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for policy, counts in self._counts.items():
            buckets = list(zip(names, accumulate(counts), strict=True))
            family.add_metric([policy], buckets, self._sums[policy])
        yield family


class Telemetry:
    """Counts and times. Label values are the catalog's names, or `other`."""

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._policies = {NONE}
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._define_requests()
        self._define_money()
        self._define_engines()

    def _define_requests(self) -> None:
        self._requests = self._counter(
            "farthing_requests_total",
            "HTTP requests by endpoint, policy and status (499: the client left before an answer)",
            ["endpoint", "policy", "status"],
        )
        self._in_flight = Gauge(
            "farthing_requests_in_flight", "HTTP requests under way", registry=self.registry
        )
        self._duration = self._histogram(
            "farthing_request_duration_seconds",
            "From a request's first byte to its answer's last",
            ["endpoint", "policy"],
            buckets=_DURATION,
        )
        self._first = self._histogram(
            "farthing_time_to_first_token_seconds",
            "From a request's first byte to the first token of its answer",
            ["policy"],
            buckets=_TTFT,
        )
        self._between = Gaps(
            "farthing_inter_token_latency_seconds", "Between two tokens of an answer", _ITL
        )
        self.registry.register(self._between)
        self._overhead = self._histogram(
            "farthing_overhead_seconds",
            "Our own part of an answer's time: what was not spent waiting for an engine",
            ["policy"],
            buckets=_OVERHEAD,
        )

    def _define_money(self) -> None:
        self._tokens = self._counter(
            "farthing_tokens_total",
            "Tokens billed; prompt includes cached, completion includes discarded",
            ["model", "kind"],
        )
        self._guesses = {
            name: self._counter(f"farthing_{name}_total", text, ["model"])
            for name, text in {
                "drafted_tokens": "Tokens guessed ahead for a model, and read by it",
                "accepted_tokens": "Of these, written: they are among its completion tokens",
                "verification_passes": "Passes of a model that may have read guesses",
                "predicted_tokens": "Prompt tokens whose keys and values were predicted",
            }.items()
        }
        self._cost = self._counter("farthing_cost_usd_total", "USD billed", ["model", "policy"])
        self._admitted = self._counter(
            "farthing_budget_admitted_usd_total",
            "USD that answers with a budget were allowed",
            ["policy"],
        )
        self._spent = self._counter(
            "farthing_budget_spent_usd_total",
            "USD that answers with a budget cost",
            ["policy"],
        )
        self._outcomes = self._counter(
            "farthing_budget_outcomes_total",
            "How answers with a budget ended",
            ["policy", "outcome"],
        )
        self._switches = self._counter(
            "farthing_switches_total",
            "Hand-overs in mid-answer, by the model that took over",
            ["policy", "to"],
        )

    def _define_engines(self) -> None:
        gauges = {
            "healthy": "1 where the model can be called",
            "running": "Calls that run in the engine",
            "waiting": "Calls that wait in the engine",
            "kv_bytes": "KV memory that is promised to the calls that run",
        }
        self._engine = {
            name: Gauge(f"farthing_engine_{name}", text, ["model"], registry=self.registry)
            for name, text in gauges.items()
        }

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Callable[..., Counter]:
        return _child(Counter(name, text, labels, registry=self.registry))

    def _histogram(
        self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> Callable[..., Histogram]:
        return _child(Histogram(name, text, labels, buckets=buckets, registry=self.registry))

    def know(self, models: Iterable[str], policies: Iterable[str]) -> None:
        """Count under these names too: those of a catalog, which may be exchanged."""
        self._models.update(models)
        self._policies.update(policies)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        with self._in_flight.track_inprogress():
            yield

    def requested(self, endpoint: str, policy: str, status: int, seconds: float) -> None:
        """One HTTP request has ended; `endpoint` is a route, never a URL."""
        policy = self._policy(policy)
        self._requests(endpoint, policy, str(status)).inc()
        self._duration(endpoint, policy).observe(seconds)

    def first_token(self, policy: str, seconds: float) -> None:
        self._first(self._policy(policy)).observe(seconds)

    def next_tokens(self, policy: str, seconds: float, tokens: int) -> None:
        """`tokens` came together, `seconds` after those before."""
        self._between.observe(self._policy(policy), seconds / tokens, tokens)

    def answered(self, answer: Answered, outcome: str) -> None:
        """One answer has ended, well or not."""
        policy, bill = self._policy(answer.policy), answer.bill
        self._overhead(policy).observe(bill.overhead)
        for line in bill.lines:
            model, usage = self._model(line.model), line.usage
            self._tokens(model, "prompt").inc(usage.prompt)
            self._tokens(model, "cached").inc(usage.cached)
            self._tokens(model, "completion").inc(usage.completion)
            self._tokens(model, "discarded").inc(max(usage.completion - line.visible, 0))
            self._guesses["drafted_tokens"](model).inc(usage.drafted)
            self._guesses["accepted_tokens"](model).inc(usage.accepted)
            self._guesses["verification_passes"](model).inc(usage.passes)
            self._guesses["predicted_tokens"](model).inc(usage.predicted)
            self._cost(model, policy).inc(line.cost / PICO)
        for decision in (each for each in answer.decisions if each.kind in _HAND_OVERS):
            self._switches(policy, self._model(decision.model)).inc()
        if answer.budget is not None:
            self._outcomes(policy, outcome).inc()
            if outcome != "refused":
                self._admitted(policy).inc(answer.budget / PICO)
            self._spent(policy).inc(bill.cost / PICO)

    def scrape(self, loads: Mapping[str, Load]) -> bytes:
        """All of it in Prometheus' text format, with the models' loads as they are now."""
        for gauge in self._engine.values():
            gauge.clear()  # a model may be gone
        for model, load in loads.items():
            self._engine["healthy"].labels(model).set(load.healthy)
            self._engine["running"].labels(model).set(load.running)
            self._engine["waiting"].labels(model).set(load.waiting)
            self._engine["kv_bytes"].labels(model).set(load.kv_bytes)
        return generate_latest(self.registry)

    def _policy(self, name: str) -> str:
        return name if name in self._policies else OTHER

    def _model(self, name: str) -> str:
        return name if name in self._models else OTHER
