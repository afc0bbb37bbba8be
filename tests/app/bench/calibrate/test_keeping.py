"""What a killed run leaves behind is no obstacle to the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.bench.calibrate.keeping import append, mend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def test_half_a_line_is_left_out(path: Path) -> None:
    append(path, {"a": "\u2028"})
    append(path, {"a": 2})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"a": 3, "te')
    mend(path)
    assert path.read_bytes() == whole
    append(path, {"a": 3})
    assert path.read_bytes() == whole + b'{"a": 3}\n'
    mend(path)
    assert path.read_bytes() == whole + b'{"a": 3}\n'


def test_nothing_but_half_a_line_is_no_file(path: Path) -> None:
    path.write_text('{"a"')
    mend(path)
    assert not path.exists()
    mend(path)
