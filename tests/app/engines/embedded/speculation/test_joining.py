"""Speculation through the engine: who may guess for whom, what is refused, what a call gets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from app.catalog import ModelCard, Price
from app.engines.embedded.engine import EmbeddedEngine
from app.engines.embedded.model import Decoder
from app.engines.embedded.speculation.joining import measure
from app.engines.embedded.weights import load
from app.errors import ConfigError, EngineError, EngineUnsupported
from app.types import Chunk, Decoding, Sampling, Speculation
from tests.app.engines.embedded.speculation.duo import RULES, acceptance_head
from tests.app.engines.embedded.tiny import VOCABULARY, write_model
from tests.app.engines.embedded.tiny_engine import (
    CALL,
    Start,
    card,
    collect,
    idle,
    ids,
    text,
    total,
)

ANSWER = replace(CALL, max_tokens=40)
TOLD = Speculation(draft="guesser", adaptive=False)


def price(output: str) -> Price:
    return Price(input=Decimal(0), output=Decimal(output))


PAIR = [card("tiny", price=price("2")), card("guesser", precision="int8", price=price("1"))]


def asked(speculation: Speculation | None, **more: Any) -> Any:
    return replace(ANSWER, decoding=Decoding(speculation=speculation), **more)


async def test_a_call_gets_what_it_would_without(start: Start) -> None:
    """Text, tokens and finish; and the usage adds up."""
    engine = await start(PAIR)
    plain = await collect(engine.generate(ANSWER))
    for speculation in (TOLD, replace(TOLD, lookup=True), Speculation(lookup=True)):
        for adaptive in (True, False):
            call = asked(replace(speculation, adaptive=adaptive))
            chunks = await collect(engine.generate(call))
            assert (ids(chunks), text(chunks)) == (ids(plain), text(plain))
            assert chunks[-1].finish == plain[-1].finish
            usage = total(chunks)
            assert usage.completion == len(ids(chunks)) == 40
            assert usage.accepted + usage.passes - usage.completion in (0, 1)


async def test_guesses_of_the_same_weights_are_mostly_right(start: Start) -> None:
    engine = await start(PAIR)
    usage = total(await collect(engine.generate(asked(TOLD))))
    assert usage.accepted > usage.drafted / 2 > 0
    assert usage.passes < usage.completion / 2


async def test_many_calls_with_and_without_guesses(start: Start) -> None:
    engine = await start(PAIR, kv_memory=2**24)
    calls = [
        replace(ANSWER, prompt=tuple(range(60 + n, 90 + n)), messages=(), max_tokens=30 + n)
        for n in range(8)
    ]
    plain = [await collect(engine.generate(call)) for call in calls]
    kinds = [TOLD, None, replace(TOLD, lookup=True), Speculation(lookup=True)] * 2
    found = await asyncio.gather(
        *(
            collect(engine.generate(replace(call, decoding=Decoding(speculation=kind))))
            for call, kind in zip(calls, kinds, strict=True)
        )
    )
    assert [ids(one) for one in found] == [ids(one) for one in plain]


async def test_a_reader_who_leaves_costs_no_memory(start: Start) -> None:
    """In the middle of a draft's tokens; that nothing is left is seen at the end."""
    engine = await start(PAIR)
    stream = engine.generate(asked(TOLD))
    got: list[Chunk] = []
    async for chunk in stream:
        got.append(chunk)
        if len(got) == 4:
            break
    await stream.aclose()
    await idle(engine)
    assert [model.scheduler.memory.running_bytes for model in engine.models.values()] == [0, 0]


async def test_a_slow_reader_stalls_the_guessing_too(start: Start) -> None:
    """A full outbox pauses it, whatever was guessed; then it goes on, and nothing is lost."""
    engine = await start(PAIR, outbox=2)
    plain = ids(await collect(engine.generate(ANSWER)))
    stream = engine.generate(asked(TOLD))
    first = await anext(stream)
    await asyncio.sleep(0.2)
    rest = await collect(stream)
    assert ids([first, *rest]) == plain


