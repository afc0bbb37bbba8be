"""A calibration's plots, by matplotlib: as SVG that takes a page's colours, and as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from app.bench.calibrate.frontier import Price, Standing, frontier
from app.bench.calibrate.kinds import ALL
from app.bench.calibrate.predicted import Pair
from app.profile import Runtime

_INK = "#012345"  # stands for the page's own colour of text
_COLOURS = (
    *("#4e79a7", "#f28e2b", "#e15759", "#59a14f", "#b07aa1"),
    *("#76b7b2", "#9c755f", "#d4a017", "#ff7f9f", "#8c8c8c"),
)  # to be told apart on white and on black
_PRICES: Mapping[Price, tuple[str, float]] = {
    "cost": ("USD of 1,000 requests", 1000.0),
    "seconds": ("seconds to the answer's end", 1.0),
    "first_s": ("seconds to the answer's first words", 1.0),
}
_POINTS = 2000  # drawn as shapes; more become one picture
_STYLE: Any = {  # one of matplotlib's own, whose names it types
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def trade(rows: Sequence[Standing], what: Price) -> str | None:
    """Quality by a price, and its frontier, as SVG; None where no way tells the price."""
    return _svg(figure, what) if (figure := _trade(rows, what, _INK)) is not None else None


def picture(rows: Sequence[Standing], path: Path) -> bool:
    """The same as PNG: by cost, or by time where no way tells one. False: neither is told."""
    for what in ("cost", "seconds"):
        figure = _trade(rows, what, "#222222")
        if figure is not None:
            with matplotlib.rc_context(_STYLE):
                FigureCanvasAgg(figure)
                figure.savefig(path, dpi=150, format="png", facecolor="white")
            return True
    return False


def _trade(rows: Sequence[Standing], what: Price, ink: str) -> Figure | None:
    told = [row for row in rows if row.price(what) is not None]
    if not told:
        return None
    name, unit = _PRICES[what]
    line = frontier(rows, what)
    colours = _by_policy([row.policy for row in told])
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes((8.6, 5.0), ink)
        x, y = [unit * (row.price(what) or 0.0) for row in line], [row.value for row in line]
        axes.step(x, y, where="post", color=ink, alpha=0.35, linewidth=1.5, zorder=1)
        for row in told:
            _mark(axes, row, what, unit, colours[row.policy], row in line)
        _scaled(axes, "x", [unit * (row.price(what) or 0.0) for row in told])
        axes.set_xlabel(name)
        axes.set_ylabel("quality, 0 to 1")
        axes.margins(x=0.12, y=0.12)
        _legend(figure, axes, colours, ink)
        named = told if len(told) <= 16 else line
        spots = [(unit * (row.price(what) or 0.0), row.value, row.way) for row in named]
        _name(figure, axes, spots, ink)
    return figure


def _mark(
    axes: Axes, row: Standing, what: Price, unit: float, colour: str, on_frontier: bool
) -> None:
    price, quality = getattr(row, what), row.quality[ALL]
    x, y = unit * price.mean, quality.mean
    axes.errorbar(
        [x],
        [y],
        yerr=[[y - quality.low], [quality.high - y]],
        fmt="o",
        markersize=9 if on_frontier else 5,
        markerfacecolor=colour if on_frontier else "none",
        color=colour,
        alpha=1.0 if on_frontier else 0.6,
        elinewidth=1,
        zorder=3 if on_frontier else 2,
    )


def agreement(pairs: Sequence[Pair], what: Price) -> str | None:
    """Expected against actual, as SVG; None for none. What is right lies on the diagonal."""
    seen = [pair for pair in pairs if pair.expected > 0 and pair.actual > 0]
    if not seen:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes((5.2, 4.4), _INK)
        colours = _by_policy([pair.policy for pair in seen])
        _beside(axes, seen, what, colours, _INK)
        _legend(figure, axes, colours, _INK)
    return _svg(figure, f"agreement-{what}")


def foretold(pairs: Mapping[Price, Sequence[Pair]], path: Path) -> bool:
    """The same of several amounts, side by side, as PNG. False: there is nothing to show."""
    told = {
        what: seen
        for what, of in pairs.items()
        if (seen := [pair for pair in of if pair.expected > 0 and pair.actual > 0])
    }
    if not told:
        return False
    colours = _by_policy([pair.policy for seen in told.values() for pair in seen])
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.0 * len(told), 4.4), layout="constrained")
        every = figure.subplots(1, len(told), squeeze=False)[0]
        for axes, (what, seen) in zip(every, told.items(), strict=True):
            _beside(axes, seen, what, colours, "#222222")
        _legend(figure, every[0], colours, "#222222")
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=150, format="png", facecolor="white")
    return True


def _beside(
    axes: Axes, seen: Sequence[Pair], what: Price, colours: Mapping[str, str], ink: str
) -> None:
    name, unit = _PRICES[what]
    for policy, colour in colours.items():
        mine = [pair for pair in seen if pair.policy == policy]
        axes.scatter(
            [unit * pair.expected for pair in mine],
            [unit * pair.actual for pair in mine],
            s=10,
            color=colour,
            alpha=0.45,
            linewidths=0,
            rasterized=len(seen) > _POINTS,
        )
    both = [unit * v for pair in seen for v in (pair.expected, pair.actual)]
    ends = [min(both) * 0.9, max(both) * 1.1]
    axes.plot(ends, ends, color=ink, alpha=0.5, linewidth=1)
    _scaled(axes, "x", both)
    _scaled(axes, "y", both)
    axes.set_xlabel(f"expected: {name}")
    axes.set_ylabel("actual")


def first_tokens(runtimes: Mapping[str, Runtime]) -> str | None:
    """F of each model by the length of an uncached prompt, as SVG; None for none."""
    if not any(len(runtime.first) > 1 for runtime in runtimes.values()):
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes((5.2, 3.6), _INK)
        colours = _by_policy([*runtimes])
        for model, runtime in runtimes.items():
            lengths = sorted(runtime.first)
            seconds = [runtime.first[length] for length in lengths]
            axes.plot(lengths, seconds, "o-", color=colours[model], markersize=4)
        axes.set_xlabel("tokens of the prompt")
        axes.set_ylabel("F: seconds to the first token")
        axes.set_ylim(bottom=0)
        _legend(figure, axes, colours, _INK)
    return _svg(figure, "first")


def _by_policy(policies: Sequence[str]) -> dict[str, str]:
    names = sorted(set(policies))
    return {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}


def _axes(size: tuple[float, float], ink: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.tick_params(which="both", colors=ink)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(ink)
    for spine in axes.spines.values():
        spine.set_color(ink)
    axes.grid(alpha=0.15, color=ink)
    return figure, axes


def _scaled(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """By logarithm where the values are far apart, and none is 0."""
    across = which == "x"
    axis = axes.xaxis if across else axes.yaxis
    if min(values) > 0 and max(values) > 4 * min(values):
        (axes.set_xscale if across else axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _at: f"{value:.6g}"))


def _legend(figure: Figure, axes: Axes, colours: Mapping[str, str], ink: str) -> None:
    for name, colour in colours.items():
        axes.scatter([], [], color=colour, s=25, label=name)  # of the legend alone
    across = max(1, int(figure.get_figwidth() * 12 / (6 + max(map(len, colours)))))
    figure.legend(
        handles=axes.get_legend_handles_labels()[0],
        loc="outside upper left",
        ncols=across,
        fontsize=8,
        frameon=False,
        labelcolor=ink,
    )


def _name(figure: Figure, axes: Axes, spots: Sequence[tuple[float, float, str]], ink: str) -> None:
    """Each name beside its point, on the side where it covers least of the others."""
    figure.draw_without_rendering()
    scale = 72 / figure.dpi  # points of a pixel
    at = [(x * scale, y * scale) for x, y in axes.transData.transform([s[:2] for s in spots])]
    box = axes.get_window_extent()
    left, right = box.x0 * scale, box.x1 * scale
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    for (x, y), (across, up, name) in zip(at, spots, strict=True):
        wide = 4.9 * len(name)
        sides = [(7, 5), (7, -12), (8, -3), (-7 - wide, 5), (-7 - wide, -12), (-8 - wide, -3)]
        sides += [(-wide / 2, 9), (-wide / 2, -18), (8, 17), (8, -24)]

        def cover(side: tuple[float, float], x: float = x, y: float = y, w: float = wide) -> float:
            mine = (x + side[0], y + side[1], x + side[0] + w, y + side[1] + 9)
            outside = max(left - mine[0], 0.0) + max(mine[2] - right, 0.0)
            return float(20 * outside + sum(_shared(mine, other) for other in taken))

        side = min(sides, key=cover)
        taken.append((x + side[0], y + side[1], x + side[0] + wide, y + side[1] + 9))
        axes.annotate(
            name,
            (across, up),
            xytext=side,
            textcoords="offset points",
            fontsize=8,
            color=ink,
        )


def _shared(a: Sequence[float], b: Sequence[float]) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return float(np.maximum(wide, 0) * np.maximum(high, 0))


def _svg(figure: Figure, name: str) -> str:
    """Without a prologue, metadata and addresses, and in the page's own colour of text."""
    file = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", text)
    text = re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg height="[^"]*" ', r"<svg \1", text, count=1
    )
    return text.replace(_INK, "currentColor")
