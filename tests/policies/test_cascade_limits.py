"""What a cascade does where money or time runs out, or a model fails."""

import asyncio
import time
from contextlib import aclosing

import pytest

from app.engines.fake import Fake
from app.errors import BadRequest, BudgetExceeded, DeadlineExceeded, EngineError
from app.types import Chunk, Goals, Usage
from tests.policies.cascades import (
    FAIR,
    POOR,
    PROMPT,
    SURE,
    asked,
    calibration,
    checked,
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


@pytest.mark.parametrize(("length", "more"), [(LENGTH, 0), (LENGTH, -20), (LENGTH - 1, 0)])
async def test_an_answer_twice_as_long_must_be_affordable(length, more):
    fake = engine(small=POOR)
    fake.scripts["small"] = script("small", POOR, length)
    answer = asked(fake, usd=enough_for(length, 2 * length) + usd(more))
    chunks = await read(answer)
    writer = "large" if more == 0 else "small"
    assert said(chunks) == {writer[0]} and chunks[-1].finish == "stop"
    assert answer.outcome == ("kept" if more == 0 else "steered")
    assert answer.spent <= answer.budget


@pytest.mark.parametrize(("tokens", "writer"), [(16, "l"), (15, "s")])
async def test_and_one_that_is_worth_beginning(tokens, writer):
    fake = engine()
    fake.scripts["small"] = script("small", POOR, 3)
    assert said(await read(asked(fake, usd=enough_for(3, tokens)))) == {writer}


async def test_no_more_must_be_affordable_than_may_come():
    fake = engine(small=POOR)
    answer = asked(fake, max_tokens=LENGTH, usd=enough_for(LENGTH, LENGTH))
    assert said(await read(answer)) == {"l"}


async def test_a_beginning_is_not_left_for_what_cannot_be_paid():
    fake = engine(small=POOR)
    answer = asked(fake, calibration(4), usd=enough_for(LENGTH, 2 * LENGTH))
    assert said(await read(answer)) == {"l"}
    assert decided(answer) == [("escalate", "large", LENGTH)]


@pytest.mark.parametrize("dear", [20, 2000])
async def test_of_several_answers_the_likeliest_is_kept_where_money_ends(dear):
    """Even if it is certain before the second one that there is none for the third."""
    fake = engine(tiny=FAIR, small=POOR)
    known = fleet(calibration(), large={"price": price(10, dear)})
    budget = usd(3 * PROMPT + LENGTH * 6 + PROMPT * 10 + 79 * 20)
    answer = asked(fake, catalog=known, model="three", usd=budget)
    chunks = await read(answer)
    assert said(chunks) == {"t"} and models(fake) == ["tiny", "small"]
    assert decided(answer) == [("escalate", "small", LENGTH), ("keep", "tiny", LENGTH)]
    assert answer.outcome == "steered" and answer.visible == {"tiny": LENGTH}


class Uncounted(Fake):
    """Its large model cannot be asked, nor its prompt be counted."""

    async def count(self, call):
        if call.model == "large":
            raise EngineError("no connection")
        return await super().count(call)


async def test_that_a_prompt_cannot_be_counted_is_no_want_of_money():
    fake = Uncounted(engine(small=POOR).scripts)
    answer = asked(fake, usd=usd(10_000))
    assert said(await read(answer)) == {"s"} and answer.outcome == "kept"
    assert answer.decisions[-1].detail == "large failed (EngineError)"


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


@pytest.mark.parametrize("after", [0, 3])
async def test_the_next_one_answers_for_one_that_fails(after):
    fake = engine()
    fake.scripts["small"] = script("small", fails_after=after)
    answer = asked(fake, calibration(4))
    assert said(await read(answer)) == {"l"}
    assert decided(answer) == [("escalate", "large", after)]
    assert answer.decisions[0].detail == "small failed (EngineError)"
    assert answer.decisions[0].answers == (2 if after else 1)


async def test_one_that_failed_at_once_is_nothing_to_wait_for():
    """What the second one says is all that there will be, so it is shown at once."""
    fake = engine(small=POOR)
    fake.scripts["tiny"] = script("tiny", fails_after=0)
    answer = asked(fake, calibration(), model="three", usd=usd(3 * PROMPT + LENGTH * 4))
    await anext(answer)
    assert fake.produced == {"small": 1}
    await answer.aclose()


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


async def test_one_that_has_ended_goes_before_one_that_was_left():
    """Whichever was likelier to be right."""
    fake = engine(tiny=POOR, small=POOR + 0.05)
    fake.scripts["large"] = script("large", fails_after=0)
    known = fleet(calibration(4), tiny={"confidence": calibration()})
    answer = asked(fake, catalog=known, model="three")
    assert said(await read(answer)) == {"t"}
    assert models(fake) == ["tiny", "small", "large"] and fake.produced["small"] == 4


class Begun(Fake):
    """Its large model says that it has read the prompt, and so many tokens written, and fails."""

    written: int = 0

    async def generate(self, call):
        if call.model == "large":
            yield Chunk(model="large", usage=Usage(PROMPT, completion=self.written))
            raise EngineError("it broke off")
        async with aclosing(super().generate(call)) as chunks:
            async for chunk in chunks:
                yield chunk


async def test_one_that_has_said_nothing_is_not_being_shown():
    answer = asked(Begun(engine(small=POOR).scripts))
    assert said(await read(answer)) == {"s"}


async def test_where_that_one_took_all_the_money_there_is_what_was_read():
    fake = Begun(engine(small=POOR).scripts)
    fake.written = 5
    answer = asked(fake, calibration(4), max_tokens=5, usd=enough_for(4, 5))
    chunks = await read(answer)
    assert text(chunks) == "s0 s1 s2 s3 " and chunks[-1].reason == "budget"
    assert answer.spent == answer.budget and answer.outcome == "cut"


@pytest.mark.parametrize("after", [0, 3])
async def test_where_all_fail_the_last_failure_is_told(after):
    fake = engine()
    fake.scripts["small"] = script("small", fails_after=after)
    fake.scripts["large"] = script("large", fails_after=0)
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


class Stuck(Fake):
    """Its small model does not go on with an answer."""

    async def generate(self, call):
        if call.written:
            await asyncio.sleep(30)
        async with aclosing(super().generate(call)) as chunks:
            async for chunk in chunks:
                yield chunk


async def test_at_the_deadline_an_answer_that_is_not_gone_on_with_ends_where_it_was_left():
    fake = Stuck(engine(small=POOR, large={"fails_after": 0}).scripts)
    answer = asked(fake, calibration(4), goals=soon())
    chunks = await read(answer)
    assert text(chunks) == "s0 s1 s2 s3 " and chunks[-1].reason == "deadline"
    assert decided(answer) == [("escalate", "large", 4), ("keep", "small", 4)]
    assert answer.outcome == "deadline" and fake.open == 0


async def test_what_is_being_shown_at_the_deadline_is_cut():
    fake = engine()
    fake.scripts["small"] = script("small", delay=0.02)
    answer = asked(fake, calibration(2), goals=soon())
    chunks = await read(answer)
    assert (chunks[-1].finish, chunks[-1].reason) == ("length", "deadline")
    assert [each.detail for each in answer.decisions] == ["after 2 tokens"]


async def test_where_nothing_came_the_deadline_is_an_error():
    fake = engine(small=POOR)
    fake.scripts["small"] = script("small", POOR, delay=30)
    with pytest.raises(DeadlineExceeded):
        await read(asked(fake, goals=soon()))


# A client that leaves


@pytest.mark.parametrize("chunks_read", [1, 2, 5, 41])
@pytest.mark.parametrize("small", [SURE, POOR])
async def test_nothing_stays_open_when_a_client_leaves_between_two_chunks(small, chunks_read):
    fake = checked(0.1, tiny=POOR, small=small)
    answer = asked(fake, calibration(4), "three", options={"self_check": True})
    for _ in range(chunks_read):
        await anext(answer, None)
    await answer.aclose()
    assert fake.open == 0 and answer.spent <= answer.estimate


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_nor_when_it_leaves_while_a_model_writes(steps):
    """Through all three of them, and the question to the second one."""
    fake = checked(0.1, tiny=POOR, small=FAIR)
    answer = asked(fake, calibration(4), "three", options={"self_check": True})
    waiting = asyncio.create_task(anext(answer))
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await answer.aclose()
    assert fake.open == 0 and answer.spent <= answer.estimate
