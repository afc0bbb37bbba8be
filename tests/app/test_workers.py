"""Several processes on one port: all of them serve, the dead are replaced, all end together."""

import asyncio
import os
import signal
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

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
import os

import app.server
from app.factory import create_app
from tests.policies.scripts import engine, fleet

def build(settings, catalog=None, shared=None):
    fake = engine([0.1] * 40, length=30, delay=float(os.environ.get("DELAY", "0.002")))
    return create_app(settings, catalog=fleet(), engine=fake, shared=shared)

app.server.create_app = build
"""


def environment(folder):
    (folder / "sitecustomize.py").write_text(ENGINE)
    return {
        "FARTHING_WORKERS": "3",
        "FARTHING_SHUTDOWN_GRACE_S": "1",
        "TMPDIR": str(folder),
        "PYTHONPATH": os.pathsep.join([str(folder), os.getcwd()]),
    }


# What processes do at their ends does not depend on the database: the other one is `slow`.
on_one_database = pytest.mark.parametrize(
    "ledger_url",
    ["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])],
    indirect=True,
)


@pytest.fixture
def ledger(ledger_url, tmp_path):
    return Ledger(ledger_url, tmp_path, environment(tmp_path))


@pytest.fixture
def gateway(ledger):
    gateway = Gateway(ledger, PROGRAM)
    yield gateway.ready()
    gateway.kill()


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
)
def running(request, tmp_path_factory):
    """A ledger, and a gateway on it that no test ends."""
    folder = tmp_path_factory.mktemp("workers")
    url = f"sqlite:///{folder / 'ledger.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").new_database()
    ledger = Ledger(url, folder, environment(folder))
    gateway = Gateway(ledger, PROGRAM)
    try:
        yield ledger, gateway.ready()
    finally:
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


def test_they_share_one_ledger_and_its_limits(running):
    ledger, gateway = running
    key, token = ledger.new_key(usd_total=str(COST * 10), requests_per_minute=1000)
    answers = asked(gateway, token, 60)
    assert {answer.status for answer in answers} <= {200, 402, 429}
    told = sum(answer.cost for answer in answers if answer.status == 200)
    assert COST * 5 * PICO < told <= COST * 10 * PICO
    assert told == ledger.settled(key)


def test_requests_per_minute_are_counted_by_all_together(running):
    ledger, gateway = running
    _, token = ledger.new_key(requests_per_minute=20)
    statuses = [answer.status for answer in asked(gateway, token, 60)]
    assert (statuses.count(200), statuses.count(429)) == (20, 40)


def test_a_worker_that_dies_is_replaced(running):
    ledger, gateway = running
    _, token = ledger.new_key()
    before = children(gateway)
    assert len(before) == 3
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(children(gateway)) == 3 and before[0] not in children(gateway))
    assert {answer.status for answer in asked(gateway, token, 12)} == {200}


def metrics(gateway):
    """The sum of each metric's series, as a new connection finds it."""
    found = defaultdict(float)
    page = httpx.get(f"{gateway.url}/metrics", timeout=30)
    for family in text_string_to_metric_families(page.raise_for_status().text):
        for sample in family.samples:
            if sample.labels.get("endpoint") != "/metrics":
                found[sample.name] += sample.value
    return found


SUMS = (
    *("farthing_requests_total", "farthing_tokens_total", "farthing_cost_usd_total"),
    *("farthing_request_duration_seconds_count", "farthing_inter_token_latency_seconds_count"),
    *("farthing_ledger_settled_total", "farthing_ledger_write_seconds_count"),
)


@on_one_database
def test_whichever_is_asked_tells_of_all(ledger, gateway):
    key, token = ledger.new_key()
    answers = asked(gateway, token, 60)
    workers, seen = children(gateway), []
    assert len(workers) == 3
    until(lambda: metrics(gateway)["farthing_workers"] == 3)
    until(lambda: metrics(gateway)["farthing_requests_in_flight"] == 1)  # that question alone
    for worker in workers:  # while the two others cannot answer
        others = [other for other in workers if other != worker]
        for other in others:
            os.kill(other, signal.SIGSTOP)
        seen.append(metrics(gateway))
        for other in others:
            os.kill(other, signal.SIGCONT)
    for found in seen:
        assert found["farthing_requests_total"] == len(answers)
        assert found["farthing_ledger_settled_total"] == len(answers)
        assert found["farthing_cost_usd_total"] * PICO == pytest.approx(ledger.settled(key))
        assert found["farthing_inter_token_latency_seconds_count"] == 60 * 29
        assert found["farthing_workers"] == 3
        assert found["farthing_engine_up"] == 2  # of two models, not of six
        # The question; and the one before, where who answered it was stopped at its last word.
        assert found["farthing_requests_in_flight"] in (1, 2)
        assert found["process_start_time_seconds"] == pytest.approx(time.time(), abs=600)
        each = 10 * 2**20
        assert found["process_resident_memory_bytes"] > len(workers) * each
        assert [found[name] for name in SUMS] == [seen[0][name] for name in SUMS]


