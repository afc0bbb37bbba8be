"""Several processes on one port: all of them serve, the dead are replaced, all end together."""

import asyncio
import os
import signal
import time

import pytest

from app.catalog import PICO
from tests.chaos.gateways import COST, Gateway, Ledger, ask, connections

# What runs in a worker is imported anew there: a module of its own holds the engine.
PROGRAM = """
from app.server import serve
from app.settings import Settings

if __name__ == "__main__":
    serve(Settings())
"""
ENGINE = """
import app.server
from app.factory import create_app
from tests.policies.scripts import engine, fleet

def build(settings, catalog=None):
    fake = engine([0.1] * 40, length=30, delay=0.002)
    return create_app(settings, catalog=fleet(), engine=fake)

app.server.create_app = build
"""


def environment(folder):
    (folder / "sitecustomize.py").write_text(ENGINE)
    return {
        "FARTHING_WORKERS": "3",
        "FARTHING_SHUTDOWN_GRACE_S": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), os.getcwd()]),
    }


@pytest.fixture
def ledger(ledger_url, tmp_path):
    return Ledger(ledger_url, tmp_path, environment(tmp_path))


@pytest.fixture
def gateway(ledger):
    gateway = Gateway(ledger, PROGRAM)
    yield gateway.ready()
    gateway.kill()


def children(gateway):
    pid = gateway.process.pid
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        found = [int(child) for child in file.read().split()]
    return [child for child in found if "spawn_main" in command(child)]


def command(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def alive(pid):
    return bool(command(pid))


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def asked(gateway, token, count):
    async def run():
        # A connection each: they are spread over the processes.
        async with connections(count) as http:
            return await asyncio.gather(
                *(ask(http, gateway.url, token, max_tokens=30) for _ in range(count))
            )

    return asyncio.run(run())


def test_they_share_one_ledger_and_its_limits(ledger, gateway):
    key, token = ledger.new_key(usd_total=str(COST * 10), requests_per_minute=1000)
    answers = asked(gateway, token, 60)
    assert {answer.status for answer in answers} <= {200, 402, 429}
    told = sum(answer.cost for answer in answers if answer.status == 200)
    assert COST * 5 * PICO < told <= COST * 10 * PICO
    assert told == ledger.settled(key)


def test_requests_per_minute_are_counted_by_all_together(ledger, gateway):
    _, token = ledger.new_key(requests_per_minute=20)
    statuses = [answer.status for answer in asked(gateway, token, 60)]
    assert (statuses.count(200), statuses.count(429)) == (20, 40)


def test_a_worker_that_dies_is_replaced(ledger, gateway):
    _, token = ledger.new_key()
    before = children(gateway)
    assert len(before) == 3
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(children(gateway)) == 3 and before[0] not in children(gateway))
    assert {answer.status for answer in asked(gateway, token, 12)} == {200}


@pytest.mark.postgres
def test_a_worker_that_dies_in_an_outage_does_not_take_the_others_along(tmp_path, postgres):
    ledger = Ledger(postgres.new_database(), tmp_path, environment(tmp_path))
    gateway = Gateway(ledger, PROGRAM)
    try:
        gateway.ready()
        key, token = ledger.new_key()
        assert {answer.status for answer in asked(gateway, token, 6)} == {200}
        postgres.stop("immediate")
        os.kill(children(gateway)[0], signal.SIGKILL)
        time.sleep(4.0)
        assert gateway.process.poll() is None
        postgres.start()
        until(lambda: len(children(gateway)) == 3)
        until(lambda: [a.status for a in asked(gateway, token, 6)] == [200] * 6)
    finally:
        postgres.restore()
        gateway.kill()


def test_two_signals_in_a_row_end_it_all_the_same(ledger, gateway):
    for _ in range(2):
        gateway.process.send_signal(signal.SIGINT)
    assert gateway.process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_in_order(ledger, gateway, number):
    workers = children(gateway)
    gateway.process.send_signal(number)
    assert gateway.process.wait(20) == 0
    assert not any(alive(pid) for pid in workers)
    assert "Traceback" not in gateway.said()


def test_without_their_parent_workers_end_too(ledger, gateway):
    workers = children(gateway)
    gateway.kill()
    until(lambda: not any(alive(pid) for pid in workers))


BROKEN = """
import multiprocessing
import app.server
from app.errors import ConfigError

whole = app.server.create_app

def build(settings, catalog=None):
    if multiprocessing.parent_process():
        raise ConfigError("no such weights")
    return whole(settings, catalog=catalog)

app.server.create_app = build
"""


def test_what_cannot_start_is_not_tried_for_ever(ledger, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(ENGINE + BROKEN)
    gateway = Gateway(ledger, PROGRAM)
    try:
        assert gateway.process.wait(30) == 1
        said = gateway.said()
        assert "farthing: no such weights" in said
        assert "a worker could not start" in said
    finally:
        gateway.kill()


def test_one_says_for_all_that_they_are_ready(ledger, gateway):
    time.sleep(1.0)
    gateway.process.send_signal(signal.SIGTERM)
    out, _ = gateway.process.communicate(timeout=20)
    assert "Farthing is ready" not in out
