"""Answers by several approaches: proposed and followed one by one, or all in one completion."""

from dataclasses import replace

import pytest

from app.engines.fake import Fake, Script
from app.gateway import Gateway, Order
from app.types import Sampling
from policies.answers.approaches import proposed
from tests.policies.scripts import ask, call, fleet, read, text, usd
from tests.policies.voters import answer, decision, fake, said

PLAN = "Here: \n1. by hand\n2. by formula\n- **by force**\n3) by hand"


def last(made) -> str:
    return made.messages[-1]["content"]


@pytest.mark.parametrize(
    ("listed", "n", "found"),
    [
        (PLAN, 4, ["by hand", "by formula", "by force"]),
        (PLAN, 2, ["by hand", "by formula"]),
        ("**1.** by hand\n  2: so", 4, ["by hand", "so"]),
        ("by hand, or by force", 4, []),
        ("1. \n2. ***\n", 4, []),
        ("1. " + "x" * 900, 4, ["x" * 200]),
    ],
)
def test_approaches_are_what_is_listed(listed, n, found):
    assert proposed(listed, n) == found


async def test_each_approach_that_is_proposed_is_followed():
    engine = fake(PLAN, "so 7", "so 8", "it 8")
    asked = call("small", max_tokens=4, account="a", id="x")
    some = answer(engine, n=3, diverse="each", asked=asked)
    assert await said(some) == "so 8" and decision(some).answers == 3
    plan, *others = engine.calls
    assert last(plan).startswith("why is the sky blue\n\nDo not answer yet. Propose 3 approaches")
    assert (plan.max_tokens, plan.sampling.temperature, plan.id) == (96, 0.0, "x")
    told = [last(one).partition("approach: ")[2] for one in others]
    assert told == ["by hand", "by formula", "by force"]
    assert all(len(one.messages) == 1 and one.max_tokens == 4 for one in others)
    assert {one.sampling.temperature for one in others} == {0.0}
    assert some.spent <= some.estimate


async def test_a_client_s_temperature_and_seed_are_theirs():
    engine = fake("1. a\n2. b")
    sampling = Sampling(temperature=0.4, seed=3)
    asked = replace(call("small", max_tokens=8), sampling=sampling)
    await read(answer(engine, n=2, diverse="each", asked=asked))
    assert [one.sampling.seed for one in engine.calls] == [3, 3, 4]
    assert [one.sampling.temperature for one in engine.calls] == [0.0, 0.4, 0.4]


@pytest.mark.parametrize("plan", ["by hand I say", "1. by hand"])
async def test_a_model_that_does_not_propose_several_is_sampled(plan):
    engine = fake(plan, "so 7")
    await read(answer(engine, n=3, diverse="each"))
    assert len(engine.calls) == 4
    assert {last(one) for one in engine.calls[1:]} == {"why is the sky blue"}
    assert {one.sampling.temperature for one in engine.calls[1:]} == {0.7}


async def test_a_model_that_fails_to_propose_is_sampled():
    variants = (Script(["1."], fails_after=0), Script(["so", "7"]))
    engine = Fake({"small": Script(["x"], variants=variants), "large": Script(["l"])})
    some = answer(engine, n=3, diverse="each", together=1)
    assert await said(some) == "so 7"


async def test_one_that_the_budget_does_not_let_propose_answers_alone():
    engine = fake("so 7")
    some = answer(engine, n=5, diverse="each", order={"usd": usd(60)})
    assert await said(some) == "so 7" and len(engine.calls) == 1


async def test_a_bare_completion_is_answered_by_approaches_too():
    engine = fake(PLAN, "so 7")
    asked = replace(call("small", max_tokens=4), messages=(), prompt="why")
    await read(answer(engine, n=2, diverse="each", asked=asked))
    assert [one.prompt for one in engine.calls] == [None] * 3
    assert last(engine.calls[1]).startswith("why\n\n")


WAYS = "Sure. \nApproach 1: by hand\n so 7 \n**Approach 2:** by force\n then 8 \nApproach 3\n it 8"


