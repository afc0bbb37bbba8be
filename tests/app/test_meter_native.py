"""Money for answers in an engine's own words: several choices, unseen work, and lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.budget import ENDED, Meter
from app.errors import BadRequest, EngineError, Unaffordable
from app.types import Call, Capabilities, Chunk, Decoding, Load, Speculation, Usage
from tests.policies.scripts import call, fleet, usd

PROMPT = 5
NATIVE, WHOLE = Decoding(native=True), {"decoding": Decoding(native=True), "whole": True}
SAYS = Chunk(raw=b"data: {}\n\n")
END = Chunk(finish="stop", raw=b"data: {}\n\n")
Step = Chunk | Exception | None  # say, fail, wait for ever


@dataclass
class Played:
    """An engine that says what it is told to; it has read `PROMPT` tokens at most."""

    steps: Sequence[Step] = ()
    overrun: int = 0
    context: int = 1000
    calls: list[Call] = field(default_factory=list)

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        self.calls.append(call)
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            if step is None:
                await asyncio.Event().wait()
            else:
                yield replace(step, model=call.model)

    async def count(self, call: Call) -> int:
        return PROMPT

    def capabilities(self, model: str) -> Capabilities:
        return Capabilities("fake", self.context, native=True, overrun=self.overrun)

    def load(self, model: str) -> Load:
        return Load()


def meter(engine: Played, limit: int | None) -> Meter:
    return Meter(engine, fleet().prices(), limit)


def used(prompt: int = 0, completion: int = 0, cached: int = 0) -> Chunk:
    return replace(SAYS, usage=Usage(prompt, cached, completion))


def asked(**fields: Any) -> Call:
    return call("small", **{"decoding": NATIVE, **fields})


async def run(paid: Meter, asked: Call) -> list[Chunk]:
    return [chunk async for chunk in paid.generate(asked)]


# `small`: a token of prompt costs 1 micro-dollar, one of answer 2, a cached one 0.1.


async def test_the_cap_is_of_each_choice_and_all_of_them_fit_the_budget() -> None:
    engine = Played([END])
    async with meter(engine, usd(5 + 2 * 31)) as paid:
        await run(paid, asked(choices=3))
    assert engine.calls[0].max_tokens == 10  # 3 * 10 tokens; the 31st is for nobody


async def test_all_choices_are_reserved_for() -> None:
    async with meter(Played([used(5, 1), None]), usd(1000)) as paid:
        await anext(paid.generate(asked(choices=3, max_tokens=10)))
        assert paid.rest == usd(1000 - 5 - 2 * 30)
        assert paid.cost == usd(5 + 2)


async def test_a_budget_below_one_token_for_each_choice_buys_none() -> None:
    async with meter(Played([END]), usd(5 + 2 * 3) - 1) as paid:
        with pytest.raises(Unaffordable, match="3 tokens"):
            await run(paid, asked(choices=3))
        assert paid.cost == 0


async def test_choices_that_the_budget_cut_say_so() -> None:
    cut = [used(5, 30), Chunk(finish="length", raw=b"")]
    async with meter(Played(cut), usd(5 + 2 * 30)) as paid:
        chunks = await run(paid, asked(choices=3, max_tokens=11))
        assert chunks[-1].reason == "budget" and paid.rest == 0


async def test_in_one_piece_who_leaves_pays_for_all_that_it_may_be() -> None:
    async with meter(Played([Chunk(), None]), usd(1000)) as paid:
        async with aclosing(paid.generate(asked(**WHOLE, max_tokens=10, choices=2))) as stream:
            await anext(stream)
        assert paid.cost == usd(5 + 2 * 20)
        assert paid.rest == usd(1000) - paid.cost


async def test_in_one_piece_who_is_refused_pays_nothing() -> None:
    for first in ([], [Chunk()]):
        for error in (BadRequest("no"), EngineError("down")):
            async with meter(Played([*first, error]), usd(1000)) as paid:
                with pytest.raises(type(error)):
                    await run(paid, asked(**WHOLE, max_tokens=10))
                assert (paid.cost, paid.rest) == (0, usd(1000))


async def test_in_one_piece_who_leaves_before_it_was_begun_pays_nothing() -> None:
    async with meter(Played([None]), usd(1000)) as paid:
        task = asyncio.ensure_future(run(paid, asked(**WHOLE, max_tokens=10)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert paid.cost == 0


async def test_in_one_piece_a_whole_answer_costs_what_it_used() -> None:
    end = replace(END, usage=Usage(5, 4, 3))
    async with meter(Played([Chunk(), end]), usd(1000)) as paid:
        await run(paid, asked(**WHOLE, max_tokens=10))
        assert paid.cost == usd(1 + 0.4 + 6)


async def test_a_stream_that_is_closed_before_it_told_what_it_read_pays_the_prompt() -> None:
    """Hosted servers tell their usage at the end; what they may have written more is held."""
    async with meter(Played([used(0, 1), used(0, 1), None], overrun=8), usd(100)) as paid:
        async with aclosing(paid.generate(asked(max_tokens=6))) as stream:
            for _ in range(2):
                await anext(stream)
        assert paid.cost == usd(5 + 2 * 2)
        assert paid.rest == usd(100) - paid.cost - usd(2 * 4)


async def test_a_stream_that_breaks_off_before_it_told_what_it_read_pays_the_prompt_too() -> None:
    async with meter(Played([used(0, 1), EngineError("gone")], overrun=8), usd(100)) as paid:
        with pytest.raises(EngineError):
            await run(paid, asked(max_tokens=6))
        assert paid.cost == usd(5 + 2)
        assert paid.rest == usd(100) - paid.cost - usd(2 * 5)


async def test_an_engine_that_says_little_first_and_more_later_breaks_no_budget() -> None:
    """What was counted stays reserved until it has ended, or two calls would share the money."""
    engine = Played([used(1), used(PROMPT - 1), END])
    async with meter(engine, usd(2 * (5 + 2))) as paid:
        first = paid.generate(asked(max_tokens=1))
        await anext(first)
        assert paid.rest == usd(5 + 2)
        await run(paid, asked(max_tokens=1))
        async for _ in first:
            pass
        assert paid.cost <= usd(2 * (5 + 2))


numbers = st.integers(-(2**40), 2**40) | st.integers(-3, 30)
likely = st.integers(0, 6)
lies = st.lists(st.builds(Usage, *[numbers] * 6) | st.builds(Usage, *[likely] * 6), max_size=8)
guesses = st.none() | st.builds(Speculation, longest=st.integers(1, 9))


@settings(max_examples=300)
@given(
    lies=lies,
    limit=st.none() | st.integers(0, usd(200)),
    choices=st.integers(1, 4),
    max_tokens=st.none() | st.integers(1, 50),
    overrun=st.integers(0, 100),
    whole=st.booleans(),
    guesses=guesses,
    leaves_after=st.none() | st.integers(0, 8),
    ends=st.booleans(),
)
def test_no_lie_breaks_the_budget(
    lies: list[Usage], limit: int | None, choices: int, max_tokens: int | None, overrun: int,
    whole: bool, guesses: Speculation | None, leaves_after: int | None, ends: bool,
) -> None:  # fmt: skip
    """Nor does what is held for a call ever grow, as others are promised what it leaves."""
    steps: list[Step] = [replace(SAYS, usage=usage) for usage in lies]
    steps.append(END if ends else EngineError("gone"))

    async def play() -> None:
        async with meter(Played(steps, overrun=overrun), limit) as paid:
            decoding = Decoding(native=True, speculation=guesses)
            fields = {"choices": choices, "max_tokens": max_tokens, "whole": whole}
            told, rest = list[Usage](), 0
            try:
                async with aclosing(paid.generate(asked(**fields, decoding=decoding))) as stream:
                    async for chunk in stream:
                        told.append(chunk.usage)
                        assert paid.cost >= 0
                        assert paid.rest is None or paid.rest >= rest
                        rest = paid.rest or 0
                        if len(told) == leaves_after:
                            break
            except (Unaffordable, EngineError):
                pass
            total = sum(told, Usage())
            assert all(min(astuple(usage)) >= 0 for usage in told)
            assert total.accepted <= min(total.drafted, total.completion)
            assert total.passes <= total.completion
            longest = 0 if guesses is None else guesses.longest
            assert total.drafted <= longest * total.completion
            assert total.prompt <= PROMPT and total.cached <= total.prompt
            if max_tokens is not None:
                assert total.completion <= max_tokens * choices
            assert paid.cost >= 0
            if limit is not None:
                assert paid.cost <= limit
                assert paid.rest is not None and paid.rest >= 0
            assert all(line.usage.prompt <= PROMPT for line in paid.lines())

    asyncio.run(play())


@pytest.mark.parametrize(
    ("more", "message", "tokens"),
    [
        (WHOLE, None, 20),  # who leaves pays for all that it may be
        (WHOLE, ENDED, 0),  # who is sent away by us does not
        ({"decoding": NATIVE}, None, 0),
        ({"decoding": NATIVE}, ENDED, 0),
    ],
)
async def test_who_ends_an_answer_decides_what_its_work_unseen_costs(
    more: dict[str, Any], message: str | None, tokens: int
) -> None:
    paid = meter(Played([Chunk(), None]), usd(10_000))

    async def ask() -> None:
        async with paid, aclosing(paid.generate(call("small", max_tokens=20, **more))) as chunks:
            async for _ in chunks:
                pass

    task = asyncio.create_task(ask())
    await asyncio.sleep(0.01)
    task.cancel(message)
    await asyncio.gather(task, return_exceptions=True)
    (line,) = paid.lines()
    assert line.usage.completion == tokens
    # Of a stream its reading is paid: a server was set to work.
    assert line.usage.prompt == (0 if more is WHOLE and message else PROMPT)


async def test_a_server_that_fails_before_it_said_anything_is_not_paid() -> None:
    paid = meter(Played([Chunk(), EngineError("no")]), usd(10_000))
    with pytest.raises(EngineError):
        async with paid:
            async for _ in paid.generate(call("small", decoding=NATIVE)):
                pass
    assert paid.cost == 0


def guessing(longest: int) -> dict[str, Any]:
    return {"decoding": Decoding(speculation=Speculation(longest=longest))}


async def test_each_token_of_a_call_that_guesses_ahead_is_reserved_with_all_its_guesses() -> None:
    """Of `small` a guess costs as much as a token of prompt: 1."""
    engine = Played([replace(END, usage=Usage(5, 0, 7, 4, 3, 4))])
    async with meter(engine, usd(5 + 7 * (2 + 4) + 5)) as paid:
        stream = paid.generate(asked(**guessing(4)))
        await anext(stream)
        assert engine.calls[0].max_tokens == 7
        assert paid.cost == usd(5 + 4 * 2 + 4)
    async with meter(engine, usd(5 + 2 + 4) - 1) as paid:
        with pytest.raises(Unaffordable):
            await run(paid, asked(**guessing(4)))


async def test_a_pass_that_nobody_saw_is_held_with_its_guesses() -> None:
    steps = [replace(SAYS, usage=Usage(5, 0, 3, 4, 2, 1)), None]
    async with meter(Played(steps, overrun=2), usd(1000)) as paid:
        async with aclosing(paid.generate(asked(**guessing(4)))) as stream:
            await anext(stream)
        assert paid.cost == usd(5 + 1 * 2 + 4)
        assert paid.rest == usd(1000) - paid.cost - usd((2 + 1) * (2 + 4))


async def test_who_did_not_ask_for_guesses_pays_for_none() -> None:
    end = replace(END, usage=Usage(5, 0, 7, 400, 300, 100))
    async with meter(Played([end]), usd(1000)) as paid:
        await run(paid, asked())
        assert paid.cost == usd(5 + 7 * 2)


@st.composite
def honest(draw: st.DrawFn) -> tuple[int, list[Usage]]:
    """What passes of at most so many guesses make, told token by token, at once, or at the end."""
    longest = draw(st.integers(1, 6))
    passes = draw(st.lists(st.integers(0, longest).flatmap(
        lambda drafted: st.tuples(st.just(drafted), st.integers(0, drafted))
    ), min_size=1, max_size=6))  # fmt: skip
    whole = [Usage(0, 0, stay + 1, drafted, stay, 1) for drafted, stay in passes]
    match draw(st.sampled_from(["token", "pass", "late"])):
        case "pass":
            return longest, whole
        case "late":
            told = sum((replace(each, completion=0) for each in whole), Usage())
            return longest, [*(Usage(completion=each.completion) for each in whole), told]
    tokens = list[Usage]()
    for drafted, stay in passes:
        each = [Usage(completion=1, accepted=1)] * stay + [Usage(completion=1)]
        tokens += [each[0] + Usage(drafted=drafted, passes=1), *each[1:]]
    return longest, tokens


@settings(max_examples=200)
@given(told=honest(), room=st.none() | st.integers(0, 3))
def test_what_is_true_is_billed_as_it_is_told(
    told: tuple[int, list[Usage]], room: int | None
) -> None:
    longest, usages = told
    most = None if room is None else sum(usages, Usage()).completion + room

    async def play() -> None:
        engine = Played([replace(SAYS, usage=usage) for usage in [Usage(5), *usages]] + [END])
        async with meter(engine, usd(10_000)) as paid:
            chunks = await run(paid, asked(**guessing(longest), max_tokens=most))
            assert [chunk.usage for chunk in chunks[1:-1]] == usages

    asyncio.run(play())


async def test_a_token_is_held_where_none_is_asked_for_as_vllm_writes_one_all_the_same() -> None:
    engine = Played([used(5), replace(END, usage=Usage(completion=2))])
    async with meter(engine, usd(5 + 2 * 2)) as paid:
        await run(paid, asked(choices=2, max_tokens=0))
        assert paid.cost == usd(5 + 2 * 2)
    assert engine.calls[0].max_tokens == 0
    async with meter(engine, usd(5 + 2)) as paid:
        with pytest.raises(Unaffordable):
            await run(paid, asked(choices=2, max_tokens=0))


async def test_of_several_prompts_each_is_counted_and_has_a_room_of_its_own() -> None:
    engine = Played([used(3 * PROMPT), END], context=PROMPT + 10)
    async with meter(engine, usd(10**6)) as paid:
        paid.scarce = False
        await run(paid, asked(prompt="a", beside=("b", "c"), choices=3, max_tokens=10))
        assert paid.lines()[0].usage.prompt == 3 * PROMPT
    async with meter(engine, usd(3 * PROMPT + 2 * 3 - 1)) as paid:
        with pytest.raises(Unaffordable):
            await run(paid, asked(prompt="a", beside=("b", "c"), choices=3, max_tokens=10))
    assert [each.max_tokens for each in engine.calls] == [10]
