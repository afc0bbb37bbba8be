"""Bounds of `best_of_n`: money, time, the calls it may make, and what fails in the middle."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.budget import Purse
from app.catalog import Catalog, GpuSeconds
from app.engines.fake import Fake, Script
from app.errors import BudgetExceeded, EngineError, Forbidden
from app.gateway import Gateway, Order
from app.types import Goals, Usage
from policies.answers import asking
from policies.best_of_n import BestOfN
from tests.policies.scripts import ask, call, card, fleet, price, read, text, usd
from tests.policies.voters import answer, decision, fake, said

PROMPT = 5  # tokens: 1 USD a million of the small model's, and 2 of an answer's
FULL = PROMPT + 2 * 8  # micro-dollars of a whole answer


@pytest.mark.parametrize(
    ("budget", "made"), [(FULL, 1), (2 * FULL - 2, 1), (2 * FULL, 2), (4 * FULL, 4)]
)
async def test_only_whole_answers_are_bought(budget, made):
    engine = fake("1 2 3 4 5 6 7 8 9 10")
    some = answer(engine, n=8, order={"usd": usd(budget)}, together=8, choose="logprob")
    chunks = await read(some)
    assert 0 < some.spent <= usd(budget)
    assert len(engine.calls) >= made
    assert chunks[-1].reason is None and len(text(chunks).split()) == 8
    if made == 1:
        assert decision(some).detail == "the budget pays for one answer only"


async def test_one_that_misses_a_token_for_want_of_money_is_not_given():
    variants = tuple(Script(["1"] * 10, logprobs=[likely] * 10) for likely in (-2.0, -1.0, -0.5))
    engine = Fake({"small": Script(["x"], variants=variants), "large": Script(["l"])})
    some = answer(engine, n=3, order={"usd": usd(3 * FULL - 1)}, choose="logprob")
    chunks = await read(some)
    assert engine.calls[2].max_tokens == 7 and len(text(chunks).split()) == 8
    assert chunks[-1].reason is None and decision(some).confidence == pytest.approx(
        0.368, abs=0.001
    )


async def test_what_answers_did_not_need_buys_further_ones():
    engine = fake("so 7", "so 8", "so 9", "so 10")
    some = answer(engine, n=8, order={"usd": usd(3 * FULL)}, choose="logprob")
    await read(some)
    assert len(engine.calls) > 3 and some.spent <= usd(3 * FULL)


async def test_a_single_affordable_answer_streams_as_it_comes():
    engine = fake(" ".join(map(str, range(8))))
    some = answer(engine, n=8, order={"usd": usd(FULL)})
    first = await anext(some)
    assert first.text == "0 " and engine.open == 1
    assert first.considered[0].name == "answer 1"
    await some.aclose()
    assert engine.open == 0


async def test_without_a_bound_each_has_its_share_of_the_budget():
    endless = " ".join("7" * 3000)
    engine = fake(endless)
    asked = call("small")
    some = answer(engine, n=3, asked=asked, order={"usd": usd(3 * (PROMPT + 2 * 300))})
    chunks = await read(some)
    assert len(engine.calls) == 3 and len({made.max_tokens for made in engine.calls}) == 1
    assert 290 <= engine.calls[0].max_tokens <= 300
    assert (chunks[-1].finish, chunks[-1].reason) == ("length", "budget")


async def test_not_even_a_token_is_refused_before_anything_is_asked():
    engine = fake("7")
    with pytest.raises(BudgetExceeded):
        await read(answer(engine, order={"usd": usd(PROMPT)}))
    assert engine.calls == []


async def test_the_estimate_is_for_all_of_them():
    some = answer(fake("1 2 3 4 5 6 7 8 9"), n=4, choose="logprob")
    await read(some)
    assert some.estimate == usd(4 * FULL)
    assert some.spent == usd(
        4 * FULL - 3 * 0.9 * (PROMPT - 1)
    )  # of which the others found in the cache


@pytest.mark.parametrize("diverse", ["no", "each", "one_call"])
async def test_what_strict_admits_is_not_cut(diverse):
    long = "1. a\n2. b\n3. c " + "1 " * 200
    options = {"n": 3, "choose": "logprob", "diverse": diverse, "together": 3}
    probe = answer(fake(long), **options)
    await read(probe)
    engine = fake(long)
    some = answer(engine, order={"usd": probe.estimate, "strict": True}, **options)
    chunks = await read(some)
    assert chunks[-1].reason is None and 0 < some.spent <= probe.estimate
    bounds = {made.max_tokens for made in engine.calls}
    assert bounds == {"no": {8}, "each": {96, 8}, "one_call": {24}}[diverse]
    assert len(engine.calls) == {"no": 3, "each": 4, "one_call": 1}[diverse]
    with pytest.raises(BudgetExceeded):
        await read(answer(fake(long), order={"usd": probe.estimate - 1, "strict": True}, **options))


@pytest.fixture
def unhurried(monkeypatch):
    """A deadline is kept on a machine that is busy, too."""
    monkeypatch.setattr(asking, "_MARGIN_S", 0.4)


async def test_at_the_deadline_the_best_so_far_is_given(unhurried):
    slow = Script(["9"], delay=60)
    variants = (Script(["so", "7"]), slow, slow)
    engine = Fake({"small": Script(["7"], variants=variants), "large": Script(["l"])})
    asked = call("small", max_tokens=4, goals=Goals(deadline=time.monotonic() + 0.7))
    some = answer(engine, n=3, asked=asked, together=3)
    chunks = await read(some)
    assert text(chunks).strip() == "so 7" and chunks[-1].finish == "stop"
    assert some.outcome == "kept" and engine.open == 0


async def test_none_is_begun_after_the_deadline(unhurried):
    slow = Script(["9"], delay=60)
    variants = (Script(["so", "7"]), slow)
    engine = Fake({"small": Script(["7"], variants=variants), "large": Script(["l"])})
    asked = call("small", max_tokens=8, goals=Goals(deadline=time.monotonic() + 0.7))
    some = answer(engine, n=8, asked=asked, order={"usd": usd(2 * FULL)})
    assert await said(some) == "so 7" and len(engine.calls) == 2


async def test_at_the_deadline_a_part_of_one_is_better_than_none(unhurried):
    engine = fake("so " * 40, delay=0.05)
    asked = call("small", max_tokens=40, goals=Goals(deadline=time.monotonic() + 0.7))
    chunks = await read(answer(engine, n=3, asked=asked))
    assert text(chunks).startswith("so ") and chunks[-1].reason == "deadline"
    assert engine.open == 0


async def test_one_that_fails_leaves_the_others():
    broken = Script(["7"] * 4, fails_after=1)
    variants = (Script(["so", "7"]), broken, Script(["so", "8"]), Script(["so", "8"]))
    engine = Fake({"small": Script(["7"], variants=variants), "large": Script(["l"])})
    some = answer(engine, n=4, together=4)
    assert await said(some) == "so 8" and decision(some).answers == 3
    engine = Fake({"small": Script(["7"], variants=(broken,)), "large": Script(["l"])})
    with pytest.raises(EngineError):
        await read(answer(engine, n=4))
    assert engine.open == 0


@pytest.mark.parametrize("diverse", ["no", "each", "one_call"])
@given(steps=st.integers(0, 60), budget=st.none() | st.integers(0, 400), n=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_whatever_happens_it_keeps_its_bounds(diverse, steps, budget, n):
    """The client leaves after so many steps of the loop, whatever the budget is."""

    async def some_of_it():
        engine = fake("1. so\n2. then", "so 7", "so 8", "so 9", delay=0.0001)
        limit = None if budget is None else usd(budget)
        some = answer(engine, n=n, diverse=diverse, order={"usd": limit})
        reading = asyncio.create_task(read(some))
        for _ in range(steps):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await some.aclose()
        assert engine.open == 0
        assert limit is None or some.spent <= limit
        plan = Gateway(engine, fleet()).plan(some.order)
        assert len(engine.calls) <= plan.policy.most_calls(some.order.call)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(some_of_it())


JUDGED = {"choose": "verify", "verifier": {"kind": "judge", "judge": "large"}, "together": 1}


async def test_a_judge_s_yes_ends_the_search():
    engine = fake("so 7", "so 8", "so 9")
    engine.scripts["large"] = Script(["No"], variants=(Script(["No"]), Script(["Yes"])))
    some = answer(engine, n=3, **JUDGED)
    assert await said(some) == "so 8"
    assert [made.model for made in engine.calls] == ["small", "large"] * 2
    assert decision(some).detail == "1 of 2 passed the verifier"
    assert {line.model for line in some.bill.lines} == {"small", "large"}
    assert 0 < some.spent <= some.estimate


async def test_without_its_judge_they_vote():
    engine = fake("so 7", "so 8", "be 8")
    engine.scripts["large"] = Script(["Yes"], fails_after=0)
    some = answer(engine, n=3, **JUDGED)
    assert await said(some) == "so 8" and engine.open == 0
    assert decision(some).detail == "2 of 3 gave this answer"


@pytest.mark.parametrize("budget", range(50, 900, 170))
async def test_what_a_judge_costs_is_kept_too(budget):
    engine = fake("1 2 3 4 5 6 7 8 9 10")
    engine.scripts["large"] = Script(["No"])
    some = answer(engine, n=8, order={"usd": usd(budget)}, **JUDGED)
    chunks = await read(some)
    assert 0 < some.spent <= usd(budget) and chunks[-1].reason is None


async def test_an_answer_that_its_judge_cannot_read_could_not_be_verified():
    engine = fake("so 7", "so 8", "be 8")
    engine.scripts["large"] = Script(["Yes"], context=10)
    some = answer(engine, n=3, **JUDGED)
    assert await said(some) == "so 8" and engine.open == 0
    assert decision(some).detail == "2 of 3 gave this answer"


@pytest.mark.parametrize("most", [None, 8])
async def test_tokens_that_cost_nothing_are_bounded_by_accelerators(most):
    engine, taken = fake("7 or so it is"), GpuSeconds(input=1, output=2)
    free = card("small", price(0, 0)).model_copy(update={"gpu_seconds": taken})
    options = {"n": 3, "extract": "number", "sure": 1.0}
    order = Order(
        call("small", max_tokens=most), policy="best_of_n", options=options, gpu=usd(3000)
    )
    some = ask(Gateway(engine, Catalog({"small": free}, {})), order)
    assert text(await read(some)).strip() == "7 or so it is"
    assert decision(some).detail == "3 of 3 gave this answer"


def test_each_answer_may_have_to_be_judged():
    policy = BestOfN(model="small", n=3, **JUDGED)
    (once,) = policy.verifying(5, 8).values()
    judged = Usage(3 * once.prompt, completion=3 * once.completion)
    assert policy.worst_case("", 5, 8) == {"small": Usage(15, completion=24), "large": judged}
    itself = {**JUDGED, "verifier": {"kind": "judge", "judge": "small"}}
    policy = BestOfN(model="small", n=3, **itself)
    assert policy.worst_case("", 5, 8) == {"small": judged + Usage(15, completion=24)}


@pytest.mark.parametrize(("short", "made"), [(0, True), (2, False)])
async def test_an_answer_is_bought_with_its_judgement(short, made):
    engine = fake("1 2 3 4 5 6 7 8 9 10")
    engine.scripts["large"] = Script(["No"])
    once = answer(engine, n=2, **JUDGED)
    await read(once)
    some = answer(engine, n=2, order={"usd": once.estimate - usd(short)}, **JUDGED)
    await read(some)
    assert (decision(some).answers == 2) is made


async def test_a_judge_has_no_longer_than_the_answer(unhurried):
    engine = fake("so 7", "so 8")
    engine.scripts["large"] = Script(["Yes"], delay=60)
    asked = call("small", max_tokens=4, goals=Goals(deadline=time.monotonic() + 0.9))
    some = answer(engine, n=2, asked=asked, **JUDGED)
    assert await said(some) == "so 7" and engine.open == 0


async def test_what_a_judge_does_not_say_is_told():
    engine = fake("so 7", "so 8")
    silent = Script(["No"], fails_after=0)
    engine.scripts["large"] = Script(["No"], variants=(Script(["No"]), silent))
    some = answer(engine, n=2, **JUDGED)
    assert await said(some) == "so 7"
    assert decision(some).detail == "0 of 2 passed the verifier, 1 could not be verified"


class Small(Purse):
    def allows(self, name):
        return name == "small"


def test_a_judge_must_be_allowed():
    order = Order(call("small"), policy="best_of_n", options={"n": 2, **JUDGED})
    with pytest.raises(Forbidden, match="large"):
        Gateway(fake("so 7"), fleet()).answer(order, Small())
