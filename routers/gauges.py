"""How it stands at the moment with the engines, their queues and the ledger."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from importlib.metadata import version

from app.telemetry.names import EMBEDDED, server_at
from routers.deps import Front

EVERY_S = 1.0
_VERSION = version("farthing")
log = logging.getLogger(__name__)


async def keep_showing(front: Front) -> None:
    """For ever: others of several processes, when they are asked, read what we said last."""
    while True:
        try:
            show(front)
        except Exception:  # whatever it was, the next time may be better
            log.exception("the gauges could not be shown")
        await asyncio.sleep(EVERY_S)


def show(front: Front) -> None:
    """Tell telemetry of all of it."""
    _show_servers(front)
    _show_models(front)
    _show_ledger(front)
    front.telemetry.show_process()
    front.telemetry.show("farthing_workers", {(): 1})
    prices = "" if front.gateway is None else front.gateway.prices[1]
    front.telemetry.show("farthing_build_info", {(_VERSION, prices): 1})


def _show_servers(front: Front) -> None:
    """Each server of a model; of one that runs in our process, that process."""
    telemetry = front.telemetry
    shown = defaultdict[str, dict[tuple[str, ...], float]](dict)
    servers = front.servers()
    for server in servers:
        where = telemetry.names.server(server.model, server_at(server.url))
        shown["running"][where] = server.running
        shown["waiting"][where] = server.waiting
        if server.state != "draining":  # the catalog has it no more: it need not be up
            shown["up"][where] = server.state == "ready"
            shown["breaker_open"][where] = server.state == "open"
    outside = {server.model for server in servers}
    if front.gateway is None:  # it loads them, and refuses whatever reaches it meanwhile
        shown["up"].update(dict.fromkeys(telemetry.names.servers, 0))
    for model, load in front.loads().items():
        if model not in outside:
            where = telemetry.names.server(model, EMBEDDED)
            shown["running"][where] = load.running
            shown["waiting"][where] = load.waiting
            shown["up"][where] = load.healthy
            shown["breaker_open"][where] = 0
    for name in ("up", "running", "waiting", "breaker_open"):
        telemetry.show(f"farthing_engine_{name}", shown[name])


def _show_models(front: Front) -> None:
    """Each model's queue here, and what its calls hold in our memory."""
    telemetry, theirs = front.telemetry, defaultdict[str, int](int)
    for server in front.servers():
        theirs[server.model] += server.waiting
    queued, memory = dict[tuple[str, ...], float](), dict[tuple[str, ...], float]()
    for model, load in front.loads().items():
        label = (telemetry.names.model(model),)
        queued[label] = max(load.waiting - theirs.get(model, 0), 0)
        if model not in theirs:
            memory[label] = load.kv_bytes
    telemetry.show("farthing_queue_waiting", queued)
    telemetry.show("farthing_engine_kv_bytes", memory)


def _show_ledger(front: Front) -> None:
    accounts = front.door.accounts
    if accounts is None:
        return
    book, show = accounts.book, front.telemetry.show
    show("farthing_ledger_reservations", {(): book.held})
    show("farthing_ledger_owed", {(): book.owed})
    show("farthing_ledger_lag_seconds", {(): book.lag})
    show("farthing_ledger_away", {(): book.away})
