"""What a cascade does where money or time runs out, or a model fails."""

import time

import pytest

from app.errors import BadRequest, BudgetExceeded, DeadlineExceeded, EngineError
from app.types import Goals
from tests.policies.cascades import (
    FAIR,
    POOR,
    PROMPT,
    SURE,
    asked,
    calibration,
    decided,
    engine,
    fleet,
    models,
    said,
    script,
)
from tests.policies.scripts import LENGTH, price, read, text, usd


def enough_for(small: int, large: int) -> int:
    """Budget for both prompts and so many tokens of each."""
    return usd(PROMPT * 2 + small * 4 + PROMPT * 10 + large * 20)


async def test_where_there_is_no_money_for_the_next_one_the_answer_is_shown_as_it_comes():
    fake = engine(small=POOR)
    answer = asked(fake, calibration(4), usd=usd(PROMPT * 10 + 20 * 15))
    first = await anext(answer)
    assert fake.produced == {"small": 1}
    assert (first.decision.kind, first.decision.model) == ("keep", "small")
    assert first.decision.detail == "the budget does not pay for large"
    chunks = [first, *await read(answer)]
    assert len(text(chunks).split()) == LENGTH and answer.outcome == "steered"
    assert first.considered[1].fits is False


@pytest.mark.parametrize("more", [0, -20])
async def test_an_answer_twice_as_long_must_be_affordable(more):
    fake = engine(small=POOR)
    answer = asked(fake, usd=enough_for(LENGTH, 2 * LENGTH) + usd(more))
    chunks = await read(answer)
    writer = "large" if more == 0 else "small"
    assert said(chunks) == {writer[0]} and chunks[-1].finish == "stop"
    assert answer.outcome == ("kept" if more == 0 else "steered")
    assert answer.spent <= answer.budget


async def test_no_more_must_be_affordable_than_may_come():
    fake = engine(small=POOR)
    answer = asked(fake, max_tokens=LENGTH, usd=enough_for(LENGTH, LENGTH))
    assert said(await read(answer)) == {"l"}


async def test_a_beginning_is_not_left_for_what_cannot_be_paid():
    fake = engine(small=POOR)
    answer = asked(fake, calibration(4), usd=enough_for(LENGTH, 2 * LENGTH))
    assert said(await read(answer)) == {"l"}
    assert decided(answer) == [("escalate", "large", LENGTH)]


async def test_of_several_answers_the_likeliest_is_kept_where_money_ends():
    fake = engine(tiny=FAIR, small=POOR)
    budget = usd(3 * PROMPT + LENGTH * 6 + PROMPT * 10 + 79 * 20)
    answer = asked(fake, calibration(), model="three", usd=budget)
    chunks = await read(answer)
    assert said(chunks) == {"t"} and models(fake) == ["tiny", "small"]
    assert decided(answer) == [("escalate", "small", LENGTH), ("keep", "tiny", LENGTH)]
    assert answer.outcome == "steered" and answer.visible == {"tiny": LENGTH}


async def test_one_that_is_not_affordable_itself_is_passed_by():
    fake = engine()
    known = fleet(small={"price": price(1000, 2)})
    answer = asked(fake, catalog=known, usd=usd(PROMPT * 10 + 20 * LENGTH))
    assert said(await read(answer)) == {"l"}
    assert answer.decisions[0].detail == "small failed (Unaffordable)"
    with pytest.raises(BudgetExceeded):
        await read(asked(engine(), usd=usd(1)))


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("micro", [*range(1, 400, 7), *range(400, 3000, 131)])
async def test_no_budget_is_passed(micro, check):
    fake = engine(tiny=POOR, small=FAIR)
    answer = asked(fake, calibration(4), "three", usd=usd(micro), options={"self_check": check})
    try:
        chunks = await read(answer)
    except BudgetExceeded:
        assert not fake.calls
    else:
        assert 0 < answer.spent <= usd(micro) and chunks[-1].finish
    assert fake.open == 0


# Failures


async def test_the_next_one_answers_for_one_that_fails():
    fake = engine()
    fake.scripts["small"] = script("small", fails_after=3)
    answer = asked(fake, calibration(4))
    assert said(await read(answer)) == {"l"}
    assert decided(answer) == [("escalate", "large", 3)]
    assert answer.decisions[0].detail == "small failed (EngineError)"


@pytest.mark.parametrize("early", [False, True])
async def test_where_the_last_one_fails_the_earlier_answer_is_given(early):
    """One that was left is gone on with, by its ids."""
    fake = engine(small=POOR)
    fake.scripts["large"] = script("large", fails_after=0)
    answer = asked(fake, calibration(4), options={"early": early}, max_tokens=LENGTH)
    chunks = await read(answer)
    assert text(chunks) == "".join(f"s{i} " for i in range(LENGTH))
    assert models(fake) == (["small", "large", "small"] if early else ["small", "large"])
    assert fake.calls[-1].max_tokens == (LENGTH - 4 if early else LENGTH)
    assert [kind for kind, *_ in decided(answer)] == ["escalate", "keep"]
    assert answer.decisions[1].detail == "large failed (EngineError)"
    assert answer.outcome == "kept" and answer.spent <= answer.estimate


async def test_of_several_the_likeliest_that_has_ended_is_given():
    fake = engine(tiny=FAIR, small=POOR)
    fake.scripts["large"] = script("large", fails_after=0)
    assert said(await read(asked(fake, calibration(4), model="three"))) == {"t"}
    assert models(fake) == ["tiny", "small", "large"]


async def test_where_all_fail_the_last_failure_is_told():
    fake = engine()
    for name in ("small", "large"):
        fake.scripts[name] = script(name, fails_after=0)
    with pytest.raises(EngineError, match="fail"):
        await read(asked(fake))
    assert models(fake) == ["small", "large"]


@pytest.mark.parametrize("writer", ["small", "large"])
async def test_what_is_being_shown_may_not_change_hands(writer):
    fake = engine(small=SURE if writer == "small" else POOR)
    sure = SURE if writer == "small" else POOR
    fake.scripts[writer] = script(writer, sure, fails_after=6)
    answer, chunks = asked(fake, calibration(4)), []
    with pytest.raises(EngineError):
        async for chunk in answer:
            chunks.append(chunk)
    assert len(text(chunks).split()) == 6 and fake.open == 0


async def test_what_no_model_takes_is_the_client_s_to_hear():
    fake = engine()
    with pytest.raises(BadRequest, match="max_tokens"):
        await read(asked(fake, max_tokens=-1))


# Time


def soon(seconds: float = 0.2) -> Goals:
    return Goals(deadline=time.monotonic() + seconds)


@pytest.mark.parametrize(("delay", "finish"), [(0.0, "stop"), (0.012, "length")])
async def test_at_the_deadline_there_is_what_came_before(delay, finish):
    """A whole answer, or else what there is of one."""
    fake = engine(small=POOR, large={"delay": 30})
    fake.scripts["small"] = script("small", POOR, delay=delay)
    answer = asked(fake, calibration(), goals=soon())
    chunks = await read(answer)
    assert said(chunks) == {"s"} and chunks[-1].finish == finish
    assert answer.decisions[-1].detail == "the deadline came"
    assert answer.outcome == ("kept" if finish == "stop" else "deadline") and fake.open == 0


async def test_where_nothing_came_the_deadline_is_an_error():
    fake = engine(small=POOR)
    fake.scripts["small"] = script("small", POOR, delay=30)
    with pytest.raises(DeadlineExceeded):
        await read(asked(fake, goals=soon()))
