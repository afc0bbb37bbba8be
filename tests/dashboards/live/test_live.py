"""All that dashboards, rules and alerts ask for is there, where a gateway is really asked."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text

from app.telemetry.metrics import METRICS
from app.telemetry.names import OTHER
from tests.dashboards.expressions import Expression, dashboards, expressions, groups
from tests.dashboards.live import quiet
from tests.dashboards.live.conftest import FORMATS, Seen
from tests.dashboards.live.load import NO_ROUTE

pytestmark = pytest.mark.live

INSTANCE = "the gateway's"  # what stands for it until it is known
ALL = expressions({"instance": INSTANCE})
SHOWN = [each for each in ALL if each.kind in ("panel", "annotation")]
RECORDED = [each for each in ALL if each.kind == "record"]
ALERTS = {each.name: each for each in ALL if each.kind == "alert"}
ANSWERED = {"200", "499"}  # or left by Prometheus, which had waited for long enough
READERS: dict[str, Callable[[str], Iterable[Metric]]] = {"text": text, "openmetrics": openmetrics}
# What promtool would have otherwise: entropy is in bits everywhere, no matter what a base unit is.
LINT = 'use base unit "bytes" instead of "bits"'


def named(each: Expression) -> str:
    return f"{each.where}: {each.name}"


@pytest.mark.parametrize("each", SHOWN, ids=named)
def test_a_panel_shows_what_the_load_brought_about(seen: Seen, each: Expression) -> None:
    found = seen.prometheus.over_time(each.expr.replace(INSTANCE, seen.house.address))
    assert found
    assert any(series.tells for series in found) == (each.name not in quiet.PANELS)


@pytest.mark.parametrize("each", RECORDED, ids=named)
def test_prometheus_records_what_a_rule_says(seen: Seen, each: Expression) -> None:
    assert any(series.tells for series in seen.prometheus.over_time(each.name))


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_pending_where_there_is_reason_for_it_and_nowhere_else(
    seen: Seen, name: str
) -> None:
    if name in quiet.PERHAPS:
        pytest.skip(quiet.PERHAPS[name])
    pending = seen.prometheus.over_time(f'ALERTS{{alertname="{name}"}}')
    assert bool(pending) == (name not in quiet.ALERTS)
    assert bool(seen.prometheus.over_time(ALERTS[name].expr)) == bool(pending)


def test_an_alert_fires_when_its_time_has_come(seen: Seen) -> None:
    assert seen.alerts["FarthingNoEngine"] == "firing"
    assert seen.alerts["FarthingDown"] == "pending"


def test_prometheus_evaluates_every_rule(seen: Seen) -> None:
    rules = seen.prometheus.rules()
    assert len(rules) == sum(len(group["rules"]) for group in groups().values())
    assert {rule["health"] for rule in rules} == {"ok"}


@pytest.mark.parametrize("uid", dashboards())
def test_variables_offer_what_there_is(seen: Seen, uid: str) -> None:
    offered = {
        variable["name"]: _offered(seen, variable["query"])
        for variable in dashboards()[uid]["templating"]["list"]
        if variable["type"] == "query"
    }
    default = {"smollm2-135m", "smollm2-135m-int8", "smollm2-tiny"}
    assert offered == {
        "model": default | seen.house.upstreams.keys() - {"twin"},
        "preset": {"none", "economy", "swift", "relay", "ahead", "auto"},
        "instance": {seen.house.address},
    }


def _offered(seen: Seen, query: str) -> set[str]:
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert asked is not None
    return seen.prometheus.values(asked[2], asked[1].replace("$model", ".*"))


@pytest.mark.parametrize("name", METRICS)
def test_the_load_moves_every_metric(seen: Seen, name: str) -> None:
    series = f"{name}_count" if METRICS[name].kind == "histogram" else name
    found = seen.prometheus.over_time(series)
    assert found
    assert any(each.tells for each in found) == (name not in quiet.METRICS)


def test_a_scrape_under_load_is_answered_or_at_worst_late(seen: Seen) -> None:
    """One that takes longer than its two seconds is up to what else the machine does."""
    scrapes = 'farthing_requests_total{endpoint="/metrics"}'
    assert {series.labels["status"] for series in seen.prometheus.over_time(scrapes)} <= ANSWERED
    assert seen.up.count(1.0) > len(seen.up) / 2


def test_prometheus_counts_the_requests_that_clients_sent(seen: Seen) -> None:
    routes = {NO_ROUTE: OTHER}
    told = {(routes.get(path, path), status): n for (path, status), n in seen.told.items()}
    assert seen.counted == told


def test_prometheus_and_the_ledger_agree_on_what_was_spent(seen: Seen) -> None:
    assert seen.cost == pytest.approx(seen.spent, rel=1e-9)
    assert seen.cost > 0


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_scraped_is_what_is_defined(seen: Seen, kind: str) -> None:
    families = {family.name: family.type for family in READERS[kind](seen.pages[kind])}
    assert families == {name.removesuffix("_total"): made.kind for name, made in METRICS.items()}


def test_promtool_finds_no_fault_with_what_is_scraped(seen: Seen, promtool: str) -> None:
    done = subprocess.run(
        [promtool, "check", "metrics"], input=seen.pages["text"], capture_output=True, text=True
    )  # 3: it would have something otherwise
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if LINT not in line] == []
    assert done.returncode in (0, 3)


def test_the_stand_ins_were_handed_what_was_written(seen: Seen) -> None:
    assert [c for u in seen.house.upstreams.values() for c in u.complaints] == []
