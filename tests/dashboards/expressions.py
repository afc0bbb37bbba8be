"""Every PromQL expression that dashboards, rules and alerts are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARDS = DOCKER / "grafana" / "dashboards"
RULES = DOCKER / "prometheus" / "rules"
# What Grafana puts in where everything is picked, and an hour is shown with a point each minute.
EVERYTHING: Mapping[str, str] = {
    "model": ".*",
    "preset": ".*",
    "instance": ".*",
    "ttft_slo": "1.0",
    "itl_slo": "0.1",
    "__rate_interval": "1m",
    "__range": "1h",
    "__range_s": "3600",
}


@dataclass(frozen=True)
class Expression:
    """One expression, and where it stands.

    `kind` is panel, annotation, record or alert; `where` a dashboard's uid or a group of rules;
    `name` the panel's title, the recorded series or the alert. `instant`: a panel asks for one
    moment alone. `raw` is as it is written, with variables.
    """

    kind: str
    where: str
    name: str
    expr: str
    raw: str
    legend: str = ""
    instant: bool = False


def dashboards() -> dict[str, dict[str, Any]]:
    """The JSON of each dashboard, by its uid."""
    read = (json.loads(path.read_text("utf-8")) for path in sorted(DASHBOARDS.glob("*.json")))
    return {content["uid"]: content for content in read}


def panels(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A dashboard's panels, those of collapsed rows too; not the rows."""
    for panel in content["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def filled(raw: str, variables: Mapping[str, str]) -> str:
    """An expression with values for its variables. Raises KeyError where one has none."""
    return re.sub(r"\$(\w+)", lambda found: variables[found[1]], raw)


def expressions(variables: Mapping[str, str] | None = None) -> list[Expression]:
    """All of them; `variables` are put in over those of EVERYTHING."""
    return [*_shown({**EVERYTHING, **(variables or {})}), *_ruled()]


def _shown(variables: Mapping[str, str]) -> Iterator[Expression]:
    for uid, content in dashboards().items():
        for note in content["annotations"]["list"]:
            raw = note["expr"]
            yield Expression("annotation", uid, note["name"], filled(raw, variables), raw)
        for panel in panels(content):
            for target in panel["targets"]:
                raw = target["expr"]
                yield Expression(
                    "panel",
                    uid,
                    panel["title"],
                    filled(raw, variables),
                    raw,
                    "" if target["legendFormat"] == "__auto" else target["legendFormat"],
                    bool(target["instant"]),
                )


def groups() -> dict[str, dict[str, Any]]:
    """The groups of rules, by name."""
    read = (yaml.safe_load(path.read_text("utf-8")) for path in sorted(RULES.glob("*.yml")))
    return {group["name"]: group for content in read for group in content["groups"]}


def _ruled() -> Iterator[Expression]:
    for group in groups().values():
        for rule in group["rules"]:
            kind = "record" if "record" in rule else "alert"
            yield Expression(kind, group["name"], rule[kind], rule["expr"], rule["expr"])
