"""A call is tried elsewhere before it has said anything; places are bounded; waiting is fair."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engines.fleet import Fleet, Sharing
from app.errors import (
    BadRequest,
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
    EngineLost,
    EngineUnavailable,
    EngineUnsupported,
    FarthingError,
    Overloaded,
)
from app.types import Capabilities, Chunk, Goals, Load, Speculates, Usage
from tests.app.engines.scripted import (
    END,
    call,
    card,
    clock,
    opened,
    run,
    said,
    servers,
    settle,
    token,
)

A, B, C = (f"http://{name}:8000" for name in "abc")


@pytest.mark.parametrize(
    ("error", "idempotent", "retried"),
    [
        (EngineUnavailable("x"), True, True),
        (EngineUnavailable("x"), False, True),
        (EngineLost("x"), True, True),
        (EngineLost("x"), False, False),
        (Overloaded("x"), False, True),
        (EngineError("x"), True, False),
        (BadRequest("x"), True, False),
        (EngineUnsupported("x"), True, False),
        (ContextOverflow("x"), True, False),
        (DeadlineExceeded("x"), True, False),
        (ValueError("x"), True, False),
    ],
)
@pytest.mark.parametrize("silent", [(), (Chunk(model="m"),)])
def test_what_is_tried_elsewhere(
    error: Exception, idempotent: bool, retried: bool, silent: tuple[Chunk, ...]
) -> None:
    """A chunk without anything in it counts as nothing said."""

    async def test() -> None:
        many = servers("a", "b", idempotent=idempotent)
        for server in many.values():
            server.plays.append((*silent, error))
        async with many.started() as fleet:
            with pytest.raises(type(error)):
                await said(fleet, call())
            asked = sorted(len(server.asked) for server in many.values())
            assert asked == ([1, 1] if retried else [0, 1])
            for server in many.values():
                server.plays.clear()
            first = next(s for s in many.values() if s.asked)
            first.plays.append((*silent, error))
            second = next(s for s in many.values() if s is not first)
            second.always = (token("other"), END)
            if retried:
                assert await said(fleet, call()) in ("a b", "other")
            assert fleet.load("m").running == 0

    run(test)


@pytest.mark.parametrize("said_first", [token("a"), Chunk(usage=Usage(prompt=5)), Chunk(raw=b"x")])
def test_nothing_is_tried_again_once_something_was_said(said_first: Chunk) -> None:
    async def test() -> None:
        many = servers("a", "b", always=(said_first, EngineUnavailable("x")))
        async with many.started() as fleet:
            with pytest.raises(EngineUnavailable, match="x"):
                await said(fleet, call())
            assert sum(len(server.asked) for server in many.values()) == 1

    run(test)


def test_each_replica_is_tried_once_at_most_and_the_last_error_is_told() -> None:
    async def test() -> None:
        many = servers("a", "b", "c", always=(Overloaded("full", retry_after=9),))
        async with many.started() as fleet:
            with pytest.raises(Overloaded, match="full"):
                await said(fleet, call())
            assert [len(server.asked) for server in many.values()] == [1, 1, 1]

    run(test)


def test_nothing_is_tried_again_past_the_deadline() -> None:
    async def test() -> None:
        many = servers("a", "b", always=(5.0, EngineUnavailable("x")))
        async with many.started() as fleet:
            with pytest.raises(EngineUnavailable, match="x"):
                await said(fleet, call(goals=Goals(clock() + 3)))
            assert sum(len(server.asked) for server in many.values()) == 1

    run(test)


def test_a_second_try_waits_for_a_place_ahead_of_others() -> None:
    async def test() -> None:
        many = servers("a", "b")
        async with many.started(card("m", A, B, max_running=1)) as fleet:
            fails, ends = asyncio.Event(), asyncio.Event()
            for server in many.values():
                server.plays.append((fails, EngineUnavailable("x")))
            tries = asyncio.create_task(said(fleet, call("first", account="z")))
            await settle()
            server, other = sorted(many.values(), key=lambda s: -s.running)
            other.plays[0] = (ends, *other.always)
            blocks = asyncio.create_task(said(fleet, call("blocks")))
            await settle()
            waits = asyncio.create_task(said(fleet, call("waits")))
            await settle()
            fails.set()
            await settle()
            assert waits.done()  # it had the place that the failed try left
            late = asyncio.create_task(said(fleet, call("late")))
            assert await late == "a b"
            assert not tries.done()
            ends.set()
            assert await tries == await blocks == "a b"
            assert other.most == server.most == 1

    run(test)


def test_a_second_try_that_can_find_no_replica_any_more_tells_the_first_error() -> None:
    async def test() -> None:
        many = servers("a", "b")
        async with many.started(card("m", A, B, max_running=1)) as fleet:
            for server in many.values():
                server.plays.append((token("x"), asyncio.Event()))
            held = [await opened(fleet, call(str(at))) for at in range(2)]
            for server in many.values():
                server.plays.append((EngineUnavailable("first"),))
            tries = asyncio.create_task(said(fleet, call("tries")))
            await settle()
            await held.pop().aclose()
            await settle()
            waits_for = next(s for s in many.values() if s.running)
            assert fleet.load("m").waiting == 1
            waits_for.pulsing = waits_for.probing = EngineError("gone")
            with pytest.raises(EngineUnavailable, match="first"):
                await tries
            await held.pop().aclose()

    run(test)


def test_no_more_run_than_may_and_the_rest_waits() -> None:
    async def test() -> None:
        many = servers("a", "b", always=(token("x"), 1.0, END))
        async with many.started(card("m", A, B, max_running=2)) as fleet:
            tasks = [asyncio.create_task(said(fleet, call(str(at)))) for at in range(11)]
            await settle()
            assert fleet.load("m") == Load(True, 4, 7)
            began = clock()
            await asyncio.gather(*tasks)
            assert clock() - began == pytest.approx(3)
            assert [server.most for server in many.values()] == [2, 2]
            assert fleet.load("m") == Load(True, 0, 0)

    run(test)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def test() -> None:
        many = servers("a", always=(token("x"), 10.0, END))
        sharing = Sharing(max_waiting=3)
        async with many.started(card("m", A, max_running=2), sharing=sharing) as fleet:
            await asyncio.gather(*(said(fleet, call()) for _ in range(4)))
            tasks = [asyncio.create_task(said(fleet, call())) for _ in range(5)]
            await settle()
            with pytest.raises(Overloaded) as caught:
                await said(fleet, call())
            # Four wait then, two places, ten seconds each.
            assert caught.value.retry_after == pytest.approx(20)
            await asyncio.gather(*tasks)

    run(test)


def test_accounts_take_turns() -> None:
    async def test() -> None:
        many = servers("a", always=(token("x"), 1.0, END))
        async with many.started(card("m", A, max_running=1)) as fleet:
            accounts = "gggggggb"
            tasks = [asyncio.create_task(said(fleet, call(account=who))) for who in accounts]
            await asyncio.gather(*tasks)
            assert "".join(asked.account for asked in many[A].asked) == "ggbggggg"

    run(test)


def test_a_deadline_that_passes_in_the_queue() -> None:
    async def test() -> None:
        many = servers("a", always=(token("x"), 10.0, END))
        async with many.started(card("m", A, max_running=1)) as fleet:
            runs = asyncio.create_task(said(fleet, call()))
            await settle()
            began = clock()
            with pytest.raises(DeadlineExceeded):
                await said(fleet, call(goals=Goals(began + 4)))
            assert clock() == pytest.approx(began + 4)
            assert fleet.load("m") == Load(True, 1, 0)
            await runs
            with pytest.raises(DeadlineExceeded):  # even where a place is free
                await said(fleet, call(goals=Goals(began)))
            assert await said(fleet, call(goals=Goals(clock() + 100))) == "x"

    run(test)


@pytest.mark.parametrize("how", ["closed", "cancelled", "failed", "ended", "dropped"])
def test_a_place_is_given_back_once_however_a_stream_ends(how: str) -> None:
    async def test() -> None:
        never = asyncio.Event()
        many = servers("a")
        async with many.started(card("m", A, max_running=1)) as fleet:
            for _ in range(3):
                last = {"failed": EngineLost("x"), "ended": END}.get(how, never)
                many[A].plays.append((token("a"), last))
                stream = await opened(fleet, call())
                assert fleet.load("m").running == 1
                if how == "cancelled":
                    task = asyncio.create_task(anext(stream))
                    await settle()
                    task.cancel()
                    await asyncio.wait([task])
                elif how == "failed":
                    with pytest.raises(EngineLost):
                        await anext(stream)
                elif how == "ended":
                    assert len([chunk async for chunk in stream]) == 1
                elif how == "dropped":
                    del stream
                    await settle()
                if how == "closed":
                    await stream.aclose()
                    await stream.aclose()
                assert fleet.load("m").running == 0
                assert await said(fleet, call()) == "a b"
            assert many[A].most == 1

    run(test)


def test_two_answers_that_swap_models_do_not_wait_for_each_other() -> None:
    """Each closes one call before it opens the next, as policies do: it holds one place at most."""

    async def test() -> None:
        many = servers("a", "b", always=(token("x"), 1.0, END))
        small, large = card("small", A, max_running=1), card("large", B, max_running=1)

        async def answer(fleet: Fleet, name: str, models: list[str]) -> None:
            for model in models:
                async with aclosing(fleet.generate(call(model=model, id=name))) as stream:
                    async for _ in stream:
                        break

        async with many.started(small, large) as fleet:
            turns = ["small", "large"] * 20
            async with asyncio.timeout(1000):
                await asyncio.gather(
                    *(answer(fleet, f"{at}", turns[at % 2 :]) for at in range(10)),
                )
            assert fleet.load("small") == fleet.load("large") == Load(True, 0, 0)

    run(test)


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_whatever_happens_no_place_is_lost(seed: int) -> None:
    """Servers fail and go down, clients leave, queues fill: in the end all is free again."""

    async def test() -> None:
        chance = Random(seed)
        limit = chance.randint(1, 3)
        many = servers("a", "b", "c")
        cards = card("m", *many, max_running=limit)

        async def client(at: int) -> None:
            await asyncio.sleep(chance.uniform(0, 30))
            server = chance.choice(list(many.values()))
            steps: list[Any] = [
                token("x"),
                chance.uniform(0, 3),
                Overloaded("x"),
                EngineLost("x"),
                END,
            ]
            server.plays.append(chance.sample(steps, 4))
            goals = Goals(clock() + chance.uniform(0, 20))
            try:
                async with asyncio.timeout(chance.uniform(0, 20)):
                    await said(fleet, call(str(at % 4), account=str(at % 3), goals=goals))
            except (FarthingError, TimeoutError):
                pass

        async def weather() -> None:
            for _ in range(20):
                await asyncio.sleep(chance.uniform(0, 3))
                server = chance.choice(list(many.values()))
                server.up = chance.random() < 0.5

        async with many.started(cards, sharing=Sharing(max_waiting=5)) as fleet:
            await asyncio.gather(weather(), *(client(at) for at in range(60)))
            assert all(server.most <= limit for server in many.values())
            load = fleet.load("m")
            assert (load.running, load.waiting) == (0, 0)
            for server in many.values():
                server.up = True
                server.plays.clear()
            await asyncio.sleep(60)
            results = await asyncio.gather(*(said(fleet, call(str(at))) for at in range(5)))
            assert results == ["a b"] * 5

    run(test)


def test_capabilities_are_what_all_ready_replicas_can_do() -> None:
    async def test() -> None:
        many = servers("a", "b", up=False)
        many[A].abilities = Capabilities("f", 4000, "exact", True, True, 1)
        many[B].abilities = Capabilities("f", 2000, "bounds", False, False, 9)
        async with many.started(card("m", A, B, context=500), card("n", A)) as fleet:
            assert fleet.capabilities("m") == Capabilities("f", 500)
            assert fleet.capabilities("n") == Capabilities("f", 0)
            many[A].up = True
            await asyncio.sleep(30)
            assert fleet.capabilities("m") == many[A].abilities
            many[B].up = True
            await asyncio.sleep(30)
            assert fleet.capabilities("m") == many[B].abilities
            many[B].abilities = Capabilities("f", 9000, None, True, True, 0)
            assert fleet.capabilities("m") == Capabilities("f", 4000, None, True, True, 1)
            many[A].up = False
            await asyncio.sleep(30)
            assert fleet.capabilities("m") == many[B].abilities
            many[B].up = False
            await asyncio.sleep(30)  # none is ready, but it is known what they could
            assert not fleet.load("m").healthy
            assert fleet.capabilities("m").context == 4000

    run(test)


BOTH = Speculates(("x", "y"), True, ("head", "confidence", "fixed"), ("exact", "lenient"), 16)
LESS = Speculates(("y", "x"), False, ("fixed", "confidence"), ("exact",), 5, False)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (BOTH, BOTH, BOTH),
        (BOTH, LESS, Speculates(("x", "y"), False, ("confidence", "fixed"), ("exact",), 5, False)),
        (BOTH, None, None),
        (BOTH, replace(LESS, drafts=("z",)), None),
        (BOTH, replace(BOTH, drafts=()), replace(BOTH, drafts=())),  # look-up is left
        (BOTH, replace(LESS, rules=("adaedl",)), None),
        (BOTH, replace(LESS, longest=0), None),
    ],
)
def test_a_model_speculates_as_all_its_replicas_can(
    one: Speculates, other: Speculates | None, common: Speculates | None
) -> None:
    async def test() -> None:
        many = servers("a", "b")
        many[A].abilities = Capabilities("f", 1000, speculation=one)
        many[B].abilities = Capabilities("f", 1000, speculation=other)
        async with many.started(card("m", A), card("n", A, B)) as fleet:
            assert fleet.capabilities("m").speculation == one
            assert fleet.capabilities("n").speculation == common

    run(test)
