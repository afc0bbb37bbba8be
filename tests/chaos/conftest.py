"""What most of these tests have: a gateway in front of one server for each of two models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.houses import House, house
from tests.upstreams.server import Upstream


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("home"), [Upstream("small")], [Upstream("large")]) as found:
        yield found
