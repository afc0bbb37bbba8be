"""Every expression asks for metrics that there are, by labels that these have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

import promql_parser
import pytest
from prometheus_client.utils import floatToGoString

from app.telemetry.metrics import LABELS, METRICS
from tests.dashboards.expressions import EVERYTHING, Expression, expressions
from tests.dashboards.known import SUFFIXES, base, exposed, recorded
from tests.dashboards.promql import SCRAPED, Wrong, divisions, labels, selectors

# Metrics that are on no dashboard, each with its reason.
NOT_SHOWN: Mapping[str, str] = {
    "process_virtual_memory_bytes": "addresses that are not used cost nothing",
}
# Panels that look at more than the picked model and preset, since what they divide by does.
WHOLE = ("CPU a request",)
# Durations that nobody writes, to know the variables by.
MARKED = {**EVERYTHING, "__rate_interval": "7m", "__range": "11h"}
MARKED |= {name: f"{name}s" for name in ("model", "preset", "instance")}
RATE, RANGE = timedelta(minutes=7), timedelta(hours=11)

ALL = expressions(MARKED)
PANELS = [each for each in ALL if each.kind == "panel"]
RULES = [each for each in ALL if each.kind in ("record", "alert")]


def named(each: Expression) -> str:
    return f"{each.where}: {each.name}"


def parts(name: str) -> bool:
    return base(name) != name


@pytest.mark.parametrize("each", PANELS, ids=named)
def test_a_panel_asks_for_metrics_and_labels_that_there_are(each: Expression) -> None:
    has = labels(each.expr, exposed())
    assert has is not None
    named_in_legend = set(re.findall(r"{{(\w+)}}", each.legend))
    assert named_in_legend <= has
    if each.legend:
        assert has - {"le"} <= named_in_legend, "lines of a graph that are called alike"


@pytest.mark.parametrize("each", RULES, ids=named)
def test_a_rule_asks_for_metrics_and_labels_that_there_are(each: Expression) -> None:
    assert labels(each.expr, recorded()) is not None


@pytest.mark.parametrize("each", PANELS, ids=named)
def test_a_panel_keeps_to_what_is_picked(each: Expression) -> None:
    for found in selectors(each.expr):
        has = exposed()[found.name]
        picked = {label for label in ("model", "preset", "instance") if label in has}
        if each.name in WHOLE:
            picked = {"instance"}
        kept = {label for label, op, value in found.matchers if value == f"{label}s"}
        assert kept == picked, found


@pytest.mark.parametrize("each", ALL, ids=named)
def test_counters_are_looked_at_by_their_growth(each: Expression) -> None:
    for found in selectors(each.expr):
        metric = METRICS.get(base(found.name))
        counts = found.name.endswith("_total") or parts(found.name)
        if each.name == "FarthingOvershoot" and found.window is None:
            continue  # of a counter that has only just come to be there is no growth
        if counts:
            assert found.within in ("rate", "increase"), found
        else:
            assert found.within not in ("rate", "increase"), found
        assert metric is None or counts == (metric.kind != "gauge")


@pytest.mark.parametrize("each", PANELS, ids=named)
def test_windows_are_grafana_s(each: Expression) -> None:
    for found in selectors(each.expr):
        if found.within == "rate":
            assert found.window == RATE
            assert not each.instant
        elif found.within == "increase":
            assert found.window == RANGE
            assert each.instant
        else:
            assert found.window is None


@pytest.mark.parametrize("each", ALL, ids=named)
def test_nothing_is_divided_by_zero(each: Expression) -> None:
    for whole in divisions(each.expr):
        if isinstance(whole, promql_parser.NumberLiteral):
            continue
        assert isinstance(whole, promql_parser.ParenExpr), whole
        guard = whole.expr
        assert isinstance(guard, promql_parser.BinaryExpr)
        assert (str(guard.op), guard.rhs.prettify()) == (">", "0")


@pytest.mark.parametrize("each", ALL, ids=named)
def test_values_that_are_asked_for_are_those_that_are_counted(each: Expression) -> None:
    for found in selectors(each.expr):
        for label, _, value in found.matchers:
            if label == "le":
                bounds = METRICS[base(found.name)].buckets
                assert value in map(floatToGoString, bounds), found
            elif label in ("kind", "outcome", "fidelity", "server"):
                said = [m.text for m in METRICS.values() if label in m.labels] + [LABELS[label]]
                for one in value.split("|"):
                    assert any(f"`{one}`" in text for text in said), found


@pytest.mark.parametrize("each", ALL, ids=named)
def test_probes_and_scrapes_are_no_requests(each: Expression) -> None:
    for found in selectors(each.expr):
        if "endpoint" in exposed().get(found.name, ()):
            assert ("endpoint", "MatchOp.NotRe", "/(health|metrics).*") in found.matchers


def test_every_metric_is_on_a_dashboard_or_is_known_not_to_be() -> None:
    shown = {base(found.name) for each in PANELS for found in selectors(each.expr)}
    assert set(METRICS) - shown == set(NOT_SHOWN)
    assert all(NOT_SHOWN.values())


@pytest.mark.parametrize(
    ("expr", "why"),
    [
        ("rate(farthing_request_total[5m])", "there is no farthing_request_total"),
        ("farthing_time_to_first_token_seconds", "there is no"),
        ("rate(farthing_requests_total{user='x'}[5m])", "no label user"),
        ("sum by (server) (rate(farthing_requests_total[5m]))", "by ['server']"),
        ("sum by (model) (rate(farthing_tokens_total[5m])) / (sum(up) > 0)", "never meet"),
        ("histogram_quantile(0.9, sum(rate(farthing_queue_seconds_bucket[5m])))", "without `le`"),
    ],
)
def test_what_could_never_answer_is_found(expr: str, why: str) -> None:
    with pytest.raises(Wrong) as raised:
        labels(expr, exposed())
    assert why in str(raised.value)


def test_the_parts_of_histograms_are_theirs_alone() -> None:
    assert "farthing_queue_seconds" not in exposed()
    assert exposed()["farthing_queue_seconds_bucket"] == SCRAPED | {"model", "le"}
    assert all(f"farthing_workers{suffix}" not in exposed() for suffix in SUFFIXES)