async def test_models_of_a_family_that_cost_no_more_may_guess(start: Start) -> None:
    """Cheapest first; not the model itself, nor one that costs more, nor another family's."""
    cards = [
        card("large", price=price("3")),
        card("middle", precision="int8", price=price("2")),
        card("small", price=price("1"), context=64),
        card("stranger", price=price("0"), family="other"),
    ]
    engine = await start(cards)
    drafts = {}
    for name in ("large", "middle", "small", "stranger"):
        able = engine.capabilities(name).speculation
        assert able is not None and able.lookup and able.longest >= 8
        assert able.acceptance == ("exact", "lenient", "typical") and "head" not in able.rules
        drafts[name] = able.drafts
    assert drafts == {
        "large": ("small", "middle"),
        "middle": ("small",),
        "small": (),
        "stranger": (),
    }


async def test_one_with_another_vocabulary_does_not_guess(tmp_path: Path) -> None:
    """As of Qwen2.5, whose larger models have more unused ids behind the last token: one cannot
    read all that the other may write."""
    paths = {
        "tiny": write_model(tmp_path / "one"),
        "guesser": write_model(tmp_path / "two", vocabulary=VOCABULARY + 6),
    }
    engine = EmbeddedEngine(PAIR, paths, threads=1, kv_memory=2**24)
    await engine.start()
    able = engine.capabilities("tiny").speculation
    assert able is not None and able.drafts == ()
    await engine.aclose()


