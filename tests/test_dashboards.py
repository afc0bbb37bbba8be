"""Dashboards are those of the code, in shapes that Grafana knows, and keep its linter's rules."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.utils import floatToGoString

from app.telemetry.metrics import METRICS
from docker.grafana import build
from tests.dashboards.expressions import DASHBOARDS, dashboards, panels
from tests.dashboards.known import base
from tests.dashboards.promql import selectors

BOARDS = dashboards()
PANELS = [(uid, panel) for uid, content in BOARDS.items() for panel in panels(content)]
UNITS = {value for name, value in vars(units).items() if not name.startswith("_")}


def titled(given: Any) -> str:
    return str(given["title"]) if isinstance(given, dict) else str(given)


def variables(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in content["templating"]["list"]}


def test_the_dashboards_are_those_of_the_code() -> None:
    found = {path.name: path.read_text("utf-8") for path in DASHBOARDS.iterdir()}
    assert found == build.written(), "run `make dashboards`"


def test_they_are_these() -> None:
    assert {uid: content["title"] for uid, content in BOARDS.items()} == {
        "farthing-overview": "Farthing / Overview",
        "farthing-budgets": "Farthing / Budgets and cost",
        "farthing-policies": "Farthing / Policies",
        "farthing-engines": "Farthing / Engines",
    }


@pytest.mark.parametrize("uid", BOARDS)
def test_grafana_s_own_types_know_all_of_it(uid: str) -> None:
    """What its SDK does not know it would drop."""
    register_default_plugins()
    read = json.loads(json.dumps(Dashboard.from_json(BOARDS[uid]), cls=JSONEncoder))
    for shown in (*read["links"], *read["annotations"]["list"]):
        shown.pop("placement")
    assert read == BOARDS[uid]


@pytest.mark.parametrize("uid", BOARDS)
def test_the_frame_is_that_of_all(uid: str) -> None:
    content = BOARDS[uid]
    assert content["tags"] == ["farthing"]
    assert content["schemaVersion"] == 39
    assert content["editable"] is False
    assert content["refresh"] == "30s"
    assert content["time"] == {"from": "now-1h", "to": "now"}
    assert content["description"]
    ours, theirs = content["links"]
    assert (ours["tags"], ours["includeVars"], ours["keepTime"]) == (["farthing"], True, True)
    assert (theirs["tags"], theirs["includeVars"], theirs["keepTime"]) == (["vllm"], False, True)


@pytest.mark.parametrize("uid", BOARDS)
def test_variables_are_picked_one_after_the_other(uid: str) -> None:
    found = variables(BOARDS[uid])
    assert list(found) == [
        *("datasource", "model", "preset", "instance", "ttft_slo", "itl_slo", "filters"),
    ]
    assert (found["datasource"]["type"], found["datasource"]["query"]) == ("datasource",) + (
        "prometheus",
    )
    for name in ("model", "preset", "instance"):
        each = found[name]
        assert each["type"] == "query"
        assert each["refresh"] == 2  # on a change of time too: names come and go
        assert each["multi"]
        assert each["includeAll"]
        asked = re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", each["query"])
        assert asked is not None
        assert asked[3] in (*METRICS[asked[1]].labels, "instance")
        assert asked[3] == name
    assert found["filters"]["type"] == "adhoc"


@pytest.mark.parametrize("uid", BOARDS)
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("ttft_slo", "farthing_time_to_first_token_seconds"),
        ("itl_slo", "farthing_inter_token_latency_seconds"),
    ],
)
def test_objectives_are_bounds_of_buckets(uid: str, name: str, metric: str) -> None:
    each = variables(BOARDS[uid])[name]
    bounds = [floatToGoString(bound) for bound in METRICS[metric].buckets]
    values = [option["value"] for option in each["options"]]
    assert len(values) > 5
    assert set(values) <= set(bounds)
    assert each["current"]["value"] in values
    assert each["query"] == ", ".join(f"{o['text']} : {o['value']}" for o in each["options"])


@pytest.mark.parametrize("uid", BOARDS)
def test_panels_have_numbers_and_places_of_their_own(uid: str) -> None:
    content = BOARDS[uid]
    rows = [panel for panel in content["panels"] if panel["type"] == "row"]
    numbers = [panel["id"] for panel in (*rows, *panels(content))]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    inner = [row["panels"] for row in rows if row["collapsed"]]
    for shown in (content["panels"], *inner):
        for one, other in itertools.combinations([panel["gridPos"] for panel in shown], 2):
            apart = (
                one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            )  # fmt: skip
            assert apart, (one, other)
        assert all(0 <= p["gridPos"]["x"] <= 24 - p["gridPos"]["w"] for p in shown)
    assert all(not row["panels"] for row in rows if not row["collapsed"])
    titles = [(panel["title"], panel["type"]) for panel in panels(content)]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(("uid", "panel"), PANELS, ids=titled)
def test_a_panel_says_what_it_shows_and_when_to_worry(uid: str, panel: dict[str, Any]) -> None:
    assert panel["title"]
    tells, worry, named = panel["description"].split("\n\n")
    assert tells.endswith(".")
    assert worry.endswith(".")
    filled = [re.sub(r"\$\w+", "1m", target["expr"]) for target in panel["targets"]]
    asked = {base(found.name) for expr in filled for found in selectors(expr)}
    assert set(re.findall(r"`(\w+)`", named)) == asked


@pytest.mark.parametrize(("uid", "panel"), PANELS, ids=titled)
def test_a_panel_has_a_source_a_unit_and_a_word_for_nothing(
    uid: str, panel: dict[str, Any]
) -> None:
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)
    assert all(target["instant"] != target["range"] for target in panel["targets"])
    defaults = panel["fieldConfig"]["defaults"]
    found = [defaults["unit"]]
    for override in panel["fieldConfig"]["overrides"]:
        found += [each["value"] for each in override["properties"] if each["id"] == "unit"]
    assert all(unit in UNITS or unit.startswith(("count:", "suffix:")) for unit in found), found
    assert defaults["noValue"]


@pytest.mark.parametrize(("uid", "panel"), PANELS, ids=titled)
def test_colours_judge_or_are_not_there(uid: str, panel: dict[str, Any]) -> None:
    if panel["type"] != "stat":
        return
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    judges = panel["options"]["colorMode"] == "value"
    assert judges == (len(steps) > 1)
    assert not judges or {"green", "red"} <= {step["color"] for step in steps}


@pytest.mark.parametrize(("uid", "panel"), PANELS, ids=titled)
def test_a_table_asks_for_one_moment_and_a_heatmap_for_buckets(
    uid: str, panel: dict[str, Any]
) -> None:
    forms = {target.get("format") for target in panel["targets"]}
    assert (forms == {"table"}) == (panel["type"] == "table")
    assert (forms == {"heatmap"}) == (panel["type"] == "heatmap")
    if panel["type"] == "table":
        assert all(target["instant"] for target in panel["targets"])
        (renamed,) = [
            t["options"]["renameByName"] for t in panel["transformations"] if t["options"]
        ]
        titles = [o["matcher"]["options"] for o in panel["fieldConfig"]["overrides"]]
        assert set(titles) <= set(renamed.values())


def test_overshoot_is_red_as_soon_as_there_is_any() -> None:
    shown = [panel for _, panel in PANELS if panel["title"] == "Overshoot"]
    assert len(shown) == 2
    for panel in shown:
        first, second = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert (first["color"], second["color"]) == ("green", "red")
        assert 0 < second["value"] <= 1e-12  # money is counted in so many USD