@on_one_database
def test_what_the_dead_counted_stays_and_what_they_said_of_the_moment_goes(ledger, gateway):
    _, token = ledger.new_key()
    asked(gateway, token, 30)
    before = metrics(gateway)
    cpu = before["process_cpu_seconds_total"]
    for worker in children(gateway):
        os.kill(worker, signal.SIGKILL)
        until(lambda w=worker: w not in children(gateway) and len(children(gateway)) == 3)
        until(lambda: metrics(gateway)["farthing_workers"] == 3)
        after = metrics(gateway)
        assert [after[name] for name in SUMS] == [before[name] for name in SUMS]
        assert after["process_cpu_seconds_total"] >= cpu
        cpu = after["process_cpu_seconds_total"]
    asked(gateway, token, 6)
    assert metrics(gateway)["farthing_requests_total"] == 36


@on_one_database
def test_counters_never_go_back_while_workers_die(ledger, gateway):
    _, token = ledger.new_key()
    asked(gateway, token, 12)
    for worker in children(gateway):
        os.kill(worker, signal.SIGKILL)
        for _ in range(20):
            with suppress(httpx.TransportError):  # asked of the one that died
                assert metrics(gateway)["farthing_requests_total"] == 12


def test_answers_that_died_with_their_worker_are_not_under_way(tmp_path):
    more = {**environment(tmp_path), "DELAY": "10"}
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db", tmp_path, more)
    gateway = Gateway(ledger, PROGRAM)
    try:
        _, token = gateway.ready() and ledger.new_key()
        with ThreadPoolExecutor(8) as pool:
            lost = [pool.submit(asked, gateway, token, 1) for _ in range(8)]
            until(lambda: metrics(gateway)["farthing_requests_in_flight"] == 9)
            until(lambda: metrics(gateway)["farthing_ledger_reservations"] == 8)
            for worker in children(gateway):
                os.kill(worker, signal.SIGKILL)
            for one in lost:
                assert isinstance(one.exception(), httpx.TransportError)
        until(lambda: metrics(gateway)["farthing_workers"] == 3)
        found = metrics(gateway)
        assert found["farthing_requests_in_flight"] == 1
        assert found["farthing_ledger_reservations"] == 0
    finally:
        gateway.kill()


@on_one_database
def test_the_files_of_metrics_are_gone_when_it_has_ended(ledger, tmp_path):
    gateway = Gateway(ledger, PROGRAM)
    try:
        gateway.ready()
        assert len(list(tmp_path.glob("farthing-metrics-*/*.db"))) >= 3
        assert gateway.stop() == 0
        assert not list(tmp_path.glob("farthing-metrics-*"))
    finally:
        gateway.kill()


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


@on_one_database
def test_two_signals_in_a_row_end_it_all_the_same(ledger, gateway):
    for _ in range(2):
        gateway.process.send_signal(signal.SIGINT)
    assert gateway.process.wait(20) == 0


@pytest.mark.parametrize(
    ("ledger_url", "number"),
    [
        ("sqlite", signal.SIGTERM),
        ("sqlite", signal.SIGINT),
        pytest.param("postgres", signal.SIGTERM, marks=pytest.mark.postgres),
        pytest.param("postgres", signal.SIGINT, marks=[pytest.mark.postgres, pytest.mark.slow]),
    ],
    indirect=["ledger_url"],
)
def test_a_signal_ends_all_in_order(ledger, gateway, number):
    workers = children(gateway)
    gateway.process.send_signal(number)
    assert gateway.process.wait(20) == 0
    assert not any(alive(pid) for pid in workers)
    assert "Traceback" not in gateway.said()


@on_one_database
def test_without_their_parent_workers_end_too(ledger, gateway, tmp_path):
    workers = children(gateway)
    gateway.kill()
    until(lambda: not any(alive(pid) for pid in workers))
    assert not list(tmp_path.glob("farthing-metrics-*"))


BROKEN = """
import multiprocessing
import app.server
from app.errors import ConfigError

whole = app.server.create_app

def build(settings, catalog=None, shared=None):
    if multiprocessing.parent_process():
        raise ConfigError("no such weights")
    return whole(settings, catalog=catalog)

app.server.create_app = build
"""


@on_one_database
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


@on_one_database
def test_one_says_for_all_that_they_are_ready(ledger, gateway):
    time.sleep(1.0)
    gateway.process.send_signal(signal.SIGTERM)
    out, _ = gateway.process.communicate(timeout=20)
    assert "Farthing is ready" not in out
