"""What is kept of responses: its owner's alone, for a while, and not without bound."""

import pytest

from app.storage.database import Database
from app.storage.records import Kept, Owner
from app.storage.responses import ResponseStore

OURS, THEIRS = Owner("a"), Owner("b")


class Clock:
    now = 1_000_000

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def store(ledger_url, clock):
    database = Database(ledger_url)
    await database.migrate()
    yield ResponseStore(database, clock)
    await database.aclose()


def ended(content="{}"):
    return Kept(True, content)


@pytest.mark.parametrize("other", [THEIRS, Owner("a", "tenant")])
async def test_only_its_owner_knows_of_it(store, other):
    await store.add("r", OURS, ended(), 1000)
    assert await store.find("r", other) is None
    assert not await store.delete("r", other)
    assert not await store.replace("r", other, ended("[]"), 1000)
    assert await store.find("r", OURS) == ended()
    assert await store.delete("r", OURS)
    assert await store.find("r", OURS) is None


async def test_what_has_expired_is_not_there(store, clock):
    await store.add("r", OURS, ended(), 1000)
    clock.now += 999
    assert await store.find("r", OURS) == ended()
    clock.now += 1
    assert await store.find("r", OURS) is None
    assert not await store.replace("r", OURS, ended(), 1000)
    assert not await store.delete("r", OURS)


async def test_one_under_way_lives_on_while_it_is_renewed_and_is_replaced_by_its_end(store, clock):
    await store.add("r", OURS, Kept(False, "1"), 1000)
    clock.now += 900
    await store.renew(["r"], 1000)
    clock.now += 900
    assert await store.find("r", OURS) == Kept(False, "1")
    assert await store.replace("r", OURS, ended("2"), 5000)
    await store.renew(["r"], 10)  # too late: what has ended is kept as it was said
    clock.now += 4999
    assert await store.find("r", OURS) == ended("2")


async def test_who_runs_it_sees_that_it_shall_end(store):
    for id in ("r", "s", "t"):
        await store.add(id, OURS, Kept(False, "1"), 1000)
    await store.add("u", OURS, ended(), 1000)
    await store.cancel("s", THEIRS)
    for id in ("r", "t", "u"):
        await store.cancel(id, OURS)
    assert await store.cancelled(["r", "s", "u"]) == ["r"]


async def test_what_has_expired_is_swept_and_each_keys_oldest(store, clock):
    await store.add("gone", OURS, ended(), 10)
    for number in range(6):
        clock.now += 10
        for owner in (OURS, THEIRS):
            content = "x" * (100 if owner is OURS else 10)
            await store.add(f"{owner.key}{number}", owner, ended(content), 10**6)
    assert await store.sweep(250) == 5
    left = [n for n in range(6) if await store.find(f"a{n}", OURS)]
    assert left == [4, 5]
    assert all([await store.find(f"b{n}", THEIRS) for n in range(6)])
    assert await store.sweep(250) == 0


async def test_any_text_of_json_can_be_kept(store):
    content = '"\\u0000 \\ud83d\\ude00"' + "y" * 200_000
    await store.add("r", OURS, ended(content), 1000)
    assert await store.find("r", OURS) == ended(content)
