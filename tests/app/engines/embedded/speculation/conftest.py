"""Pairs of tiny models, of which one guesses for the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.engines.embedded.speculation.duo import Duo, acceptance_head, duo


@pytest.fixture(scope="module")
def int8_duo(tiny_folder: Path) -> Duo:
    """In int8; what it writes depends on all that it has read."""
    return duo(tiny_folder, "int8", head=acceptance_head())


@pytest.fixture(scope="module")
def repeating(tiny_folder: Path) -> Duo:
    """In int8; it repeats itself, as look-up needs."""
    return duo(tiny_folder, "int8", memory_of=0.1, head=acceptance_head())


@pytest.fixture(scope="module")
def fp32_duo(tiny_folder: Path) -> Duo:
    return duo(tiny_folder, "fp32", memory_of=0.1, head=acceptance_head())
