"""Several answers and the one that is given: by votes, a verifier, or likelihood; within bounds."""

import asyncio
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import policies
from app.engines.fake import Fake, Script
from app.errors import BadRequest, UnknownModel
from app.types import Sampling
from policies.best_of_n import BestOfN
from tests.policies.scripts import call, fleet, read, text, usd
from tests.policies.voters import answer, decision, fake, said, ways

PROMPT = 5  # tokens: 1 USD a million of the small model's, and 2 of an answer's


async def test_what_most_of_them_answer_is_given():
    engine = fake("it is 7", "I say 8", "so be 7", "9 it is", "well then 7")
    some = answer(engine, together=5)
    assert await said(some) == "it is 7"
    told = decision(some)
    assert (told.kind, told.model, told.answers, told.confidence) == ("select", "small", 5, 0.6)
    assert told.detail == "3 of 5 gave this answer"
    assert ways(some)[0] == ("answer 1", True, "3 of 5 gave it")
    assert {way[0] for way in ways(some)} == {"answer 1", "answer 2", "answer 3"}
    assert some.fidelity == "approximate" and len(engine.calls) == 5
    assert some.bill.completion == 3  # that are shown, of 15 that were written
    assert some.bill.cost == usd(2 * 15 + PROMPT + 4 * (1 + 0.1 * (PROMPT - 1)))


async def test_nothing_of_what_was_said_is_told():
    some = answer(fake("secret 7", "secret 8", "secret 7"), n=3)
    await read(some)
    told = f"{some.decisions} {some.notes.considered}"
    assert "secret" not in told and "'7'" not in told


async def test_a_tie_goes_to_the_likeliest():
    variants = tuple(
        Script(one.split(), logprobs=[logprob] * 2)
        for one, logprob in (("a 7", -2.0), ("b 8", -0.5), ("c 7", -1.5), ("d 8", -0.9))
    )
    engine = Fake({"small": Script(["x"], variants=variants), "large": Script(["l"])})
    some = answer(engine, n=4)
    assert await said(some) == "b 8"
    assert decision(some).detail == "2 of 4 gave this answer; a tie went to the likeliest"


async def test_answers_without_an_answer_have_no_vote():
    some = answer(fake("hm", "I say 8", "well"), n=3)
    assert await said(some) == "I say 8"
    assert decision(some).detail == "1 of 3 gave this answer, 2 gave none"
    some = answer(fake("hm", "well"), n=2)
    assert await said(some) == "hm"
    assert "no answer was found" in decision(some).detail


async def test_what_a_bound_cut_has_no_say_where_one_is_whole():
    engine = fake("7 7 7 7 7 7 7 7 7 7", "so 8", "7 7 7 7 7 7 7 7 7 7")
    some = answer(engine, n=3)
    chunks = await read(some)
    assert text(chunks).strip() == "so 8" and chunks[-1].finish == "stop"
    some = answer(fake("7 7 7 7 7 7 7 7 7 7"), n=3)
    chunks = await read(some)
    assert len(text(chunks).split()) == 8 and chunks[-1].finish == "length"
    assert chunks[-1].reason is None


@pytest.mark.parametrize(
    ("sure", "n", "made"),
    [(1.0, 5, 3), (1.0, 7, 4), (0.95, 8, 4), (0.9, 8, 3), (0.7, 8, 1)],
)
async def test_a_vote_stops_once_it_is_decided(sure, n, made):
    engine = fake("so 7")
    some = answer(engine, n=n, sure=sure, together=1)
    await read(some)
    assert len(engine.calls) == made == decision(some).answers


async def test_what_is_decided_closes_the_others_at_once():
    slow = Script(["9"], delay=60)
    variants = (Script(["7"]), Script(["7"]), slow)
    engine = Fake({"small": Script(["7"], variants=variants), "large": Script(["l"])})
    some = answer(engine, n=3, together=3)
    begun = time.monotonic()
    assert await said(some) == "7"
    assert time.monotonic() - begun < 30 and engine.open == 0


