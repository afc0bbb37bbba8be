"""A folder of results, into which one run writes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from app.errors import ConfigError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While this process alone writes there; the folder is made where it is missing. Answers of two
    runs at once would each take as long as both, and be kept as if they had been asked alone.

    Raises ConfigError where another process does, or where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"another run writes into {folder}/ now: wait for its end, or name another --out"
        ) from error
    except OSError as error:
        raise ConfigError(str(error)) from error
    try:
        yield
    finally:
        lock.release()
