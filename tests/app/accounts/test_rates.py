"""Requests and tokens per minute, wherever they are counted."""

import asyncio
import math
import time

import pytest
from limits.aio.storage import MemoryStorage
from limits.errors import StorageError

from app.accounts import accounts, rates
from app.accounts.keys import new_id
from app.accounts.rates import Rates
from app.errors import ConfigError, RateLimited
from app.storage.database import Database
from app.storage.rates import LedgerStorage
from app.storage.records import KeyRow
from tests.servers import free_port


def limited(requests=None, tokens=None, id=None):
    return KeyRow(
        id or new_id(),
        "a key",
        bytes(32),
        admin=False,
        created=0,
        requests_per_minute=requests,
        tokens_per_minute=tokens,
    )


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.postgres),
        pytest.param("redis", marks=pytest.mark.redis),
    ]
)
def place(request, tmp_path):
    """Where rates are counted."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres").new_database()
    if request.param == "redis":
        return request.getfixturevalue("redis_url")
    return {"memory": "memory", "sqlite": f"sqlite:///{tmp_path / 'ledger.db'}"}[request.param]


@pytest.fixture
async def several(place):
    """Makes Rates that count together, as those of several processes do."""
    databases, made = [], []
    memory = MemoryStorage()

    async def one():
        if place == "memory":
            storage = memory
        elif place.startswith("redis"):
            storage = accounts._rate_storage(place, None)
        else:
            database = Database(place)
            databases.append(database)
            await database.migrate()
            storage = LedgerStorage(database)
        made.append(Rates(storage))
        return made[-1]

    yield one
    for each in made:
        await each.aclose()
    for database in databases:
        await database.aclose()


@pytest.fixture
async def counters(several):
    return await several()


async def admitted(counters, key, tokens=1):
    """Where the key stands afterwards. Raises RateLimited."""
    states = []
    await counters.admit(key, tokens, states)
    return {state.kind: state for state in states}


async def refused(counters, key, tokens=1):
    states = []
    with pytest.raises(RateLimited) as refusal:
        await counters.admit(key, tokens, states)
    return refusal.value, {state.kind: state for state in states}


async def allows(counters, key, tokens=1):
    try:
        await counters.admit(key, tokens, [])
    except RateLimited:
        return False
    return True


async def test_a_key_without_limits_is_not_counted(counters):
    assert await admitted(counters, limited(), 10**9) == {}


async def test_requests_are_counted_down_and_refused_at_the_limit(counters):
    key = limited(requests=3)
    for left in (2, 1, 0):
        state = (await admitted(counters, key))["requests"]
        assert (state.limit, state.remaining) == (3, left)
        assert 58 < state.reset <= 60
    for _ in range(3):
        error, states = await refused(counters, key)
        assert states["requests"].remaining == 0
        assert error.param == "requests_per_minute"
        assert 58 < error.retry_after == states["requests"].reset <= 60
        assert error.retry is None


async def test_each_key_has_its_own_minute(counters):
    ann, bob = limited(requests=1), limited(requests=1)
    assert [await allows(counters, key) for key in (ann, bob, ann, bob)] == [1, 1, 0, 0]


@pytest.mark.parametrize("kind", ["requests", "tokens"])
async def test_a_window_ends_when_it_says_and_begins_anew(counters, monkeypatch, kind):
    # Windows of a second, so that the test need not wait for a minute.
    real = rates.RateLimitItemPerMinute

    class PerSecond(real):
        GRANULARITY = rates.RateLimitItemPerMinute.GRANULARITY._replace(seconds=1)

    monkeypatch.setattr(rates, "RateLimitItemPerMinute", PerSecond)
    key = limited(**{kind: 1})
    await admitted(counters, key)
    error, _ = await refused(counters, key)
    assert 0 < error.retry_after <= 1
    await asyncio.sleep(error.retry_after + 0.02)
    assert (await admitted(counters, key))[kind].remaining == 0
    assert not await allows(counters, key)


async def test_a_refused_request_does_not_move_the_window_s_end(counters):
    key = limited(requests=1)
    reset = (await admitted(counters, key))["requests"].reset
    ends = [time.time() + reset]
    for _ in range(5):
        await asyncio.sleep(0.1)
        error, _ = await refused(counters, key)
        ends.append(time.time() + error.retry_after)
    assert max(ends) - min(ends) < 0.3


async def test_tokens_beyond_the_limit_are_refused_and_use_up_nothing(counters):
    key = limited(tokens=100)
    assert (await admitted(counters, key, 60))["tokens"].remaining == 40
    for _ in range(3):
        error, states = await refused(counters, key, 41)
        assert (error.param, states["tokens"].remaining) == ("tokens_per_minute", 40)
        assert 58 < error.retry_after <= 60
    assert (await admitted(counters, key, 40))["tokens"].remaining == 0


async def test_what_no_minute_could_hold_is_not_to_be_retried(counters):
    key = limited(tokens=100)
    error, _ = await refused(counters, key, 101)
    assert (error.param, error.retry, error.retry_after) == ("max_tokens", False, None)
    assert await allows(counters, key, 100)


async def test_a_request_refused_for_its_tokens_counts_as_a_request(counters):
    key = limited(requests=2, tokens=10)
    _, states = await refused(counters, key, 11)
    assert (states["requests"].remaining, states["tokens"].remaining) == (1, 10)
    states = await admitted(counters, key, 10)
    assert (states["requests"].remaining, states["tokens"].remaining) == (0, 0)


async def test_what_was_written_beyond_is_counted_afterwards(counters):
    key = limited(tokens=100)
    await admitted(counters, key, 10)
    counters.add(key, 95)
    await counters.aclose()
    error, states = await refused(counters, key, 1)
    assert states["tokens"].remaining == 0
    assert 58 < error.retry_after <= 60


async def test_what_was_not_written_is_not_counted_twice(counters):
    key = limited(tokens=100)
    await admitted(counters, key, 60)
    counters.add(key, -50)
    counters.add(key, 0)
    counters.add(limited(), 10)
    await counters.aclose()
    assert (await admitted(counters, key, 40))["tokens"].remaining == 0


@pytest.mark.parametrize(("cost", "fields"), [(1, {"requests": 50}), (7, {"tokens": 350})])
async def test_two_hundred_at_once_through_two_processes_are_counted_exactly(
    several, cost, fields, caplog
):
    one, other = await several(), await several()
    key = limited(**fields)
    came = await asyncio.gather(
        *(allows(counters, key, cost) for counters in (one, other) for _ in range(100))
    )
    assert sum(came) == 50
    assert "this process only" not in caplog.text


async def test_several_processes_share_their_minute(several):
    one, other = await several(), await several()
    key = limited(requests=2, tokens=100)
    await admitted(one, key, 30)
    states = await admitted(other, key, 30)
    assert (states["requests"].remaining, states["tokens"].remaining) == (0, 40)
    error, _ = await refused(one, key)
    assert error.param == "requests_per_minute"


@pytest.mark.parametrize("url", ["redis://h", "redis://h:x/0", "redis://[", "disk", ""])
def test_a_place_that_cannot_be_is_refused_by_its_setting(url):
    with pytest.raises(ConfigError, match="FARTHING_RATE_STORE"):
        accounts._rate_storage(url, None)


class Flaky(MemoryStorage):
    """Goes away when it is told to."""

    away = False
    asked = 0

    async def incr(self, *args, **kwargs):
        self.asked += 1
        if self.away:
            raise StorageError(ConnectionError("away"))
        return await super().incr(*args, **kwargs)


async def test_while_the_storage_is_away_this_process_counts(monkeypatch, caplog):
    storage = Flaky()
    counters, key = Rates(storage), limited(requests=2)
    await admitted(counters, key)
    storage.away = True
    assert [await allows(counters, key) for _ in range(3)] == [True, True, False]
    assert caplog.text.count("this process only") == 1
    assert storage.asked == 2  # not again and again: it might take its time each time
    storage.away = False
    monkeypatch.setattr(rates, "_RETRY_S", 0)
    counters._retry_at = 0
    assert [await allows(counters, key) for _ in range(2)] == [True, False]


class Relay:
    """A way to Redis that can be cut, or go silent."""

    def __init__(self, url):
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._to = int(url.split(":")[2].split("/")[0])
        self._writers, self._tasks, self._silent = [], [], False

    async def open(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _serve(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, back]
        ways = (self._pass(reader, back), self._pass(there, writer))
        self._tasks += [asyncio.create_task(way) for way in ways]

    async def _pass(self, reader, writer):
        while data := await reader.read(65536):
            if not self._silent:
                writer.write(data)
        writer.close()

    def fall_silent(self):
        self._silent = True

    async def cut(self):
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(w.wait_closed() for w in self._writers), return_exceptions=True)


@pytest.fixture
async def relay(redis_url):
    relay = Relay(redis_url)
    await relay.open()
    yield relay
    await relay.cut()


@pytest.mark.redis
@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_when_redis_goes_away_this_process_counts_without_long_waits(
    relay, how, monkeypatch, caplog
):
    counters = Rates(accounts._rate_storage(relay.url, None))
    key = limited(requests=5, tokens=100)
    await admitted(counters, key)
    if how == "cut":
        await relay.cut()
    else:
        relay.fall_silent()
    began = time.monotonic()
    came = [await allows(counters, key) for _ in range(10)]
    assert came == [True] * 5 + [False] * 5
    assert time.monotonic() - began < 4
    assert "this process only" in caplog.text
    await counters.aclose()


@pytest.mark.redis
async def test_when_redis_is_back_it_counts_again(relay):
    counters = Rates(accounts._rate_storage(relay.url, None))
    key = limited(requests=5)
    await admitted(counters, key)
    await relay.cut()
    await admitted(counters, key)
    await relay.open()
    counters._retry_at = 0
    state = (await admitted(counters, key))["requests"]
    assert state.remaining == 3  # the one that came meanwhile is not known there
    assert math.isclose(state.reset, 60, abs_tol=5)
    await counters.aclose()