async def test_all_approaches_may_come_in_one_completion():
    engine = fake(WAYS)
    some = answer(engine, n=3, diverse="one_call")
    chunks = await read(some)
    assert text(chunks) == "by force\n then 8"
    assert [t.piece for chunk in chunks for t in chunk.tokens] == [
        b"by ",
        b"force\n ",
        b"then ",
        b"8 ",
    ]
    assert decision(some).answers == 3 and decision(some).detail == "2 of 3 gave this answer"
    (made,) = engine.calls
    assert made.max_tokens == 24 and made.sampling.temperature == 0.0
    assert "Answer this 3 times" in last(made)
    assert some.bill.completion == 4 and 0 < some.spent <= some.estimate


async def test_they_take_no_more_than_the_context_holds():
    engine = fake(WAYS, context=60)
    await read(answer(engine, n=4, diverse="one_call"))
    (made,) = engine.calls
    assert made.max_tokens + await engine.count(made) == 60


@pytest.mark.parametrize(("diverse", "context"), [("each", 20), ("each", 29), ("one_call", 20)])
async def test_where_there_is_no_room_for_approaches_it_is_sampled(diverse, context):
    listed = Script(["1. by", "hand\n", "2. by", "long", "and", "hard", "work", "and", "more"])
    engine = fake("so 7", context=context)
    engine.scripts["small"] = replace(
        engine.scripts["small"], variants=(listed, Script(["so", "7"]))
    )
    some = answer(engine, n=2, diverse=diverse, choose="logprob", max_tokens=2)
    chunks = await read(some)
    assert chunks[-1].reason is None and decision(some).answers == 2
    assert len([made for made in engine.calls if "Propose" not in last(made)]) == 2


async def test_no_more_of_one_completion_are_looked_at_than_were_asked_for():
    engine = fake("\nApproach 1: so 7 " * 9)
    engine.scripts["large"] = Script(["No"])
    verifier = {"kind": "judge", "judge": "large"}
    some = answer(
        engine, n=2, diverse="one_call", choose="verify", verifier=verifier, max_tokens=99
    )
    await read(some)
    assert [made.model for made in engine.calls] == ["small", "large", "large"]
    assert decision(some).answers == 2


async def test_a_text_that_is_not_divided_is_one_answer():
    some = answer(fake("so 7"), n=3, diverse="one_call")
    assert await said(some) == "so 7" and decision(some).answers == 1


@pytest.mark.parametrize(
    ("sampling", "most", "shown", "finish", "stopped_by"),
    [
        (Sampling(stop=("then",)), 8, "by force", "stop", "then"),
        (Sampling(), 3, "by force\n then", "length", None),
        (Sampling(), 8, "by force\n then 8", "stop", None),
    ],
)
async def test_the_part_that_is_shown_keeps_the_client_s_bounds(
    sampling, most, shown, finish, stopped_by
):
    text_ = "Approach 1: by hand\n so 8 \nApproach 2: by force\n then 8 \nApproach 3: x\n is it 9 "
    engine = fake(text_)
    engine.scripts["small"] = Script(text_.split(" "))
    asked = replace(call("small", max_tokens=most), sampling=sampling)
    options = {"n": 6, "diverse": "one_call", "choose": "verify", "extract": "text"}
    verifier = {"kind": "regex", "pattern": "^by force"}
    gateway = Gateway(engine, fleet())
    order = Order(asked, policy="best_of_n", options={**options, "verifier": verifier})
    chunks = await read(ask(gateway, order))
    assert text(chunks).strip() == shown
    assert (chunks[-1].finish, chunks[-1].stopped_by) == (finish, stopped_by)
    assert engine.calls[0].sampling.stop == ()


@pytest.mark.parametrize("diverse", ["each", "one_call"])
async def test_answers_of_a_form_are_sampled(diverse):
    engine = fake("so 7", structured=True)
    asked = call("small", max_tokens=4, extra={"response_format": {"type": "json_object"}})
    await read(answer(engine, n=2, diverse=diverse, asked=asked))
    answers = [made for made in engine.calls if "Propose" not in last(made)]
    assert [made.extra for made in answers] == [asked.extra] * 2
