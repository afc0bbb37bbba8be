"""Grammars are tried in a process that finds what this one finds, or says that it cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from app.engines.embedded.trial import Fault, fault
from app.errors import EngineError

_THEIRS = """
class LLMatcher:
    @staticmethod
    def validate_grammar_with_warnings(grammar):
        return True, ["found beside the others"]
"""


async def test_the_library_is_looked_for_where_this_process_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llguidance.py").write_text(_THEIRS)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert await fault("g", []) == Fault(None, "found beside the others")


async def test_a_trial_ends_by_itself_where_nobody_is_left_to_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = "str(resource.getrlimit(resource.RLIMIT_CPU))"
    theirs = _THEIRS.replace('"found beside the others"', says)
    (tmp_path / "llguidance.py").write_text(f"import resource\n{theirs}")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = await fault("g", [])
    assert found is not None and found.says == "(10, 10)"


async def test_a_trial_that_cannot_begin_is_no_fault_of_the_grammar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "llguidance.py").write_text("raise ImportError('not for this processor')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(EngineError):
        await fault("g", [])
    assert "not for this processor" in caplog.text
