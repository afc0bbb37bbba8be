"""A refined answer is kept where the check says that it helped, and nothing is lost by trying."""

import asyncio
import math
import time
from dataclasses import replace

import pytest

from app.engines.fake import Fake, Script
from app.errors import BadRequest, EngineError, EngineUnsupported, Overloaded
from app.gateway import Gateway, Order
from app.types import Call, Chunk, Goals, Token, Usage
from tests.policies.scripts import ask, call, engine, fleet, read, text, usd
from tests.policies.talkers import FIRST, ROUND, SECOND, THIRD, kind_of, talker
from tests.policies.worlds import Seen, nothing_left, watch


def refined(fake: Fake, *, asked: Call | None = None, order: dict | None = None, **options: object):
    wanted = Order(asked or call("small"), policy="refine", options=options, **(order or {}))
    return ask(Gateway(fake, fleet()), wanted)


def told(answer) -> str:
    return answer.decisions[0].detail


async def test_the_answer_that_the_vote_prefers_is_kept():
    fake = talker(FIRST, SECOND, THIRD, likes={FIRST: 0.0, SECOND: 2.0, THIRD: 1.0})
    answer = refined(fake)
    chunks = await read(answer)
    assert text(chunks).split() == SECOND.split() and chunks[-1].finish == "stop"
    assert fake.begun == ["answer", *ROUND, *ROUND]
    assert len(fake.begun) == answer.notes.serving.most_calls(answer.order.call)
    (decided,) = answer.decisions
    assert (decided.kind, decided.model, decided.answers) == ("refine", "small", 3)
    assert decided.confidence == pytest.approx(1 / (1 + math.exp(-2)))
    assert decided.detail == "answer of round 1 of 3 kept; ended by: the last round"
    ways = [way for chunk in chunks for way in chunk.considered]
    assert [way.chosen for way in ways] == [False, True, False]
    assert {way.kind for way in ways} == {"answer"} and "0.731" in ways[2].reason


async def test_the_first_one_is_kept_where_no_other_is_preferred():
    fake = talker(FIRST, SECOND, THIRD, likes={FIRST: 3.0, SECOND: 2.0, THIRD: 1.0})
    answer = refined(fake)
    assert text(await read(answer)).split() == FIRST.split()
    assert answer.decisions[0].confidence == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("bias", [-4.0, 0.0, 4.0])
@pytest.mark.parametrize("liked", [-0.5, 0.5])
async def test_a_liking_for_a_letter_cancels_out(bias, liked):
    fake = talker(FIRST, SECOND, likes={FIRST: 0.0, SECOND: liked}, bias=bias)
    kept = text(await read(refined(fake, rounds=1)))
    assert kept.split() == (SECOND if liked > 0 else FIRST).split()


