"""Responses that several processes share: kept, found, and ended by whoever is asked to."""

import asyncio

import pytest

from app.accounts import responses as module
from app.accounts.responses import Responses
from app.storage.database import Database
from app.storage.records import Owner
from app.storage.responses import ResponseStore

OURS = Owner("a")
LOOK_S = 0.05


class Running:
    """An answer that ends when it is told to."""

    def __init__(self):
        self.ended = False
        self.stopped = asyncio.Event()

    def stop(self):
        self.stopped.set()


@pytest.fixture
async def processes(ledger_url):
    """Two processes on one database."""
    databases = [Database(ledger_url) for _ in range(2)]
    await databases[0].migrate()
    made = [Responses(ResponseStore(database), 60, 10**6, LOOK_S) for database in databases]
    for responses in made:
        responses.start()
    yield made
    for responses, database in zip(made, databases, strict=True):
        await responses.aclose()
        await database.aclose()


async def until(condition):
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(LOOK_S / 5)


async def test_what_one_keeps_another_finds(processes):
    here, there = processes
    assert await here.keep("r", OURS, {"text": "\x00é"})
    found = await there.find("r", OURS)
    assert found.ended and found.content == {"text": "\x00é"}
    assert await there.find("r", Owner("b")) is None


@pytest.mark.parametrize("asked", [0, 1])
async def test_whoever_is_asked_ends_one_under_way(processes, asked):
    here, running = processes[0], Running()
    await here.begin("r", OURS, {"at": "work"}, running)

    async def run():
        await running.stopped.wait()
        assert await here.keep("r", OURS, {"at": "end"}, begun=True)

    work = asyncio.create_task(run())
    assert await processes[asked].cancel("r", Owner("b")) is None and not work.done()
    found = await processes[asked].cancel("r", OURS)
    assert found.ended and found.content == {"at": "end"}
    await work
    again = await processes[asked].cancel("r", OURS)
    assert again == found


async def test_one_that_does_not_end_is_told_as_under_way(processes):
    running = Running()
    await processes[0].begin("r", OURS, {"at": "work"}, running)
    found = await processes[1].cancel("r", OURS)
    assert not found.ended and running.stopped.is_set()


async def test_one_that_was_deleted_meanwhile_is_not_kept(processes):
    here, there = processes
    await here.begin("r", OURS, {}, Running())
    assert await there.delete("r", OURS)
    assert not await here.keep("r", OURS, {}, begun=True)
    assert await there.find("r", OURS) is None


async def test_one_that_may_have_begun_is_kept_all_the_same(processes):
    here = processes[0]
    await here.begin("r", OURS, {"at": "work"}, Running())
    assert await here.keep("r", OURS, {"at": "end"})
    assert (await here.find("r", OURS)).content == {"at": "end"}


async def test_one_that_has_ended_just_before_it_was_looked_after_is_kept(processes, monkeypatch):
    monkeypatch.setattr(module, "_RENEWED_S", 0.0)
    here, running = processes[0], Running()
    await here.begin("r", OURS, {}, running)
    running.ended = True
    await asyncio.sleep(3 * LOOK_S)
    assert await here.keep("r", OURS, {"at": "end"}, begun=True)
    assert (await here.find("r", OURS)).ended


async def test_one_whose_answer_broke_off_is_forgotten(processes, monkeypatch):
    monkeypatch.setattr(module, "_LEASE_MS", 600)
    monkeypatch.setattr(module, "_RENEWED_S", 0.0)
    here, running = processes[0], Running()
    await here.begin("r", OURS, {}, running)
    await asyncio.sleep(0.8)
    assert not (await here.find("r", OURS)).ended  # renewed while it runs
    running.ended = True

    async def gone():
        return await here.find("r", OURS) is None

    await until(gone)


@pytest.mark.parametrize("ended", [True, False])
async def test_what_is_too_much_is_swept(processes, monkeypatch, ended):
    monkeypatch.setattr(module, "_EARLY", 1000)
    here = processes[0]
    for id in ("old", "new"):
        content = {"text": "x" * 600_000}
        if ended:
            await here.keep(id, OURS, content)
        else:
            await here.begin(id, OURS, content, Running())

    async def swept():
        return await here.find("old", OURS) is None

    await until(swept)
    assert (await here.find("new", OURS)).ended is ended