@given(
    texts=st.lists(st.sampled_from(["7", "8", "9", "hm"]), min_size=2, max_size=9),
    together=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_a_vote_that_stops_early_ends_as_the_whole_one(texts, together):
    engine = fake(*texts)
    given_ = asyncio.run(said(answer(engine, n=len(texts), together=together)))
    assert engine.open == 0
    counts = sorted((texts.count(one) for one in "789"), reverse=True)
    if counts[0] > counts[1]:
        assert given_ == max("789", key=texts.count)


async def test_the_likeliest_is_given_where_that_is_asked_for():
    variants = (Script(["a", "7"], logprobs=[-2.0] * 2), Script(["b", "8"], logprobs=[-0.5] * 2))
    engine = Fake({"small": Script(["x"], variants=variants), "large": Script(["l"])})
    some = answer(engine, n=4, choose="logprob")
    assert await said(some) == "b 8"
    assert decision(some).confidence == pytest.approx(0.6065, abs=1e-3)
    assert ways(some)[1] == ("answer 2", True, "mean log-probability -0.500")


VERIFIER = {"kind": "regex", "pattern": "^so"}


async def test_the_first_that_the_verifier_passes_is_given():
    engine = fake("I say 7", "it is 7", "so 8", "so 9")
    some = answer(engine, n=4, choose="verify", verifier=VERIFIER, together=1)
    assert await said(some) == "so 8"
    assert len(engine.calls) == 3 and decision(some).confidence == 1.0
    assert decision(some).detail == "1 of 3 passed the verifier"
    assert ways(some)[0][2] == "it did not pass the verifier (0.00)"


async def test_where_none_passes_they_vote():
    engine = fake("I say 7", "it is 8", "is it 8")
    some = answer(engine, n=3, choose="verify", verifier=VERIFIER)
    assert await said(some) == "it is 8"
    assert (decision(some).confidence, decision(some).detail) == (0.0, "0 of 3 passed the verifier")


# What is asked.


async def test_each_sample_is_drawn_with_a_seed_and_a_temperature_of_its_own():
    engine = fake("7", "8", "9")
    sampling = Sampling(temperature=0.0, seed=11, stop=("x",))
    asked = replace(call("small", max_tokens=4), sampling=sampling)
    assert await said(answer(engine, n=3, asked=asked, choose="logprob")) == "9"
    assert sorted(made.sampling.seed for made in engine.calls) == [11, 12, 13]
    assert {made.sampling.temperature for made in engine.calls} == {0.7}
    assert {made.sampling.stop for made in engine.calls} == {("x",)}
    assert {made.max_tokens for made in engine.calls} == {4}


@pytest.mark.parametrize(
    ("sampling", "body", "temperature"),
    [
        (Sampling(), {}, 0.9),
        (Sampling(), {"temperature": 1}, 1.0),
        (Sampling(temperature=0.2), {"temperature": 0.2}, 0.2),
        (Sampling(temperature=0.0), {"temperature": 0}, 0.9),
    ],
)
async def test_a_client_s_temperature_stays(sampling, body, temperature):
    engine = fake("7", "8")
    asked = replace(call("small", max_tokens=4), sampling=sampling, body=body)
    await read(answer(engine, n=2, asked=asked, temperature=0.9))
    assert {made.sampling.temperature for made in engine.calls} == {temperature}


async def test_choices_share_no_seed():
    engine = fake("7", "8")
    asked = replace(call("small", max_tokens=4, choices=3), sampling=Sampling(seed=11))
    await read(answer(engine, n=2, asked=asked))
    assert sorted(made.sampling.seed for made in engine.calls) == [11, 12, 13, 14, 15, 16]


async def test_several_choices_are_chosen_each():
    engine = fake("so 7", "so 8", "so 7")
    asked = call("small", max_tokens=4, choices=2)
    some = answer(engine, n=3, asked=asked, choose="logprob")
    chunks = await read(some)
    assert {chunk.index for chunk in chunks} == {0, 1} and len(engine.calls) == 6
    assert sorted(one.choice for one in some.decisions) == [0, 1]


async def test_no_more_are_written_side_by_side_than_may_be():
    engine, most = fake(*["7", "8", "9", "10", "11", "12"], delay=0.001), 0
    some = answer(engine, n=6, together=2, choose="logprob")

    async def watch():
        nonlocal most
        while True:
            most = max(most, engine.open)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await read(some)
    watching.cancel()
    assert most == 2 and len(engine.calls) == 6


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({"right": 0.5, "false_pass": 0.1, "wrong_costs": 1.0, "sample_costs": 0.02}, 8),
        ({"right": 0.9, "spread": 0.1, "sample_costs": 0.1}, 1),
        ({"most": 3}, 3),
        ({"n": 2, "most": 1}, 2),
    ],
)
async def test_how_many_is_chosen_by_what_is_known_of_them(options, made):
    engine = fake("7")
    some = answer(engine, **{"n": None, "choose": "logprob", **options})
    await read(some)
    assert len(engine.calls) == made


async def test_a_verifier_that_passes_wrong_ones_is_asked_less_often():
    bad = {"choose": "verify", "verifier": {"kind": "regex", "pattern": "never"}}
    for false_pass, made in ((0.01, 8), (0.3, 3)):
        engine = fake("7")
        await read(answer(engine, n=None, false_pass=false_pass, **bad))
        assert len(engine.calls) == made


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"n": 65}, "n: "),
        ({"n": 0}, "n: "),
        ({"most": 65}, "most: "),
        ({"together": 65}, "together: "),
        ({"sure": 0.5}, "sure: "),
        ({"extract": "words"}, "extract: "),
        ({"choose": "verify"}, "needs a `verifier`"),
        ({"verifier": VERIFIER}, "needs a `verifier`"),
        ({"model": "none"}, "does not exist"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, why):
    with pytest.raises((BadRequest, UnknownModel), match=why):
        policies.load("best_of_n", options).fit(fleet(), None)


def test_a_model_is_needed_and_may_be_a_preset_s():
    with pytest.raises(BadRequest, match="`model` is missing"):
        BestOfN().fit(fleet(), None)
    assert BestOfN(model="small").fit(fleet(), None).model == "small"
    assert BestOfN(model="small").fit(fleet(), "large").model == "large"
