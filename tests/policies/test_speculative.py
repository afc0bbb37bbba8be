"""What is asked of an engine that guesses ahead, what it refuses, and what a short budget does."""

from dataclasses import replace

import pytest

from app.catalog import Preset
from app.engines.fake import Fake
from app.errors import BadRequest, EngineUnsupported, Overloaded, UnknownModel
from app.gateway import Gateway, Order
from app.types import Sampling, Speculates, Speculation, Usage
from tests.policies.scripts import (
    GUESSES,
    LENGTH,
    SPECULATES,
    ask,
    call,
    engine,
    fleet,
    price,
    read,
    text,
    usd,
)

WORDS = [f"l{i}" for i in range(LENGTH)]


def order(model: str = "large", policy: str = "speculative", usd: int | None = None, **more):
    named = {key: more.pop(key) for key in ("max_tokens", "sampling") if key in more}
    return Order(call(model, **named), policy=policy, options=more, usd=usd)


async def answered(fake: Fake, asked: Order, catalog=None):
    answer = ask(Gateway(fake, catalog or fleet()), asked)
    chunks = await read(answer)
    return text(chunks).split(), answer


async def asked_of_the_engine(able: Speculates = SPECULATES, **options) -> Speculation | None:
    fake = engine(speculates=able)
    await answered(fake, order(**options))
    (only,) = fake.calls
    return only.decoding.speculation


async def test_the_answer_is_the_model_s_own_and_its_guesses_are_billed():
    said, answer = await answered(engine(), order())
    assert said == WORDS
    (line,) = answer.bill.lines
    passes = {(4, 2): 3, (6, 6): 7, (3, 0): 1, (0, 0): 1, (2, 1): 2}  # tokens of each
    assert sum(passes.values()) * 2 == 28 and line.usage.passes == 2 * 5 + 3 + 1
    assert line.usage.completion == line.visible == LENGTH
    assert line.usage.accepted == LENGTH - line.usage.passes
    writes, reads = LENGTH - line.usage.accepted, line.usage.drafted
    assert answer.spent == usd(5 * 10 + writes * 20 + reads * 2)
    assert answer.fidelity == "exact" and not answer.decisions


async def test_what_is_left_open_is_as_the_engine_can_best():
    assert await asked_of_the_engine() == Speculation(
        draft="small", lookup=True, rule="head", longest=6, acceptance="exact", adaptive=True
    )


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"draft": "none"}, {"draft": "", "lookup": True, "rule": "fixed"}),
        ({"lookup": "false"}, {"lookup": False, "draft": "small"}),
        ({"rule": "confidence", "level": "0.4"}, {"rule": "confidence", "level": 0.4}),
        ({"longest": "2"}, {"longest": 2}),
        ({"lenience": "0.5"}, {"acceptance": "lenient", "lenience": 0.5}),
        ({"adaptive": "0"}, {"adaptive": False}),
    ],
)
async def test_options_are_asked_of_the_engine(options, asked):
    wanted = await asked_of_the_engine(**options)
    assert {name: getattr(wanted, name) for name in asked} == asked


@pytest.mark.parametrize(
    ("able", "options", "asked"),
    [
        ({"lookup": False}, {}, ("small", False, "head")),
        ({"drafts": ()}, {}, ("", True, "fixed")),
        (
            {"drafts": ("",), "lookup": False, "rules": ("confidence",)},
            {},
            ("", False, "confidence"),
        ),
        # The head that the engine offers first is of its first draft.
        ({"drafts": ("tiny", "small")}, {"draft": "small"}, ("small", True, "confidence")),
    ],
)
async def test_who_guesses_and_by_which_rule(able, options, asked):
    fake_able = replace(SPECULATES, **able)
    wanted = await asked_of_the_engine(fake_able, **options)
    assert wanted is not None and (wanted.draft, wanted.lookup, wanted.rule) == asked


