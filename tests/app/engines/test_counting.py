"""A prompt is counted by a replica that is ready, without a place, and elsewhere if that fails."""

from __future__ import annotations

import asyncio

import pytest

from app.errors import (
    BadRequest,
    EngineError,
    EngineLost,
    EngineUnavailable,
    FarthingError,
    Overloaded,
)
from app.types import Load
from tests.app.engines.scripted import call, card, opened, run, servers, settle, token

A, B = "http://a:8000", "http://b:8000"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (EngineLost("x"), "open"),  # also where a call might be billed twice: a count is not
        (EngineUnavailable("x"), "open"),
        (Overloaded("x"), "ready"),
    ],
)
def test_it_is_tried_elsewhere_and_faults_count(error: Exception, state: str) -> None:
    async def test() -> None:
        many = servers("a", "b", idempotent=False)
        async with many.started() as fleet:
            many[A].counts = error
            many[A].probing = EngineError("x")
            for at in range(20):
                assert await fleet.count(call(f"number {at}")) == 7
            assert len(many[A].counted) >= 3
            assert fleet.replicas()[0].state == state

    run(test)


@pytest.mark.parametrize("error", [BadRequest("x"), EngineError("x"), EngineUnavailable("x")])
def test_what_cannot_be_helped_is_told(error: FarthingError) -> None:
    async def test() -> None:
        many = servers("a", "b", counts=error)
        async with many.started() as fleet:
            with pytest.raises(type(error), match="x"):
                await fleet.count(call())
            tries = sum(len(server.counted) for server in many.values())
            assert tries == (2 if isinstance(error, EngineUnavailable) else 1)

    run(test)


def test_where_no_replica_is_ready_it_is_unavailable() -> None:
    async def test() -> None:
        many = servers("a", up=False)
        async with many.started() as fleet:
            with pytest.raises(EngineUnavailable, match="model m is ready") as caught:
                await fleet.count(call())
            assert caught.value.retry_after is not None
            assert not many[A].counted

    run(test)


def test_it_needs_no_place_but_looks_for_a_server_that_has_one() -> None:
    async def test() -> None:
        many = servers("a", "b", always=(token("x"), asyncio.Event()))
        async with many.started(card("m", A, B, max_running=1)) as fleet:
            streams = [await opened(fleet, call())]
            full, free = sorted(many.values(), key=lambda server: -server.running)
            free.load_ = Load(running=5)  # busy, but with others' calls
            await asyncio.sleep(3)
            for at in range(20):
                await fleet.count(call(f"number {at}"))
            assert (len(full.counted), len(free.counted)) == (0, 20)
            streams.append(await opened(fleet, call()))
            assert await fleet.count(call()) == 7
            for stream in streams:
                await stream.aclose()

    run(test)


def test_a_server_is_not_closed_while_it_counts() -> None:
    async def test() -> None:
        block = asyncio.Event()
        many = servers("a", "b", counting=block)
        before = many.fleet(card("m", A))
        await before.start()
        counts = asyncio.create_task(before.count(call()))
        await settle()
        after = many.fleet(card("m", B), previous=before)
        await after.start()
        await settle()
        assert many[A].closed == 0
        block.set()
        assert await counts == 7
        await settle()
        assert many[A].closed == 1
        await after.aclose()

    run(test)
