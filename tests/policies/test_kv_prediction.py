"""Which prompts are predicted, by what, what it costs, and how an answer is repaired."""

import asyncio
import time

import pytest

import policies
from app.engines.fake import Fake
from app.errors import BadRequest, EngineUnsupported
from app.gateway import Gateway, Order
from app.types import Call, Goals, KVPrediction, Sampling, Usage
from tests.policies.scripts import LENGTH, ask, engine, fleet, price, read, text, usd

WORDS = [f"l{i}" for i in range(LENGTH)]
KV = {"layers-20": 0.7, "layers-8": 0.3}
PROMPT = 200  # tokens
SHORT = {"least": 100, "first": 4, "last": 16}


def predicting(**more: object) -> Fake:
    return engine(speculates=None, predictors=KV, **more)


def order(usd: int | None = None, prompt: int = PROMPT, model: str = "large", **more) -> Order:
    named = {key: more.pop(key) for key in ("max_tokens", "sampling", "goals") if key in more}
    said = {"role": "user", "content": " ".join(f"w{i}" for i in range(prompt))}
    asked = Call(model, (said,), **named)
    return Order(asked, policy="kv_prediction", options={**SHORT, **more}, usd=usd)


async def answered(fake: Fake, asked: Order, catalog=None):
    answer = ask(Gateway(fake, catalog or fleet()), asked)
    chunks = await read(answer)
    return text(chunks).split(), answer


async def predictor(fake: Fake, asked: Order) -> str | None:
    """What the only call of this order asked for."""
    await answered(fake, asked)
    (only,) = fake.calls
    return None if only.decoding.kv is None else only.decoding.kv.predictor


async def test_a_long_prompt_is_predicted_by_the_best_there_is_and_said_to_be_approximate():
    fake = predicting()
    said, answer = await answered(fake, order())
    assert said == WORDS and answer.fidelity == "approximate"
    (decision,) = answer.decisions
    assert (decision.kind, decision.token, decision.saves) == ("predict", 0, None)
    (only,) = fake.calls
    assert only.decoding.kv == KVPrediction("layers-20", last=16, first=4, relevant=0.2)
    (line,) = answer.bill.lines
    assert line.usage == Usage(prompt=PROMPT, completion=LENGTH, predicted=PROMPT - 20)


async def test_by_how_much_sooner_it_begins_is_told_by_the_pace_of_late():
    _, answer = await answered(predicting(reading=0.01), order())
    (decision,) = answer.decisions
    share = KV["layers-20"]
    assert decision.saves == pytest.approx((PROMPT - 20) * 0.01 * (1 - share))


async def test_what_is_predicted_has_a_price_of_its_own():
    large = price(10, 20).model_copy(update={"predicted": 3 * 10**6})
    _, answer = await answered(predicting(), order(), fleet(large=large))
    assert answer.spent == usd(20 * 10 + (PROMPT - 20) * 3 + LENGTH * 20)
    _, answer = await answered(predicting(), order())
    assert answer.spent == usd(PROMPT * 10 + LENGTH * 20)


async def test_a_short_prompt_is_read_exactly_and_the_answer_says_so():
    for prompt, wanted in ((99, None), (100, "layers-20")):
        fake = predicting()
        assert await predictor(fake, order(prompt=prompt)) == wanted
    _, answer = await answered(predicting(), order(prompt=99))
    assert [(d.kind, d.model, d.token) for d in answer.decisions] == [("plain", "large", 0)]


async def test_a_prompt_that_is_all_read_exactly_predicts_nothing():
    assert await predictor(predicting(), order(prompt=120, first=100, last=20)) is None


@pytest.mark.parametrize(
    "seconds, wanted",
    [(30.0, None), (16.0, "layers-20"), (8.0, "layers-8"), (0.5, "layers-8")],
)
async def test_by_when_it_should_begin_decides_how_exactly_it_is_read(seconds, wanted):
    # Exactly it takes 20 s, by twenty layers 14.6 s, by eight 7.4 s.
    goals = Goals(first_token=time.monotonic() + seconds)
    assert await predictor(predicting(reading=0.1), order(goals=goals)) == wanted


