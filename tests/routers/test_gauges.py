"""How things stand is told of each model and server, each time that somebody asks."""

from __future__ import annotations

import httpx
import pytest


@pytest.mark.parametrize("gauge", ["farthing_engine_kv_bytes", "farthing_queue_waiting"])
async def test_each_model_that_runs_here_tells_its_memory_and_its_queue(
    client: httpx.AsyncClient, gauge: str
) -> None:
    lines = (await client.get("/metrics")).text.splitlines()
    told = {line for line in lines if line.startswith(gauge)}
    assert told == {f'{gauge}{{model="large"}} 0.0', f'{gauge}{{model="small"}} 0.0'}
