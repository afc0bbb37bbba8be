"""The table of our metrics: what each is called, what it says, and by which labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Across: TypeAlias = Literal["sum", "max", "min"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, without its name."""

    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # of a histogram: upper bounds, without infinity
    across: Across = "sum"  # of a gauge: what several workers' values are together


LABELS: Mapping[str, str] = {
    "model": "a model of the catalog: the one that did it; of requests, budgets and times until the"
    " first and the next token the one asked for, of a preset its best one",
    "preset": "the preset that was asked for",
    "policy": "the policy by which it was answered, a file of `policies/`",
    "endpoint": "the route",
    "status": "HTTP status; 499: the client left before an answer",
    "reason": "the error's code, as clients see it, or else its class",
    "kind": "as the metric has it",
    "fidelity": "`exact` or `approximate`",
    "outcome": "as the metric has it",
    "to": "the model that took over",
    "way": "the preset or model by which the planner had a request answered",
    "server": "host, port and path of one of the model's servers, or `embedded`",
    "version": "of Farthing",
    "prices": "of the price table, as in `usage.cost_details`",
}
"""What the labels say. A name that the catalog has not is `other`; where there is none, `none`."""

_WHO = ("model", "preset", "policy")
_HOW = ("preset", "policy")
_WHERE = ("model", "server")

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
_SHORT = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
_GAP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
_WAIT = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SHARE = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_TIMES = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
_BITS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0)
_LENGTH = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0)


def _counter(text: str, *labels: str) -> Metric:
    return Metric("counter", text, labels)


def _gauge(text: str, *labels: str, across: Across = "sum") -> Metric:
    return Metric("gauge", text, labels, across=across)


def _histogram(text: str, *labels: str, buckets: tuple[float, ...]) -> Metric:
    return Metric("histogram", text, labels, buckets)