REFUSED = {
    "neither": (Speculation(), "names no draft model, and no look-up"),
    "unknown": (replace(TOLD, draft="nobody"), "there are: guesser"),
    "itself": (replace(TOLD, draft="tiny"), "'tiny' cannot guess for tiny"),
    "no head": (replace(TOLD, rule="head"), "guesser has no acceptance head"),
    "none long": (replace(TOLD, longest=0), "a draft has 1 to 16 tokens, not 0"),
    "too long": (replace(TOLD, longest=17), "a draft has 1 to 16 tokens, not 17"),
    "no lenience": (replace(TOLD, acceptance="lenient", lenience=0.0009), "0.001 to 1, not 0.0009"),
    "strict": (replace(TOLD, acceptance="lenient", lenience=1.1), "0.001 to 1"),
    "no number": (replace(TOLD, acceptance="lenient", lenience=float("nan")), "not nan"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_had_is_refused_before_anything_is_written(
    start: Start, name: str
) -> None:
    speculation, message = REFUSED[name]
    engine = await start(PAIR)
    with pytest.raises(EngineUnsupported, match=message) as caught:
        await collect(engine.generate(asked(speculation)))
    assert caught.value.param == "policy"


async def test_a_dearer_model_is_refused_as_a_guesser(start: Start) -> None:
    engine = await start(PAIR)
    with pytest.raises(EngineUnsupported, match="there are: none"):
        await collect(engine.generate(asked(replace(TOLD, draft="tiny"), model="guesser")))


def headed(path: Path, hidden: int = 64) -> list[ModelCard]:
    acceptance_head(hidden=hidden).save(path)
    return [PAIR[0], PAIR[1].model_copy(update={"acceptance_head": str(path)})]


async def test_a_head_that_is_there_is_offered_and_used(start: Start, tmp_path: Path) -> None:
    engine = await start(headed(tmp_path / "head"))
    able = engine.capabilities("tiny").speculation
    assert able is not None and able.rules[0] == "head" and set(able.rules) == set(RULES)
    plain = await collect(engine.generate(ANSWER))
    found = await collect(engine.generate(asked(replace(TOLD, rule="head"))))
    assert ids(found) == ids(plain)
    assert total(found).drafted > 0


async def test_a_head_that_only_a_dearer_draft_has_is_not_the_best_rule(
    start: Start, tmp_path: Path
) -> None:
    """What an engine offers first must go with the draft that it offers first."""
    cards = headed(tmp_path / "head")
    cheap = card("cheap", precision="int8", price=price("0.5"))
    engine = await start([*cards, cheap])
    able = engine.capabilities("tiny").speculation
    assert able is not None and able.drafts == ("cheap", "guesser")
    assert (able.rules[0], able.rules[-1]) == ("confidence", "head")


async def test_a_head_of_another_model_is_no_head(start: Start, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is for states of 32 numbers, and this model's have 64"):
        await start(headed(tmp_path / "head", hidden=32))


async def test_a_head_that_is_missing_is_told(start: Start, tmp_path: Path) -> None:
    missing = PAIR[1].model_copy(update={"acceptance_head": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"\[models.guesser\]: acceptance_head: "):
        await start([PAIR[0], missing])


@pytest.mark.parametrize("method", ["draft_logits", "forward"])
async def test_the_engine_survives_a_failing_draft_model(
    start: Start, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """It ends the call, and the next one is answered."""
    engine = await start(PAIR)
    plain = ids(await collect(engine.generate(ANSWER)))
    calls = 0
    decoder = engine.models["guesser"].decoder
    real = getattr(decoder, method)

    def broken(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= 3:
            raise RuntimeError("broken")
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(decoder, method, broken)
        with pytest.raises(EngineError, match="failed while it computed"):
            await collect(engine.generate(asked(TOLD)))
    await idle(engine)
    assert ids(await collect(engine.generate(asked(TOLD)))) == plain


async def test_the_engine_survives_a_model_that_fails_on_guesses(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start(PAIR)
    plain = ids(await collect(engine.generate(ANSWER)))
    decoder = engine.models["tiny"].decoder
    real = decoder.logits

    def broken(hidden: Any) -> Any:
        if len(hidden) > 1:
            raise RuntimeError("broken")
        return real(hidden)

    with monkeypatch.context() as patched:
        patched.setattr(decoder, "logits", broken)
        with pytest.raises(EngineError, match="failed while it computed"):
            await collect(engine.generate(asked(TOLD)))
    await idle(engine)
    assert ids(await collect(engine.generate(asked(TOLD)))) == plain


async def test_a_call_waits_while_its_model_guesses_for_others(start: Start) -> None:
    """The draft model's memory is taken by what it guesses for: a call of its own is no more
    hopeless than beside any other call."""
    engine = await start(PAIR, kv_memory=300 * 512)  # 300 tokens
    prompt = tuple(range(40, 60))
    long = asked(TOLD, messages=(), prompt=prompt, max_tokens=220)
    stream = engine.generate(long)
    for _ in range(6):
        await anext(stream)
    assert engine.models["guesser"].scheduler.memory.running_bytes > 0
    own = replace(ANSWER, model="guesser", messages=(), prompt=prompt, max_tokens=100)
    waiting = asyncio.create_task(collect(engine.generate(own)))
    await asyncio.sleep(0.1)
    rest = await collect(stream)
    assert rest[-1].finish == "length"
    assert len(ids(await waiting)) == 100


async def test_sampled_answers_go_through_too(start: Start) -> None:
    engine = await start(PAIR)
    call = asked(TOLD, sampling=Sampling(temperature=0.8, ignore_eos=True))
    usage = total(await collect(engine.generate(call)))
    assert (usage.completion, usage.accepted > 0) == (40, True)


@pytest.mark.parametrize("context", [8, 64, 512])
def test_a_pass_is_measured_whatever_the_context(tmp_path: Path, context: int) -> None:
    decoder = Decoder(*load(write_model(tmp_path / "model", context=context)), "int8")
    cost = measure(decoder, threads=1)
    assert 0 < cost.seconds(1) < cost.seconds(2) < cost.seconds(8, 16)
