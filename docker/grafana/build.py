"""Writes the dashboards that Grafana is provisioned with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from docker.grafana.budgets import budgets
from docker.grafana.engines import engines
from docker.grafana.overview import overview
from docker.grafana.techniques import techniques

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS: tuple[Callable[[], Dashboard], ...] = (overview, budgets, techniques, engines)


def written() -> dict[str, str]:
    """What each file of the folder should hold."""
    return {f"{made.uid}.json": _text(made) for made in (make() for make in DASHBOARDS)}


def _text(made: Dashboard) -> str:
    text = json.dumps(made, cls=JSONEncoder, indent=1, sort_keys=True)
    content = json.loads(text)
    for shown in (*content["links"], *content["annotations"]["list"]):
        del shown["placement"]  # the SDK hides them in a menu, and asks nobody
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    files = written()
    for path in FOLDER.glob("*.json"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
