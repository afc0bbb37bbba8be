"""One load for all of these tests, and what was seen of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from app.catalog import PICO
from tests import servers
from tests.dashboards.live import load
from tests.dashboards.live.house import House, standing
from tests.dashboards.live.prometheus import Prometheus, scraping
from tests.upstreams.server import wait_for

FORMATS = {"text": "text/plain", "openmetrics": "application/openmetrics-text; version=1.0.0"}
OPEN = ("farthing_ledger_owed", "farthing_ledger_reservations")
REQUESTS = 'sum by (endpoint, status) (farthing_requests_total{endpoint!="/metrics"})'
UP = 'up{job="farthing"}'
COST = "sum(farthing_cost_usd_total)"


@dataclass(frozen=True)
class Seen:
    """A Prometheus that scraped a gateway from before its load until after its end."""

    prometheus: Prometheus
    house: House
    told: Counter[tuple[str, str]]  # requests by path and status, as clients know them
    counted: Counter[tuple[str, str]]  # and as Prometheus does
    spent: float  # USD, in the ledger
    cost: float  # and in Prometheus
    pages: dict[str, str]  # what is scraped, by format
    up: list[float]  # whether each scrape under load succeeded
    alerts: dict[str, str]  # their states at the end


@pytest.fixture(scope="package")
def seen(
    postgres: servers.Postgres,
    promtool: str,  # which is in the same package: else there is nothing to scrape with
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("live")
    with ExitStack() as stack:
        house = stack.enter_context(standing(folder, postgres))
        others = [upstream.url.removeprefix("http://") for upstream in house.upstreams.values()]
        prometheus = stack.enter_context(scraping(house.address, others, folder))
        yield _under_load(house, prometheus)


def _under_load(house: House, prometheus: Prometheus) -> Seen:
    done = asyncio.run(load.run(house))
    pages = {name: house.metrics(kind) for name, kind in FORMATS.items()}
    at = _settled(house, prometheus)
    counted = Counter(
        {
            (series.labels["endpoint"], series.labels["status"]): int(series.last)
            for series in prometheus.now(REQUESTS, at)
        }
    )
    (cost,) = prometheus.now(COST, at)
    (spent,) = house.ledger.ask(lambda accounts: accounts.usage(()))
    up = [value for series in prometheus.over_time(UP) for _, value in series.points]
    alerts = _ended(house, prometheus)
    return Seen(
        prometheus, house, done.told, counted, spent.cost / PICO, cost.last, pages, up, alerts
    )


def _settled(house: House, prometheus: Prometheus) -> float:
    """Nothing is held or owed, and Prometheus has seen the last of it: then. At any later moment a
    scrape may have come too late on a busy machine, and for as long there is nothing to be seen."""
    for name in OPEN:
        wait_for(lambda name=name: house.gauge(name) == [0], 120, f"{name} is 0")
    since = time.time() + 2  # workers say each second how it stands with them
    scraped = "max(timestamp(farthing_workers))"
    seen: list[float] = []

    def last() -> bool:
        seen[:] = [each.last for each in prometheus.now(scraped) if each.last > since]
        return bool(seen)

    wait_for(last, 120, "the load's end is scraped")
    return seen[0]


def _ended(house: House, prometheus: Prometheus) -> dict[str, str]:
    """A worker dies, and then the gateway ends; the alerts before and meanwhile."""
    # It is a minute without a scrape that comes too late, which begins the alert's minute anew.
    wait_for(lambda: prometheus.alerts().get("FarthingNoEngine") == "firing", 300, "it fires")
    before = prometheus.alerts()
    house.lose_worker()
    wait_for(lambda: "FarthingWorkersMissing" in prometheus.alerts(), what="a worker is missed")
    house.gateway.stop()
    wait_for(lambda: "FarthingDown" in prometheus.alerts(), what="the gateway is missed")
    missed = f"{UP} == bool 0"
    wait_for(lambda: any(s.tells for s in prometheus.over_time(missed)), what="a graph shows it")
    return before | {"FarthingDown": prometheus.alerts()["FarthingDown"]}
