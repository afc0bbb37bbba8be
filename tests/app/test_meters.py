"""A meter upon a meter: one call bounded in USD and in accelerator time."""

import asyncio
import sys
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.budget import Meter, Purse
from app.catalog import Catalog, GpuSeconds
from app.errors import BudgetExceeded, Unaffordable
from app.gateway import Answer, Gateway, Order, Plan
from app.types import Sampling
from tests.app.test_choices import Patient, written
from tests.app.test_meter_native import WHOLE, Played, asked, used
from tests.app.test_trail import Clerk
from tests.policies.scripts import ask, call, engine, fleet, read, usd

GPU = {"small": GpuSeconds(input=1, output=3), "large": GpuSeconds(input=2, output=30)}
PARAM = "X-Budget-Gpu-Seconds"


def seconds(micro):
    """Microseconds as 1e-12 s: a token of a model that says 1 s per million takes 1."""
    return micro * 10**6


def timed(gpu=GPU):
    fast = fleet()
    cards = fast.models.items()
    return Catalog(
        {n: c.model_copy(update={"gpu_seconds": gpu[n]}) for n, c in cards}, fast.presets
    )


def meters(fake, money, time, **more):
    return Meter(Meter(fake, GPU, time, param=PARAM), fleet().prices(), money, gpu=GPU, **more)


@pytest.mark.parametrize(
    ("money", "time", "tokens"),
    # A token of the small model: 2 millionths of a USD, 3 microseconds; its prompt 5 of each.
    [(5 + 2 * 7, 5 + 3 * 9, 7), (5 + 2 * 9, 5 + 3 * 7, 7), (5 + 2 * 9, 5 + 3 * 7 - 1, 6)],
)
async def test_the_nearer_bound_lowers_max_tokens(money, time, tokens):
    fake = engine()
    async with meters(fake, usd(money), seconds(time)) as paid:
        chunks = [chunk async for chunk in paid.generate(call("small"))]
        assert fake.calls[0].max_tokens == tokens
        assert (chunks[-1].finish, chunks[-1].reason) == ("length", "budget")
        assert (paid.cost, paid.beneath.cost) == (usd(5 + 2 * tokens), seconds(5 + 3 * tokens))
        (line,) = paid.lines()
        assert line.gpu_us == 5 + 3 * tokens


async def test_what_it_still_buys_is_what_both_buy():
    async with meters(engine(), usd(5 + 2 * 7), seconds(3 * 4)) as paid:
        assert paid.allowance("small") == 4
        paid.limit = usd(2 * 3)
        assert paid.allowance("small") == 3
        paid.scarce = False
        assert paid.allowance("small") == 4
        paid.beneath.limit = None
        assert paid.allowance("small") == sys.maxsize


async def test_a_refusal_names_the_bound_that_is_too_near():
    for money, time, param in ((7, 8, None), (6, 8, "X-Budget-Usd"), (7, 7, PARAM)):
        fake = engine()
        async with meters(fake, usd(money), seconds(time)) as paid:
            if param is None:
                await anext(paid.generate(call("small")))
                continue
            with pytest.raises(Unaffordable) as refusal:
                await anext(paid.generate(call("small")))
            assert refusal.value.param == param and fake.calls == []
            assert (paid.bound, paid.beneath.bound) == (0, 0)


async def test_what_the_bound_beneath_refuses_has_not_been_a_call():
    clerk = Clerk()
    async with meters(engine(), usd(1000), seconds(7), witness=clerk) as paid:
        with pytest.raises(Unaffordable):
            await anext(paid.generate(call("small")))
    assert (clerk.began, clerk.ended) == ([], [])


async def test_what_may_have_been_written_unseen_is_held_back_from_both():
    fake = Played([used(5, 1), None], overrun=4)
    async with meters(fake, usd(1000), seconds(1000)) as paid:
        async with aclosing(paid.generate(asked())) as stream:
            await anext(stream)
        assert paid.rest == usd(1000 - 5 - 2 * 5)
        assert paid.beneath.rest == seconds(1000 - 5 - 3 * 5)


async def test_in_one_piece_who_leaves_pays_for_all_that_it_may_be_in_both():
    async with meters(Played([used(), None]), usd(1000), seconds(5 + 3 * 10)) as paid:
        async with aclosing(paid.generate(asked(**WHOLE, max_tokens=20))) as stream:
            await anext(stream)
        # Of the money as if all 20 had been asked for: never less than may have been spent.
        assert (paid.cost, paid.beneath.cost) == (usd(5 + 2 * 20), seconds(5 + 3 * 10))


async def test_servers_are_recorded_where_the_answer_s_calls_are():
    clerk, fake = Clerk(), Played([used(5, 1), replace(used(), finish="stop")])
    async with meters(fake, usd(1000), seconds(1000), witness=clerk) as paid:
        [_ async for _ in paid.generate(asked())]
    assert [each.watch for each in fake.calls] == clerk.ended == clerk.began


async def test_what_one_choice_does_not_need_the_others_get():
    order = Order(call("large", choices=2, sampling=Sampling(seed=1)), gpu=seconds(20 + 30 * 10))
    fake = engine()
    beneath = Meter(fake, GPU, order.gpu, param=PARAM)
    plan, paid = Plan("", "patient", Patient(), "large"), Meter(beneath, fleet().prices())
    answer = Answer(order, plan, paid, "v1", Purse(), None)
    assert written(await read(answer)) == [1, 9]


@pytest.mark.parametrize("most", range(1, 30))
async def test_lines_that_are_rounded_up_stay_within_it(most):
    """Half a microsecond for a token: of 20, three by the small model are two, 17 are nine."""
    gpu = dict.fromkeys(("small", "large"), GpuSeconds(input=0, output=0.5))
    gateway = Gateway(engine(), timed(gpu))
    answer = ask(gateway, Order(call(), options={"switch_at": (3,)}, gpu=seconds(most)))
    try:
        await read(answer)
    except BudgetExceeded:
        assert most == 1  # kept for the rounding
    assert answer.bill.gpu_us <= most
    wrote = [line.model for line in answer.bill.lines if line.usage.completion]
    assert len(wrote) == min(most - 1, 2)


tariffs = st.builds(
    GpuSeconds,
    input=st.decimals(min_value=0, max_value=9, places=6),
    output=st.decimals(min_value=0, max_value=99, places=6),
)


@settings(max_examples=150)
@given(
    small=tariffs,
    large=tariffs,
    money=st.none() | st.integers(0, 3 * 10**9),
    time=st.integers(0, 3 * 10**9),
    model=st.sampled_from(["small", "large", "economy", "speculative/large"]),
    choices=st.integers(1, 4),
    max_tokens=st.none() | st.integers(1, 50),
    strict=st.booleans(),
)
def test_neither_bound_is_passed(small, large, money, time, model, choices, max_tokens, strict):
    async def run():
        gateway = Gateway(engine([4.0] * 9), timed({"small": small, "large": large}))
        asked = call(model, choices=choices, max_tokens=max_tokens)
        answer = ask(gateway, Order(asked, usd=money, gpu=time, strict=strict))
        try:
            chunks = await read(answer)
            ends = [chunk for chunk in chunks if chunk.finish]
            assert [end.index for end in sorted(ends, key=lambda c: c.index)] == [*range(choices)]
            assert not strict or all(end.reason is None for end in ends)
        except BudgetExceeded as refusal:
            assert refusal.param in ("X-Budget-Usd", PARAM)
        assert answer.bill.gpu_us * 10**6 <= time
        assert money is None or answer.spent <= money

    asyncio.run(run())
