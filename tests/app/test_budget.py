"""Money: exact, and never over, whatever a policy does."""

import asyncio
import sys
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.bill import Bill, Line, version
from app.budget import Meter
from app.catalog import Catalog, GpuSeconds, Price, Tariff
from app.engines.fake import Fake, Script
from app.errors import BudgetExceeded, EngineError, Unaffordable
from app.gateway import Gateway, Order
from app.types import Usage
from tests.policies.scripts import ask, call, engine, fleet, read, usd


def meter(fake: Fake, limit: int | None, **prices: object) -> Meter:
    return Meter(fake, fleet(**prices).prices(), limit)


async def test_the_limit_lowers_max_tokens_so_that_the_engine_itself_stops():
    fake = engine()
    async with meter(fake, usd(5 + 2 * 7)) as paid:  # the prompt, and seven tokens
        chunks = [chunk async for chunk in paid.generate(call("small"))]
    assert fake.calls[0].max_tokens == 7
    assert (chunks[-1].finish, chunks[-1].reason) == ("length", "budget")
    assert paid.cost == usd(19)


async def test_a_limit_that_is_not_reached_changes_nothing():
    async with meter(engine(), usd(1000)) as paid:
        chunks = [chunk async for chunk in paid.generate(call("small", max_tokens=3))]
    assert (chunks[-1].finish, chunks[-1].reason) == ("length", None)


async def test_one_unit_too_little_is_unaffordable():
    for limit, fits in ((usd(7), True), (usd(7) - 1, False)):
        async with meter(engine(), limit) as paid:
            if fits:
                await anext(paid.generate(call("small")))
            else:
                with pytest.raises(Unaffordable):
                    await anext(paid.generate(call("small")))


async def test_cached_tokens_are_cheaper_and_what_they_save_can_be_spent():
    async with meter(engine(length=3), usd(40)) as paid:
        for _ in range(2):
            [_ async for _ in paid.generate(call("small"))]
        first, second = usd(5 + 6), usd(1 + 0.4 + 6)
        assert paid.cost == first + second
        assert paid.rest == usd(40) - paid.cost


async def test_parallel_calls_reserve_from_the_same_rest():
    fake = engine(delay=0.001)
    async with meter(fake, usd(100)) as paid:

        async def one() -> int:
            try:
                stream = paid.generate(call("small", max_tokens=30))
                return len([chunk async for chunk in stream if chunk.tokens])
            except Unaffordable:
                return 0

        await asyncio.gather(*(one() for _ in range(5)))
        assert paid.cost <= usd(100)
    assert [c.max_tokens for c in fake.calls] == [30, 15]


async def test_allowance_counts_the_catch_up_and_falls_as_tokens_are_written():
    async with meter(engine(), usd(300)) as paid:
        assert paid.allowance("large") == 15  # nothing read yet
        stream = paid.generate(call("small"))
        await anext(stream)
        # 7 spent for the prompt and a token; large would read 6 at 10, then write at 20
        assert paid.allowance("large") == (300 - 7 - 60) // 20
        assert paid.allowance("small") == (300 - 7 - 6) // 2
        await stream.aclose()
        assert paid.allowance("large") == (300 - 7 - 60) // 20


async def test_allowance_without_a_limit_is_boundless():
    async with meter(engine(), None) as paid:
        assert paid.allowance("large") == sys.maxsize


async def test_a_closed_streams_unseen_tokens_are_held_back():
    """What an engine may have made after we stopped listening is not spent a second time."""

    class Overrunning(Fake):
        def capabilities(self, model):
            able = super().capabilities(model)
            return type(able)(able.family, able.context, overrun=8)

    scripts = {"small": Script(["s"] * 40), "large": Script(["l"] * 40)}
    async with meter(Overrunning(scripts), usd(100)) as paid:
        async with aclosing(paid.generate(call("small"))) as stream:
            await anext(stream)
        assert paid.cost == usd(7)
        assert paid.rest == usd(100 - 7 - 8 * 2)


async def test_a_call_that_the_engine_refused_holds_nothing():
    fake = Fake({"small": Script(["s"], fails_after=0), "large": Script(["l"])})
    async with meter(fake, usd(100)) as paid:
        with pytest.raises(EngineError):
            await anext(paid.generate(call("small")))
        assert (paid.cost, paid.rest) == (0, usd(100))


async def test_closes_what_a_policy_left_open():
    fake = engine()
    async with meter(fake, None) as paid:
        await anext(paid.generate(call("small")))
        await anext(paid.generate(call("large")))
        assert fake.open == 2
    assert fake.open == 0


per_million = st.decimals(min_value=0, max_value=100, places=6)


@st.composite
def prices(draw, kind=Price):
    input = draw(per_million)
    cached = draw(st.none() | st.decimals(min_value=0, max_value=input, places=6))
    drafted = draw(st.none() | per_million)
    return kind(input=input, output=draw(per_million), cached_input=cached, drafted=drafted)


bits = st.lists(st.floats(0, 6), max_size=40)
guesses = st.lists(st.integers(0, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))


