"""Who answers in a cascade, when that is decided, and what is shown of it."""

import math
from dataclasses import replace

import pytest

from app.engines.fake import Fake, Script
from app.errors import BadRequest
from app.gateway import Gateway, Order
from app.types import Sampling, Usage
from policies.answers.judging import checking_reads
from policies.cascade import Cascade
from tests.policies.cascades import (
    CHANCE,
    FAIR,
    FOREIGN,
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
    score,
    script,
)
from tests.policies.scripts import LENGTH, call, price, read, text, usd


@pytest.mark.parametrize("likely", [SURE, FAIR])
async def test_without_a_calibration_the_mean_log_probability_decides_at_the_end(likely):
    fake = engine(small=likely)
    answer = asked(fake)
    chunks = await read(answer)
    (one,) = answer.decisions
    assert one.confidence == pytest.approx(math.exp(likely)) and one.threshold == 0.7
    assert one.token == LENGTH and "uncalibrated" in one.detail
    kept = likely == SURE
    assert (one.kind, one.model) == (("keep", "small") if kept else ("escalate", "large"))
    assert said(chunks) == {one.model[0]} and len(text(chunks).split()) == LENGTH
    assert answer.fidelity == "approximate" and answer.outcome == "kept"
    assert one.answers == len(fake.calls) == (1 if kept else 2)


async def test_an_answer_that_is_not_kept_is_paid_for_and_not_shown():
    fake = engine(small=FAIR)
    answer = asked(fake)
    await read(answer)
    assert answer.visible == {"large": LENGTH}
    assert {line.model: line.cost for line in answer.bill.lines} == {
        "small": usd(PROMPT * 2 + LENGTH * 4),
        "large": usd(PROMPT * 10 + LENGTH * 20),
    }
    assert answer.bill.prompt == PROMPT and answer.bill.completion == LENGTH


async def test_the_calibration_decides_where_there_is_one():
    answer = asked(engine(small=FAIR), calibration(), options={"threshold": 0.5})
    await read(answer)
    (one,) = answer.decisions
    assert (one.kind, one.confidence) == ("keep", pytest.approx(0.5))
    assert one.detail == "by its whole answer"


async def test_a_sure_beginning_is_shown_at_once_and_the_rest_as_it_comes():
    fake = engine()
    answer = asked(fake, calibration(4, 8))
    first = await anext(answer)
    assert fake.produced == {"small": 4} and first.decision.kind == "keep"
    assert first.decision.confidence == pytest.approx(CHANCE[SURE])
    assert (first.decision.token, first.decision.detail) == (4, "after 4 tokens")
    begun = [first, *[await anext(answer) for _ in range(3)]]
    assert fake.produced == {"small": 4} and text(begun) == "s0 s1 s2 s3 "
    await anext(answer)
    assert fake.produced == {"small": 5}
    await read(answer)
    assert models(fake) == ["small"]


async def test_a_poor_beginning_is_left_at_once():
    fake = engine(small=POOR)
    answer = asked(fake, calibration(4, 8))
    assert said(await read(answer)) == {"l"}
    assert fake.produced == {"small": 4, "large": LENGTH} and fake.open == 0
    assert decided(answer) == [("escalate", "large", 4)]
    assert answer.decisions[0].detail == "small after 4 tokens"


async def test_between_the_two_it_is_read_on():
    fake = engine()
    fake.scripts["small"] = Script(
        [f"s{i}" for i in range(LENGTH)], logprobs=[FAIR] * 4 + [-0.01] * LENGTH
    )
    answer = asked(fake, calibration(4, 8))
    await read(answer)
    assert decided(answer) == [("keep", "small", 8)]
    assert answer.decisions[0].confidence == pytest.approx(1 - (4 + 0.04) / 8 / 2)


async def test_caution_keeps_less_and_leaves_no_more():
    """After four tokens the chance is 0.5: enough, but for caution; and too much to be left."""
    for caution, token in ((0.0, 4), (1.0, LENGTH)):
        known = calibration(4, caution=caution)
        answer = asked(engine(small=FAIR), known, options={"threshold": 0.45})
        assert said(await read(answer)) == {"s"}
        assert decided(answer) == [("keep", "small", token)]


@pytest.mark.parametrize(("output", "left"), [(21, LENGTH), (19, 4)])
async def test_what_is_poor_enough_follows_from_what_tokens_cost(output, left):
    """Of answers as sure as this a fifth are kept at their end at most: reading on is worth it
    where a token of the next model costs more than five times as much."""
    fake = engine(small=-2 + 2 * 0.7 / 5)
    known = fleet(calibration(4), large={"price": price(10, output)})
    await read(asked(fake, catalog=known))
    assert fake.produced["small"] == left


@pytest.mark.parametrize("small", [SURE, POOR])
async def test_without_early_whole_answers_are_waited_for(small):
    fake = engine(small=small)
    answer = asked(fake, calibration(4, 8), options={"early": False})
    await anext(answer)
    assert fake.produced["small"] == LENGTH
    await answer.aclose()


