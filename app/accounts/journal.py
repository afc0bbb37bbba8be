"""What was served but could not be settled yet, in a file that outlives the process."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from app.storage.records import Explanation, Line, Release, Settle, Settlement, Windows

Entry = Settle | Release
_KEPT_MS = 7 * 86_400_000  # as long as new ones by default
log = logging.getLogger(__name__)


class Journal:
    """One process's file, locked while the process lives; JSON, an entry a line."""

    def __init__(self, folder: Path, process: str) -> None:
        self._folder = folder
        self._path = folder / f"{process}.jsonl"
        self._lock = _lock(self._path)
        self._file: BinaryIO | None = None
        self._torn = False  # whether its end may be half a line

    def write(self, entries: Sequence[Entry]) -> None:
        """Keep these; on disk when this returns. Raises OSError, and then none is kept."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock.acquire()
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115  (it stays open)
        before = self._file.seek(0, os.SEEK_END)
        content = b"\n" * self._torn + b"".join(_line(entry) for entry in entries)
        self._torn = True
        try:
            while content:
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            raise
        self._torn = False

    def clear(self) -> None:
        """All of it is settled."""
        if self._file is None:
            return
        try:
            self._path.unlink(missing_ok=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
        except OSError:  # settled again by whoever finds it, which changes nothing
            log.exception("the journal %s cannot be deleted", self._path)
        self.close()

    def close(self) -> None:
        """Leave what is in it to whoever adopts it."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._lock.release()

    def reject(self, entry: Entry) -> None:
        """Keep an entry that the database will never take, for people to look at."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._path.with_suffix(".rejected").open("ab") as file:
            file.write(_line(entry))

    def orphans(self) -> list[Orphan]:
        """What other processes left, dead or not."""
        if not self._folder.is_dir():
            return []
        paths = sorted(self._folder.glob("*.jsonl"))
        return [Orphan(path) for path in paths if path != self._path]


class Orphan:
    """Another process's file. Claim it, settle what is in it, say so, release it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = _lock(path)

    def claim(self) -> list[Entry]:
        """Its entries; none where its process lives, or somebody else has claimed it."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return []
        if not self._path.exists():  # settled since it was listed
            Path(self._lock.lock_file).unlink(missing_ok=True)
            return []
        entries: list[Entry] = []
        with self._path.open("rb") as file:
            for line in file:
                try:
                    entries.append(_entry(json.loads(line)))
                except (ValueError, TypeError, KeyError):
                    self._set_aside(line)
        return entries

    def settled(self) -> None:
        """It has done its duty."""
        self._path.unlink(missing_ok=True)
        # While it is locked: who opens it from now on locks another file, and finds nothing.
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def release(self) -> None:
        self._lock.release()

    def _set_aside(self, line: bytes) -> None:
        """Half a line of a process that was killed while it wrote, or a newer version's."""
        if line.strip():
            log.warning("an entry of the journal cannot be read: %.200r", line)
            with self._path.with_suffix(".rejected").open("ab") as file:
                file.write(line.rstrip(b"\n") + b"\n")


def _lock(path: Path) -> FileLock:
    # Not of the thread that took it: the journal is written in whatever thread is free.
    return FileLock(path.with_suffix(".lock"), thread_local=False)


def _line(entry: Entry) -> bytes:
    document = {"kind": type(entry).__name__, **asdict(entry)}
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _entry(document: dict[str, Any]) -> Entry:
    if document.pop("kind") == "Release":
        return Release(**document)
    windows = Windows(**document.pop("windows"))
    settlement = document.pop("settlement")
    settlement["lines"] = tuple(Line(**line) for line in settlement["lines"])
    if (explained := _explanation(settlement)) is not None:
        settlement["explanation"] = Explanation(**explained)
    return Settle(**document, windows=windows, settlement=Settlement(**settlement))


def _explanation(settlement: dict[str, Any]) -> dict[str, Any] | None:
    """Of a version before there were any: its decisions, and they are what is left of it."""
    decided = settlement.pop("decisions", None)
    if not decided:
        explained: dict[str, Any] | None = settlement.get("explanation")
        return explained
    content = {
        "outcome": settlement["outcome"],
        "request": {"model": settlement["model"]},
        "plan": {"policy": settlement["policy"]},
        "decisions": [
            {name: _finite(value) for name, value in decision.items()} for decision in decided
        ],
    }
    return {
        "request_id": settlement["id"],
        "keep": _KEPT_MS,
        "content": json.dumps(content),
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity, though our own lines do."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