def timed(catalog: Catalog, gpu: Mapping[str, GpuSeconds]) -> Catalog:
    """The same, whose models say what their tokens take of accelerators."""
    cards = {n: c.model_copy(update={"gpu_seconds": gpu.get(n)}) for n, c in catalog.models.items()}
    return replace(catalog, models=cards)


def made(fake: Fake, tariffs: Mapping[str, Tariff]) -> int:
    """What all that the engine wrote and guessed takes."""
    written = sum(tariffs[m].output * n for m, n in fake.produced.items())
    return written + sum(
        used.drafted * tariffs[name].guess - used.accepted * tariffs[name].output
        for name, used in fake.guessed.items()
    )


@settings(max_examples=300)
@given(
    small=prices(),
    large=prices(),
    budget=st.integers(0, 10**10),
    taken=st.tuples(prices(GpuSeconds), prices(GpuSeconds)),
    gpu=st.none() | st.integers(0, 10**10),
    entropies=st.tuples(bits, bits),
    words=st.integers(1, 60),
    max_tokens=st.none() | st.integers(1, 80),
    model=st.sampled_from(
        ["economy", "small", "large", "entropy_switch/large", "speculative/large"]
    ),
    start=st.sampled_from(["small", "large"]),
    stop_after=st.none() | st.integers(0, 60),
    fails_after=st.none() | st.integers(0, 20),
    stops_by_itself=st.booleans(),
    guesses=guesses,
    longest=st.integers(1, 8),
)
def test_nothing_overshoots_and_nothing_leaks(
    small, large, budget, taken, gpu, entropies, words, max_tokens, model, start, stop_after,
    fails_after, stops_by_itself, guesses, longest,
):  # fmt: skip
    """Random prices, budgets, prompts, entropies, guesses, failures and hang-ups at any chunk."""
    more = {"fails_after": fails_after, "stop_on_entropy": stops_by_itself, "guesses": guesses}
    fake = engine(*entropies, **more)
    message = {"role": "user", "content": "word " * words}
    asked = call(model, max_tokens=max_tokens)
    asked = type(asked)(model, (message,), max_tokens=max_tokens)
    switches = model in ("economy", "entropy_switch/large")
    options = {"start": start} if switches else {}
    options |= {"longest": longest} if model == "speculative/large" else {}
    known = dict(zip(("small", "large"), taken, strict=True))
    gateway = Gateway(fake, timed(fleet(small, large), known))

    async def run() -> None:
        if switches and small.output > large.output:
            return  # refused: there would be nothing to save
        answer = ask(gateway, Order(asked, options=options, usd=budget, gpu=gpu))
        try:
            if stop_after is None:
                await read(answer)
            else:
                for _ in range(stop_after):
                    await anext(answer)
        except (BudgetExceeded, EngineError, StopAsyncIteration):
            pass
        finally:
            await answer.aclose()
        assert made(fake, gateway.catalog.prices()) <= answer.spent <= budget
        took = answer.bill.gpu_us * 10**6
        assert made(fake, known) <= took and (gpu is None or took <= gpu)
        assert fake.open == 0
        assert answer.bill.cost == answer.spent
        assert answer.estimate <= budget

    asyncio.run(run())


async def test_a_prompt_is_counted_once_and_another_one_anew(monkeypatch):
    fake = engine()
    counted = []

    async def count(asked):
        counted.append(asked)
        return 5

    monkeypatch.setattr(fake, "count", count)
    async with meter(fake, usd(1000)) as paid:
        asked = call("small", max_tokens=3)
        await paid.count(asked)
        await read(paid.generate(replace(asked, max_tokens=2)))
        assert len(counted) == 1
        await paid.count(asked.after((1,)))
        await paid.count(asked.to("large"))
        await paid.count(replace(asked, messages=({"role": "user", "content": "else"},)))
        assert len(counted) == 4


async def test_a_line_says_what_it_took_of_accelerators_where_its_model_is_known():
    gpu = {"small": GpuSeconds(input=1, output=2.5)}
    async with Meter(engine(length=3), fleet().prices(), gpu=gpu) as paid:
        for model in ("small", "large"):
            [_ async for _ in paid.share().generate(call(model))]
        took = {line.model: line.gpu_us for line in paid.lines()}
    assert took == {"small": 5 + 8, "large": None}  # seven and a half, rounded up


def test_a_bill_adds_up_what_its_lines_took_or_does_not_know():
    def bill(*took: int | None) -> Bill:
        lines = tuple(Line("m", Usage(), 0, gpu_us=us) for us in took)
        return Bill(0, 0, 0, lines, 0, "", 0.0)

    assert [bill(*took).gpu_us for took in ((), (3, 4), (3, None), (None,))] == [0, 7, None, None]


def test_the_version_is_of_prices_and_of_seconds():
    prices, gpu = fleet().prices(), {"small": GpuSeconds(input=1, output=2)}
    other = {"small": GpuSeconds(input=1, output=3)}
    assert len({version(prices, {}), version(prices, gpu), version(prices, other)}) == 3
    assert version(prices, gpu) == version(dict(reversed(prices.items())), dict(gpu))