async def test_the_next_review_is_of_the_best_one_so_far():
    fake = talker(FIRST, SECOND, THIRD, likes={FIRST: 1.0, SECOND: 0.0, THIRD: 2.0})
    await read(refined(fake))
    reviews = [one for one in fake.calls if kind_of(one) == "review"]
    assert [one.messages[-2]["content"].split() for one in reviews] == [FIRST.split()] * 2
    rewrite = next(one for one in fake.calls if kind_of(one) == "rewrite")
    roles = [message["role"] for message in rewrite.messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert rewrite.messages[3]["content"] == "more 0"


@pytest.mark.parametrize("said", ["NO CHANGE", "**No change**.", '"no change" is needed'])
async def test_it_ends_when_a_review_finds_nothing(said):
    fake = talker(FIRST, SECOND, reviews=[said])
    answer = refined(fake)
    assert text(await read(answer)).split() == FIRST.split()
    assert fake.begun == ["answer", "review"] and "nothing to change" in told(answer)


async def test_it_ends_when_a_review_changes_nothing():
    fake = talker(FIRST, FIRST, SECOND)
    answer = refined(fake)
    await read(answer)
    assert fake.begun == ["answer", "review", "rewrite"] and "changed nothing" in told(answer)


async def test_another_model_may_review():
    fake = talker(FIRST, SECOND, likes={FIRST: 0.0, SECOND: 1.0})
    answer = refined(fake, rounds=1, critic="large")
    await read(answer)
    models = {kind_of(one): one.model for one in fake.calls}
    assert models == {"answer": "small", "review": "large", "rewrite": "small", "vote": "small"}
    assert dict(answer.visible) == {"small": 4}
    assert {line.model for line in answer.bill.lines} == {"small", "large"}


async def test_all_is_paid_for_and_the_kept_answer_alone_is_shown():
    fake = talker(FIRST, SECOND, THIRD, likes={FIRST: 0.0, SECOND: 2.0, THIRD: 1.0})
    answer = refined(fake)
    await read(answer)
    bill = answer.bill
    assert (bill.prompt, bill.cached, bill.completion) == (5, 0, 4)
    assert bill.lines[0].usage.completion == fake.produced["small"] == 3 + 2 + 2 + 4 + 2 + 5 + 2
    assert bill.cost <= answer.estimate


async def test_what_is_likelier_after_the_request_itself_is_kept():
    fake = talker(FIRST, SECOND, THIRD, likes={SECOND: -0.3, THIRD: -0.05})
    answer = refined(fake, check="logprob")  # a script's tokens have -0.1
    assert text(await read(answer)).split() == THIRD.split()
    assert fake.begun == ["answer", *["review", "rewrite", "score"] * 2]
    assert len(fake.begun) == answer.notes.serving.most_calls(answer.order.call)
    assert answer.decisions[0].confidence == pytest.approx(math.exp(-0.05))


@pytest.mark.parametrize("check", ["vote", "logprob"])
async def test_an_empty_first_answer_is_refined_too(check):
    fake = talker("", SECOND, likes={"": 0.0, SECOND: 1.0 if check == "vote" else -0.5})
    answer = refined(fake, check=check, rounds=1)
    assert text(await read(answer)).split() == SECOND.split()


async def test_where_no_prompt_is_scored_that_is_told():
    fake = talker(FIRST, SECOND, fails={"score": EngineUnsupported("echo")})
    answer = refined(fake, check="logprob", rounds=1)
    assert text(await read(answer)).split() == FIRST.split()  # as likely as the other
    assert told(answer).endswith("as where they were written: the engine rereads none")


async def test_what_a_verifier_passes_is_not_reviewed():
    passes = {"kind": "regex", "pattern": "four"}
    fake = talker(FIRST, SECOND)
    answer = refined(fake, check="verify", verifier=passes)
    assert text(await read(answer)).split() == SECOND.split()
    assert fake.begun == ["answer", "review", "rewrite"] and "it passes" in told(answer)
    fake = talker(SECOND, THIRD)
    assert text(await read(refined(fake, check="verify", verifier=passes))).split()[-1] == "four"
    assert fake.begun == ["answer"]


async def test_a_judge_s_word_counts_and_is_paid_for():
    fake = talker(FIRST, SECOND, fails={"judged": EngineError("no")})
    judge = {"kind": "judge", "judge": "large"}
    answer = refined(fake, check="verify", verifier=judge, rounds=1)
    await read(answer)
    assert "EngineError" in told(answer) and fake.begun == ["answer", "judged"]
    plan = Gateway(fake, fleet()).plan(answer.order)
    assert plan.policy.most_calls(call("small")) == 2 + 3
    assert plan.policy.worst_case("small", 5, 10)["large"].completion == 2 * 2


async def test_a_check_that_cannot_be_made_is_the_client_s_to_know():
    schema = {"$ref": "#/nowhere"}
    fake = talker(FIRST)
    with pytest.raises(BadRequest, match="schema"):
        await read(refined(fake, check="verify", verifier={"kind": "schema", "schema": schema}))
    assert fake.begun == []


def test_code_is_run_where_its_operator_says_so_only():
    tests = {"kind": "tests", "tests": "assert f() == 1"}
    with pytest.raises(BadRequest, match="sandbox"):
        refined(engine(), check="verify", verifier=tests)


async def test_what_is_cut_off_or_empty_is_not_kept():
    fake = talker(FIRST, "one two three four five six", likes={FIRST: 0.0})
    answer = refined(fake, asked=call("small", max_tokens=5), rounds=1)
    chunks = await read(answer)
    assert text(chunks).split() == FIRST.split() and "vote" not in fake.begun
    assert chunks[0].considered[1].reason == "it does not come to an end"
    fake = talker(FIRST, "")
    assert text(await read(refined(fake, rounds=1))).split() == FIRST.split()


@pytest.mark.parametrize("kind", ["review", "rewrite", "vote"])
@pytest.mark.parametrize("error", [EngineError("no"), Overloaded("no"), BadRequest("no")])
async def test_a_step_that_fails_leaves_the_best_so_far(kind, error):
    fake = talker(FIRST, SECOND, likes={FIRST: 0.0, SECOND: 1.0}, fails={kind: error})
    answer = refined(fake)
    assert text(await read(answer)).split() == FIRST.split()
    assert type(error).__name__ in told(answer)


async def test_a_first_answer_that_fails_is_an_error():
    fake = talker(FIRST, fails={"answer": EngineError("no")})
    with pytest.raises(EngineError):
        await read(refined(fake))


@pytest.mark.parametrize(("budget", "live"), [(100, True), (100_000, False)])
async def test_what_cannot_be_refined_is_shown_as_it_is_written(budget, live):
    fake = talker(FIRST, SECOND, likes={FIRST: 0.0, SECOND: 1.0})
    answer = refined(fake, order={"usd": usd(budget)}, rounds=1)
    begun = await anext(answer)
    assert fake.open == int(live)
    assert begun.text.split() == ["one"]
    rest = await read(answer)
    assert text(rest).split() == (FIRST if live else SECOND).split()[1:]
    assert ("does not pay" in told(answer)) == live
    assert answer.spent <= usd(budget)


async def test_it_is_shown_from_where_the_budget_would_not_pay_any_more():
    words = " ".join(f"w{number}" for number in range(400))
    fake = talker(words)
    answer = refined(fake, order={"usd": usd(3200)})
    begun = await anext(answer)
    assert fake.open == 1 and 1 < fake.produced["small"] < 400
    assert text([begun, *await read(answer)]).split() == words.split()
    assert fake.begun == ["answer"]


@pytest.mark.parametrize("budget", [100, 100_000])
@pytest.mark.parametrize("after", range(4))
async def test_nothing_is_left_when_its_client_leaves(budget, after):
    fake = talker(FIRST, SECOND, likes={FIRST: 0.0, SECOND: 1.0})
    with nothing_left(fake):
        await watch(Seen(refined(fake, order={"usd": usd(budget)}, rounds=1)), after)


async def test_a_review_is_no_longer_than_leaves_money_for_the_answer():
    reviews = [" ".join(["more"] * 300)]
    seen = set[int]()
    for budget in range(2000, 6000, 250):
        fake = talker(FIRST, SECOND, reviews=list(reviews), likes={FIRST: 0.0, SECOND: 1.0})
        answer = refined(fake, order={"usd": usd(budget)}, rounds=1)
        await read(answer)
        assert answer.spent <= usd(budget)
        assert fake.begun in (["answer"], ["answer", *ROUND])
        seen |= {one.max_tokens for one in fake.calls if kind_of(one) == "review"}
    assert min(seen) >= 16 and max(seen) == 256 and len(seen) > 2


@pytest.mark.parametrize("stalls", range(2, 10))
async def test_the_deadline_ends_it_with_the_best_so_far(stalls):
    likes = {FIRST: 0.0, SECOND: 1.0, THIRD: 2.0}
    fake = talker(FIRST, SECOND, THIRD, likes=likes, stalls=stalls)
    answer = refined(fake, asked=call("small", goals=Goals(deadline=time.monotonic() + 0.2)))
    chunks = await read(answer)
    assert text(chunks).split() == (FIRST if stalls < 6 else SECOND).split()
    assert chunks[-1].reason is None and len(fake.begun) == stalls
    assert "the deadline" in told(answer) and fake.open == 0


async def test_a_first_answer_that_takes_half_of_the_time_is_shown_as_it_comes():
    fake = talker(" ".join(["w"] * 30), delays={"answer": 0.02})
    asked = call("small", goals=Goals(deadline=time.monotonic() + 0.5))
    answer = refined(fake, asked=asked)
    chunks = await read(answer)
    assert "no time" in told(answer) and chunks[-1].reason == "deadline"
    assert 5 < len(text(chunks).split()) < 30 and fake.begun == ["answer"]


async def test_a_first_answer_that_stalls_is_shown_before_the_deadline():
    script = Script(["w"] * 9)
    fake = Fake({"small": script, "large": script})

    async def stalling(asked: Call):
        fake.running["small"] = 1
        try:
            yield Chunk("w ", (Token(1),), "small", usage=Usage(5, completion=1))
            await asyncio.sleep(30)
        finally:
            fake.running["small"] = 0

    fake.generate = stalling
    answer = refined(fake, asked=call("small", goals=Goals(deadline=time.monotonic() + 0.3)))
    chunks = await read(answer)
    assert text(chunks) == "w " and chunks[-1].reason == "deadline" and fake.open == 0


async def test_a_context_that_is_full_is_not_refined():
    fake = engine(length=30)
    fake.scripts["small"] = replace(fake.scripts["small"], context=60)
    answer = refined(fake, asked=call("small"), rounds=1)
    assert len(text(await read(answer)).split()) == 30
    assert "context" in told(answer) and len(fake.calls) == 1


async def test_each_choice_is_refined():
    fake = engine(length=3)
    answer = refined(fake, asked=call("small", choices=3), rounds=1)
    chunks = await read(answer)
    assert sorted(c.index for c in chunks if c.finish) == [0, 1, 2]
    assert sorted(decided.choice for decided in answer.decisions) == [0, 1, 2]


async def test_a_bare_completion_is_refined_as_a_conversation():
    fake = talker(FIRST, SECOND, likes={FIRST: 0.0, SECOND: 1.0})
    answer = refined(fake, asked=Call("small", prompt="why is it blue"), rounds=1)
    assert text(await read(answer)).split() == SECOND.split()
    assert fake.calls[1].messages[0] == {"role": "user", "content": "why is it blue"}


async def test_what_may_call_a_tool_is_not_reviewed():
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    fake = engine(length=3, structured=True)
    answer = refined(fake, asked=call("small", extra=tools))
    await read(answer)
    assert answer.decisions[0].kind == "whole" and len(fake.calls) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounds": 0}, "rounds"),
        ({"rounds": 5}, "rounds"),
        ({"check": "verify"}, "verifier"),
        ({"check": "vote", "verifier": {"kind": "regex", "pattern": "x"}}, "verifier"),
        ({"check": "taste"}, "check"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(BadRequest, match=said):
        refined(engine(), **options)


def test_a_model_must_be_named_by_someone():
    with pytest.raises(BadRequest, match="model"):
        Gateway(engine(), fleet()).plan(Order(call("economy"), policy="refine"))
