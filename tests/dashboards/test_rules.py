"""Rules and alerts: named as is the custom, tested by promtool, and saying what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dashboards.expressions import DOCKER, expressions, groups
from tests.dashboards.known import recorded
from tests.dashboards.promql import labels

PROMETHEUS = DOCKER / "prometheus"
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
README = (DOCKER.parent / "README.md").read_text("utf-8")
ALERTS = {rule["alert"]: rule for rule in groups()["farthing-alerts"]["rules"]}
RECORDS = [each for each in expressions() if each.kind == "record"]


def expectations() -> list[tuple[str, int]]:
    """What promtool is asked in the tests of rules, and how many series it should answer."""
    read = [yaml.safe_load(path.read_text("utf-8")) for path in TESTS]
    return [
        (asked["expr"], len(asked.get("exp_samples", ())))
        for content in read
        for test in content["tests"]
        for asked in test["promql_expr_test"]
    ]


def fires(name: str, expr: str, count: int) -> bool | None:
    """Whether this says that the alert fires, or that it does not; None: neither."""
    asked = re.search(r'alertname(=~?)"([^"]+)"', expr)
    if asked is None or "pending" in expr:
        return None
    about = re.fullmatch(asked[2], name) if asked[1] == "=~" else asked[2] == name
    return bool(count) if about else None


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_is_seen_to_fire_and_not_to(name: str) -> None:
    seen = {fires(name, expr, count) for expr, count in expectations()}
    assert seen >= {True, False}


@pytest.mark.parametrize("record", RECORDS, ids=lambda each: str(each.name))
def test_each_recorded_series_is_computed_in_a_test(record: Any) -> None:
    assert any(record.name in expr and count for expr, count in expectations())


@pytest.mark.parametrize("record", RECORDS, ids=lambda each: str(each.name))
def test_a_recorded_series_is_named_by_its_labels(record: Any) -> None:
    level, metric, operation = record.name.split(":")
    assert set(level.split("_")) == recorded()[record.name]
    assert metric.startswith("farthing_")
    assert operation


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_means_and_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    notes, severity = rule["annotations"], rule["labels"]["severity"]
    assert name.startswith("Farthing")
    assert severity in ("critical", "warning")
    assert rule["for"]
    used = set(re.findall(r"\$labels\.(\w+)", notes["summary"]))
    has = labels(rule["expr"], recorded())
    assert has is not None
    assert used <= has
    for text in ("description", "action"):
        assert "{{" not in notes[text]
    (line,) = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells == [severity, notes["description"], notes["action"]]


def test_runbooks_are_there() -> None:
    titles = re.findall(r"^##+ (.+)$", README, re.MULTILINE)
    anchors = {title.lower().replace(" ", "-") for title in titles}
    for rule in ALERTS.values():
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert file == "README.md"
        assert anchor in anchors


def run(*command: str) -> None:
    done = subprocess.run(
        command, cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
def test_prometheus_can_read_its_files(promtool: str) -> None:
    run(promtool, "check", "config", "prometheus.yml")
    run(promtool, "check", "rules", *map(str, sorted((PROMETHEUS / "rules").glob("*.yml"))))


@pytest.mark.prometheus
@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.stem))
def test_rules_and_alerts_do_what_their_tests_say(promtool: str, path: Path) -> None:
    run(promtool, "test", "rules", str(path))


@pytest.mark.prometheus
def test_prometheus_can_read_every_expression(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"check:panel:{number}", "expr": each.expr}
        for number, each in enumerate(expressions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run(promtool, "check", "rules", str(path))