@pytest.mark.parametrize(
    ("options", "fidelity"),
    [
        ({}, "exact"),
        ({"acceptance": "lenient"}, "exact"),  # with a lenience of 1
        ({"acceptance": "lenient", "lenience": 0.9}, "approximate"),
        ({"lenience": 0.9}, "approximate"),
        ({"acceptance": "typical"}, "approximate"),
    ],
)
def test_fidelity_is_of_the_acceptance(options, fidelity):
    assert ask(Gateway(engine(), fleet()), order(**options)).fidelity == fidelity


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"longest": 0}, "longest"),
        ({"longest": 17}, "longest"),
        ({"lenience": 0}, "lenience"),
        ({"lenience": 0.0009}, "lenience"),
        ({"lenience": 1.1}, "lenience"),
        ({"lenience": 0.5, "acceptance": "exact"}, "not exact"),
        ({"lenience": 0.5, "acceptance": "typical"}, "lenience is of"),
        ({"level": 0.5}, "name `rule` too"),
        ({"level": 0.5, "rule": "fixed"}, "level: the rule fixed has none"),
        ({"level": 0.5, "rule": "heuristic"}, "level: the rule heuristic has none"),
        ({"level": "nan", "rule": "head"}, "level"),
        ({"rule": "clever"}, "rule"),
        ({"draft": "none", "lookup": False}, "nothing would guess"),
        ({"draft": "large"}, "would guess for itself"),
    ],
)
def test_options_that_cannot_be_are_refused(options, complaint):
    with pytest.raises(BadRequest, match=complaint):
        ask(Gateway(engine(), fleet()), order(**options))


def test_a_draft_that_does_not_exist_is_not_found():
    with pytest.raises(UnknownModel, match="nobody"):
        ask(Gateway(engine(), fleet()), order(draft="nobody"))


@pytest.mark.parametrize(
    ("able", "options", "complaint"),
    [
        (None, {"rule": "head"}, "rule: large guesses nothing ahead"),
        (None, {"draft": "small"}, "draft: large guesses nothing ahead"),
        (None, {"lookup": "on"}, "lookup: large guesses nothing ahead"),
        (None, {"lenience": 0.5}, "acceptance: large guesses nothing ahead"),
        ({"drafts": ()}, {"draft": "small"}, "draft: large cannot do 'small'; there is: none"),
        ({}, {"rule": "adaedl"}, "rule: .*there is: head, confidence, fixed"),
        ({}, {"acceptance": "typical"}, "acceptance: large cannot do 'typical'"),
        ({"lookup": False}, {"lookup": True}, "lookup: large cannot do 'on'"),
        ({"sampled": False}, {"rule": "head"}, "at a temperature above 0"),
        ({"drafts": (), "lookup": False}, {"rule": "head"}, "nothing that guesses"),
    ],
)
async def test_what_the_engine_cannot_do_is_refused_where_it_was_asked_for(
    able, options, complaint
):
    fake = engine(speculates=None if able is None else replace(SPECULATES, **able))
    with pytest.raises(EngineUnsupported, match=complaint) as raised:
        await answered(fake, order(**options))
    assert raised.value.param == "policy" and not fake.calls


@pytest.mark.parametrize("able", [None, {"sampled": False}, {"drafts": (), "lookup": False}])
async def test_else_it_answers_plainly_and_says_so(able):
    fake = engine(speculates=None if able is None else replace(SPECULATES, **able))
    said, answer = await answered(fake, order(longest=4, adaptive=False))
    assert said == WORDS and fake.calls[0].decoding.speculation is None
    (decision,) = answer.decisions
    assert (decision.kind, decision.model, decision.token) == ("plain", "large", 0)


SERVER = replace(SPECULATES, drafts=("",), lookup=False)  # with a draft that has no name


async def test_none_is_not_the_server_s_own_draft():
    fake = engine(speculates=SERVER)
    said, answer = await answered(fake, order(draft="none"))
    assert said == WORDS and fake.calls[0].decoding.speculation is None
    assert answer.decisions[0].kind == "plain"
    for option in ({"rule": "confidence"}, {"lookup": True}, {"lenience": 0.5}):
        with pytest.raises(EngineUnsupported):
            await answered(engine(speculates=SERVER), order(draft="none", **option))


async def test_who_guesses_for_greedy_answers_only_does_so():
    fake = engine(speculates=replace(SPECULATES, sampled=False))
    _, answer = await answered(fake, order(sampling=Sampling(temperature=0)))
    assert fake.guessed and not answer.decisions


