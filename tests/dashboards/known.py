"""The series that a Prometheus has which scrapes the gateway, and their labels."""

from __future__ import annotations

from app.telemetry.metrics import METRICS
from tests.dashboards.expressions import expressions
from tests.dashboards.promql import SCRAPED, labels

SUFFIXES = ("_bucket", "_sum", "_count")


def base(name: str) -> str:
    """The metric whose series this is."""
    for suffix in SUFFIXES:
        metric = METRICS.get(name.removesuffix(suffix))
        if name.endswith(suffix) and metric is not None and metric.kind == "histogram":
            return name.removesuffix(suffix)
    return name


def exposed() -> dict[str, frozenset[str]]:
    """What is scraped: of a histogram its parts alone."""
    made = {"up": SCRAPED}
    for name, metric in METRICS.items():
        has = SCRAPED.union(metric.labels)
        if metric.kind == "histogram":
            made |= {f"{name}{suffix}": has for suffix in SUFFIXES}
            made[f"{name}_bucket"] = has | {"le"}
        else:
            made[name] = has
    return made


def recorded() -> dict[str, frozenset[str]]:
    """What is scraped, and what rules make of it, in the order in which they do."""
    made = exposed()
    for each in expressions():
        if each.kind == "record":
            found = labels(each.expr, made)
            assert found is not None
            made[each.name] = found
    return made
