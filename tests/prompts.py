"""Prompts for tests on real models: twenty of our own, and more where FARTHING_DATA has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.bench.prompts import OWN
from app.settings import Settings

__all__ = ["OWN", "further"]


def further() -> list[str]:
    """First turns of the questions in FARTHING_DATA; the test is skipped without them."""
    file = (Settings().data or Path()) / "mt_bench.jsonl"
    if not file.exists():
        pytest.skip("FARTHING_DATA names no folder with mt_bench.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["turns"][0] for line in lines]
