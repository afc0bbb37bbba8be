"""Whole answers, one or several at once: nothing stays open, and what has ended is kept."""

import asyncio
import time
from dataclasses import replace

import pytest

from app.budget import Meter
from app.engines.fake import Script
from app.errors import BadRequest, EngineError, Unaffordable
from app.types import Alternative, Call, Decision, Goals
from policies.answers.asking import as_read, asked, at_most, conversation, read, replies, shown
from tests.policies.scripts import call, engine, fleet, usd


def calls(*models: str, **more: object) -> list[Call]:
    return [call(model, max_tokens=8, **more) for model in models]


async def test_a_reply_is_all_that_its_model_said():
    reply = await read(call("small"), engine(length=3))
    assert (reply.model, reply.text, len(reply.tokens)) == ("small", "s0 s1 s2 ", 3)
    assert reply.whole and not reply.cut and reply.mean_logprob is None


async def test_its_log_probability_is_the_mean_of_its_tokens():
    some = call("small", max_tokens=3)
    reply = await read(replace(some, sampling=replace(some.sampling, logprobs=0)), engine())
    assert reply.mean_logprob == pytest.approx(-0.1) and not reply.whole


async def test_several_come_in_the_order_in_which_they_were_asked():
    fake = engine()
    fake.scripts["small"] = Script(["s"] * 8, delay=0.001)
    found = await replies(calls("small", "large", "small"), fake, together=2)
    assert [reply.model for reply in found] == ["small", "large", "small"]
    assert fake.open == 0


async def test_no_more_than_so_many_are_under_way():
    fake, seen = engine(), list[int]()

    def enough(found):
        seen.append(fake.open)
        return False

    await replies(calls(*["small"] * 5), fake, together=2, enough=enough)
    assert max(seen) < 2 and len(fake.calls) == 5


async def test_once_they_are_enough_the_others_are_closed():
    fake = engine()
    fake.scripts["large"] = Script(["l"] * 8, delay=30)
    found = await replies(
        calls("small", "large", "large"), fake, together=3, enough=lambda found: bool(found)
    )
    assert [reply.model for reply in found] == ["small"] and fake.open == 0


async def test_what_is_enough_may_take_its_time():
    async def enough(found):
        await asyncio.sleep(0)
        return len(found) == 2

    assert len(await replies(calls(*["small"] * 4), engine(), together=1, enough=enough)) == 2


async def test_at_the_deadline_there_is_what_has_ended():
    fake = engine()
    fake.scripts["large"] = Script(["l"] * 8, delay=30)
    soon = Goals(deadline=time.monotonic() + 0.2)
    found = await replies(calls("small", "large", goals=soon), fake, together=2)
    assert [reply.model for reply in found] == ["small"] and fake.open == 0


async def test_at_the_deadline_what_has_begun_is_better_than_nothing():
    fake = engine()
    fake.scripts["large"] = Script(["l"] * 8, delay=0.05)
    fake.scripts["small"] = Script(["s"] * 8, delay=30)
    soon = Goals(deadline=time.monotonic() + 0.25)
    asked = calls("small", "large", goals=soon)
    found = await replies(asked, fake, together=2, unfinished=True)
    assert [reply.model for reply in found] == ["large"] and fake.open == 0
    assert found[0].finish is None and "l " in found[0].text


async def test_the_others_find_the_prompt_of_the_first_one_in_the_cache():
    for ahead, cached in ((True, [0, 4, 4]), (False, [0, 4, 4])):
        fake = engine()
        fake.scripts["small"] = Script(["s"] * 8, delay=0.001)
        begun = list[int]()
        generate = fake.generate

        def spied(one, fake=fake, begun=begun, generate=generate):
            begun.append(sum(fake.produced.values()))
            return generate(one)

        fake.generate = spied
        found = await replies(calls(*["small"] * 3), fake, together=3, ahead=ahead)
        assert [sum(c.usage.cached for c in reply.chunks) for reply in found] == cached
        assert (min(begun[1:]) > 0) == ahead


async def test_the_others_do_not_wait_for_a_first_one_that_failed():
    fake = engine()
    fake.scripts["large"] = Script(["l"] * 8, fails_after=0)
    found = await replies(calls("large", "small"), fake, together=2, ahead=True)
    assert [reply.model for reply in found] == ["small"]


async def test_one_that_fails_is_left_out():
    fake = engine()
    fake.scripts["large"] = Script(["l"] * 8, fails_after=1)
    assert len(await replies(calls("small", "large"), fake, together=2)) == 1
    with pytest.raises(EngineError):
        await replies(calls("large", "large"), fake, together=2)
    assert fake.open == 0


async def test_what_a_client_did_wrong_is_told():
    with pytest.raises(BadRequest):
        await replies([call("small", max_tokens=-1)], engine(), together=1)


@pytest.mark.parametrize(("budget", "paid"), [(1, 0), (13, 1), (26, 2)])
async def test_no_further_one_is_begun_that_the_budget_does_not_pay_for(budget, paid, monkeypatch):
    begun = list[Call]()
    meter = Meter(engine(), fleet().prices(), limit=usd(budget))
    generate = meter.generate
    monkeypatch.setattr(meter, "generate", lambda one: begun.append(one) or generate(one))
    async with meter:
        if paid:
            some = calls(*["small"] * 5)
            found = await replies([replace(one, max_tokens=4) for one in some], meter, together=1)
            assert len([reply for reply in found if not reply.cut]) == paid
        else:
            with pytest.raises(Unaffordable):
                await replies(calls("small"), meter, together=1)
    assert len(begun) == paid + 1


@pytest.mark.parametrize("steps", range(0, 40, 3))
async def test_nothing_stays_open_when_nobody_waits_any_more(steps):
    fake = engine()
    asking = asyncio.create_task(replies(calls("small", "large", "small"), fake, together=2))
    for _ in range(steps):
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert fake.open == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_reply_is_shown_with_what_was_decided():
    reply = await read(call("small"), engine(length=2))
    decided = Decision("select", "small", 0)
    ways = (Alternative("answer", "answer 1", chosen=True, reason="it is alone"),)
    chunks = list(shown(reply, decided, ways))
    assert [chunk.decision for chunk in chunks] == [decided, None, None]
    assert chunks[0].considered == ways and chunks[-1].finish == "stop"
    assert "".join(chunk.text for chunk in chunks) == reply.text


def test_what_we_ask_beside_has_nothing_of_the_client_s_wishes():
    mine = call("small", extra={"tools": [{}]}, max_tokens=5, account="a", id="x")
    ours = asked(mine, ({"role": "user", "content": "and?"},), max_tokens=9)
    assert (ours.extra, ours.max_tokens, ours.account, ours.id) == ({}, 9, "a", "x")


async def test_a_bare_completion_is_a_conversation_too():
    fake = engine()
    assert (await conversation(Call("small", prompt="why"), fake))[0]["content"] == "why"
    ids = tuple(fake.token_id(word) for word in ("is", "it"))
    assert (await conversation(Call("small", prompt=ids), fake))[0]["content"] == "is it"
    assert await conversation(call("small"), fake) == call("small").messages


def test_bounds_of_what_is_read():
    assert at_most("ä" * 10) >= 20 and as_read(100) >= 125