_REQUESTS = {
    "farthing_requests_total": _counter("HTTP requests that ended", "endpoint", *_WHO, "status"),
    "farthing_requests_in_flight": _gauge("HTTP requests under way"),
    "farthing_refusals_total": _counter(
        "Answers that an error took the place of, or broke off", "reason"
    ),
    "farthing_answers_total": _counter(
        "Answers of models, by how they ended: `kept`; `cut` by the budget, or `steered` on to a"
        " cheaper model; `deadline`; `refused`, `failed`, or `closed` by the client",
        *_HOW,
        "fidelity",
        "outcome",
    ),
    "farthing_request_duration_seconds": _histogram(
        "From a request's first byte to its answer's last", "endpoint", *_WHO, buckets=_DURATION
    ),
    "farthing_time_to_first_token_seconds": _histogram(
        "From a request's first byte to the first token of its answer", *_WHO, buckets=_TTFT
    ),
    "farthing_inter_token_latency_seconds": _histogram(
        "Between two tokens of an answer; tokens that came together share the time",
        *_WHO,
        buckets=_ITL,
    ),
    "farthing_overhead_seconds": _histogram(
        "Our own part of an answer's time: what was not spent waiting for an engine",
        *_HOW,
        buckets=_SHORT,
    ),
}
_MONEY = {
    "farthing_cost_usd_total": _counter("USD billed", *_WHO),
    "farthing_gpu_seconds_total": _counter(
        "Accelerator-seconds that the tokens are worth, where the model's card says them", *_WHO
    ),
    "farthing_budget_admitted_usd_total": _counter(
        "USD that answers with a budget were allowed", *_HOW
    ),
    "farthing_budget_spent_usd_total": _counter("USD that answers with a budget cost", *_HOW),
    "farthing_budget_overshoot_usd_total": _counter(
        "USD that answers cost beyond their budgets: stays 0", *_HOW
    ),
    "farthing_budget_outcomes_total": _counter(
        "Answers with a budget, by how they ended, as `farthing_answers_total` has it",
        *_HOW,
        "outcome",
    ),
    "farthing_budget_utilization_ratio": _histogram(
        "What an answer cost of what it was allowed", *_HOW, buckets=_SHARE
    ),
}
_TOKENS = {
    "farthing_tokens_total": _counter(
        "Tokens, by the model that read or wrote them: `prompt`, of these `cached` and `predicted`;"
        " `completion`, of these `discarded` and `accepted`; guesses `drafted`, of these `wasted`",
        *_WHO,
        "kind",
    ),
    "farthing_visible_tokens_total": _counter(
        "Tokens of answers that clients saw, by the model that wrote them", *_WHO
    ),
}
_POLICIES = {
    "farthing_switches_total": _counter(
        "Hand-overs in mid-answer: `switch` by entropy, `steer` for want of money, `failover`",
        *_HOW,
        "kind",
        "to",
    ),
    "farthing_fallbacks_total": _counter(
        "Answers that did not go as the policy has it: `plain`, nothing was guessed or predicted;"
        " `whole`, one model answered alone; `repair`, what was predicted was computed after all",
        *_HOW,
        "kind",
    ),
    "farthing_strategies_total": _counter(
        "Decisions around whole answers: `keep` or `escalate` one, `select` of several, `refine`,"
        " `compress` the prompt, answer in a `precision`, by a `plan`, or by a `route`",
        *_HOW,
        "kind",
    ),
    "farthing_answers_made_total": _counter(
        "Answers that were made for those that clients saw, where a policy makes several", *_HOW
    ),
    "farthing_prompt_dropped_tokens_total": _counter("Tokens of prompts that were left out", *_HOW),
    "farthing_hand_over_gap_seconds": _histogram(
        "From the last token before a hand-over to the first one after it",
        *_HOW,
        "to",
        buckets=_GAP,
    ),
    "farthing_entropy_bits": _histogram(
        "Entropy of the distributions from which tokens were drawn, by the model that wrote them;"
        " the lower bound where only bounds are known",
        *_WHO,
        buckets=_BITS,
    ),
    "farthing_switch_entropy_bits": _histogram(
        "Rolling mean of the entropy at which a hand-over was decided", *_HOW, "to", buckets=_BITS
    ),
    "farthing_verification_passes_total": _counter(
        "Passes of a model that may have read guesses", *_WHO
    ),
    "farthing_draft_length_tokens": _histogram(
        "Guesses that a pass read; of several passes told together their mean",
        *_WHO,
        buckets=_LENGTH,
    ),
    "farthing_accepted_length_tokens": _histogram(
        "Guesses that a pass kept; of several passes told together their mean",
        *_WHO,
        buckets=_LENGTH,
    ),
    "farthing_predicted_prompts_total": _counter(
        "Answers whose prompt's keys and values were predicted, not computed", *_WHO
    ),
    "farthing_ttft_saved_seconds": _histogram(
        "By how much sooner answers to predicted prompts began, by estimate", *_WHO, buckets=_TTFT
    ),
}
_PLANS = {
    "farthing_plans_total": _counter(
        "Answers that the planner gave, by the way that it chose: `best`, it should be taken;"
        " `explored`, to learn of it; `short`, nothing keeps to what is asked; `failover`, another"
        " one failed before its first word",
        "way",
        "kind",
    ),
    "farthing_plan_drift_ratio": _histogram(
        "What whole answers took of what the planner expected: `cost`, `latency`, without the time"
        " that their clients took to read, and where they are streamed `first_token`; no failovers",
        "way",
        "kind",
        buckets=_TIMES,
    ),
}
_ENGINES = {
    "farthing_engine_up": _gauge("1 where a server takes calls", *_WHERE, across="min"),
    "farthing_engine_running": _gauge("Calls of ours that run in a server", *_WHERE),
    "farthing_engine_waiting": _gauge(
        "Calls that wait in a server's own queue, whosever they are", *_WHERE, across="max"
    ),
    "farthing_engine_breaker_open": _gauge(
        "1 where a server broke down and is left alone", *_WHERE, across="max"
    ),
    "farthing_engine_kv_bytes": _gauge(
        "KV memory promised to the calls that run in an embedded model", "model"
    ),
    "farthing_engine_attempts_total": _counter(
        "Calls given to a server: `ok`; `failed`, of the server; `refused`, for what was asked;"
        " `closed` by us",
        *_WHERE,
        "outcome",
    ),
    "farthing_engine_call_seconds": _histogram(
        "A call of an engine, from asked to its end", "model", buckets=_DURATION
    ),
    "farthing_queue_seconds": _histogram(
        "A call's wait for a place in a server", "model", buckets=_WAIT
    ),
    "farthing_queue_waiting": _gauge("Calls that wait here for a place in a server", "model"),
}
_LEDGER = {
    "farthing_ledger_reservations": _gauge("Reservations that requests under way hold"),
    "farthing_ledger_owed": _gauge("Settlements and releases that the database has not got yet"),
    "farthing_ledger_lag_seconds": _gauge("Age of the oldest of these", across="max"),
    "farthing_ledger_away": _gauge("1 where the database did not answer last time", across="max"),
    "farthing_ledger_settled_total": _counter("Settlements written"),
    "farthing_ledger_write_seconds": _histogram("One transaction of the ledger", buckets=_SHORT),
}
PROCESS = {
    "process_cpu_seconds_total": _counter("CPU time that the processes took"),
    "process_resident_memory_bytes": _gauge("Their memory"),
    "process_virtual_memory_bytes": _gauge("Their address space"),
    "process_open_fds": _gauge("Files and connections that they have open"),
    "process_max_fds": _gauge("And may have"),
    "process_start_time_seconds": _gauge("When the first of them began, since 1970", across="min"),
}
"""What every Prometheus client calls so."""
_PROCESSES = {
    "farthing_workers": _gauge("Processes that serve"),
    "farthing_build_info": _gauge(
        "1; which version serves, at which prices", "version", "prices", across="max"
    ),
}

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        **_REQUESTS,
        **_MONEY,
        **_TOKENS,
        **_POLICIES,
        **_PLANS,
        **_ENGINES,
        **_LEDGER,
        **_PROCESSES,
        **PROCESS,
    }
)
"""By full name, a counter's `_total` included."""


def as_markdown() -> str:
    """Two tables for people: the metrics, and their labels."""
    together = {"max": "; of several workers the most", "min": "; of several workers the least"}
    lines = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    for name, metric in METRICS.items():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        text = metric.text + together.get(metric.across, "")
        lines.append(f"| `{name}` | {metric.kind} | {labels} | {text} |")
    lines += ["", "| label | what it says |", "| --- | --- |"]
    lines += [f"| `{label}` | {text} |" for label, text in LABELS.items()]
    return "\n".join(lines)
