"""Files that are either as they were or complete, whatever happens meanwhile."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside `path`, bring it to the disk, and put it in its place.

    Raises OSError, as where the disk is full; the old file is then still there, the part is not.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.filename is None:
            error.filename = str(path)
        raise
