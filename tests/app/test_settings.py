"""The knobs: where they come from, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import DEFAULT_CONFIG, Settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FARTHING_{name.upper()}", raising=False)


def test_a_variable_sets_and_an_option_beats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().port == 8080
    monkeypatch.setenv("FARTHING_PORT", "9000")
    assert Settings().port == 9000
    assert Settings(port=9001).port == 9001


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]  # that is what is tested


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("log_level", "loud"),
        ("kv_memory_gib", "0"),
        ("max_running", "0"),
        ("max_body_bytes", "-1"),
        ("shutdown_grace_s", "-1"),
        ("root_path", "llm"),
        ("root_path", "/llm/"),
        ("cors_origins", "chat.example"),
        ("cors_origins", "https://chat.example/page"),
    ],
)
def test_a_value_out_of_range_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"FARTHING_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_the_fleet_is_what_was_named_else_the_local_file_else_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings().config_file() == DEFAULT_CONFIG
    Path("farthing.toml").touch()
    assert Settings().config_file() == Path("farthing.toml")
    monkeypatch.setenv("FARTHING_CONFIG", "other.toml")
    assert Settings().config_file() == Path("other.toml")
