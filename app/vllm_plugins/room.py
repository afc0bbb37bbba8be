"""A folder for vLLM's path that holds our plugins and what they import, and nothing else."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from app.vllm_plugins.asks import SOCKET_FOLDER

LONGEST_SOCKET = 100  # bytes; Linux takes 107


def room(environment: Mapping[str, str]) -> Path:
    """A folder that holds our plugins and what they import, and nothing else.

    It is named by what is in it, so that it is made once and never changes under a server.
    """
    package = Path(__file__).resolve().parents[1]
    files = {path.relative_to(package.parent): path.read_bytes() for path in _sources(package)}
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "farthing" / f"vllm-plugins-{digest}"
    if _holds(folder, files):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    except OSError:  # no home, or one that cannot be written to
        made = Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    for name, content in files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    with suppress(OSError):  # another was quicker, or what is there is not whole, or no home
        made.rename(folder)
        return folder
    if _holds(folder, files):
        shutil.rmtree(made)
        return folder
    return made


def _sources(package: Path) -> Iterator[Path]:
    yield package / "__init__.py"
    for name in ("vllm_plugins", "nets"):
        yield from sorted((package / name).rglob("*.py"))


def _holds(folder: Path, files: Mapping[Path, bytes]) -> bool:
    try:
        return all((folder / name).read_bytes() == content for name, content in files.items())
    except OSError:
        return False


def private_path(name: str) -> str:
    """A path of a file or socket in a folder of its own, which goes with one server.

    Nobody can guess it, so that nobody else can make the folder before the server does.
    """
    folder = f"{SOCKET_FOLDER}{secrets.token_hex(8)}"
    path = os.path.join(tempfile.gettempdir(), folder, name)
    return path if len(os.fsencode(path)) <= LONGEST_SOCKET else f"/tmp/{folder}/{name}"
