"""A real gateway of several processes in front of the scripted fleet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.chaos.gateways import Gateway, Ledger
from tests.telemetry import fleets
from tests.telemetry.books import Metrics
from tests.upstreams.server import wait_for

SERVE = "from app.cli import main; main()"


@contextmanager
def serving(ledger: Ledger, fleet: fleets.Fleet, workers: int) -> Iterator[Gateway]:
    gateway = Gateway(ledger, SERVE, "serve", "--workers", str(workers))
    try:
        gateway.ready()
        wait_for(lambda: fleet.known_to(workers), 60, "every worker has looked at every server")
        wait_for(lambda: ready(gateway.url), 60, "all are ready")
        yield gateway
    finally:
        gateway.kill()


def ready(url: str) -> bool:
    return all(httpx.get(f"{url}/health/ready").status_code == 200 for _ in range(20))


def quiet(gateway: Gateway, ledger: Ledger, fleet: fleets.Fleet | None = None) -> Metrics:
    """What the metrics say when no answer is under way, nor anything to be settled."""
    if fleet is not None:
        fleet.quiet()
    wait_for(lambda: ledger.reservations() == 0, 30, "nothing is held")

    def idle() -> bool:
        seen = Metrics(gateway.url)
        # The one that is answered with it.
        return seen.one("farthing_requests_in_flight") == 1

    wait_for(idle, 30, "only the question itself is under way")
    return Metrics(gateway.url)


def settings(ledger_url: str, folder: Path, fleet: fleets.Fleet, **more: str) -> Ledger:
    ours = {"FARTHING_CONFIG": str(fleet.file), "FARTHING_SHUTDOWN_GRACE_S": "1"}
    return Ledger(ledger_url, folder, ours | more)
