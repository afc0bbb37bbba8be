"""Two runs never write into one folder at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.bench.folders import alone_in
from app.errors import ConfigError


def test_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "where"
    for _ in range(2):  # once it has ended, another one may
        with alone_in(folder):
            assert folder.is_dir()
            with (
                pytest.raises(ConfigError, match="another run writes into .*where/ now"),
                alone_in(folder),
            ):
                pass
        with alone_in(folder.with_name("else")):
            pass


def test_not_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ConfigError, match="file"), alone_in(path):
        pass
