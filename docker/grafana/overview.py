"""Overview: is the service well, how fast is it, and who does the work."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from docker.grafana.boards import DURATION, ITL, REQUESTS, TTFT, VISIBLE, Row, board
from docker.grafana.panels import NEVER, NO_DATA, TILE, Said, falling, rising, stat
from docker.grafana.queries import grown, of_servers, quantile, rate, series, share, total, within
from docker.grafana.summaries import ERRORS, FAILED, builds, models, presets
from docker.grafana.traffic import latency, traffic


def overview() -> dashboard.Dashboard:
    return board(
        "overview",
        "Overview",
        "Whether the gateway is well, how fast it answers, and which models do the work.",
        [
            Row("", [*_traffic_tiles(), *_state_tiles()]),
            Row("Models and presets", [models(), presets()]),
            Row("Latency", latency()),
            Row("Traffic", traffic()),
            Row("What runs here", [builds()], collapsed=True),
        ],
    )


def _traffic_tiles() -> list[dashboard.Panel]:
    return [
        stat(
            Said(
                "Requests / s",
                "HTTP requests that ended, whatever their status; without probes and scrapes.",
                "Worry when it falls to nothing while clients are there.",
                "reqps",
                TILE,
            ),
            rate(REQUESTS),
        ),
        stat(
            Said(
                "Prompt tok/s",
                "Prompt tokens that models read, those found in a prefix cache included.",
                "It says how much work comes in; compare it with what the engines can read.",
                "count:tok/s",
                TILE,
            ),
            rate("farthing_tokens_total", 'kind="prompt"'),
        ),
        stat(
            Said(
                "Visible tok/s",
                "Tokens of answers that clients got: not what was drafted or discarded on the way.",
                "Worry when it falls while requests do not.",
                "count:tok/s",
                TILE,
            ),
            rate(VISIBLE),
        ),
        stat(
            Said(
                "5xx ratio",
                "Share of requests answered with a 5xx status. What fails after the first byte of a"
                " stream is not among them: see *Answers by outcome*.",
                "Above 0.1 % look at *Requests by status* and at the engines.",
                "percentunit",
                TILE,
            ),
            share(REQUESTS, FAILED),
            ERRORS,
        ),
        stat(
            Said(
                "TTFT p95",
                "From a request's first byte to its answer's first token; 95 of 100 are faster.",
                "Worry when it grows while requests do not: engines queue, or prompts got longer.",
                "s",
                TILE,
            ),
            quantile(0.95, TTFT),
        ),
        stat(
            Said(
                "ITL p95",
                "Time between two tokens of an answer; 95 of 100 gaps are shorter.",
                "Worry when streams stutter: above what people read at, some 0.1 s.",
                "s",
                TILE,
            ),
            quantile(0.95, ITL),
        ),
        stat(
            Said(
                "Request p95",
                "From a request's first byte to its answer's last; 95 of 100 are faster.",
                "It grows with the length of answers: look at TTFT and ITL before you worry.",
                "s",
                TILE,
            ),
            quantile(0.95, DURATION),
        ),
        stat(
            Said(
                "Unreachable",
                "Gateways that Prometheus cannot scrape. The other panels just lose their series.",
                "Any is one too many.",
                "none",
                TILE,
            ),
            f"count({series('up')} == 0) or vector(0)",
            rising(1, 1),
        ),
    ]


def _state_tiles() -> list[dashboard.Panel]:
    there = of_servers("farthing_engine_waiting")
    here = total(series("farthing_queue_waiting"))
    return [
        stat(
            Said(
                "Servers up",
                "Share of the fleet's servers that can be called.",
                "Below 100 % a model has fewer replicas than you pay for, or none.",
                "percentunit",
                TILE,
            ),
            f"avg({series('farthing_engine_up')})",
            falling(0.5, 1),
            empty=NO_DATA,
        ),
        stat(
            Said(
                "Running",
                "Calls of ours that engines work on now.",
                "It says how full the engines are; see *Engines* for each.",
                "none",
                TILE,
            ),
            total(series("farthing_engine_running")),
            empty=NO_DATA,
        ),
        stat(
            Said(
                "Waiting",
                "Calls that wait for an engine: in its own queue, or here for a place.",
                "Worry when it does not go back to 0: more comes in than the fleet can do.",
                "none",
                TILE,
            ),
            f"({there} or vector(0)) + ({here} or vector(0))",
            rising(1, 20),
            empty=NO_DATA,
        ),
        stat(
            Said(
                "USD an hour",
                "What models cost, by the prices of the catalog, if it goes on like this.",
                "Compare with *Budgets and cost*, where it is split by model and policy.",
                "currencyUSD",
                TILE,
            ),
            f"3600 * {rate('farthing_cost_usd_total')}",
        ),
        stat(
            Said(
                "Overshoot",
                "USD spent beyond what answers were admitted with, in the time shown.",
                "It must be 0. Anything else is a bug in how calls are bounded: report it.",
                "currencyUSD",
                TILE,
            ),
            grown("farthing_budget_overshoot_usd_total"),
            NEVER,
            over_range=True,
        ),
        stat(
            Said(
                "TTFT within SLO",
                "Share of answers whose first token came within the *TTFT SLO* chosen above.",
                "Below 99 % somebody notices; below 90 % most do.",
                "percentunit",
                TILE,
            ),
            within(TTFT, "ttft_slo"),
            falling(0.9, 0.99),
        ),
        stat(
            Said(
                "ITL within SLO",
                "Share of gaps between tokens that are within the *ITL SLO* chosen above.",
                "Below 99 % streams stutter now and then; below 90 % they crawl.",
                "percentunit",
                TILE,
            ),
            within(ITL, "itl_slo"),
            falling(0.9, 0.99),
        ),
        stat(
            Said(
                "Refusals / s",
                "Requests refused or failed, whatever the reason: a budget, a rate, a full queue.",
                "See *Refusals by reason*: some are what budgets are for.",
                "reqps",
                TILE,
            ),
            f"{rate('farthing_refusals_total')} or 0 * {rate(REQUESTS)}",
        ),
    ]
