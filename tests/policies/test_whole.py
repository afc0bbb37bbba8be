"""Which model answers alone where an answer cannot be divided, and how it says so."""

import pytest

from app.errors import BudgetExceeded, EngineError
from app.gateway import Gateway, Order
from tests.policies.scripts import LENGTH, ask, call, engine, fleet, read, usd

TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}
PROMPT = 5  # tokens: 10 USD a million of the large model's, 1 of the small one's
WHOLE = 10 * PROMPT + 20 * LENGTH  # micro-dollars that the large model's answer may cost


def answer_of(fake, **order):
    asked = call(extra=TOOLS, max_tokens=LENGTH, **order.pop("call", {}))
    return ask(Gateway(fake, fleet()), Order(asked, **order))


@pytest.mark.parametrize(
    ("budget", "writer", "fidelity"),
    [
        (None, "large", "exact"),
        (WHOLE, "large", "exact"),
        (WHOLE - 20, "small", "approximate"),  # what it buys is told in whole tokens
        (20, "small", "approximate"),
    ],
)
async def test_the_best_that_the_budget_affords_answers(budget, writer, fidelity):
    fake = engine(native=True)
    answer = answer_of(fake, usd=None if budget is None else usd(budget))
    await read(answer)
    assert [made.model for made in fake.calls] == [writer]
    assert [(d.kind, d.model, d.token) for d in answer.decisions] == [("whole", writer, 0)]
    assert (answer.fidelity, answer.policy) == (fidelity, "economy")


async def test_strict_asks_no_more_than_the_dearest_may_cost():
    answer = answer_of(engine(native=True), usd=usd(WHOLE), strict=True)
    await read(answer)
    assert answer.estimate == usd(WHOLE)
    with pytest.raises(BudgetExceeded):
        await anext(answer_of(engine(native=True), usd=usd(WHOLE - 1), strict=True))


async def test_without_a_bound_a_likely_length_must_be_affordable():
    fake = engine(native=True)
    asked = call(extra=TOOLS)
    await read(ask(Gateway(fake, fleet()), Order(asked, usd=usd(50 + 20 * 255))))
    await read(ask(Gateway(fake, fleet()), Order(asked, usd=usd(50 + 20 * 256))))
    assert [made.model for made in fake.calls] == ["small", "large"]


async def test_the_next_answers_for_one_that_fails_before_its_first_chunk():
    fake = engine(native=True)
    fake.scripts["large"] = type(fake.scripts["large"])(["x"], native=True, fails_after=0)
    answer = answer_of(fake)
    await read(answer)
    assert [made.model for made in fake.calls] == ["large", "small"]
    assert [d.model for d in answer.decisions] == ["small"]
    assert answer.fidelity == "approximate"


async def test_one_that_fails_later_ends_the_answer():
    fake = engine(native=True)
    fake.scripts["large"] = type(fake.scripts["large"])(["x", "y"], native=True, fails_after=1)
    with pytest.raises(EngineError):
        await read(answer_of(fake))
    assert [made.model for made in fake.calls] == ["large"]


async def test_a_server_makes_all_choices_itself():
    fake = engine(native=True)
    await read(answer_of(fake, call={"choices": 2}))
    assert [(made.model, made.choices) for made in fake.calls] == [("large", 2)]
