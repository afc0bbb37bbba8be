"""A server is ready when it has proved so, is left alone when it is broken, and comes back."""

from __future__ import annotations

import asyncio
import logging

import pytest

from app.engines.fleet import Fleet
from app.engines.replica import ReplicaStatus
from app.errors import (
    BadRequest,
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
    EngineLost,
    EngineUnavailable,
    FarthingError,
    Overloaded,
    UnknownModel,
)
from app.types import Chunk, Load, Usage
from tests.app.engines.scripted import END, call, opened, run, said, servers, settle, token

A = "http://a:8000"


@pytest.fixture(autouse=True)
def all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.engines")


def status(fleet: Fleet) -> ReplicaStatus:
    return fleet.replicas()[0]


async def fail(fleet: Fleet, error: Exception) -> None:
    """One call to the first server that fails like this."""
    server = fleet._posts["m"].replicas[0].backend
    server.plays.append((error,))  # type: ignore[attr-defined]
    with pytest.raises(type(error)):
        await said(fleet, call())


def test_a_server_that_comes_up_late_is_asked_ever_more_rarely_until_it_does() -> None:
    async def test() -> None:
        many = servers("a", up=False)
        server = many[A]
        async with many.started() as fleet:
            assert (status(fleet).state, status(fleet).reason) == ("probing", "it is down")
            with pytest.raises(EngineUnavailable, match="model m is ready") as caught:
                await said(fleet, call())
            assert caught.value.retry_after == 1.0
            assert "8000" not in caught.value.message
            await asyncio.sleep(300)
            gaps = [b - a for a, b in zip(server.probes, server.probes[1:], strict=False)]
            for gap, whole in zip(gaps, (1, 2, 4, 8, 16, 30, 30), strict=False):
                assert whole / 2 <= gap <= whole
            with pytest.raises(EngineUnavailable) as caught:
                await said(fleet, call())
            assert 1.0 < (caught.value.retry_after or 0) <= 30
            probes = len(server.probes)
            await asyncio.sleep(caught.value.retry_after or 0)
            await settle()
            assert len(server.probes) == probes + 1
            assert not server.asked
            server.up = True
            await asyncio.sleep(30)
            assert status(fleet) == ReplicaStatus("m", A, "ready", "", 0, 0)
            assert await said(fleet, call()) == "a b"

    run(test)


def test_a_server_that_does_not_answer_its_probe_holds_the_start_up_for_so_long_only() -> None:
    async def test() -> None:
        many = servers("a", "b")
        many[A].probing = 1e6
        async with many.started() as fleet:
            assert asyncio.get_running_loop().time() == 60
            assert [each.state for each in fleet.replicas()] == ["probing", "ready"]
            assert status(fleet).reason == "no answer within 60 s"

    run(test)


def test_meanwhile_those_that_did_answer_serve() -> None:
    async def test() -> None:
        many = servers("a", "b")
        many[A].probing = 1e6
        fleet = many.fleet()
        starting = asyncio.create_task(fleet.start())
        await settle()
        assert await said(fleet, call()) == "a b"
        assert not starting.done()
        starting.cancel()
        await asyncio.wait([starting])
        assert [server.closed for server in many.values()] == [1, 1]

    run(test)


def test_who_starts_a_fleet_that_is_closed_meanwhile_is_told() -> None:
    async def test() -> None:
        many = servers("a", probing=1e6)
        fleet = many.fleet()
        starting = asyncio.create_task(fleet.start())
        await settle()
        await fleet.aclose()
        with pytest.raises(RuntimeError):
            await starting

    run(test)


def test_faults_in_a_row_open_it_and_only_a_probe_closes_it() -> None:
    async def test() -> None:
        many = servers("a")
        server = many[A]
        async with many.started() as fleet:
            server.probing = EngineError("its GPU is gone")
            for error in (EngineError("x"), EngineLost("y"), EngineUnavailable("z")):
                assert status(fleet).state == "ready"
                await fail(fleet, error)
            assert status(fleet).state == "open"
            assert status(fleet).reason == "3 calls in a row failed: z"
            asked, probes = len(server.asked), len(server.probes)
            await asyncio.sleep(1)  # not only when the next pulse would have come
            assert len(server.probes) == probes + 1
            await asyncio.sleep(9)
            with pytest.raises(EngineUnavailable):
                await said(fleet, call())
            assert len(server.asked) == asked  # no client's call was its guinea pig
            assert len(server.probes) > probes + 1
            assert status(fleet).reason == "its GPU is gone"
            server.probing = None
            await asyncio.sleep(30)
            assert status(fleet).state == "ready"
            await fail(fleet, EngineError("x"))  # it begins to count anew
            assert status(fleet).state == "ready"

    run(test)


def test_a_first_token_begins_the_count_anew_and_usage_alone_does_not() -> None:
    async def test() -> None:
        many = servers("a")
        async with many.started() as fleet:
            for _ in range(5):
                await fail(fleet, EngineError("x"))
                await fail(fleet, EngineError("x"))
                assert await said(fleet, call()) == "a b"
            assert status(fleet).state == "ready"
            for _ in range(3):
                many[A].plays.append((Chunk(usage=Usage(prompt=3)), EngineError("x")))
                with pytest.raises(EngineError):
                    await said(fleet, call())
            assert status(fleet).state == "open"

    run(test)


