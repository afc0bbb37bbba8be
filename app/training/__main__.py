"""Goes on with a training on a bare machine: python -m app.training FOLDER."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import torch

from app.engines.embedded.checkpoint import Checkpoint, open_folder
from app.engines.embedded.draft_folder import WEIGHTS
from app.engines.embedded.safetensors_folder import SafetensorsFolder
from app.training.answers import Interrupted
from app.training.parts import join
from app.training.recipe import Recipe
from app.training.session import Session, device_of

_OFTEN = 10.0  # seconds between two lines


class Lines:
    """Tells of progress in lines; SIGINT and SIGTERM end the run in good order."""

    def __init__(self) -> None:
        self.stopping = False
        self._last, self._what, self._began = 0.0, "", (0.0, 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def progress(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._last = what, (now, done), 0.0
        if now - self._last < _OFTEN and done < total:
            return
        self._last = now
        pace = (done - self._began[1]) / max(1e-9, now - self._began[0])
        left = f", {(total - done) / pace:.0f} s left" if pace > 0 else ""
        self.say(f"{what}: {min(done, total):,} of {total:,} ({pace:,.0f} a second{left})")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.training", description=__doc__)
    parser.add_argument("folder", type=Path, help="what `farthing train draft --pack` wrote")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    given = parser.parse_args()
    folder: Path = given.folder
    try:
        recipe = Recipe.from_dict(json.loads((folder / "recipe.json").read_text("utf-8")))
        lines, start = Lines(), folder / "inputs" / "start"
        target = _opened(folder / "inputs" / "target", lines)
        session = Session(
            folder,
            recipe,
            target,
            _opened(start, lines) if start.exists() else target,
            lines,
            device=device_of(given.device),
            dtype=torch.bfloat16 if given.dtype == "bf16" else torch.float32,
        )
        print(session.train())
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _opened(folder: Path, lines: Lines) -> Checkpoint:
    join(folder / WEIGHTS, lines.say)
    return open_folder(SafetensorsFolder(folder))


if __name__ == "__main__":
    sys.exit(main())
