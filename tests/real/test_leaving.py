"""Whoever leaves amid an answer, of whatever preset, leaves no model at work."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from app.catalog import read
from app.settings import DEFAULT_CONFIG
from tests.prompts import OWN
from tests.real.real import Real, until

pytestmark = pytest.mark.model


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("preset", read(DEFAULT_CONFIG).presets)
async def test_nothing_runs_on_for_who_has_left(real: Real, preset: str, stream: bool) -> None:
    body = {
        "model": preset,
        "messages": [{"role": "user", "content": OWN[0]}],
        "max_tokens": 1500,
        "ignore_eos": True,
        "stream": stream,
    }
    async with httpx.AsyncClient(timeout=300) as client:
        asking = asyncio.create_task(client.post(f"{real.url}/v1/chat/completions", json=body))
        await asyncio.to_thread(until, lambda: real.gauge("farthing_engine_kv_bytes") > 0, 120)
        asking.cancel()
        await asyncio.wait([asking])
    assert asking.cancelled()
    await asyncio.to_thread(until, lambda: real.gauge("farthing_engine_running") == 0, 60)
    assert real.gauge("farthing_engine_waiting") == 0
    await asyncio.to_thread(until, lambda: real.gauge("farthing_engine_kv_bytes") == 0, 10)
