"""Panels of four kinds, described in words and measured in units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    common as common_builders,
)
from grafana_foundation_sdk.builders import (
    dashboard as dashboard_builders,
)
from grafana_foundation_sdk.builders import (
    heatmap as heatmap_builders,
)
from grafana_foundation_sdk.builders import (
    prometheus as prometheus_builders,
)
from grafana_foundation_sdk.builders import (
    stat as stat_builders,
)
from grafana_foundation_sdk.builders import (
    statetimeline as timeline_builders,
)
from grafana_foundation_sdk.builders import (
    table as table_builders,
)
from grafana_foundation_sdk.builders import (
    timeseries as timeseries_builders,
)
from grafana_foundation_sdk.models import common, dashboard, heatmap, prometheus

from docker.grafana.queries import Query

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
NO_TRAFFIC = "No traffic"
NO_DATA = "No data"
Steps = tuple[str, tuple[tuple[float, str], ...]]  # the first colour; from this value on, this one
PLAIN: Steps = ("blue", ())

TILE = (3, 4)  # width of 24, height in rows
THIRD = (8, 8)
HALF = (12, 8)
WIDE = (24, 8)


def rising(orange: float, red: float) -> Steps:
    """Good while small."""
    return ("green", ((orange, "orange"), (red, "red")))


def falling(orange: float, green: float) -> Steps:
    """Good while large."""
    return ("red", ((orange, "orange"), (green, "green")))


NEVER: Steps = ("green", ((1e-12, "red"),))  # what must stay 0


@dataclass(frozen=True)
class Said:
    """What every panel has: a title, what it tells, when to worry, and the unit of its values."""

    title: str
    tells: str
    worry: str
    unit: str
    size: tuple[int, int] = THIRD


def metrics(exprs: Sequence[str]) -> list[str]:
    """The metrics that PromQL names, without the suffixes of histograms, in order."""
    names = [name for expr in exprs for name in re.findall(r"([a-zA-Z_:][\w:]*)\{", expr)]
    return list(dict.fromkeys(re.sub(r"(?<!^up)_(bucket|sum|count)$", "", name) for name in names))


def _text(said: Said, exprs: Sequence[str]) -> str:
    names = ", ".join(f"`{name}`" for name in metrics(exprs))
    plural = "Metrics" if len(metrics(exprs)) > 1 else "Metric"
    return f"{said.tells}\n\n{said.worry}\n\n{plural}: {names}"


def _target(query: Query, number: int) -> prometheus_builders.Dataquery:
    return (
        prometheus_builders.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend or "__auto")
        .ref_id(chr(ord("A") + number))
    )


def _ranged(queries: Sequence[Query]) -> list[prometheus_builders.Dataquery]:
    return [_target(query, number).range() for number, query in enumerate(queries)]


def _no_number() -> list[dashboard.ValueMapping]:
    """A quantile of nothing is NaN."""
    options = dashboard.DashboardSpecialValueMapOptions(
        match=dashboard.SpecialValueMatch.NA_N,
        result=dashboard.ValueMappingResult(text=NO_TRAFFIC, index=0),
    )
    return [dashboard.SpecialValueMap(options=options)]


def thresholds(steps: Steps) -> dashboard_builders.ThresholdsConfig:
    first, further = steps
    made = [dashboard.Threshold(value=None, color=first)]
    made += [dashboard.Threshold(value=value, color=color) for value, color in further]
    mode = dashboard.ThresholdsMode.ABSOLUTE
    return dashboard_builders.ThresholdsConfig().mode(mode).steps(made)


def _by_thresholds() -> dashboard_builders.FieldColor:
    return dashboard_builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS)


def stat(
    said: Said,
    expr: str,
    steps: Steps = PLAIN,
    *,
    empty: str = NO_TRAFFIC,
    over_range: bool = False,
) -> dashboard.Panel:
    """One number and its course; `over_range`: one number for all the time that is shown."""
    query = _target(Query(expr), 0)
    panel = (
        stat_builders.Panel()
        .title(said.title)
        .description(_text(said, [expr]))
        .datasource(SOURCE)
        .with_target(query.instant() if over_range else query.range())
        .unit(said.unit)
        .mappings(_no_number())
        .no_value(empty)
        .thresholds(thresholds(steps))
        .color_scheme(_by_thresholds())
        .color_mode(common.BigValueColorMode.VALUE if steps[1] else common.BigValueColorMode.NONE)
        .graph_mode(common.BigValueGraphMode.NONE if over_range else common.BigValueGraphMode.AREA)
        .text_mode(common.BigValueTextMode.VALUE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return _sized(panel.build(), said)


def graph(
    said: Said, *queries: Query, stack: str = "", most: float | None = None
) -> dashboard.Panel:
    """Lines over time. `stack`: on top of each other, `normal` or as `percent` of their sum."""
    panel = (
        timeseries_builders.Panel()
        .title(said.title)
        .description(_text(said, [query.expr for query in queries]))
        .datasource(SOURCE)
        .targets(list(_ranged(queries)))
        .unit(said.unit)
        .min(0)
        .no_value(NO_TRAFFIC)
        .color_scheme(
            dashboard_builders.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC)
        )
        .line_width(1)
        .fill_opacity(25 if stack else 10)
        .show_points(common.VisibilityMode.AUTO)
        .legend(
            common_builders.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
    )
    if stack:
        mode = common.StackingMode(stack)
        panel.stacking(common_builders.StackingConfig().group("A").mode(mode))
    if most is not None:
        panel.max(most)
    return _sized(panel.build(), said)


def heat(said: Said, expr: str) -> dashboard.Panel:
    """A histogram's buckets over time. `expr`: by `le`, and by nothing else."""
    query = _target(Query(expr, "{{le}}"), 0).range().format(prometheus.PromQueryFormat.HEATMAP)
    panel = (
        heatmap_builders.Panel()
        .title(said.title)
        .description(_text(said, [expr]))
        .datasource(SOURCE)
        .with_target(query)
        .unit(said.unit)
        .no_value(NO_TRAFFIC)
        .color(
            heatmap_builders.HeatmapColorOptions()
            .mode(heatmap.HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .steps(64)
        )
        .y_axis(heatmap_builders.YAxisConfig().unit(said.unit))
    )
    return _sized(panel.build(), said)


def timeline(said: Said, query: Query, words: dict[str, tuple[str, str]]) -> dashboard.Panel:
    """States over time. `words`: for each value what it means, and its colour."""
    options = {
        value: dashboard.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(words.items())
    }
    panel = (
        timeline_builders.Panel()
        .title(said.title)
        .description(_text(said, [query.expr]))
        .datasource(SOURCE)
        .with_target(_target(query, 0).range())
        .unit(said.unit)
        .no_value(NO_DATA)
        .mappings([dashboard.ValueMap(options=options)])
        .color_scheme(_by_thresholds())
        .thresholds(thresholds(PLAIN))
        .show_value(common.VisibilityMode.NEVER)
    )
    return _sized(panel.build(), said)


@dataclass(frozen=True)
class Column:
    """One of a table's columns of numbers."""

    title: str
    unit: str
    expr: str
    steps: Steps | None = None


def table(said: Said, keys: dict[str, str], *columns: Column, link: str = "") -> dashboard.Panel:
    """A line for each value of the labels `keys`, whose headings they map to.

    Columns are joined over these labels. `link`: where a click on the first key leads.
    """
    targets = [
        _target(Query(column.expr), number).instant().format(prometheus.PromQueryFormat.TABLE)
        for number, column in enumerate(columns)
    ]
    values = [f"Value #{chr(ord('A') + number)}" for number in range(len(columns))]
    if len(columns) == 1:
        values = ["Value"]  # what Grafana calls it where it stands alone
    names = {**keys, **dict(zip(values, (column.title for column in columns), strict=True))}
    order = {
        "excludeByName": {"Time": True},
        "indexByName": {name: index for index, name in enumerate(names)},
        "renameByName": names,
    }
    panel = (
        table_builders.Panel()
        .title(said.title)
        .description(_text(said, [column.expr for column in columns]))
        .datasource(SOURCE)
        .targets(list(targets))
        .unit(said.unit)
        .mappings(_no_number())
        .no_value(NO_TRAFFIC)
        .with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=order))
    )
    for column in columns:
        panel.override_by_name(column.title, _properties(column))
    if link:
        to = [{"title": "Only this one", "url": link}]
        panel.override_by_name(
            next(iter(keys.values())), [dashboard.DynamicConfigValue(id_val="links", value=to)]
        )
    return _sized(panel.build(), said)


def _properties(column: Column) -> list[dashboard.DynamicConfigValue]:
    made = [dashboard.DynamicConfigValue(id_val="unit", value=column.unit)]
    if column.steps is not None:
        judged = {
            "thresholds": thresholds(column.steps).build(),
            "color": {"mode": "thresholds"},
            "custom.cellOptions": {"type": "color-text"},
        }
        made += [dashboard.DynamicConfigValue(id_val=name, value=v) for name, v in judged.items()]
    return made


def _sized(panel: dashboard.Panel, said: Said) -> dashboard.Panel:
    panel.grid_pos = dashboard.GridPos(w=said.size[0], h=said.size[1])
    return panel
