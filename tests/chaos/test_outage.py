"""PostgreSQL goes away under load and comes back: nothing lost, nothing paid twice."""

import asyncio
import time

import httpx
import pytest

from app.catalog import PICO
from tests.chaos.gateways import PROGRAM, Gateway, Ledger, ask, connections, gateways

pytestmark = pytest.mark.postgres
CLIENTS = 12
DELAY = "0.02"  # seconds a token, so 0.6 s an answer


@pytest.fixture
def new_ledger(postgres, tmp_path):
    def make(**more):
        settings = {f"FARTHING_{name.upper()}": value for name, value in more.items()}
        return Ledger(postgres.new_database(), tmp_path, settings)

    yield make
    postgres.restore()


class Load:
    """Clients that ask again and again, whatever they are told."""

    def __init__(self, urls, token):
        self.urls, self.token = urls, token
        self.answers = []  # with the times at which they were asked and answered
        self.ending = False

    async def client(self, http, number):
        while not self.ending:
            began = time.monotonic()
            answer = await ask(
                http, self.urls[number % len(self.urls)], self.token, stream=bool(number % 3)
            )
            self.answers.append((began, time.monotonic(), answer))
            if answer.status != 200:
                await asyncio.sleep(0.02)

    async def run(self, story):
        async with connections(CLIENTS) as http:
            clients = [asyncio.create_task(self.client(http, n)) for n in range(CLIENTS)]
            try:
                await story(self)
            finally:
                self.ending = True
                await asyncio.gather(*clients)

    def statuses(self, after=0.0, before=float("inf")):
        """Of the requests that were sent in this time."""
        return [a.status for began, _, a in self.answers if after <= began < before]

    def told(self):
        return sum(a.cost for _, _, a in self.answers if a.status == 200)


async def until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.05)


def settled_in_the_end(ledger, key, told):
    """All that clients were told is settled, and nothing more is held."""
    end = time.monotonic() + 15
    while ledger.reservations() or ledger.settled(key) != told:
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    account = ledger.account(key)
    assert told == ledger.settled(key) == account.spent["total"]
    assert (account.held["total"], account.running, ledger.reservations()) == (0, 0, 0)


@pytest.mark.parametrize(
    ("lease_s", "headroom_s", "mode"),
    [
        pytest.param("60", "0", "immediate", id="exact-immediate"),
        pytest.param("1", "0", "fast", id="lease-shorter-than-the-outage-fast"),
        pytest.param("60", "3", "immediate", id="headroom-immediate"),
        # Each of these differs in one thing from one above.
        pytest.param("60", "0", "fast", id="exact-fast", marks=pytest.mark.slow),
        pytest.param(
            "1",
            "0",
            "immediate",
            id="lease-shorter-than-the-outage-immediate",
            marks=pytest.mark.slow,
        ),
        pytest.param("60", "3", "fast", id="headroom-fast", marks=pytest.mark.slow),
    ],
)
def test_an_outage_under_load(new_ledger, postgres, mode, lease_s, headroom_s):
    ledger = new_ledger(lease_s=lease_s, headroom_s=headroom_s)
    key, token = ledger.new_key(usd_total="1")
    times = {}

    async def story(load):
        await until(lambda: load.statuses().count(200) > 3 * CLIENTS)
        await asyncio.to_thread(postgres.stop, mode)
        times["down"] = time.monotonic()
        await asyncio.sleep(2.5)
        await until(lambda: load.statuses(after=times["down"]).count(503) > CLIENTS)
        for url in load.urls:
            health = httpx.get(f"{url}/health").json()
            assert (health["status"], health["ledger"]["status"]) == ("ready", "away")
        times["up"] = time.monotonic()
        await asyncio.to_thread(postgres.start)
        ready = time.monotonic()
        await until(lambda: load.statuses(after=ready).count(200) > 3 * CLIENTS)

    with gateways(ledger, 2, DELAY) as running:
        load = Load([gateway.url for gateway in running], token)
        asyncio.run(load.run(story))
        settled_in_the_end(ledger, key, load.told())
        assert load.told() <= PICO
    away = load.statuses(after=times["down"], before=times["up"])
    assert set(load.statuses()) == {200, 503}
    assert away.count(503) > CLIENTS
    refused = [a for _, _, a in load.answers if a.status == 503]
    assert {a.error["code"] for a in refused} == {"ledger_unavailable"}
    # Without headroom nothing new begins; with it, what fits.
    assert (away.count(200) > 0) == (headroom_s != "0")


def test_a_frozen_database_costs_a_request_seconds_and_not_its_life(new_ledger, postgres):
    """It neither answers nor refuses: no client waits longer than we are patient."""
    ledger = new_ledger()
    key, token = ledger.new_key(usd_total="1")

    async def story(load):
        await until(lambda: load.statuses().count(200) > CLIENTS)
        postgres.freeze()
        try:
            await asyncio.sleep(8.0)
        finally:
            postgres.thaw()
        ready = time.monotonic()
        await until(lambda: load.statuses(after=ready).count(200) > CLIENTS, 30)

    with gateways(ledger, 2, DELAY) as running:
        load = Load([gateway.url for gateway in running], token)
        asyncio.run(load.run(story))
        settled_in_the_end(ledger, key, load.told())
    assert set(load.statuses()) == {200, 503}
    assert max(ended - began for began, ended, _ in load.answers) < 15


def under_way(gateway):
    """Calls of its model that are under way."""
    return httpx.get(f"{gateway.url}/health").json()["models"]["small"]["running"]


def test_a_gateway_that_dies_in_an_outage_is_paid_for_by_the_next(new_ledger, postgres):
    ledger = new_ledger(lease_s="60")
    key, token = ledger.new_key(usd_total="1")
    gateway = Gateway(ledger, PROGRAM, "0.2").ready()  # 6 s an answer, which outlives the database

    async def answers():
        async with connections(CLIENTS) as http:
            asked = [
                asyncio.create_task(ask(http, gateway.url, token, stream=bool(n % 2)))
                for n in range(CLIENTS)
            ]
            await until(lambda: under_way(gateway) == CLIENTS)
            await asyncio.to_thread(postgres.stop)
            return await asyncio.gather(*asked)

    try:
        try:
            told = asyncio.run(answers())
            assert [a.status for a in told] == [200] * CLIENTS
            assert list((ledger.folder / "journal").rglob("*.jsonl"))
        finally:
            gateway.kill()
            postgres.start()
        assert ledger.settled(key) == 0
        with gateways(ledger, 1, DELAY):
            settled_in_the_end(ledger, key, sum(a.cost for a in told))
    finally:
        gateway.kill()
    assert not list((ledger.folder / "journal").rglob("*.jsonl"))
