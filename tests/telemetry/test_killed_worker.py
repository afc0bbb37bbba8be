"""A worker is killed amid answers: what it had counted stays, and what is lost is known exactly."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

from app.catalog import PICO
from tests.app.test_workers import children
from tests.chaos.gateways import Gateway, pico
from tests.telemetry import fleets
from tests.telemetry.books import Metrics, ledger_of, sums
from tests.telemetry.clients import Told, ask_all
from tests.telemetry.gateways import quiet, serving, settings
from tests.telemetry.wishes import CHAT, Wish, mixed
from tests.upstreams.server import wait_for

WORKERS = 3
STREAMS = 24
TOKENS = 200
LONG = Wish(
    CHAT,
    {
        "model": "slow",
        "messages": [{"role": "user", "content": "why is the sky blue"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": TOKENS,
        "ignore_eos": True,
    },
    {"X-Budget-Usd": "0.05"},
)


def test_sums_agree_but_for_the_answers_that_a_dead_worker_had_begun(tmp_path: Path) -> None:
    with fleets.running(tmp_path) as fleet:
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        ledger = settings(url, tmp_path, fleet, FARTHING_LEASE_S="2")
        key, token = ledger.new_key(usd_total="100")
        with serving(ledger, fleet, WORKERS) as gateway:
            before = asyncio.run(ask_all(gateway.url, token, mixed(60), fleet.works_on))
            quiet(gateway, ledger, fleet)
            during = _killed_amid(gateway, token)
            wait_for(lambda: Metrics(gateway.url).one("farthing_workers") == WORKERS, 60)
            after = asyncio.run(ask_all(gateway.url, token, mixed(60, 2), fleet.works_on))
            metrics = quiet(gateway, ledger, fleet)
            settled = ledger_of(ledger, key)
    lost = [one for one in during if one.lost]
    assert lost
    # Its answers under way were neither counted nor told; the ledger settles what it held for each
    # in full. That is all that disagrees: no tokens, as nobody knows how many there were.
    expired = {id: one for id, one in settled.items() if one.outcome == "expired"}
    assert {id: one.cost for id, one in expired.items()} == {
        f"{one.id}.hold": pico(one.headers["X-Farthing-Estimate-Usd"]) for one in lost
    }
    assert not any(one.lines or one.answers for one in expired.values())
    counted = metrics.sums()
    assert counted == sums(one for id, one in settled.items() if id not in expired)
    cost = sum(amount for (_, _, column), amount in counted.items() if column == "cost")
    missing = sum(one.cost for one in settled.values()) - cost
    assert missing == sum(one.cost for one in expired.values()) > 0
    answered = [one for one in (*before, *during, *after) if not one.lost]
    requests = metrics.all("farthing_requests_total", "endpoint")
    assert sum(n for path, n in requests.items() if path.startswith("/v1/")) == len(answered)
    assert metrics.one("farthing_budget_overshoot_usd_total") == 0
    assert all(one.usage["completion_tokens"] == TOKENS for one in during if one.usage)
    assert cost < PICO


def _killed_amid(gateway: Gateway, token: str) -> list[Told]:
    """Streams through all workers, of which the busiest dies when all streams are under way."""
    told: list[Told] = []
    streams = ask_all(gateway.url, token, [LONG] * STREAMS, at_once=STREAMS, told=told)
    asking = threading.Thread(target=asyncio.run, args=(streams,))
    asking.start()
    wait_for(lambda: told and all(one.id for one in told), 30, "all streams are under way")
    # The one with most connections: another may have been given none of them.
    busiest = max(children(gateway), key=lambda pid: len(os.listdir(f"/proc/{pid}/fd")))
    os.kill(busiest, signal.SIGKILL)
    asking.join()
    return told
