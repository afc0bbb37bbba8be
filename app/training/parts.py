"""A large file as parts that are carried one by one, and put together where they arrive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from app.engines.embedded.draft_folder import sha256

SIZE = 32 * 2**20  # bytes of a part


def split(path: Path, size: int = SIZE) -> list[Path]:
    """Replace a file by its parts, and a list of them with the file's SHA-256."""
    parts: list[Path] = []
    with path.open("rb") as file:
        while block := file.read(size):
            part = path.with_name(f"{path.name}.{len(parts):03}")
            part.write_bytes(block)
            parts.append(part)
    said = {"sha256": sha256(path), "parts": [part.name for part in parts]}
    _list(path).write_text(json.dumps(said), encoding="utf-8")
    path.unlink()
    return parts


def join(path: Path, say: Callable[[str], None]) -> None:
    """Put a file together again from its parts, where it is not there and they are.

    Raises ValueError for a part that is missing, or a whole that is not what was split.
    """
    if path.exists() or not _list(path).exists():
        return
    said = json.loads(_list(path).read_text(encoding="utf-8"))
    missing = [name for name in said["parts"] if not path.with_name(name).exists()]
    if missing:
        raise ValueError(f"{path}: {len(missing)} parts are missing, the first is {missing[0]}")
    say(f"putting {path} together of {len(said['parts'])} parts")
    whole = path.with_name(f".{path.name}.part")
    with whole.open("wb") as file:
        for name in said["parts"]:
            file.write(path.with_name(name).read_bytes())
    if sha256(whole) != said["sha256"]:
        whole.unlink()
        raise ValueError(f"{path}: its parts do not make up the file that was split")
    whole.replace(path)


def in_parts(path: Path) -> bool:
    """Whether this file was split."""
    return _list(path).exists()


def _list(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")
