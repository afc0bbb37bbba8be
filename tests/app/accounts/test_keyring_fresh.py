"""How long a keyring goes by what it knows, and what it does while the database is away."""

import asyncio
import time

import pytest

from app.accounts import keyring as module
from app.accounts.keyring import FRESH_S, STALE_S
from app.accounts.keys import KeySpec, new_id, new_token
from app.errors import LedgerUnavailable
from app.storage.keys import KeyStore
from tests.app.accounts.conftest import opens, wrong

SPEC = KeySpec(name="a key")


async def test_a_known_key_is_not_asked_for_again_while_it_is_fresh(ring, clock, asked):
    _, token = await ring.create(SPEC)
    for _ in range(100):
        await ring.authenticate(token)
    assert len(asked) == 1
    clock.now += FRESH_S
    await ring.authenticate(token)
    assert len(asked) == 2


@pytest.mark.parametrize("change", ["revoke", "rotate"])
async def test_a_change_elsewhere_takes_effect_in_two_seconds(rings, clock, change):
    here, there = await rings(), await rings()
    key, token = await there.create(SPEC)
    assert await opens(here, token)
    await getattr(there, change)(key.id)
    assert not await opens(there, token)
    clock.now += FRESH_S
    assert FRESH_S <= 2
    assert not await opens(here, token)


async def test_a_limit_changed_elsewhere_takes_effect_in_two_seconds(rings, clock):
    here, there = await rings(), await rings()
    key, token = await there.create(SPEC)
    await here.authenticate(token)
    await there.change(key.id, {"concurrency": 3})
    clock.now += FRESH_S
    assert (await here.authenticate(token)).concurrency == 3


async def test_a_hundred_at_once_ask_once(ring, asked):
    _, token = await ring.create(SPEC)
    rows = await asyncio.gather(*(ring.authenticate(token) for _ in range(100)))
    assert len({row.id for row in rows}) == 1
    assert len(asked) == 1
    unknown = new_token(new_id())
    assert await asyncio.gather(*(opens(ring, unknown) for _ in range(100))) == [False] * 100
    assert len(asked) == 2


async def test_who_stops_waiting_takes_nobody_along(ring, asked):
    _, token = await ring.create(SPEC)
    tasks = [asyncio.create_task(ring.authenticate(token)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1] == results[2]
    assert len(asked) == 1


async def test_while_the_database_is_away_a_known_key_opens_for_ten_minutes(ring, clock, away):
    key, token = await ring.create(SPEC)
    await ring.authenticate(token)
    away()
    for seconds in (1, FRESH_S, 60, STALE_S - FRESH_S - 62):
        clock.now += seconds
        assert (await ring.authenticate(token)).id == key.id
        assert not await opens(ring, wrong(token))
    clock.now += FRESH_S
    with pytest.raises(LedgerUnavailable):
        await ring.authenticate(token)


async def test_while_the_database_is_away_nobody_is_called_unknown(ring, away):
    _, token = await ring.create(SPEC)
    away()
    for one in (token, wrong(token), new_token(new_id())):
        with pytest.raises(LedgerUnavailable):
            await ring.authenticate(one)
    assert not await opens(ring, "nonsense")


async def test_a_database_that_hangs_is_away(ring, monkeypatch):
    _, token = await ring.create(SPEC)

    async def hang(*_):
        await asyncio.sleep(60)

    monkeypatch.setattr(KeyStore, "find", hang)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    began = time.monotonic()
    with pytest.raises(LedgerUnavailable) as refusal:
        await ring.authenticate(token)
    assert refusal.value.retry_after == 1
    assert time.monotonic() - began < 5
    for task in ring._finding._asking.values():
        task.cancel()


async def test_a_key_is_needed_from_the_first_on(rings, clock):
    here, there = await rings(), await rings()
    assert not await here.any()
    key, _ = await there.create(SPEC)
    assert await there.any()
    clock.now += FRESH_S
    assert await here.any()
    await there.revoke(key.id)
    for ring in (here, there, await rings()):
        clock.now += FRESH_S
        assert await ring.any()


async def test_it_is_not_assumed_that_there_are_no_keys(rings, away):
    await (await rings()).create(SPEC)
    late = await rings()
    assert await asyncio.gather(*(late.any() for _ in range(10))) == [True] * 10
    away()
    later = await rings()
    for _ in range(3):
        with pytest.raises(LedgerUnavailable):
            await later.any()


async def test_of_several_gateways_one_makes_the_first_key(rings):
    several = [await rings() for _ in range(4)]
    made = await asyncio.gather(*(ring.create_first() for ring in several))
    (token,) = [token for token in made if token is not None]
    assert (await several[0].authenticate(token)).admin
    assert await (await rings()).create_first() is None
