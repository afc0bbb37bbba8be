"""The command `farthing bench model`: loads a small and a large model, and shows what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from app.bench.model import Plan, run
from app.bench.reading import Measured, Weights
from app.engines.embedded.tokenizer import alike
from app.engines.embedded.worker import spare_threads
from app.errors import ConfigError


def compare(
    small: Weights,
    large: Weights,
    plan: Plan,
    *,
    threads: int | None = None,
    json_file: Path | None = None,
) -> None:
    """Measure, print a table, and write the figures to `json_file`. Raises ConfigError."""
    torch.set_num_threads(threads or spare_threads())
    console = Console(stderr=True)
    try:
        with console.status("loading the models"):
            both = Measured.load(small), Measured.load(large)
            int8 = None if large.precision == "int8" else Measured.load(large.in_precision("int8"))
        if not alike(*(model.tokenizer for model in both)):
            raise ConfigError(f"{small.name} and {large.name} have different tokenizers")
        widths = [model.decoder.config.vocabulary for model in both]
        if widths[0] != widths[1]:
            raise ConfigError(f"{small.name} has {widths[0]} tokens, and {large.name} {widths[1]}")
        report = run(*both, int8 or both[1], plan)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    report["setup"] = {
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "plan": {name: str(v) if isinstance(v, Path) else v for name, v in vars(plan).items()},
    }
    table = Table(title=f"{small.name} for {large.name}")
    table.add_column("what")
    table.add_column("found", justify="right")
    for name, value in _lines(report, ""):
        table.add_row(name, value)
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _lines(report: Mapping[str, Any], ahead: str) -> Iterator[tuple[str, str]]:
    for name, value in report.items():
        if isinstance(value, Mapping) and "low" in value:
            middle = value.get("mean", value.get("median"))
            yield ahead + name, f"{middle:.3f} ({value['low']:.3f} to {value['high']:.3f})"
        elif isinstance(value, Mapping) and name != "setup":
            yield from _lines(value, f"{ahead}{name} ")
        elif isinstance(value, int | float):
            yield ahead + name, f"{value:g}"