async def test_each_stage_is_told_and_the_last_one_answers_in_any_case():
    fake = engine(tiny=POOR, small=FAIR, large={"sure": POOR})
    answer = asked(fake, calibration(4), model="three")
    chunks = await read(answer)
    assert said(chunks) == {"l"} and models(fake) == ["tiny", "small", "large"]
    assert decided(answer) == [("escalate", "small", 4), ("escalate", "large", LENGTH)]
    assert [each.answers for each in answer.decisions] == [None, 3]
    (ways,) = [chunk.considered for chunk in chunks if chunk.considered]
    assert [(way.name, way.chosen) for way in ways] == [
        ("tiny", False),
        ("small", False),
        ("large", True),
    ]
    assert "chance of 0.05, after 4 tokens" in ways[0].reason
    assert "chance of 0.50, by its whole answer" in ways[1].reason


async def test_who_was_not_asked_is_told_too():
    chunks = await read(asked(engine(), calibration(4), model="three"))
    (ways,) = [chunk.considered for chunk in chunks if chunk.considered]
    assert (
        ways[0].chosen
        and [way.reason for way in ways[1:]] == ["not asked: the answer of tiny is kept"] * 2
    )


@pytest.mark.parametrize("wanted", [None, 3])
async def test_log_probabilities_are_asked_for_beside_what_the_client_wants(wanted):
    fake = engine(small=FAIR)
    await read(asked(fake, sampling=Sampling(logprobs=wanted)))
    small, large = fake.calls
    assert (small.sampling.logprobs, large.sampling.logprobs) == (wanted or 0, wanted)


@pytest.mark.parametrize("watched", [True, False])
async def test_entropy_is_asked_for_where_the_calibration_goes_by_it(watched):
    feature = "mean_entropy" if watched else "mean_logprob"
    fake = engine()
    answer = asked(fake, calibration(whole=score(features=(feature,))))
    await read(answer)
    assert fake.calls[0].decoding.entropy is watched
    assert "uncalibrated" not in answer.decisions[0].detail


async def test_a_server_that_tells_less_than_the_calibration_needs_is_judged_without_it():
    class Dumb(Fake):
        def capabilities(self, model):
            return replace(super().capabilities(model), entropy=None)

    fake = Dumb(engine().scripts)
    entropy = score(features=("mean_entropy",))
    answer = asked(fake, calibration(whole=entropy, at={4: entropy}))
    await read(answer)
    (one,) = answer.decisions
    assert (one.token, one.detail) == (LENGTH, "by its whole answer, uncalibrated")
    assert one.confidence == pytest.approx(math.exp(SURE))


async def test_an_answer_of_no_words_is_not_kept():
    fake = engine()
    fake.scripts["small"] = Script([])
    answer = asked(fake)
    assert said(await read(answer)) == {"l"}
    assert answer.decisions[0].confidence is None


async def test_an_answer_that_fills_a_context_is_not_kept_where_the_next_one_has_more():
    fake = engine(small=SURE)
    fake.scripts["small"] = script("small", SURE, context=20)
    answer = asked(fake)
    assert len(text(await read(answer)).split()) == LENGTH
    assert decided(answer) == [("escalate", "large", 15)]
    short = asked(fake, max_tokens=15)
    await read(short)
    assert decided(short) == [("keep", "small", 15)]


# What a model says of its own answer


@pytest.mark.parametrize(("yes", "kept"), [(0.9, True), (0.1, False)])
async def test_a_model_may_be_asked_about_its_own_answer(yes, kept):
    fake = checked(yes, small=-0.5)
    answer = asked(fake, options={"self_check": True})
    chunks = await read(answer)
    assert said(chunks) == ({"s"} if kept else {"l"})
    (one,) = answer.decisions
    assert one.confidence == pytest.approx((math.exp(-0.5) + yes) / 2)
    assert one.detail.endswith("by its whole answer, self-checked, uncalibrated")
    question, reply = fake.calls[1], fake.calls[1].messages[-2]
    assert (question.model, question.max_tokens) == ("small", 1)
    assert reply == {"role": "assistant", "content": "".join(f"s{i} " for i in range(LENGTH))}


async def test_its_word_goes_into_the_calibration():
    known = calibration(checked=score(features=("self_check",), seen=(-2.0, 2.0)))
    answer = asked(checked(0.8), known, options={"self_check": True})
    await read(answer)
    # 0.8 lies beyond the last step, which is 1.
    assert (
        answer.decisions[0].confidence == 1.0 and "uncalibrated" not in answer.decisions[0].detail
    )


async def test_an_early_decision_does_without_its_word():
    fake = checked(0.1)
    await read(asked(fake, calibration(4), options={"self_check": True}))
    assert models(fake) == ["small"]


async def test_about_no_answer_nothing_is_asked():
    fake = checked(0.9)
    fake.scripts = {**fake.scripts, "small": Script([])}
    await read(asked(fake, options={"self_check": True}))
    assert models(fake) == ["small", "large"]


