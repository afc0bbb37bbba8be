"""Sums agree with models that run: real guesses, predicted prompts, prefixes and vectors."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.settings import DEFAULT_CONFIG
from tests.chaos.gateways import Gateway, Ledger
from tests.telemetry.books import COLUMNS, ledger_of, told_sums
from tests.telemetry.books import sums as summed
from tests.telemetry.clients import ask_all
from tests.telemetry.gateways import SERVE, quiet, ready
from tests.telemetry.wishes import CHAT, MESSAGES, RESPONSES, TEXT, VECTORS, Wish
from tests.upstreams.server import wait_for

INT8, FP32 = "smollm2-135m-int8", "smollm2-135m"
STORY = "A lamp stands on the headland, and who lit it first nobody in the village can say. " * 3


def wishes() -> list[Wish]:
    messages = [{"role": "user", "content": STORY}]
    chat = {"messages": messages, "max_tokens": 12, "temperature": 0}
    text = {"prompt": STORY, "max_tokens": 8, "temperature": 0}
    told = {"stream": True, "stream_options": {"include_usage": True}}
    predicted = {"X-Policy": "kv_prediction;least=16"}
    # What was read before is taken from there, and not predicted.
    unread = [{"role": "user", "content": f"Of ships at sea, and how they find a harbour. {STORY}"}]
    return [
        *(Wish(CHAT, {"model": model, **chat}) for model in (INT8, "economy", "swift", "swift")),
        *(Wish(CHAT, {"model": model, **chat, **told}) for model in (INT8, "economy", "swift")),
        Wish(CHAT, {"model": "swift", **chat, "n": 2}),
        Wish(CHAT, {"model": FP32, **chat, **told, "messages": unread}, predicted),
        Wish(CHAT, {"model": INT8, **chat, "messages": unread}, predicted),
        Wish(CHAT, {"model": "economy", **chat}, {"X-Budget-Usd": "0.000002"}),
        Wish(TEXT, {"model": INT8, **text, "prompt": [STORY, STORY]}),
        Wish(TEXT, {"model": INT8, **text, "echo": True, "logprobs": 1, "max_tokens": 0}),
        Wish(RESPONSES, {"model": "swift", "input": STORY, "max_output_tokens": 16}),
        Wish(MESSAGES, {"model": INT8, "messages": messages, "max_tokens": 8, "stream": True}),
        Wish(VECTORS, {"model": FP32, "input": [STORY, "a lamp"]}),
    ]


@pytest.mark.model
@pytest.mark.slow
def test_metrics_ledger_and_clients_agree(tmp_path: Path) -> None:
    more = {"FARTHING_CONFIG": str(DEFAULT_CONFIG), "FARTHING_THREADS": "1"}
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path, more)
    key, token = ledger.new_key(usd_total="1")
    gateway = Gateway(ledger, SERVE, "serve", "--workers", "2")
    try:
        gateway.ready()
        wait_for(lambda: ready(gateway.url), 300, "both workers have loaded their models")
        # Twice: of the second time a part of each prompt may be cached.
        told = asyncio.run(ask_all(gateway.url, token, [*wishes(), *wishes()], at_once=4))
        metrics = quiet(gateway, ledger)
        settled = ledger_of(ledger, key)
    finally:
        gateway.kill()
    assert {one.status for one in told} <= {200, 402}
    answered = [one for one in told if one.status == 200]
    assert all(one.usage is not None for one in answered)
    plans = {id: one.plan for id, one in settled.items()}
    counted = metrics.sums()
    assert counted == summed(settled.values()) == told_sums(told, plans)
    by_column = {column for _, _, column in counted}
    assert by_column == set(COLUMNS) - {"gpu_us"}  # their cards say nothing of accelerators
    assert metrics.one("farthing_budget_overshoot_usd_total") == 0
