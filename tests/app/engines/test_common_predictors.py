"""A model's prompts are predicted as all of its replicas can."""

from __future__ import annotations

import pytest

from app.types import Capabilities
from tests.app.engines.scripted import card, run, servers

A, B = "http://a:8000", "http://b:8000"


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ({"a": 0.5, "b": 0.7}, {"b": 0.6}, {"b": 0.7}),
        ({"a": 0.5}, {"a": 0.6}, {"a": 0.6}),
        ({"a": 0.5}, {"b": 0.6}, None),
        ({"a": 0.5}, None, None),
    ],
)
def test_replicas_predict_what_all_of_them_can(
    one: dict[str, float], other: dict[str, float] | None, common: dict[str, float] | None
) -> None:
    async def test() -> None:
        many = servers("a", "b")
        many[A].abilities = Capabilities("f", 1000, kv=one)
        many[B].abilities = Capabilities("f", 1000, kv=other)
        async with many.started(card("m", A), card("n", A, B)) as fleet:
            assert fleet.capabilities("m").kv == one
            assert fleet.capabilities("n").kv == common

    run(test)
