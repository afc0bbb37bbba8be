"""Every call of an answer leaves a record: what it cost, how it ended, and who had a part in it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest

from app.budget import Meter, Purse
from app.errors import BadRequest, EngineError, EngineUnavailable, Overloaded
from app.gateway import MOST_CALLS, Answer, Gateway, Order
from app.trail import CallRecord
from app.types import Decision, Usage
from tests.app.engines.scripted import END, card, run, servers, token
from tests.app.engines.scripted import call as asked
from tests.policies.scripts import call, engine, fleet, usd

TRACE = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}


@dataclass
class Clerk:
    """A Witness, and an Observer."""

    began: list[CallRecord] = field(default_factory=list)
    ended: list[CallRecord] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)

    def calling(self, *told: Answer | CallRecord) -> None:
        record = told[-1]
        assert isinstance(record, CallRecord) and record.ended is None
        record.headers = record.headers | self.told
        self.began.append(record)

    def called(self, *told: Answer | CallRecord) -> None:
        assert isinstance(told[-1], CallRecord)
        self.ended.append(told[-1])

    def decided(self, answer: Answer, decision: Decision) -> None:
        pass

    def answered(self, answer: Answer, outcome: str) -> None:
        pass


def paid(fake: object, clerk: Clerk) -> Meter:
    return Meter(fake, fleet().prices(), usd(1000), witness=clerk)


async def test_a_call_leaves_what_it_used_and_why_it_ended():
    clerk = Clerk()
    async with paid(engine(), clerk) as meter:
        [_ async for _ in meter.generate(call("small", max_tokens=3))]
        (record,) = clerk.ended
        assert (record.model, record.prompt, record.cost) == ("small", 5, meter.cost)
        assert record.usage == Usage(prompt=5, completion=3)
        assert (record.outcome, record.why) == ("ok", "length")
        assert record.began <= record.first <= record.ended


async def test_one_that_the_budget_cuts_says_so_and_one_that_is_closed_early_too():
    clerk = Clerk()
    async with paid(engine(), clerk) as meter:
        meter.limit = usd(5 + 2 * 3)
        [_ async for _ in meter.generate(call("small"))]
        meter.limit = usd(1000)
        async with aclosing(meter.generate(call("small"))) as stream:
            await anext(stream)
    assert [(each.outcome, each.why) for each in clerk.ended] == [("ok", "budget"), ("closed", "")]


@pytest.mark.parametrize(
    ("error", "outcome"), [(EngineError("x"), "failed"), (BadRequest("x"), "refused")]
)
async def test_one_that_fails_says_whose_fault_it_was(error, outcome):
    clerk, fake = Clerk(), engine()

    async def broken(call):
        raise error
        yield

    fake.generate = broken
    async with paid(fake, clerk) as meter:
        with pytest.raises(type(error)):
            await anext(meter.generate(call("small")))
    assert [(each.outcome, each.why) for each in clerk.ended] == [(outcome, type(error).__name__)]


async def test_calls_of_shares_are_told_too():
    clerk = Clerk()
    async with paid(engine(), clerk) as meter:
        share = meter.share()
        share.limit = usd(500)
        [_ async for _ in share.generate(call("small", max_tokens=2))]
    assert [each.model for each in clerk.ended] == ["small"]


@pytest.mark.parametrize("moment", ["calling", "called"])
async def test_a_witness_that_fails_leaves_nothing_open_and_nothing_unpaid(moment):
    clerk = Clerk()

    def fails(record):
        raise RuntimeError(moment)

    setattr(clerk, moment, fails)
    async with paid(engine(), clerk) as meter:
        with pytest.raises(RuntimeError):
            [_ async for _ in meter.generate(call("small", max_tokens=3))]
        spent = usd(5 + 2 * 3) if moment == "called" else 0
        assert meter.cost == meter.bound == spent


async def test_an_answer_keeps_its_calls_and_each_is_told_whose_trace_it_is_part_of():
    clerk, fake = Clerk(told={"tracestate": "a=b"}), engine([0.1] * 12 + [6.0] * 28)
    order = Order(call("economy"), trace=TRACE)
    answer = Gateway(fake, fleet(), clerk).answer(order, Purse())
    async with aclosing(answer):
        [_ async for _ in answer]
    assert [each.model for each in answer.calls] == [each.model for each in fake.calls]
    assert sum(each.cost for each in answer.calls) == answer.bill.cost
    assert answer.calls == clerk.began == clerk.ended and len(answer.calls) > 1
    assert [each.trace for each in fake.calls] == [TRACE | {"tracestate": "a=b"}] * len(fake.calls)


async def test_not_more_calls_are_kept_than_anybody_reads():
    clerk = Clerk()
    answer = Gateway(engine(), fleet(), clerk).answer(Order(call("small")), Purse())
    for _ in range(MOST_CALLS + 3):
        answer.called(CallRecord("small", 1))
    assert (len(answer.calls), len(clerk.ended)) == (MOST_CALLS, MOST_CALLS + 3)
    await answer.aclose()


def tried(record: CallRecord) -> list[tuple[str, str, str]]:
    return [(each.server, each.outcome, each.error) for each in record.attempts]


def test_whoever_had_a_part_is_named_with_how_it_went():
    async def test():
        there = servers("a", "b")
        for url in there:
            there[url].plays.append([EngineUnavailable("it fell over")])
            there[url].plays.append([token("a"), token("b"), END])
        async with there.started() as fleet:
            record = CallRecord("m", 7)
            with pytest.raises(EngineUnavailable):
                [_ async for _ in fleet.generate(asked(watch=record))]
            assert sorted(tried(record)) == [
                ("a:8000", "failed", "it fell over"),
                ("b:8000", "failed", "it fell over"),
            ]
            for url in there:
                there[url].plays.clear()
            for url in list(there)[:1]:
                there[url].plays.append([Overloaded("it is full")])
            ways = set()
            for _ in range(8):
                record = CallRecord("m", 7)
                [_ async for _ in fleet.generate(asked(watch=record))]
                ways.add(tuple((server, how) for server, how, _ in tried(record)))
            assert ways <= {
                (("a:8000", "refused"), ("b:8000", "ok")),
                (("a:8000", "ok"),),
                (("b:8000", "ok"),),
            }
            assert (("a:8000", "refused"), ("b:8000", "ok")) in ways

    run(test)


def test_one_that_a_bug_ended_has_failed():
    async def test():
        there = servers("a")
        there["http://a:8000"].plays.append([token("a"), ZeroDivisionError()])
        async with there.started() as fleet:
            record = CallRecord("m", 7)
            with pytest.raises(ZeroDivisionError):
                [_ async for _ in fleet.generate(asked(watch=record))]
            assert tried(record) == [("a:8000", "failed", "")]

    run(test)


def test_one_that_is_closed_in_mid_answer_was_closed_and_after_its_end_was_well():
    async def test():
        async with servers("a").started() as fleet:
            for read, outcome in ((1, "closed"), (3, "ok")):
                record = CallRecord("m", 7)
                async with aclosing(fleet.generate(asked(watch=record))) as stream:
                    for _ in range(read):
                        await anext(stream)
                assert tried(record) == [("a:8000", outcome, "")]

    run(test)


def test_who_waits_for_a_place_knows_how_long():
    async def test():
        there = servers("a")
        there["http://a:8000"].always = (token("a"), 2.5, END)
        async with there.started(card("m", *there, max_running=1)) as fleet:
            first, second = CallRecord("m", 7), CallRecord("m", 7)

            async def one(record):
                [_ async for _ in fleet.generate(asked(watch=record))]

            await asyncio.gather(one(first), one(second))
            assert (first.queued, second.queued) == (0.0, 2.5)

    run(test)
