"""Latency and traffic over time."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from docker.grafana.boards import DURATION, ITL, REQUESTS, TTFT
from docker.grafana.panels import HALF, THIRD, Said, graph
from docker.grafana.queries import Query, mean, quantile, rate, series, spread, total


def latency() -> list[dashboard.Panel]:
    overhead = "farthing_overhead_seconds"
    return [
        graph(
            Said(
                "Time to first token",
                "From a request's first byte to its answer's first token: our own part, queues, and"
                " the engine's reading of the prompt.",
                "p99 far above p95: some wait in a queue. All grow: engines are full.",
                "s",
                HALF,
            ),
            *spread(TTFT),
        ),
        graph(
            Said(
                "Time between tokens",
                "Gaps between the tokens of an answer; tokens that come together share the time.",
                "A hand-over from model to model is a gap too: see *Policies*.",
                "s",
                HALF,
            ),
            *spread(ITL),
        ),
        graph(
            Said(
                "Whole requests",
                "From a request's first byte to its answer's last.",
                "Long answers take long. Worry when it grows and tokens a second do not.",
                "s",
                HALF,
            ),
            *spread(DURATION),
        ),
        graph(
            Said(
                "Our own part",
                "Of an answer's time what was not spent waiting for an engine.",
                "Some milliseconds are right. Tens of them: the gateway needs another worker.",
                "s",
                HALF,
            ),
            *spread(overhead),
        ),
        graph(
            Said(
                "Mean TTFT by preset",
                "What a preset gains or costs before the first token.",
                "Compare with `none`, where a model was named.",
                "s",
                HALF,
            ),
            Query(mean(TTFT, by=("preset", "policy")), "{{preset}} {{policy}}"),
        ),
        graph(
            Said(
                "TTFT p95 by model",
                "Of the model that was asked for, or the best one of the preset.",
                "One model alone is slow: look at its servers in *Engines*.",
                "s",
                HALF,
            ),
            Query(quantile(0.95, TTFT, by=("model",)), "{{model}}"),
        ),
    ]


def traffic() -> list[dashboard.Panel]:
    def said(title: str, tells: str, worry: str, unit: str = "reqps") -> Said:
        return Said(title, tells, worry, unit, THIRD)

    return [
        graph(
            said(
                "Requests by status",
                "499: the client left before its answer began.",
                "429 and 402 are limits at work, 5xx are faults, 503 is a fleet without servers.",
            ),
            Query(rate(REQUESTS, by=("status",)), "{{status}}"),
            stack="normal",
        ),
        graph(
            said(
                "Requests by endpoint",
                "By route; without probes (`/health`) and scrapes (`/metrics`).",
                "It tells who the clients are, not how they fare.",
            ),
            Query(rate(REQUESTS, by=("endpoint",)), "{{endpoint}}"),
            stack="normal",
        ),
        graph(
            said(
                "Refusals by reason",
                "The error code that clients were told. What was refused before a model was known"
                " is here too: this panel follows the instance alone.",
                "`budget_exceeded` and `rate_limited` are policy. A code that is new is news.",
            ),
            Query(rate("farthing_refusals_total", by=("reason",)), "{{reason}}"),
            stack="normal",
        ),
        graph(
            said(
                "Answers by outcome",
                "How answers ended, streams included.",
                "`failed` grows: an engine breaks off. `closed`: clients do not wait any longer.",
            ),
            Query(rate("farthing_answers_total", by=("outcome",)), "{{outcome}}"),
            stack="normal",
        ),
        graph(
            said(
                "Answers by fidelity",
                "`exact`: distributed as the named model's answers are; `approximate`: not.",
                "Only presets and policies may be approximate; a model named is never.",
            ),
            Query(rate("farthing_answers_total", by=("fidelity",)), "{{fidelity}}"),
            stack="normal",
        ),
        graph(
            said(
                "In flight",
                "HTTP requests under way, by gateway.",
                "It grows and does not shrink: nothing gets done, or streams are never read.",
                "none",
            ),
            Query(total(series("farthing_requests_in_flight"), by=("instance",)), "{{instance}}"),
        ),
    ]
