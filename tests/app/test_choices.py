"""Several answers to one request: what each may spend, how each ends, and which are the best."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.budget import Meter, Purse
from app.engines.fake import Fake, Script
from app.errors import BudgetExceeded, DeadlineExceeded, EngineError, Unaffordable
from app.gateway import Answer, Gateway, Order, Plan
from app.types import Call, Capabilities, Chunk, Decoding, Goals, MeteredEngine, Sampling, Usage
from policies.direct import Direct
from tests.app.test_gateway import Watcher
from tests.policies.scripts import ask, call, engine, fleet, read, usd


def gateway(fake: Fake, watcher: Watcher | None = None) -> Gateway:
    return Gateway(fake, fleet(), watcher)


def by_choice(chunks: Sequence[Chunk]) -> dict[int, list[Chunk]]:
    found: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        found.setdefault(chunk.index, []).append(chunk)
    return dict(sorted(found.items()))


def written(chunks: Sequence[Chunk]) -> list[int]:
    """Tokens of each choice."""
    return [sum(len(c.tokens) for c in each) for each in by_choice(chunks).values()]


async def test_every_choice_is_a_whole_answer_with_one_finish_chunk_at_its_end() -> None:
    answer = ask(gateway(engine()), Order(call("large", choices=3)))
    choices = by_choice(await read(answer))
    assert list(choices) == [0, 1, 2]
    for chunks in choices.values():
        assert "".join(chunk.text for chunk in chunks) == "".join(f"l{i} " for i in range(40))
        assert [chunk.finish for chunk in chunks if chunk.finish] == ["stop"]
        assert chunks[-1].finish


async def test_the_prompt_is_seen_once_the_answers_are_summed_and_all_is_billed() -> None:
    answer = ask(gateway(engine()), Order(call("large", choices=3)))
    await read(answer)
    bill = answer.bill
    assert (bill.prompt, bill.completion, bill.cached) == (5, 120, 0)
    assert bill.lines[0].usage == Usage(prompt=15, cached=8, completion=120)
    assert bill.cost == answer.spent == usd(5 * 10 + 2 * (1 * 10 + 4 * 1) + 120 * 20)


async def test_several_prompts_have_so_many_choices_each() -> None:
    fake = engine()
    order = Order(Call("large", prompt="a b", beside=((1, 2, 3), "c"), choices=6, max_tokens=2))
    answer = ask(gateway(fake), order)
    assert written(await read(answer)) == [2] * 6
    assert [each.prompt for each in fake.calls] == ["a b"] * 2 + [(1, 2, 3)] * 2 + ["c"] * 2
    assert (answer.bill.prompt, answer.bill.completion) == (6, 12)
    assert answer.bill.lines[0].usage.prompt == 12


async def test_choices_draw_with_the_seeds_that_follow() -> None:
    fake = engine()
    asked = Call("large", prompt="a", beside=("b",), choices=4, sampling=Sampling(seed=2**63 - 1))
    await read(ask(gateway(fake), Order(asked)))
    assert [each.sampling.seed for each in fake.calls] == [2**63 - 1, -(2**63)] * 2


@pytest.mark.parametrize("model", ["large", "economy", "speculative/large"])
async def test_who_leaves_closes_all_and_pays_for_what_was_written(model: str) -> None:
    fake, watcher = engine(delay=0.001), Watcher()
    answer = ask(gateway(fake, watcher), Order(call(model, choices=4)))
    for _ in range(6):
        await anext(answer)
    await answer.aclose()
    assert fake.open == 0
    assert watcher.outcomes == ["closed"]
    assert answer.spent == answer._account.spent > 0
    assert len(asyncio.all_tasks()) == 1


@dataclass
class Odd(Fake):
    """Fails the call with seed 8, after a few tokens."""

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        async for chunk in super().generate(call):
            yield chunk
            if call.sampling.seed == 8 and chunk.tokens:
                raise EngineError("odd")


async def test_the_fault_of_one_ends_all() -> None:
    odd = Odd(engine(delay=0.001).scripts)
    answer = ask(gateway(odd), Order(call("large", choices=3, sampling=Sampling(seed=7))))
    with pytest.raises(EngineError, match="odd"):
        await read(answer)
    assert odd.open == 0


async def test_a_deadline_cuts_each_choice_that_has_not_ended() -> None:
    fake, watcher = engine(delay=0.02), Watcher()
    goals = Goals(deadline=time.monotonic() + 0.2)
    chunks = await read(ask(gateway(fake, watcher), Order(call("large", choices=3, goals=goals))))
    ends = [(chunk.index, chunk.reason) for chunk in chunks if chunk.finish]
    assert ends == [(0, "deadline"), (1, "deadline"), (2, "deadline")]
    assert watcher.outcomes == ["deadline"] and fake.open == 0


async def test_a_budget_is_shared_fairly() -> None:
    fake, watcher = engine(), Watcher()
    order = Order(call("large", choices=4), usd=usd(4 * (50 + 10 * 20)))
    answer = ask(gateway(fake, watcher), order)
    chunks = await read(answer)
    assert written(chunks) == [10] * 4
    assert [chunk.reason for chunk in chunks if chunk.finish] == ["budget"] * 4
    assert watcher.outcomes == ["cut"]


class Patient(Direct):
    """The first choice wants one token only; the second waits for what is left of its money."""

    async def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        if call.sampling.seed == 1:
            call = replace(call, max_tokens=1)
        else:
            await asyncio.sleep(0.05)
        async for chunk in engine.generate(call):
            yield chunk


async def test_what_one_does_not_need_the_others_get() -> None:
    order = Order(call("large", choices=2, sampling=Sampling(seed=1)), usd=usd(100 + 20 * 10))
    plan, meter = Plan("", "patient", Patient(), "large"), Meter(engine(), fleet().prices())
    answer = Answer(order, plan, meter, "v1", Purse(), None)
    # The second prompt was cached by the first, which is known only once it is read.
    assert written(await read(answer)) == [1, 9]


async def test_a_budget_without_a_token_for_each_is_refused() -> None:
    fake = engine()
    with pytest.raises(Unaffordable) as refusal:
        await read(ask(gateway(fake), Order(call("large", choices=4), usd=usd(4 * 70 - 1))))
    assert refusal.value.param == "X-Budget-Usd"
    assert fake.calls == []
    assert (
        written(await read(ask(gateway(fake), Order(call("large", choices=4), usd=usd(4 * 70)))))
        == [1] * 4
    )


async def test_strict_refuses_what_all_choices_together_may_cost() -> None:
    most = usd(3 * (50 + 10 * 20))
    order = Order(call("large", choices=3, max_tokens=10), usd=most, strict=True)
    answer = ask(gateway(engine()), order)
    assert written(await read(answer)) == [10] * 3
    with pytest.raises(BudgetExceeded):
        await read(ask(gateway(engine()), replace(order, usd=most - 1)))


class Native(Fake):
    """An engine with words of its own, which makes all choices itself."""

    def capabilities(self, model: str) -> Capabilities:
        return replace(super().capabilities(model), native=True)

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        self.calls.append(call)
        if call.decoding.native:
            yield Chunk(model=call.model, raw=b"{}", usage=Usage(5, 0, 6), finish="stop")
        else:
            async for chunk in super().generate(call):
                yield chunk


async def test_a_native_answer_has_one_finish_chunk_for_all() -> None:
    fake, watcher = Native(engine().scripts), Watcher()
    answer = ask(gateway(fake, watcher), Order(call("large", choices=3)))
    assert len(await read(answer)) == 1
    assert [(each.choices, each.decoding) for each in fake.calls] == [(3, Decoding(native=True))]
    assert watcher.outcomes == ["kept"]
    assert answer.bill.completion == 6


async def test_policies_that_work_by_ids_are_not_told_of_native_answers() -> None:
    fake = Native(engine(speculates=None).scripts)
    order = Order(replace(call("large"), choices=2), policy="kv_prediction", options={})
    fake.scripts = {"large": replace(fake.scripts["large"], predictors={"p": 0.1})}
    chunks = await read(ask(gateway(fake), order))
    assert written(chunks) == [40, 40]
    assert not any(each.decoding.native for each in fake.calls)


@dataclass
class Lucky(Fake):
    """The seed says how likely its tokens are: of 1 and 3 less than of 2 and 4."""

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        logprob = {1: -4.0, 2: -2.0, 3: -3.0, 4: -1.0}[call.sampling.seed or 0]
        async for chunk in super().generate(call):
            tokens = tuple(replace(token, logprob=logprob) for token in chunk.tokens)
            yield replace(chunk, tokens=tokens, text=f"{call.sampling.seed}" if tokens else "")


async def test_the_best_are_those_with_the_likeliest_tokens_best_first() -> None:
    lucky = Lucky({"large": Script(["a"] * 2), "small": Script(["a"])})
    asked = Call("large", prompt="a", beside=("b",), choices=4, sampling=Sampling(seed=1))
    answer = ask(gateway(lucky), Order(asked, best_of=4))
    found = by_choice(await read(answer))
    texts = ["".join(chunk.text for chunk in chunks) for chunks in found.values()]
    assert texts == ["44", "22", "44", "22"]
    assert (answer.bill.prompt, answer.bill.completion) == (2, 8)
    assert answer.bill.lines[0].usage.completion == 16
    assert answer.bill.lines[0].visible == 8
    assert all(each.sampling.logprobs == 0 for each in lucky.calls)


async def test_of_best_of_nothing_is_shown_before_all_are_drawn() -> None:
    goals = Goals(deadline=time.monotonic() + 0.1)
    asked = Call("large", prompt="a", goals=goals)
    with pytest.raises(DeadlineExceeded):
        await read(ask(gateway(engine(delay=0.05)), Order(asked, best_of=2)))


prompts = st.lists(st.integers(1, 30), min_size=1, max_size=3)
bits = st.lists(st.floats(0, 6), max_size=50)


@settings(max_examples=150)
@given(
    model=st.sampled_from(["large", "economy", "speculative/large"]),
    lengths=prompts,
    n=st.integers(1, 4),
    share=st.floats(0, 1.2),
    most=st.none() | st.integers(1, 60),
    small=bits,
    large=bits,
)
def test_no_budget_is_passed_and_every_choice_ends_once(
    model: str,
    lengths: list[int],
    n: int,
    share: float,
    most: int | None,
    small: list[float],
    large: list[float],
) -> None:
    async def run() -> None:
        first, *beside = [tuple(range(length)) for length in lengths]
        asked = Call(
            model, prompt=first, beside=tuple(beside), choices=n * len(lengths), max_tokens=most
        )
        whole = ask(gateway(engine(small, large)), Order(asked))
        everything = await read(whole)
        budget = int(whole.spent * share)
        fake = engine(small, large)
        answer = ask(gateway(fake), Order(asked, usd=budget))
        try:
            chunks = await read(answer)
        except BudgetExceeded:
            assert answer.spent == 0
            return
        assert answer.spent <= budget
        ends = Counter(chunk.index for chunk in chunks if chunk.finish)
        assert ends == Counter(range(asked.choices))
        assert all(each[-1].finish for each in by_choice(chunks).values())
        assert fake.open == 0
        if budget >= answer.estimate and model == "large" and answer.estimate < budget:
            assert written(chunks) == written(everything)
        if model == "large":
            _check_fair(chunks, lengths, n, budget)

    asyncio.run(run())


def _check_fair(chunks: Sequence[Chunk], lengths: list[int], n: int, budget: int) -> None:
    """Whoever was cut had at least what an equal part of the rest of the money pays for."""
    tokens = written(chunks)
    cut = {chunk.index for chunk in chunks if chunk.reason == "budget"}
    rest = budget - sum(usd(10 * length) for length in lengths) * n
    if len(set(lengths)) == 1:
        fair = rest // usd(20) // len(tokens)
        assert all(tokens[index] >= fair for index in cut)
