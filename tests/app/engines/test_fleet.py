"""A fleet starts whatever is down, keeps families together, is replaced in flight, and ends."""

from __future__ import annotations

import asyncio
import logging
from decimal import Decimal
from typing import Any

import pytest

from app.catalog import Price
from app.engines.fake import Fake, Script
from app.engines.fleet import Fleet
from app.errors import ConfigError, EngineUnavailable, UnknownModel
from app.types import Load
from tests.app.engines.scripted import (
    END,
    Server,
    Servers,
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
from tests.app.test_confidence import calibration

A, B, C = (f"http://{name}:8000" for name in "abc")


def states(fleet: Fleet) -> list[tuple[str, str, str]]:
    return [(each.model, each.url, each.state) for each in fleet.replicas()]


def test_models_in_this_process_and_on_servers_are_one_engine() -> None:
    async def test() -> None:
        fake = Fake({"small": Script(["one", "two"])})
        small = card("small", engine="embedded", weights="small.gguf")
        many = servers("a")
        async with many.started(small, card("m", A), engines={"small": fake}) as fleet:
            assert await said(fleet, call(model="small")) == "one two"
            assert await said(fleet, call()) == "a b"
            assert (await fleet.count(call()), await fleet.count(call(model="small"))) == (7, 1)
            assert fleet.capabilities("small") == fake.capabilities("small")
            assert fleet.load("small") == fake.load("small")
            assert states(fleet) == [("m", A, "ready")]
            for ask in (fleet.capabilities, fleet.load):
                with pytest.raises(UnknownModel):
                    ask("other")
            with pytest.raises(UnknownModel):
                await fleet.count(call(model="other"))
            with pytest.raises(UnknownModel):
                await said(fleet, call(model="other"))
        with pytest.raises(ConfigError, match=r"\[models.small\]"):
            many.fleet(small)

    run(test)


def test_a_fleet_that_has_ended_takes_no_calls_and_has_closed_all() -> None:
    async def test() -> None:
        many = servers("a", "b", always=(token("x"), asyncio.Event()))
        many[B].up = False
        cards = card("m", A, max_running=1), card("n", B)
        async with many.started(*cards) as fleet:
            await (await opened(fleet, call())).aclose()
        assert [server.closed for server in many.values()] == [1, 1]
        await fleet.aclose()
        assert [server.closed for server in many.values()] == [1, 1]
        for ask in (said(fleet, call()), fleet.count(call())):
            with pytest.raises(EngineUnavailable, match="shutting down"):
                await ask
        assert not fleet.load("m").healthy
        assert fleet.capabilities("m").context == 1000

    run(test)


def test_who_waits_when_it_ends_is_told() -> None:
    async def test() -> None:
        many = servers("a", always=(token("x"), asyncio.Event()))
        async with many.started(card("m", A, max_running=1)) as fleet:
            stream = await opened(fleet, call())
            waits = asyncio.create_task(said(fleet, call()))
            await settle()
            many[A].running = 0  # a stream that is still open breaks off: here it does not mind
            await fleet.aclose()
            with pytest.raises(EngineUnavailable, match="shutting down"):
                await waits
            await stream.aclose()

    run(test)


def test_a_backend_that_does_not_close_keeps_no_other_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        many = servers("a", "b")
        many[A].aclose = _fails  # type: ignore[method-assign]
        async with many.started():
            pass
        assert many[B].closed == 1
        assert "did not close" in caplog.text

    run(test)


async def _fails() -> None:
    raise OSError("no")


def test_a_family_has_one_tokenizer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.engines")

    async def test() -> None:
        many = servers("a", "b", "c", "d")
        many[A].fingerprint, many[B].fingerprint, many[C].fingerprint = "x", "y", None
        many[B].probing = 1.0  # the later one
        many["http://d:8000"].fingerprint = "y"
        cards = [card("m", A), card("n", B), card("o", C)]
        other = card("p", "http://d:8000", family="other")
        async with many.started(*cards, other) as fleet:
            assert [state for *_, state in states(fleet)] == ["ready", "probing", "ready", "ready"]
            assert fleet.replicas()[1].reason == (
                f"its tokenizer is not that of m at {A}, of the same family f"
            )
            assert "its tokenizer" in caplog.text
            with pytest.raises(EngineUnavailable):
                await said(fleet, call(model="n"))
            await asyncio.sleep(200)
            assert caplog.text.count("its tokenizer") == 1
            many[B].fingerprint = "x"
            await asyncio.sleep(30)
            assert states(fleet)[1] == ("n", B, "ready")
            many[A].up = False
            await asyncio.sleep(30)
            many[A].up, many[A].fingerprint = True, "z"  # it came back as something else
            await asyncio.sleep(60)
            assert states(fleet)[0] == ("m", A, "open")

    run(test)


def test_a_server_that_was_taken_over_must_fit_its_new_family() -> None:
    async def test() -> None:
        many = servers("a", "b", fingerprint="x")
        before = many.fleet(card("m", A))
        await before.start()
        after = many.fleet(card("m", A), card("n", B), previous=before)
        await after.start()
        many[A].up = False
        await asyncio.sleep(20)
        many[A].up, many[A].fingerprint = True, "y"
        await asyncio.sleep(60)
        assert states(after) == [("m", A, "open"), ("n", B, "ready")]
        await after.aclose()

    run(test)


def test_a_reload_keeps_what_is_as_it_was_and_drains_the_rest() -> None:
    async def test() -> None:
        block = asyncio.Event()
        many = servers("a", "b", "c")
        before = many.fleet(card("m", A, B, max_running=1))
        await before.start()
        for server in many.values():
            server.plays.append((token("old"), block, token("end"), END))
        streams = [await opened(before, call(str(at))) for at in range(2)]
        waits = asyncio.create_task(said(before, call("waits", account="w")))
        await settle()
        many[C].probing = 5.0
        ours: dict[str, Any] = {
            "price": Price(input=1, output=Decimal(2)),
            "aliases": ("x",),
            "confidence": calibration(model="m"),
        }
        new = card("m", B, C, max_running=1, **ours)
        after = many.fleet(new, previous=before)
        assert many.made == [("m", A), ("m", B), ("m", C)]  # B is taken over
        starting = asyncio.create_task(after.start())
        await settle()
        assert before.load("m") == Load(True, 2, 1)  # as before
        assert states(before) == [("m", A, "ready"), ("m", B, "ready")]
        await starting
        assert states(after) == [("m", B, "ready"), ("m", C, "ready"), ("m", A, "draining")]
        assert states(before) == states(after)
        assert after.load("m").running == 2  # the old stream at B, and who waited, now at C
        await asyncio.sleep(1)
        assert many[C].running == 1
        asked = len(many[A].asked)
        block.set()
        rest = [[chunk.text async for chunk in stream] for stream in streams]
        assert rest == [["end ", ""]] * 2
        assert await waits == "old end"
        await settle()
        assert (many[A].closed, many[B].closed) == (1, 0)
        assert states(after) == [("m", B, "ready"), ("m", C, "ready")]
        for at in range(10):  # an answer that began under the old catalog goes on
            assert await said(before, call(f"later {at}")) == "a b"
        assert len(many[A].asked) == asked
        await asyncio.sleep(10)
        assert many[B].probes == [0]
        await before.aclose()  # nothing is its own any more
        assert many[B].closed == 0
        await after.aclose()
        assert [server.closed for server in many.values()] == [1, 1, 1]
        assert len(many[A].pulses) == 3  # nobody watched it any more

    run(test)


def test_a_model_that_changed_or_is_gone_ends_what_it_runs_and_what_waits() -> None:
    async def test() -> None:
        block = asyncio.Event()
        old = servers("a", "b", always=(token("old"), block, END))
        before = old.fleet(card("m", A, max_running=1), card("n", B, max_running=1))
        await before.start()
        tasks = [
            asyncio.create_task(said(before, call(model=model))) for model in ("m", "m", "n", "n")
        ]
        await settle()
        new = servers("a", always=(token("new"), END))
        after = new.fleet(card("m", A, served="another"), previous=before)
        await after.start()
        assert await said(after, call()) == "new"
        assert await said(before, call()) == "new"
        with pytest.raises(UnknownModel):
            await said(before, call(model="n"))
        assert states(after) == [("m", A, "ready"), ("m", A, "draining"), ("n", B, "draining")]
        block.set()
        assert await asyncio.gather(*tasks) == ["old"] * 4
        await settle()
        assert [server.closed for server in old.values()] == [1, 1]
        assert states(after) == [("m", A, "ready")]
        await after.aclose()

    run(test)


def test_what_drains_outlives_a_second_reload_and_is_closed_at_the_end() -> None:
    async def test() -> None:
        many = servers("a", "b", always=(token("x"), asyncio.Event()))
        first = many.fleet(card("m", A))
        await first.start()
        stream = await opened(first, call())
        second = many.fleet(card("n", B), previous=first)
        await second.start()
        third = many.fleet(card("n", B), previous=second)
        await third.start()
        assert states(third) == [("n", B, "ready"), ("m", A, "draining")]
        assert many.made == [("m", A), ("n", B)]
        assert first.load("n") == third.load("n")
        many[A].running = 0
        await third.aclose()
        assert [server.closed for server in many.values()] == [1, 1]
        await stream.aclose()

    run(test)


def test_a_reload_that_does_not_come_about_changes_nothing() -> None:
    async def test() -> None:
        many = servers("a", "b", "c")
        async with many.started(card("m", A)) as before:
            with pytest.raises(KeyError):  # of make_backend
                many.fleet(card("m", A, "http://nowhere:1"), previous=before)
            unused = many.fleet(card("m", B), previous=before)
            await unused.aclose()
            many[C].probing = 50.0
            cancelled = many.fleet(card("m", C), previous=before)
            task = asyncio.create_task(cancelled.start())
            await settle()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert (many[A].closed, many[B].closed, many[C].closed) == (0, 1, 1)
            assert states(before) == [("m", A, "ready")]
            assert await said(before, call()) == "a b"

    run(test)


def test_a_fleet_has_one_successor() -> None:
    async def test() -> None:
        many = servers("a", "b", "c")
        before = many.fleet(card("m", A))
        await before.start()
        one, two = (many.fleet(card("m", url), previous=before) for url in (B, C))
        results = await asyncio.gather(one.start(), two.start(), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), RuntimeError]
        assert (many[B].closed, many[C].closed) == (0, 1)
        assert await said(before, call()) == "a b"
        await one.aclose()
        late = many.fleet(card("m", C), previous=one)
        with pytest.raises(RuntimeError):
            await late.start()

    run(test)


def test_a_server_down_at_a_reload_comes_up_afterwards() -> None:
    async def test() -> None:
        many = Servers(Server(A), Server(B, up=False))
        before = many.fleet(card("m", A))
        await before.start()
        after = many.fleet(card("m", A, B), previous=before)
        await after.start()
        assert states(after) == [("m", A, "ready"), ("m", B, "probing")]
        many[B].up = True
        began = clock()
        await asyncio.sleep(10)
        assert states(after)[1] == ("m", B, "ready")
        assert many[A].probes == [0]
        assert [at for at in many[A].pulses if at > began]
        await after.aclose()

    run(test)
