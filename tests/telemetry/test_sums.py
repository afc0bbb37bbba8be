"""Sums agree: metrics, ledger, and what clients were told, of mixed requests to several workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from app.catalog import PICO
from app.reasons import STRATEGIES
from tests.chaos.gateways import pico
from tests.telemetry import fleets
from tests.telemetry.books import (
    COLUMNS,
    Metrics,
    Settled,
    decided,
    explained,
    ledger_of,
    lines_told,
    plan_of,
    sums,
    told_sums,
)
from tests.telemetry.clients import Told, ask_all
from tests.telemetry.gateways import quiet, serving, settings
from tests.telemetry.wishes import mixed

REQUESTS = 1000
WORKERS = 4
# Outcomes that only an answer has whose money was held: each is a settlement.
HELD = ("kept", "cut", "steered")


@dataclass
class Run:
    """All three books, when nothing moves any more."""

    told: list[Told]
    settled: dict[str, Settled]
    metrics: Metrics
    log: dict[str, Any]  # of decisions, by id


@pytest.fixture(
    scope="module",
    # What a database keeps is the same sums; that several processes write to it is harder here.
    params=[
        "sqlite",
        pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow]),
    ],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("sums")
    url = f"sqlite:///{folder / 'ledger.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").new_database()
    with fleets.running(folder) as fleet:
        ledger = settings(url, folder, fleet)
        key, token = ledger.new_key(usd_total="100")
        with serving(ledger, fleet, WORKERS) as gateway:
            fleet.fails(REQUESTS)
            told = asyncio.run(ask_all(gateway.url, token, mixed(REQUESTS), fleet.works_on))
            metrics = quiet(gateway, ledger, fleet)
            return Run(told, ledger_of(ledger, key), metrics, explained(ledger))


def test_the_requests_were_mixed(run: Run) -> None:
    """Else the sums below would say little."""
    outcomes = {one.outcome for one in run.settled.values()}
    assert outcomes >= {"kept", "cut", "steered", "deadline", "failed", "closed"}
    statuses = Counter(one.status for one in run.told)
    assert all(statuses[status] >= 3 for status in (200, 400, 402, 404, None)), statuses
    assert sum(one.left for one in run.told) >= 20
    assert sum(one.usage is not None for one in run.told) > REQUESTS / 2
    assert {kind for _, kind, _ in decided(run.log.values())} >= {
        *("switch", "steer", "failover", "plain", "whole", "repair", *STRATEGIES)
    }
    for column in COLUMNS:
        assert (
            sum(
                sums(run.settled.values())[key]
                for key in sums(run.settled.values())
                if key[2] == column
            )
            > 0
        ), column
    assert all(one.answers for one in run.settled.values())


def test_metrics_are_the_ledger(run: Run) -> None:
    """Tokens of each kind, USD and accelerator-seconds, by model and preset or policy."""
    assert run.metrics.sums() == sums(run.settled.values())


def test_every_client_was_told_what_the_ledger_has(run: Run) -> None:
    for one in run.told:
        if one.usage is None:
            continue
        assert one.id is not None
        settled = run.settled[one.id]
        assert (one.cost, lines_told(one.usage)) == (settled.cost, settled.lines)


def test_metrics_are_what_clients_were_told_and_what_is_settled_of_the_others(run: Run) -> None:
    ids = {one.id for one in run.told if one.usage is not None}
    plans = {id: one.plan for id, one in run.settled.items()}
    others = [one for id, one in run.settled.items() if id not in ids]
    silent = [one for one in run.told if one.usage is None]
    assert 0 < len(others) <= len(silent)
    assert run.metrics.sums() == told_sums(run.told, plans) + sums(others)
    assert sum(one.cost for one in others if one.outcome == "refused") == 0


def test_requests_are_counted_once_each_under_their_status(run: Run) -> None:
    expected = Counter(
        (one.wish.path, str(499 if one.status is None else one.status)) for one in run.told
    )
    counted = run.metrics.all("farthing_requests_total", "endpoint", "status")
    assert {key: n for key, n in counted.items() if key[0].startswith("/v1/")} == expected
    timed = run.metrics.all("farthing_request_duration_seconds_count", "endpoint")
    for endpoint in {path for path, _ in expected}:
        assert timed[endpoint] == sum(n for (path, _), n in expected.items() if path == endpoint)


def test_answers_are_counted_by_how_they_ended(run: Run) -> None:
    """All that the decision log has; the ledger those of which money was held."""
    logged = Counter((plan_of(one), one["outcome"]) for one in run.log.values())
    assert run.metrics.by_plan("farthing_answers_total", "outcome") == logged
    settled = Counter((one.plan, one.outcome) for one in run.settled.values())
    assert settled <= logged
    assert all(settled[key] == n for key, n in logged.items() if key[1] in HELD)


def test_decisions_are_counted_as_they_were_logged(run: Run) -> None:
    logged = decided(run.log.values())
    counted = run.metrics.by_plan("farthing_switches_total", "kind", "to")
    assert counted == Counter(
        {key: n for key, n in logged.items() if key[1] in ("switch", "steer", "failover")}
    )
    fallbacks = Counter[Any]()
    for (plan, kind, _), n in logged.items():
        if kind in ("plain", "whole", "repair"):
            fallbacks[plan, kind] += n
    assert run.metrics.by_plan("farthing_fallbacks_total", "kind") == fallbacks
    around = Counter[Any]()
    for (plan, kind, _), n in logged.items():
        if kind in STRATEGIES:
            around[plan, kind] += n
    assert run.metrics.by_plan("farthing_strategies_total", "kind") == around


def test_budgets_are_kept_and_add_up(run: Run) -> None:
    metrics, budgeted = run.metrics, [one for one in run.told if one.wish.budget is not None]
    assert metrics.one("farthing_budget_overshoot_usd_total") == 0
    free = sum(one.cost or 0 for one in run.told if one.wish.budget is None and one.usage)
    # Those without a budget of whom the price is not known are known by their ids.
    unpriced = [one for one in run.told if one.wish.budget is None and one.usage is None]
    free += sum(run.settled[one.id].cost for one in unpriced if one.id in run.settled)
    spent = sum(one.cost for one in run.settled.values()) - free
    assert metrics.one("farthing_budget_spent_usd_total") * PICO == pytest.approx(spent, rel=1e-9)
    outcomes = metrics.all("farthing_budget_outcomes_total", "outcome")
    begun = [one for one in budgeted if one.status not in (400, 404)]
    assert sum(outcomes.values()) == len(begun)
    assert outcomes["refused"] == sum(one.status == 402 for one in begun) > 0
    budgets = {id: run.log[id]["estimate"]["budget_usd"] for id in run.settled}
    admitted = sum(pico(budget) for budget in budgets.values() if budget is not None)
    assert metrics.one("farthing_budget_admitted_usd_total") * PICO == pytest.approx(
        admitted, rel=1e-9
    )
    for one in begun:
        if one.id in budgets and "X-Farthing-Budget-Usd" in one.headers:
            assert pico(one.headers["X-Farthing-Budget-Usd"]) == pico(budgets[one.id])


def test_every_settlement_can_be_explained(run: Run) -> None:
    assert run.log.keys() >= run.settled.keys()
    for id, one in run.settled.items():
        explained = run.log[id]
        assert (explained["outcome"], pico(explained["cost"]["usd"])) == (one.outcome, one.cost)
