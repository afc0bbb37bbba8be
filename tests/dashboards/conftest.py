"""Prometheus' own tool, which knows best what it can read."""

from __future__ import annotations

import pytest

from tests import servers


@pytest.fixture(scope="session")
def promtool(pytestconfig: pytest.Config) -> str:
    """The path of it."""
    try:
        return servers.program("promtool")
    except servers.Missing as missing:
        (pytest.fail if pytestconfig.getoption("--servers") else pytest.skip)(str(missing))