async def test_where_it_does_not_say_the_other_signals_must_do():
    answer = asked(checked(-1.0), options={"self_check": True})
    await read(answer)
    assert answer.decisions[0].detail == "by its whole answer, uncalibrated"


async def test_self_checks_are_in_the_estimate():
    answer = asked(checked(0.1, small=POOR), options={"self_check": True}, max_tokens=LENGTH)
    await read(answer)
    assert models(answer._meter.engine) == ["small", "small", "large"]
    assert answer.spent <= answer.estimate


# Several choices, and other servers' own words


async def test_each_choice_has_a_cascade_of_its_own():
    fake = engine(small=FAIR)
    answer = asked(fake, choices=2, sampling=Sampling(seed=7))
    chunks = await read(answer)
    for index in (0, 1):
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert text(mine).split() == [f"l{i}" for i in range(LENGTH)]
    assert sorted(models(fake)) == ["large", "large", "small", "small"]
    assert sorted(each.sampling.seed for each in fake.calls) == [7, 7, 8, 8]
    assert sorted(each.choice for each in answer.decisions) == [0, 1]


@pytest.mark.parametrize("whole", [False, True])
async def test_another_server_s_answer_is_relayed_with_all_that_was_decided(whole):
    fake = engine(tiny=FAIR, small=FAIR, large={"native": True})
    answer = asked(fake, catalog=fleet(large=FOREIGN), model="three", whole=whole)
    chunks = await read(answer)
    assert fake.calls[-1].decoding.native and b"l39" in b"".join(c.raw or b"" for c in chunks)
    assert [each.kind for each in answer.decisions] == ["escalate", "escalate"]
    assert whole or all(chunk.raw is not None for chunk in chunks)
    assert answer.visible == {"large": LENGTH}


async def test_an_answer_that_is_kept_before_it_is_ours():
    fake = engine(large={"native": True})
    chunks = await read(asked(fake, catalog=fleet(large=FOREIGN)))
    assert said(chunks) == {"s"} and all(chunk.raw is None for chunk in chunks)


async def test_of_several_choices_another_server_makes_all():
    fake = engine(large={"native": True})
    answer = asked(fake, catalog=fleet(large=FOREIGN), choices=2)
    await read(answer)
    assert [(each.model, each.choices) for each in fake.calls] == [("large", 2)]
    assert [each.kind for each in answer.decisions] == ["whole"] and answer.fidelity == "exact"


# Options


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"models": ["small"]}, "two to four"),
        ({"models": ["small", "small"]}, "that differ"),
        ({"models": ["a", "b", "c", "d", "e"]}, "at most 4"),
        ({"models": ["large", "small"]}, "costs more than one of small"),
        ({"threshold": 1.5}, "threshold"),
        ({"early": "perhaps"}, "early"),
    ],
)
def test_what_is_no_cascade_is_refused(options, complaint):
    with pytest.raises(BadRequest, match=complaint) as refused:
        asked(engine(), options=options)
    assert refused.value.param == "policy"


def test_models_are_two_unless_they_are_named():
    order = Order(call("large"), policy="cascade")
    assert Gateway(engine(), fleet()).plan(order).policy.models == ("tiny", "large")
    named = replace(order, options={"models": "small,large"})
    assert Gateway(engine(), fleet()).plan(named).policy.models == ("small", "large")


@pytest.mark.parametrize(
    ("model", "options", "complaint"),
    [
        ("tiny", {}, "tiny is the cheapest of its family"),
        ("large", {"models": ["tiny", "small"]}, "must end with large"),
    ],
)
def test_the_model_that_is_named_is_the_last(model, options, complaint):
    order = Order(call(model), policy="cascade", options=options)
    with pytest.raises(BadRequest, match=complaint):
        Gateway(engine(), fleet()).plan(order)


def test_only_the_last_may_be_another_server_s():
    with pytest.raises(BadRequest, match="small is another server's"):
        asked(engine(), catalog=fleet(small=FOREIGN))


def test_each_must_write():
    vectors = {"engine": "vllm", "weights": "", "urls": ("http://there",), "embeds": "only"}
    with pytest.raises(BadRequest, match="large writes nothing"):
        asked(engine(), catalog=fleet(large=vectors))


def test_it_says_how_much_it_may_ask_for():
    plain = Cascade(models=("small", "large")).fit(fleet(), None)
    assert plain.worst_case("", 7, 9) == dict.fromkeys(("small", "large"), Usage(7, 0, 9))
    early = Cascade(models=("small", "large")).fit(fleet(calibration(4)), None)
    assert early.worst_case("", 7, 9)["small"] == Usage(2 * 7 + 9, 0, 9)
    check = plain.model_copy(update={"self_check": True})
    assert check.worst_case("", 7, 9)["small"] == Usage(7 + checking_reads(7, 9), 0, 10)
    assert early.best_first("") == ("large", "small")
    assert (plain.most_calls(call()), check.most_calls(call())) == (3, 4)
