"""Engines: servers, queues and breakers; the ledger; and the gateway's own processes."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from docker.grafana.boards import Row, board
from docker.grafana.ledger import ledger, processes
from docker.grafana.panels import (
    HALF,
    NO_DATA,
    THIRD,
    TILE,
    WIDE,
    Column,
    Said,
    falling,
    graph,
    rising,
    stat,
    table,
    timeline,
)
from docker.grafana.queries import (
    RANGE,
    Query,
    grown,
    mean,
    of_servers,
    quantile,
    rate,
    series,
    share,
    spread,
    total,
)

UP = "farthing_engine_up"
BREAKER = "farthing_engine_breaker_open"
RUNNING = "farthing_engine_running"
WAITING = "farthing_engine_waiting"
ATTEMPTS = "farthing_engine_attempts_total"
QUEUE = "farthing_queue_seconds"
CALL = "farthing_engine_call_seconds"
SERVER = ("model", "server")
PLACE = "{{model}} {{server}}"
FAILED = 'outcome="failed"'
FAILING = rising(0.01, 0.1)


def engines() -> dashboard.Dashboard:
    return board(
        "engines",
        "Engines",
        "Servers, queues and breakers, the ledger, and the gateway's own processes.",
        [
            Row("", _tiles()),
            Row("Servers", [_servers(), *_states()]),
            Row("Calls", _calls()),
            Row("Ledger", ledger()),
            Row("Processes", processes(), collapsed=True),
        ],
    )


def _tiles() -> list[dashboard.Panel]:
    return [
        stat(
            Said(
                "Servers up",
                "Share of the fleet's servers that can be called.",
                "Below 100 %: see *Servers* for which, and its own log for why.",
                "percentunit",
                TILE,
            ),
            f"avg({series(UP)})",
            falling(0.5, 1),
            empty=NO_DATA,
        ),
        stat(
            Said(
                "Breakers open",
                "Servers that broke down and are left alone for a while.",
                "Any: calls go to the others, or fail where there are none.",
                "none",
                TILE,
            ),
            f"count({total(series(BREAKER), SERVER, 'max')} == 1) or vector(0)",
            rising(1, 1),
            empty=NO_DATA,
        ),
        stat(
            Said(
                "Failed calls",
                "Share of calls to servers that failed: not those refused, nor those given up.",
                "Above 1 % clients wait for second attempts; above 10 % they get errors.",
                "percentunit",
                TILE,
            ),
            share(ATTEMPTS, FAILED),
            FAILING,
        ),
        stat(
            Said(
                "Waiting here",
                "Calls that wait in the gateway for a place.",
                "Worry when it does not go back to 0: the limit of calls a model is reached.",
                "none",
                TILE,
            ),
            total(series("farthing_queue_waiting")),
            rising(1, 20),
            empty=NO_DATA,
        ),
        stat(
            Said(
                "Queue wait p95",
                "How long calls wait here for a place; 95 of 100 wait less.",
                "It is part of TTFT: above a second clients notice.",
                "s",
                TILE,
            ),
            quantile(0.95, QUEUE),
            rising(1, 5),
        ),
        stat(
            Said(
                "Ledger away",
                "1: the ledger's database cannot be reached from a gateway.",
                "What is served meanwhile is kept in a file and settled later; leases run out.",
                "none",
                TILE,
            ),
            f"max({series('farthing_ledger_away')})",
            rising(1, 1),
            empty=NO_DATA,
        ),
        stat(
            Said(
                "Ledger lag",
                "Age of the oldest settlement that is still owed to the ledger.",
                "Seconds are right. Minutes: the database is slow, or away.",
                "s",
                TILE,
            ),
            f"max({series('farthing_ledger_lag_seconds')})",
            rising(10, 60),
            empty=NO_DATA,
        ),
        stat(
            Said(
                "Workers",
                "Gateway processes that serve.",
                "Fewer than were started: one died and is being replaced.",
                "none",
                TILE,
            ),
            total(series("farthing_workers")),
            empty=NO_DATA,
        ),
    ]


def _servers() -> dashboard.Panel:
    latest = {name: total(series(name), SERVER, "max") for name in (WAITING, BREAKER)}
    return table(
        Said(
            "Servers",
            "Each server of each model: how it is now, and its calls over the time shown.",
            "Not up with its breaker shut: not ready yet. Open: it broke down a moment ago.",
            "short",
            WIDE,
        ),
        {"model": "Model", "server": "Server"},
        Column("Up", "none", total(series(UP), SERVER, "min"), falling(1, 1)),
        Column("Breaker", "none", latest[BREAKER], rising(1, 1)),
        Column("Running", "none", total(series(RUNNING), SERVER)),
        Column("Waiting", "none", latest[WAITING]),
        Column("Calls/s", "reqps", rate(ATTEMPTS, by=SERVER, window=RANGE)),
        Column("Failed", "percentunit", share(ATTEMPTS, FAILED, SERVER, RANGE), FAILING),
        Column("Refused", "short", grown(ATTEMPTS, 'outcome="refused"', by=SERVER)),
        Column("Given up", "short", grown(ATTEMPTS, 'outcome="closed"', by=SERVER)),
    )


def _states() -> list[dashboard.Panel]:
    return [
        timeline(
            Said(
                "Up",
                "When each server could be called.",
                "Gaps at the same time on all: the network, or the gateway itself.",
                "none",
                HALF,
            ),
            Query(total(series(UP), SERVER, "min"), PLACE),
            {"0": ("down", "red"), "1": ("up", "green")},
        ),
        timeline(
            Said(
                "Breakers",
                "When each server was left alone after it broke down.",
                "Open again and again: the server answers probes and fails calls.",
                "none",
                HALF,
            ),
            Query(total(series(BREAKER), SERVER, "max"), PLACE),
            {"0": ("shut", "green"), "1": ("open", "red")},
        ),
    ]


def _calls() -> list[dashboard.Panel]:
    def said(title: str, tells: str, worry: str, unit: str) -> Said:
        return Said(title, tells, worry, unit, THIRD)

    by = ("model",)
    return [
        graph(
            said(
                "Running",
                "Calls of ours that each server works on.",
                "One runs many and its replica few: prefixes keep them there, or it is slow.",
                "none",
            ),
            Query(total(series(RUNNING), SERVER), PLACE),
            stack="normal",
        ),
        graph(
            said(
                "Waiting in engines",
                "Calls in the servers' own queues, whosever they are.",
                "It stays above 0: the server is full. vLLM's own dashboards say of what.",
                "none",
            ),
            Query(of_servers(WAITING, SERVER), PLACE),
            stack="normal",
        ),
        graph(
            said(
                "Waiting here",
                "Calls that wait in the gateway for a place at a model.",
                "It grows: more comes in than the model's limit of calls lets through.",
                "none",
            ),
            Query(total(series("farthing_queue_waiting"), by), "{{model}}"),
            stack="normal",
        ),
        graph(
            said(
                "Queue wait",
                "How long calls waited here for a place.",
                "p99 near the queue's time limit: some were refused.",
                "s",
            ),
            *spread(QUEUE),
        ),
        graph(
            said(
                "Calls by outcome",
                "ok; failed: broke down, and was perhaps tried elsewhere; refused: the server said"
                " no; closed: nobody wanted the rest.",
                "`failed` belongs to the server, `refused` mostly to the request.",
                "reqps",
            ),
            Query(rate(ATTEMPTS, by=("outcome",)), "{{outcome}}"),
            stack="normal",
        ),
        graph(
            said(
                "Failed calls by server",
                "Share of each server's calls that failed.",
                "One server alone: take it out. All of a model: what they share, weights, network.",
                "percentunit",
            ),
            Query(share(ATTEMPTS, FAILED, SERVER), PLACE),
            most=1,
        ),
        graph(
            said(
                "Call time",
                "From when a call was asked of an engine to its end.",
                "It grows with answers and with load: compare with tokens a second.",
                "s",
            ),
            *spread(CALL),
        ),
        graph(
            said(
                "Mean call time by model",
                "From when a call was asked of an engine to its end.",
                "A model that grew slower alone: look at its servers.",
                "s",
            ),
            Query(mean(CALL, by=by), "{{model}}"),
        ),
        graph(
            said(
                "KV memory promised",
                "Of embedded engines: memory for keys and values of the calls that run.",
                "At its limit new calls wait; vLLM tells of its own in its dashboards.",
                "bytes",
            ),
            Query(total(series("farthing_engine_kv_bytes"), by), "{{model}}"),
            stack="normal",
        ),
    ]
