"""No place is lost or given twice, nobody is overtaken, and accounts take turns."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engines.queueing import FairQueue, QueueFull
from app.errors import EngineUnavailable
from tests.app.engines.scripted import run, settle


class Places:
    """So many places, numbered, and who got them."""

    def __init__(self, many: int, most: int = 100) -> None:
        self.free = list(range(many))
        self.queue = FairQueue[int](most)
        self.order: list[str] = []
        self.gone = False

    def take(self) -> int | None:
        if self.gone:
            raise EngineUnavailable("gone")
        return self.free.pop() if self.free else None

    def give(self, place: int) -> None:
        assert place not in self.free, "given back twice"
        self.free.append(place)
        self.queue.pump()

    async def wait(self, account: str, name: str = "", ahead: bool = False) -> int:
        place = await self.queue.wait(account, self.take, self.give, ahead=ahead)
        self.order.append(name or account)
        return place

    async def visit(self, account: str, name: str = "") -> None:
        """Wait for a place, and give it back when others have had time to act."""
        place = await self.wait(account, name)
        await asyncio.sleep(0)
        self.give(place)


def waiting(places: Places, *names: str) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(places.wait(name[0], name)) for name in names]


async def end(places: Places, tasks: list[asyncio.Task[int]]) -> None:
    for task in tasks:
        places.give(await task)


def test_in_turn_among_accounts_and_in_order_within() -> None:
    async def test() -> None:
        places = Places(1)
        mine = await places.wait("x")
        names = ["a1", "a2", "a3", "b1", "b2", "c1"]
        tasks = [asyncio.create_task(places.visit(name[0], name)) for name in names]
        await settle()
        assert places.queue.waiting == 6
        places.give(mine)
        await asyncio.gather(*tasks)
        assert places.order[1:] == ["a1", "b1", "c1", "a2", "b2", "a3"]
        assert places.queue.waiting == 0

    run(test)


def test_a_newcomer_overtakes_nobody() -> None:
    async def test() -> None:
        places = Places(1)
        mine = await places.wait("x")
        (first,) = waiting(places, "a1")
        await settle()
        places.free.append(mine)  # a place that nobody was told of
        (second,) = waiting(places, "b1")
        await settle()
        assert not first.done()
        assert not second.done()
        places.queue.pump()
        await end(places, [first, second])
        assert places.order[1:] == ["a1", "b1"]

    run(test)


def test_the_queue_is_bounded() -> None:
    async def test() -> None:
        places = Places(1, most=2)
        mine = await places.wait("x")
        tasks = waiting(places, "a1", "a2")
        await settle()
        with pytest.raises(QueueFull):
            await places.wait("b")
        ahead = asyncio.create_task(places.wait("b", ahead=True))  # is never refused
        await settle()
        places.give(mine)
        await end(places, [ahead, *tasks])

    run(test)


def test_who_had_its_turn_goes_ahead_and_holds_nobody_up() -> None:
    async def test() -> None:
        places = Places(1)
        mine = await places.wait("x")
        (other,) = waiting(places, "a1")
        choosy = asyncio.create_task(places.queue.wait("b", lambda: None, places.give, ahead=True))
        ahead = asyncio.create_task(places.wait("b", "ahead", ahead=True))
        await settle()
        places.give(mine)
        await end(places, [ahead, other])
        assert places.order[1:] == ["ahead", "a1"]
        assert places.queue.waiting == 1
        choosy.cancel()
        await asyncio.wait([choosy])
        assert places.queue.waiting == 0

    run(test)


def test_who_is_cancelled_leaves_no_trace() -> None:
    async def test() -> None:
        places = Places(1)
        mine = await places.wait("x")
        first, second = waiting(places, "a1", "b1")
        await settle()
        first.cancel()
        await asyncio.wait([first])
        assert places.queue.waiting == 1
        places.give(mine)
        await end(places, [second])
        assert places.free == [0]

    run(test)


@pytest.mark.parametrize("granted_first", [True, False])
def test_a_place_for_who_is_being_cancelled_goes_to_the_next(granted_first: bool) -> None:
    async def test() -> None:
        places = Places(1)
        mine = await places.wait("x")
        first, second = waiting(places, "a1", "b1")
        await settle()
        if granted_first:
            places.give(mine)
            first.cancel()  # before it has seen what it was given
        else:
            first.cancel()
            places.give(mine)
        await end(places, [second])
        assert first.cancelled()
        assert places.order == ["x", "b1"]
        assert places.free == [0]

    run(test)


def test_who_leaves_does_not_use_up_its_account_s_turn() -> None:
    async def test() -> None:
        places = Places(1)
        mine = await places.wait("x")
        names = ["a1", "a2", "b1"]
        tasks = [asyncio.create_task(places.visit(name[0], name)) for name in names]
        await settle()
        tasks[0].cancel()
        places.give(mine)
        await asyncio.wait(tasks)
        assert places.order[1:] == ["a2", "b1"]

    run(test)


def test_everybody_is_told_when_there_will_be_no_place() -> None:
    async def test() -> None:
        places = Places(1)
        await places.wait("x")
        tasks = waiting(places, "a1", "b1", "b2")
        await settle()
        places.gone = True
        places.queue.pump()
        tasks[0].cancel()  # told and cancelled at once: its error must not be lost loudly
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [
            asyncio.CancelledError,
            EngineUnavailable,
            EngineUnavailable,
        ]
        assert places.queue.waiting == 0

    run(test)


@settings(max_examples=150)
@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.sampled_from(["normal", "normal", "normal", "ahead"]),
            st.integers(0, 4),  # starts at
            st.integers(0, 3),  # holds its place for
            st.none() | st.integers(0, 6),  # is cancelled at
        ),
        max_size=25,
    ),
    st.integers(0, 2**16),
)
def test_whatever_happens_no_place_is_lost(many: int, plan: list[Any], seed: int) -> None:
    async def test() -> None:
        places, held = Places(many, most=8), set[int]()

        async def work(account: str, kind: str, at: int, long: int) -> None:
            await asyncio.sleep(at)
            try:
                place = await places.wait(account, ahead=kind == "ahead")
            except QueueFull:
                return
            assert place not in held
            held.add(place)
            try:
                await asyncio.sleep(long)
            finally:
                held.remove(place)
                places.give(place)

        tasks = [asyncio.create_task(work(*each[:4])) for each in plan]
        loop = asyncio.get_running_loop()
        for task, (*_rest, cancelled) in zip(tasks, plan, strict=True):
            if cancelled is not None:
                loop.call_later(cancelled, task.cancel)
        Random(seed).shuffle(tasks)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [r for r in results if isinstance(r, Exception)]
        assert sorted(places.free) == list(range(many))
        assert places.queue.waiting == 0
        assert not places.queue._lines

    run(test)


@settings(max_examples=100)
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40), st.integers(1, 3))
def test_between_two_turns_of_an_account_all_that_wait_had_theirs(
    names: list[str], many: int
) -> None:
    async def test() -> None:
        places = Places(many)
        held = [await places.wait("x") for _ in range(many)]
        tasks = [asyncio.create_task(places.visit(name)) for name in names]
        await settle()
        for place in held:
            places.give(place)
        await asyncio.gather(*tasks)
        assert len(places.order) == many + len(names)
        order, left = places.order[many:], {name: names.count(name) for name in names}
        since: dict[str, set[str]] = {}
        for name in order:
            owed = {other for other, rest in left.items() if rest and other != name}
            if name in since:
                assert owed <= since[name], f"{name} came twice before {owed - since[name]}"
            since[name] = set()
            for seen in since.values():
                seen.add(name)
            left[name] -= 1

    run(test)
