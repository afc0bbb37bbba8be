"""The files that a calibration goes on from, whatever became of the run that wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def append(path: Path, line: Mapping[str, object]) -> None:
    """In one write: a run that is killed leaves whole lines. Raises OSError."""
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())


def mend(path: Path) -> None:
    """Without a last line that is not whole, as a full disk or a machine that went off leaves it;
    without any line there is no file. Raises OSError."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
    if not whole:
        path.unlink()