async def test_a_preset_brings_its_model_and_a_model_that_is_named_goes_first():
    catalog = fleet()
    cards = catalog.models
    large = cards["large"].model_copy(update={"aliases": ("big",)})
    swift = Preset(name="swift", policy="speculative", target="big", draft="small")
    catalog = replace(catalog, models={**cards, "large": large}, presets={"swift": swift})
    for model, policy, writer in (("swift", "swift", "l0"), ("large", "swift", "l0")):
        said, answer = await answered(engine(), order(model, policy), catalog)
        assert said[0] == writer and answer.policy == "swift"
    with pytest.raises(BadRequest, match="would guess for itself"):
        ask(Gateway(engine(), catalog), order("small", "swift"))
    bare = replace(catalog, presets={"swift": Preset(name="swift", policy="speculative")})
    with pytest.raises(BadRequest, match="`target` is missing"):
        ask(Gateway(engine(), bare), Order(call("swift")))


GOOD = [(6, 5)] * 60
BAD = [(6, 0)] * 300


def plainly(budget: int, prompt: int, length: int) -> int:
    """Tokens of `direct` on this budget: one of a prompt is 1 micro-dollar, of an answer 20."""
    return min((budget - prompt) // 20, length)


@pytest.mark.parametrize("guesses", [GOOD, GUESSES * 6, BAD], ids=["good", "mixed", "bad"])
@pytest.mark.parametrize("prompt", [5, 100, 1000])
async def test_a_short_budget_buys_about_as_much_of_an_answer_as_plain_decoding(guesses, prompt):
    """And never costs more, whether the guesses are good or bad and the prompt short or long."""
    length = 300
    message = {"role": "user", "content": "word " * prompt}
    for budget in range(prompt + 20, prompt + 20 * 900, 371):
        fake = engine(length=length, guesses=guesses)
        asked = order(usd=usd(budget))
        asked = replace(asked, call=replace(asked.call, messages=(message,)))
        said, answer = await answered(fake, asked, fleet(large=price(1, 20, 0.1, 4)))
        assert said == [f"l{i}" for i in range(len(said))]
        assert answer.spent <= usd(budget)
        assert len(said) >= 0.9 * plainly(budget, prompt, length) - 1, budget


class Overruns(Fake):
    """Writes ahead of whoever reads its stream."""

    def capabilities(self, model):
        return replace(super().capabilities(model), overrun=9)


@pytest.mark.parametrize("plain", [100, 200, 500, 1000])
async def test_bad_guesses_take_a_tenth_of_a_short_budget_at_most(plain):
    """Of an engine that may have written on unseen wherever its stream is closed."""
    able = replace(SPECULATES, longest=8)
    fake = Overruns(engine(length=1200, guesses=[(8, 0)] * 1200, speculates=able).scripts)
    asked = order(usd=usd(20 * 0.01 + plain * 0.05))
    message = {"role": "user", "content": "word " * 20}
    asked = replace(asked, call=replace(asked.call, messages=(message,)))
    said, answer = await answered(fake, asked, fleet(large=price(0.01, 0.05, None, 0.016)))
    assert len(said) >= 0.9 * plain and answer.spent <= answer.estimate


async def test_plain_decoding_goes_on_where_the_budget_pays_for_no_further_guess():
    fake = engine(length=300, guesses=GOOD)
    _, answer = await answered(fake, order(usd=usd(2000)), fleet(large=price(1, 20, 0.1, 4)))
    *ahead, last = fake.calls
    assert all(call.decoding.speculation for call in ahead) and not last.decoding.speculation
    assert last.written[:2] == (fake.token_id("l0"), fake.token_id("l1"))
    (decision,) = answer.decisions
    assert (decision.kind, decision.token) == ("steer", len(last.written))
    assert len(last.written) == sum(call.max_tokens for call in ahead)
    stretches = [call.max_tokens for call in ahead]
    assert len(stretches) > 1 and stretches == sorted(stretches)  # while they save money


class HoldsBack(Fake):
    """Shows a word more with its finish chunk, as what may be a stop string comes; and tells of
    its guesses then only."""

    async def generate(self, call):
        told = Usage()
        async for chunk in super().generate(call):
            used = chunk.usage
            plain = Usage(used.prompt, used.cached, used.completion)
            told += replace(used, prompt=0, cached=0, completion=0)
            end = replace(chunk, text="held", usage=used + told)
            yield end if chunk.finish else replace(chunk, usage=plain)


def short(budget: float = 4000, **more) -> Order:
    """With a prompt of 120 tokens."""
    message = {"role": "user", "content": "word " * 120}
    asked = order(usd=usd(budget), **more)
    return replace(asked, call=replace(asked.call, messages=(message,)))


@pytest.mark.parametrize("guesses", [BAD, GOOD], ids=["bad", "good"])
async def test_text_that_was_held_back_is_shown_once(guesses):
    """And who tells of its guesses at the end only does not lose more by them."""
    fake = HoldsBack(engine(length=300, guesses=guesses).scripts)
    said, answer = await answered(fake, short(), fleet(large=price(1, 20, 0.1, 4)))
    assert said[-1] == "held" and said.count("held") == 1
    assert len(fake.calls) > 1 and answer.spent <= usd(4000)
    assert len(said) >= 0.9 * plainly(4000, 120, 300)


class Refuses(HoldsBack):
    """To go on with an answer."""

    error = BadRequest("no")

    async def generate(self, call):
        if call.written:
            raise self.error
        async for chunk in super().generate(call):
            yield chunk


@pytest.mark.parametrize("error", [BadRequest, EngineUnsupported, Overloaded])
@pytest.mark.parametrize("guesses", [BAD, GOOD], ids=["bad", "good"])
async def test_an_answer_ends_where_the_engine_refuses_to_go_on(error, guesses):
    fake = Refuses(engine(length=300, guesses=guesses).scripts)
    fake.error = error("no")
    answer = ask(Gateway(fake, fleet(large=price(1, 20, 0.1, 4))), short())
    chunks = await read(answer)
    assert (chunks[-1].finish, chunks[-1].reason) == ("length", "budget")
    (only,) = fake.calls
    assert text(chunks).split() == [*(f"l{i}" for i in range(only.max_tokens)), "held"]
    assert only.max_tokens < 300


class Faulty(Fake):
    """Finds amid its call of this number that the answer cannot be gone on with."""

    at = 1

    async def generate(self, call):
        written = 0
        async for chunk in super().generate(call):
            yield chunk
            written += len(chunk.tokens)
            if len(self.calls) == self.at and written > 2:
                raise BadRequest("too much work", param="guided_grammar")


@pytest.mark.parametrize("at", [1, 2])
async def test_what_is_wrong_with_the_answer_itself_is_no_end_of_the_budget(at):
    fake = Faulty(engine(length=300, guesses=BAD).scripts)
    fake.at = at
    answer = ask(Gateway(fake, fleet(large=price(1, 20, 0.1, 4))), short())
    with pytest.raises(BadRequest, match="too much work"):
        await read(answer)
    assert len(fake.calls) == at
    assert fake.calls[-1].written or at == 1


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
async def test_with_penalties_an_answer_is_written_by_one_call(penalty):
    sampling = Sampling(**{penalty: 0.5})
    for asked, ahead in ((short(sampling=sampling), False), (order(sampling=sampling), True)):
        fake = engine(length=300, guesses=BAD)
        await answered(fake, asked, fleet(large=price(1, 20, 0.1, 4)))
        (only,) = fake.calls
        assert (only.decoding.speculation is not None) is ahead


@pytest.mark.parametrize(("able", "each"), [(None, 0), (SPECULATES, 6)])
async def test_guesses_that_an_engine_cannot_make_are_not_reserved(able, each):
    asked = order(longest=16, max_tokens=10, usd=usd(50 + 10 * (20 + 2 * each)))
    said, answer = await answered(engine(speculates=able), replace(asked, strict=True))
    assert len(said) == 10 and answer.estimate == usd(50 + 10 * (20 + 2 * each))


async def test_bad_guesses_are_given_up_where_the_budget_is_short():
    fake = engine(length=300, guesses=BAD)
    _, answer = await answered(fake, order(usd=usd(2000)), fleet(large=price(1, 20, 0.1, 4)))
    assert fake.guessed["large"].drafted <= 0.1 * 2000 / 4 + 2 * 6
    assert [decision.kind for decision in answer.decisions] == ["steer"]
    assert answer.bill.completion >= 0.9 * plainly(2000, 5, 300)


async def test_with_money_enough_bad_guesses_are_the_engine_s_affair():
    fake = engine(length=300, guesses=BAD)
    _, answer = await answered(fake, order(), fleet(large=price(1, 20, 0.1, 4)))
    assert len(fake.calls) == 1 and not answer.decisions