@pytest.mark.parametrize(
    "error",
    [
        BadRequest("x"),
        ContextOverflow("x"),
        UnknownModel("x"),
        Overloaded("x"),
        DeadlineExceeded("x"),
        ValueError("x"),
    ],
)
def test_what_is_not_the_server_s_fault_is_neither_fault_nor_success(error: Exception) -> None:
    async def test() -> None:
        many = servers("a")
        async with many.started() as fleet:
            await fail(fleet, EngineError("x"))
            for _ in range(5):
                await fail(fleet, error)
            await fail(fleet, EngineError("x"))
            assert status(fleet).state == "ready"
            await fail(fleet, EngineError("x"))
            assert status(fleet).state == "open"

    run(test)


def test_a_client_that_leaves_is_no_fault_of_the_server() -> None:
    async def test() -> None:
        many = servers("a", always=(token("a"), asyncio.Event()))
        async with many.started() as fleet:
            for _ in range(5):
                stream = await opened(fleet, call())
                waits = asyncio.create_task(anext(stream))
                await settle()
                waits.cancel()
                await asyncio.wait([waits])
                await (await opened(fleet, call())).aclose()
            assert status(fleet) == ReplicaStatus("m", A, "ready", "", 0, 0)

    run(test)


def test_pulses_tell_the_load_and_failing_ones_come_sooner_then_open_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        many = servers("a", load_=Load(running=3, waiting=4))
        server = many[A]
        async with many.started() as fleet:
            await asyncio.sleep(10)
            assert server.pulses == [0, 3, 6, 9]
            assert (status(fleet).running, status(fleet).waiting) == (0, 4)
            # Of other gateways and workers; where some are ours, each still counts once.
            assert fleet.load("m") == Load(True, 0, 7)
            mine = await opened(fleet, call())
            await asyncio.sleep(3)
            assert fleet.load("m") == Load(True, 1, 6)
            await mine.aclose()
            server.pulsing = 1e6
            server.probing = EngineError("still down")
            await asyncio.sleep(3 + 5 + 1 + 5)
            assert status(fleet).state == "ready"
            await asyncio.sleep(2 + 5)
            assert status(fleet).state == "open"
            assert fleet.load("m") == Load(False, 0, 0)
            assert "3 health checks in a row failed: no answer within 5 s" in caplog.text
            server.pulsing = server.probing = None
            await asyncio.sleep(60)
            assert status(fleet).state == "ready"

    run(test)


def test_pulses_that_fail_now_and_then_do_not_open_it() -> None:
    async def test() -> None:
        many = servers("a")
        async with many.started() as fleet:
            await asyncio.sleep(1)
            for _ in range(5):
                pulses = len(many[A].pulses)
                many[A].pulsing = EngineError("x")
                while len(many[A].pulses) < pulses + 2:
                    await asyncio.sleep(0.1)
                many[A].pulsing = None
                await asyncio.sleep(5)
                assert status(fleet).state == "ready"

    run(test)


def test_a_server_that_answers_pulses_but_breaks_off_calls_is_opened(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        many = servers("a")
        async with many.started() as fleet:
            for _ in range(3):
                assert status(fleet).state == "ready"
                await fail(fleet, EngineError("x"))
                await asyncio.sleep(9)  # pulses in between
            assert many[A].pulses
            assert "3 calls in a row" in caplog.text

    run(test)


@pytest.mark.parametrize(("every", "probes"), [(0.5, 14), (2.0, 35)])
def test_one_that_is_probed_well_and_fails_again_is_probed_ever_more_rarely(
    every: float, probes: int
) -> None:
    async def test() -> None:
        many = servers("a", always=(EngineError("x"),))
        async with many.started() as fleet:
            for _ in range(300):
                if status(fleet).state == "ready":
                    with pytest.raises(FarthingError):
                        await said(fleet, call())
                await asyncio.sleep(every)
            assert len(many[A].probes) < probes
            many[A].always = (token("a"), END)
            await asyncio.sleep(60)
            assert await said(fleet, call()) == "a"

    run(test)


def test_a_bug_in_a_check_is_logged_and_the_watch_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        many = servers("a", probing=KeyError("bug"))
        async with many.started() as fleet:
            assert status(fleet).reason == "KeyError: 'bug'"
            assert any(record.exc_info for record in caplog.records)
            many[A].probing = None
            await asyncio.sleep(5)
            assert status(fleet).state == "ready"
            many[A].pulsing = KeyError("bug")
            many[A].probing = 1e6
            await asyncio.sleep(20)
            assert status(fleet).state == "open"

    run(test)


def test_a_bug_that_ends_a_watch_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        many = servers("a")
        async with many.started() as fleet:
            fleet._posts["m"].replicas[0]._pulse = None  # type: ignore[assignment, method-assign]
            await asyncio.sleep(5)
            assert [r.levelname for r in caplog.records if r.exc_info] == ["CRITICAL"]

    run(test)


def test_one_line_is_logged_for_each_change(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        many = servers("a", up=False)
        async with many.started() as fleet:
            await asyncio.sleep(100)
            many[A].up = True
            await asyncio.sleep(60)
            for _ in range(3):
                await fail(fleet, EngineError("x"))
            await asyncio.sleep(60)

    run(test)
    assert [r.getMessage() for r in caplog.records if "a call failed" not in r.getMessage()] == [
        f"model m: {A} is not ready yet: it is down",
        f"model m: {A} is ready",
        f"model m: {A} is out of service: 3 calls in a row failed: x",
        f"model m: {A} is ready",
    ]
