"""What was served but could not be settled yet, in a file that outlives the process."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from app.storage.records import Decided, Line, Release, Settle, Settlement, Windows

Entry = Settle | Release
log = logging.getLogger(__name__)


class Journal:
    """One process's file, locked while the process lives; JSON, an entry a line."""

    def __init__(self, folder: Path, process: str) -> None:
        self._folder = folder
        self._path = folder / f"{process}.jsonl"
        self._lock = _lock(self._path)
        self._file: BinaryIO | None = None

    def write(self, entries: Sequence[Entry]) -> None:
        """Keep these; on disk when this returns. Raises OSError."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock.acquire()
            self._file = self._path.open("ab")
        self._file.write(b"".join(_line(entry) for entry in entries))
        self._file.flush()
        os.fsync(self._file.fileno())

    def clear(self) -> None:
        """All of it is settled."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)
            self._lock.release()

    def orphans(self) -> list[Path]:
        """Files that dead processes left."""
        if not self._folder.is_dir():
            return []
        return [path for path in sorted(self._folder.glob("*.jsonl")) if path != self._path]


@contextmanager
def adopted(path: Path) -> Iterator[list[Entry] | None]:
    """The entries of a dead process's file, which is deleted at the end if all went well.

    None: its process lives, or another one has adopted it.
    """
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield None
        return
    with lock:
        lock.release()  # once for the acquire above; `with` holds it still
        if not path.exists():
            yield None
            return
        with path.open("rb") as file:
            entries = list(_entries(file))
        yield entries
        path.unlink()


def _lock(path: Path) -> FileLock:
    # Not of the thread that took it: the journal is written in whatever thread is free.
    return FileLock(path.with_suffix(".lock"), thread_local=False)


def _line(entry: Entry) -> bytes:
    document = {"kind": type(entry).__name__, **asdict(entry)}
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _entries(file: BinaryIO) -> Iterator[Entry]:
    for line in file:
        try:
            yield _entry(json.loads(line))
        except (ValueError, TypeError, KeyError):
            # The last line of a process that was killed while it wrote: its answer had not ended.
            log.warning("an entry of the journal cannot be read: %.200r", line)


def _entry(document: dict[str, Any]) -> Entry:
    kind, windows = document.pop("kind"), document.pop("windows")
    known = None if windows is None else Windows(**windows)
    if kind == "Release":
        return Release(**document, windows=known)
    if known is None:
        raise ValueError("a settlement without windows")
    settlement = document.pop("settlement")
    settlement["lines"] = tuple(Line(**line) for line in settlement["lines"])
    settlement["decisions"] = tuple(Decided(**decision) for decision in settlement["decisions"])
    return Settle(**document, windows=known, settlement=Settlement(**settlement))