async def test_what_the_end_asks_about_is_read_exactly_as_far_as_there_is_time():
    async def asked(left: float | None, **options: object) -> tuple[str, float]:
        fake = predicting(reading=0.1)
        goals = Goals(first_token=None if left is None else time.monotonic() + left)
        await answered(fake, order(goals=goals, **options))
        kv = fake.calls[0].decoding.kv
        return kv.predictor, round(kv.relevant, 1)

    assert await asked(None) == ("layers-20", 0.2)
    assert await asked(None, relevant=0) == ("layers-20", 0.0)
    # Of 180 tokens that are not read exactly all the same, 70 % for twenty layers, 30 for eight.
    assert await asked(2 + 18 * (0.7 + 0.3 * 0.41)) == ("layers-20", 0.4)
    assert await asked(2 + 18 * (0.7 + 0.3 * 0.11)) == ("layers-8", 0.6)
    assert await asked(2 + 18 * (0.3 + 0.7 * 0.11)) == ("layers-8", 0.1)
    assert await asked(2 + 18 * 0.1) == ("layers-8", 0.0)
    assert await asked(2 + 18 * (0.7 + 0.3 * 0.11), relevant=0) == ("layers-20", 0.1)


async def test_while_it_is_not_known_how_long_reading_takes_it_is_predicted():
    goals = Goals(first_token=time.monotonic() + 30)
    assert await predictor(predicting(), order(goals=goals)) == "layers-20"


async def test_a_predictor_that_is_named_is_taken_and_one_that_is_not_there_refused():
    assert await predictor(predicting(), order(predictor="layers-8")) == "layers-8"
    with pytest.raises(EngineUnsupported, match="layers-9.*layers-20, layers-8") as refused:
        await answered(predicting(), order(predictor="layers-9"))
    assert refused.value.param == "policy"


async def test_an_edited_prompt_is_moved_where_the_engine_can():
    fake = engine(speculates=None, predictors=KV, edits=True)
    _, answer = await answered(fake, order(edited=True, conversation="c"))
    (only,) = fake.calls
    assert (only.decoding.edited, only.decoding.kv) == ("c", None)
    assert answer.fidelity == "approximate"
    with pytest.raises(EngineUnsupported, match="edited: large cannot"):
        await answered(predicting(), order(edited=True))


async def test_an_engine_that_cannot_reads_exactly_and_the_answer_says_so():
    fake = engine(speculates=None)
    said, answer = await answered(fake, order())
    assert said == WORDS and fake.calls[0].decoding.kv is None
    assert [d.kind for d in answer.decisions] == ["plain"]
    with pytest.raises(EngineUnsupported, match="there is: none"):
        await answered(engine(speculates=None), order(predictor="layers-8"))


async def test_a_target_must_be_known():
    with pytest.raises(BadRequest, match="target"):
        policies.load("kv_prediction", {}).fit(fleet(), None)


async def test_repair_reads_the_prompt_exactly_and_goes_on_from_that():
    fake = predicting(delay=0.001)
    said, answer = await answered(fake, order(repair=True))
    assert said == WORDS
    first, second, third = fake.calls
    assert first.decoding.kv is not None
    assert second.decoding.kv is None and second.max_tokens == 1
    assert third.decoding.kv is None and 0 < len(third.written) < LENGTH
    told = [(d.kind, d.token) for d in answer.decisions]
    assert told == [("predict", 0), ("repair", len(third.written))]
    (line,) = answer.bill.lines
    assert line.visible == LENGTH and line.usage.completion == fake.produced["large"]
    assert line.usage.prompt == 3 * PROMPT + len(third.written)
    assert answer.bill.prompt == PROMPT


async def test_repair_that_cannot_be_paid_for_leaves_the_answer_as_it_is():
    fake = predicting(delay=0.001)
    asked = order(repair=True, usd=usd(PROMPT * 10 + LENGTH * 20 + 100))
    said, answer = await answered(fake, asked)
    assert said == WORDS and answer.spent == usd(PROMPT * 10 + LENGTH * 20)
    assert [d.kind for d in answer.decisions] == ["predict"]


async def test_an_answer_with_penalties_is_not_handed_on():
    sampling = Sampling(presence_penalty=1.0)
    fake = predicting(delay=0.001)
    await answered(fake, order(repair=True, sampling=sampling))
    assert len(fake.calls) == 1


async def test_who_leaves_while_the_prompt_is_read_again_leaves_nothing_behind():
    fake = predicting(delay=0.001)
    answer = ask(Gateway(fake, fleet()), order(repair=True))
    while not any(d.kind == "repair" for d in answer.decisions) and len(fake.calls) < 2:
        await anext(answer)
    await answer.aclose()
    await asyncio.sleep(0)
    assert fake.open == 0
