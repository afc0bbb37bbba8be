"""A call goes to who wrote the answer before, or knows its prompt, or has little to do."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from app.engines.fleet import Fleet, Sharing
from app.errors import EngineUnavailable
from app.types import Call, Load
from tests.app.engines.scripted import (
    END,
    Server,
    Servers,
    call,
    card,
    opened,
    run,
    said,
    servers,
    settle,
    token,
)

A, B = "http://a:8000", "http://b:8000"


def who(many: Servers) -> Server:
    """The server that was asked last; forgets it."""
    (server,) = [server for server in many.values() if server.asked]
    server.asked.clear()
    return server


async def start_of_a_conversation(fleet: Fleet, many: Servers, at: int) -> Server:
    await said(fleet, call(f"question {at}"))
    return who(many)


def then(at: int) -> Call:
    """The next question of that conversation."""
    turns = [("user", f"question {at}"), ("assistant", "a b"), ("user", "and then?")]
    return Call("m", tuple({"role": role, "content": text} for role, text in turns))


def test_an_answer_comes_back_to_the_replica_that_holds_its_prefix() -> None:
    async def test() -> None:
        many = servers("a", "b", "c", always=(token("x"), END))
        async with many.started(card("m", *many), card("n", A)) as fleet:
            for at in range(30):
                mine = call(f"question {at}", id=f"answer {at}")
                await said(fleet, mine)
                first = who(many)
                await said(fleet, mine.to("n"))  # another model has its own memory
                many[A].asked.clear()
                for busy in (0, 100):  # not even when it is busy
                    fleet._posts["m"].replicas[0].others = busy
                    await said(fleet, mine.after((1, 2)))
                    assert who(many) is first

    run(test)


def test_an_answer_whose_replica_is_gone_or_full_goes_on_elsewhere() -> None:
    async def test() -> None:
        many = servers("a", "b")
        async with many.started(card("m", A, B, max_running=1)) as fleet:
            mine = call(id="mine")
            many[A].plays.append((token("x"), asyncio.Event()))
            many[B].plays.append((token("x"), asyncio.Event()))
            stream = await opened(fleet, mine)
            first = who(many)
            second = next(server for server in many.values() if server is not first)
            second.plays.clear()
            await said(fleet, mine)
            assert who(many) is second
            await said(fleet, mine)  # there from now on
            assert who(many) is second
            await stream.aclose()
            second.up = False
            await asyncio.sleep(20)
            assert await said(fleet, mine) == "a b"
            assert who(many) is first

    run(test)


def test_a_conversation_goes_on_where_it_began() -> None:
    async def test() -> None:
        many = servers("a", "b", "c")
        async with many.started() as fleet:
            began = [await start_of_a_conversation(fleet, many, at) for at in range(40)]
            assert len(set(began)) == 3
            for at in range(40):
                await said(fleet, then(at))
                assert who(many) is began[at]

    run(test)


def test_so_does_one_that_was_only_counted() -> None:
    async def test() -> None:
        many = servers("a", "b", "c")
        async with many.started() as fleet:
            for at in range(30):
                await fleet.count(call(f"number {at}"))
                await said(fleet, call(f"number {at}"))
                assert who(many).counted[-1] == call(f"number {at}")

    run(test)


def test_unless_its_replica_is_busier_than_another_by_more_than_the_margin() -> None:
    async def test() -> None:
        many = servers("a", "b")
        async with many.started(sharing=Sharing(margin=4)) as fleet:
            for at in range(20):
                first = await start_of_a_conversation(fleet, many, at)
                replicas = fleet._posts["m"].replicas
                mine, other = sorted(replicas, key=lambda each: each.backend is not first)
                mine.others, other.others = 5, 1
                await said(fleet, then(at))
                assert who(many) is first
                mine.others = 6
                await said(fleet, call(f"question {at}"))
                assert who(many) is not first
                mine.others = 0  # now both know it
                await said(fleet, call(f"question {at}"))
                assert who(many) is first
                mine.others = other.others = 0

    run(test)


def test_new_conversations_go_to_the_less_busy_of_two() -> None:
    async def test() -> None:
        many = servers("a", "b", always=(token("x"), asyncio.Event()))
        many[A].load_ = Load(running=10, waiting=10)
        async with many.started() as fleet:
            await settle()
            streams = [await opened(fleet, call(f"question {at}")) for at in range(30)]
            assert [server.running for server in many.values()] == [5, 25]
            await asyncio.sleep(1)
            many[A].load_, many[B].load_ = Load(running=25), Load(running=25)  # ours, all but 20
            await asyncio.sleep(3)
            assert [each.others for each in fleet._posts["m"].replicas] == [20, 0]
            for stream in streams:
                await stream.aclose()

    run(test)


def test_two_of_many_are_compared_not_all() -> None:
    """Or every gateway would send all new calls to the one that seemed idle a while ago."""

    async def test() -> None:
        many = servers("a", "b", "c", "d")
        async with many.started(random=Random(2)) as fleet:
            await settle()
            for replica in fleet._posts["m"].replicas[1:]:
                replica.others = 5
            seen = Counter[str]()
            for at in range(200):
                seen[(await start_of_a_conversation(fleet, many, at)).url] += 1
            assert 70 < seen[A] < 130  # in half of all pairs

    run(test)


def test_who_waits_is_told_when_the_last_replica_breaks() -> None:
    async def test() -> None:
        many = servers("a", always=(token("x"), asyncio.Event()))
        async with many.started(card("m", A, max_running=1)) as fleet:
            stream = await opened(fleet, call())
            waits = asyncio.create_task(said(fleet, call()))
            await settle()
            many[A].up = False
            with pytest.raises(EngineUnavailable):
                await waits
            assert fleet.load("m") == Load(False, 1, 0)
            await stream.aclose()

    run(test)


def test_who_waits_is_served_by_a_replica_that_comes_up() -> None:
    async def test() -> None:
        many = servers("a", "b")
        many[B].up = False
        async with many.started(card("m", A, B, max_running=1)) as fleet:
            many[A].plays.append((token("x"), asyncio.Event()))
            stream = await opened(fleet, call())
            waits = asyncio.create_task(said(fleet, call()))
            await settle()
            assert fleet.load("m").waiting == 1
            many[B].up = True
            assert await waits == "a b"
            await stream.aclose()

    run(test)
