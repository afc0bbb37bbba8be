"""What every policy owes. A new file in policies/ is tested here without a line being added."""

import importlib

import pytest

import policies
from app.errors import BadRequest, BudgetExceeded
from app.gateway import Gateway, Order
from app.types import Decoding
from policies.base import Policy
from tests.policies.scripts import LENGTH, ask, call, engine, fleet, read, text, usd

every_policy = pytest.mark.parametrize("name", policies.names())


def order(name: str, **more: object) -> Order:
    return Order(call("large"), policy=name, **more)


@every_policy
def test_says_what_it_does_in_one_line(name):
    doc = importlib.import_module(f"policies.{name}").__doc__
    assert doc and len(doc.strip().splitlines()) == 1


@every_policy
def test_is_a_policy_whose_every_option_has_a_default(name):
    assert isinstance(policies.load(name, {}), Policy)


@every_policy
def test_an_option_that_it_does_not_have_is_refused_by_name(name):
    with pytest.raises(BadRequest, match="no_such_option"):
        policies.load(name, {"no_such_option": 1})


@every_policy
async def test_answers_and_says_who_wrote(name):
    chunks = await read(ask(Gateway(engine(), fleet()), order(name)))
    assert text(chunks).split()
    assert all(chunk.model in ("small", "large") for chunk in chunks if chunk.tokens)


@every_policy
async def test_ends_with_one_finish_chunk_that_carries_no_tokens(name):
    chunks = await read(ask(Gateway(engine(), fleet()), order(name)))
    assert [chunk.finish is not None for chunk in chunks].index(True) == len(chunks) - 1
    assert chunks[-1].finish in ("stop", "length") and not chunks[-1].tokens


@every_policy
async def test_pays_for_every_token_that_was_made(name):
    fake = engine(small=[3.0] * 15)
    answer = ask(Gateway(fake, fleet()), order(name))
    await read(answer)
    billed = {line.model: line.usage.completion for line in answer.bill.lines}
    assert billed == fake.produced
    assert answer.bill.cost == sum(line.cost for line in answer.bill.lines) > 0


@every_policy
@pytest.mark.parametrize("length", [1, LENGTH])
async def test_makes_no_more_calls_than_it_says(name, length):
    fake = engine(small=[3.0] * 15, length=length)
    gateway = Gateway(fake, fleet())
    await read(ask(gateway, order(name)))
    bound = gateway.plan(order(name)).policy.most_calls(call("large"))
    assert bound is None or 1 <= len(fake.calls) <= bound


@every_policy
@pytest.mark.parametrize("chunks_read", [1, 2, 12, 13, 30])
async def test_leaves_no_stream_open_when_the_client_hangs_up(name, chunks_read):
    fake = engine(small=[3.0] * 15)
    answer = ask(Gateway(fake, fleet()), order(name))
    for _ in range(chunks_read):
        await anext(answer, None)  # a chunk may hold several tokens
    await answer.aclose()
    assert fake.open == 0


@every_policy
async def test_ends_within_a_budget_that_does_not_suffice(name):
    fake = engine(small=[3.0] * 15)
    answer = ask(Gateway(fake, fleet()), order(name, usd=usd(300)))
    chunks = await read(answer)
    assert 0 < answer.spent <= usd(300)
    assert chunks[-1].finish in ("stop", "length")
    assert fake.open == 0


@every_policy
async def test_a_budget_that_pays_for_nothing_is_refused_before_the_first_chunk(name):
    fake = engine()
    with pytest.raises(BudgetExceeded):
        await anext(ask(Gateway(fake, fleet()), order(name, usd=usd(1))))
    assert fake.calls == []


@every_policy
async def test_its_worst_case_is_one(name):
    """What was billed never passes the estimate that the answer started with."""
    fake = engine(small=[3.0] * 40, large=[0.1] * 40)
    answer = ask(Gateway(fake, fleet()), Order(call("large", max_tokens=40), policy=name))
    await read(answer)
    assert 0 < answer.spent <= answer.estimate


@every_policy
async def test_strict_refuses_what_the_budget_might_cut(name):
    answer = ask(Gateway(engine(), fleet()), order(name, usd=usd(300), strict=True))
    with pytest.raises(BudgetExceeded):
        await anext(answer)


@every_policy
async def test_what_strict_admits_is_never_cut_nor_steered(name):
    probe = ask(Gateway(engine(), fleet()), Order(call("large", max_tokens=40), policy=name))
    await anext(probe)
    await probe.aclose()
    fake = engine(small=[3.0] * 40, large=[0.1] * 40)
    asked = Order(call("large", max_tokens=40), policy=name, usd=probe.estimate, strict=True)
    answer = ask(Gateway(fake, fleet()), asked)
    chunks = await read(answer)
    assert chunks[-1].reason is None
    assert all(decision.kind != "steer" for decision in answer.decisions)


FORMED = {"response_format": {"type": "json_object"}}


@every_policy
async def test_what_would_not_last_through_a_hand_over_is_answered_whole_by_one(name):
    for whole in (False, True):
        fake = engine(small=[3.0] * 15, native=True)
        asked = call("large", extra=FORMED, max_tokens=LENGTH, whole=whole)
        answer = ask(Gateway(fake, fleet()), Order(asked, policy=name))
        chunks = await read(answer)
        assert [made.model for made in fake.calls] == ["large"]
        assert fake.calls[0].decoding == Decoding(native=True)
        told = [(decision.kind, decision.model) for decision in answer.decisions]
        alone = {"direct": [], "precision": [("precision", "large")]}  # they do nothing else
        alone["route"] = [("route", "large")]  # whole answers, and servers have theirs in any form
        alone["planner"] = [("plan", "large")]  # it is the best, and fits
        alone["compress"] = [("plain", "large")]  # of so short a prompt nothing is left out
        assert told == alone.get(name, [("whole", "large")])
        assert b"l39" in b"".join(chunk.raw for chunk in chunks)
        assert 0 < answer.spent <= answer.estimate
        assert answer.bill.completion == LENGTH


@every_policy
async def test_what_lasts_is_left_to_the_policy(name):
    fake = engine(small=[3.0] * 15, structured=True)
    answer = ask(Gateway(fake, fleet()), Order(call("large", extra=FORMED), policy=name))
    await read(answer)
    assert fake.calls and all(decision.kind != "whole" for decision in answer.decisions)


@every_policy
async def test_a_whole_answer_keeps_to_its_budget(name):
    fake = engine(native=True)
    asked = call("large", extra=FORMED)
    answer = ask(Gateway(fake, fleet()), Order(asked, policy=name, usd=usd(300)))
    chunks = await read(answer)
    assert 0 < answer.spent <= usd(300)
    assert chunks[-1].finish in ("stop", "length") and fake.open == 0
