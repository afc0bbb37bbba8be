"""Loss and held-out acceptance of runs, drawn over the tokens they learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.errors import ConfigError

_LOOKS = {
    "same_greedy": "greedy text: same token",
    "acceptance_sampled": "sampled text: Σ min(p,q)",
}


def draw(folders: Sequence[Path], picture: Path) -> None:
    """Write the PNG of these runs' logs. Raises ConfigError where there is none."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, acceptance = figure.subplots(1, 2)
    for folder in folders:
        lines = _read(folder / "log.jsonl")
        steps = [line for line in lines if "loss" in line]
        _smooth(loss, steps, folder.name)
        for key, meaning in _LOOKS.items():
            looks = [line for line in lines if key in line]
            label = meaning if len(folders) == 1 else f"{folder.name}, {meaning}"
            acceptance.plot(
                [line["tokens"] for line in looks], [line[key] for line in looks], label=label
            )
    for axes, what in ((loss, "loss, nats a token"), (acceptance, "acceptance, held out")):
        axes.set_xlabel("tokens of answers learned")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=120, format="png")
    except OSError as error:
        raise ConfigError(f"{picture}: {error.strerror}") from error


def _smooth(axes: Axes, steps: Sequence[dict[str, Any]], label: str) -> None:
    """Means of about a hundred stretches: single steps jump too much to be read."""
    stride = max(1, len(steps) // 100)
    means = [steps[at : at + stride] for at in range(0, len(steps), stride)]
    axes.plot(
        [part[-1]["tokens"] for part in means],
        [sum(line["loss"] for line in part) / len(part) for part in means],
        label=label,
    )


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is no log of a training: {error}") from error
