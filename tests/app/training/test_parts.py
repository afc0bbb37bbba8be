"""A file in parts is the file again, or says what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.training.parts import join, split

CONTENT = bytes(range(256)) * 40


def parts(folder: Path) -> tuple[Path, list[Path], list[str]]:
    path = folder / "model.safetensors"
    path.write_bytes(CONTENT)
    return path, split(path, 3000), []


def test_there_and_back(tmp_path: Path) -> None:
    path, some, said = parts(tmp_path)
    assert not path.exists() and len(some) == 4
    assert max(part.stat().st_size for part in some) == 3000
    join(path, said.append)
    assert path.read_bytes() == CONTENT and len(said) == 1
    join(path, said.append)  # there is nothing left to do
    assert len(said) == 1


def test_a_part_is_missing(tmp_path: Path) -> None:
    path, some, said = parts(tmp_path)
    some[2].unlink()
    with pytest.raises(ValueError, match=r"1 parts are missing, the first is .*\.002"):
        join(path, said.append)


def test_a_part_is_damaged(tmp_path: Path) -> None:
    path, some, said = parts(tmp_path)
    some[1].write_bytes(b"x" * 3000)
    with pytest.raises(ValueError, match="do not make up the file"):
        join(path, said.append)
    assert not path.exists() and not list(tmp_path.glob("*.part"))


def test_no_parts_no_file(tmp_path: Path) -> None:
    join(tmp_path / "model.safetensors", print)
    assert not list(tmp_path.iterdir())
