"""A dashboard's frame: variables, links, rows, and where each panel stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard

from app.telemetry.metrics import METRICS
from docker.grafana.panels import SOURCE

TAG = "farthing"
WIDTH = 24
TTFT = "farthing_time_to_first_token_seconds"
ITL = "farthing_inter_token_latency_seconds"
DURATION = "farthing_request_duration_seconds"
REQUESTS = "farthing_requests_total"
VISIBLE = "farthing_visible_tokens_total"
_SLOS = {  # a share within a limit can be told at a bucket's bound alone
    "ttft_slo": ("TTFT SLO", TTFT, (0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0), 1.0),
    "itl_slo": ("ITL SLO", ITL, (0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5), 0.1),
}
_ALERTS = 'ALERTS{alertname=~"Farthing.+", alertstate="firing", instance=~"$instance|"}'


@dataclass(frozen=True)
class Row:
    """Panels under a title; without a title they stand at the top."""

    title: str
    panels: Sequence[dashboard.Panel]
    collapsed: bool = False


def board(name: str, title: str, description: str, rows: Sequence[Row]) -> dashboard.Dashboard:
    """A dashboard as Grafana 10.4 and newer reads it."""
    made = (
        builders.Dashboard(f"Farthing / {title}")
        .uid(f"farthing-{name}")
        .description(description)
        .tags([TAG])
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .variables([*_picked(), *(_slo(name) for name in _SLOS), _filters()])
        .links([_ours(), _vllm()])
        .annotation(_alerts())
        .version(1)
        .build()
    )
    made.schema_version = 39  # Grafana 10.4's own; newer ones bring it up to date themselves
    made.panels = list(_laid_out(rows))
    return made


def _laid_out(rows: Sequence[Row]) -> list[dashboard.Panel | dashboard.RowPanel]:
    """Panels from left to right and down, numbered. A collapsed row holds its own."""
    placed: list[dashboard.Panel | dashboard.RowPanel] = []
    top = number = 0
    for row in rows:
        into: list[dashboard.Panel] = []
        if row.title:
            number += 1
            header = dashboard.RowPanel(
                title=row.title,
                collapsed=row.collapsed,
                id_val=number,
                grid_pos=dashboard.GridPos(h=1, w=WIDTH, x=0, y=top),
                panels=into,
            )
            placed.append(header)
            top += 1
        below = _flow(row.panels, top, number)
        number += len(row.panels)
        if row.collapsed:
            into.extend(row.panels)  # they take no room until somebody opens the row
        else:
            placed.extend(row.panels)
            top = below
    return placed


def _flow(panels: Sequence[dashboard.Panel], top: int, number: int) -> int:
    """Sets their places; answers the first line below them."""
    left = height = 0
    for index, panel in enumerate(panels, number + 1):
        place = panel.grid_pos
        assert place is not None
        if left + place.w > WIDTH:
            top, left, height = top + height, 0, 0
        place.x, place.y = left, top
        left, height = left + place.w, max(height, place.h)
        panel.id_val = index
    return top + height


def _picked() -> list[builders.DatasourceVariable | builders.QueryVariable]:
    return [
        builders.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _label(
            "model",
            "label_values(farthing_engine_up, model)",
            "Of requests: the model that was asked for, of a preset its best one."
            " Of tokens, cost and engines: the model that did the work.",
            every=".*",
        ),
        _label(
            "preset",
            'label_values(farthing_tokens_total{model=~"$model"}, preset)',
            "`none`: a model was named, and no preset.",
            every=".*",
        ),
        # No `.*`: this is all that keeps other programs' up and process_* away.
        _label(
            "instance",
            "label_values(farthing_workers, instance)",
            "A gateway, as Prometheus calls it.",
        ),
    ]


def _label(name: str, query: str, text: str, every: str = "") -> builders.QueryVariable:
    made = (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .description(text)
        .datasource(SOURCE)
        .query(query)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )
    return made.all_value(every) if every else made


def _slo(name: str) -> builders.CustomVariable:
    label, metric, choices, usual = _SLOS[name]
    assert set(choices) <= set(METRICS[metric].buckets)
    texts = {
        f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s": str(seconds)
        for seconds in choices
    }
    options = [
        dashboard.VariableOption(selected=value == str(usual), text=text, value=value)
        for text, value in texts.items()
    ]
    (current,) = (option for option in options if option.selected)
    return (
        builders.CustomVariable(name)
        .label(label)
        .description(f"What `{metric}` should stay within: a bound of its buckets.")
        .values(", ".join(f"{text} : {value}" for text, value in texts.items()))
        .options(options)
        .current(current)
    )


def _filters() -> builders.AdHocVariable:
    return builders.AdHocVariable("filters").label("Filters").datasource(SOURCE)


def _ours() -> builders.DashboardLink:
    return (
        builders.DashboardLink("Farthing")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )


def _vllm() -> builders.DashboardLink:
    """To vLLM's own dashboards, where they are installed. Their `instance` is another than ours."""
    return (
        builders.DashboardLink("vLLM")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags(["vllm"])
        .as_dropdown(True)
        .keep_time(True)
    )


def _alerts() -> builders.AnnotationQuery:
    return (
        builders.AnnotationQuery()
        .name("Alerts")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("red")
        .expr(_ALERTS)
        .title_format("{{alertname}}")
        .text_format("{{severity}} {{model}} {{server}} {{preset}} {{policy}} {{instance}}")
        .tag_keys("severity")
    )
