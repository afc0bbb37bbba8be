"""Vectors of texts: the mean or the last of their hidden states, whatever runs beside them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from app.errors import BadRequest, ContextOverflow, EngineUnsupported
from app.types import Call, Decoding, Sampling, Usage
from tests.app.engines.embedded.tiny import CONTEXT
from tests.app.engines.embedded.tiny_engine import GREEDY, Start, card, collect, idle, total

CARDS = [
    card("mean", embeds="mean"),
    card("last", embeds="last"),
    card("int8", embeds="mean", precision="int8"),
    card("tiny"),
]
TEXT = (65, 66, 67, 68, 69) * 8


def asked(model: str, *prompts: tuple[int, ...] | str) -> Call:
    first, *beside = prompts
    return Call(
        model,
        prompt=first,
        beside=tuple(beside),
        max_tokens=0,
        embeds=True,
        choices=len(prompts),
    )


def reference(folder: Path, ids: tuple[int, ...], pooling: str) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        states = model(torch.tensor([ids])).last_hidden_state[0]
    vector = states[-1] if pooling == "last" else states.mean(0)
    return vector / vector.norm()


@pytest.mark.parametrize("model", ["mean", "last"])
async def test_it_is_the_vector_of_transformers(
    start: Start, tiny_folder: Path, model: str
) -> None:
    engine = await start(CARDS)
    (vector,) = (await collect(engine.generate(asked(model, TEXT))))[-1].vectors
    expected = reference(tiny_folder, TEXT, model)
    assert torch.allclose(torch.tensor(vector), expected, atol=1e-5)


async def test_several_prompts_are_read_and_told_in_their_order(start: Start) -> None:
    engine = await start(CARDS)
    prompts = [TEXT, (1, 2, 3), "hello"]
    chunks = await collect(engine.generate(asked("mean", *prompts)))
    assert [chunk.finish for chunk in chunks if chunk.finish] == ["stop"]
    assert total(chunks) == Usage(prompt=40 + 3 + await engine.count(asked("mean", "hello")))
    alone = [
        (await collect(engine.generate(asked("mean", prompt))))[-1].vectors[0] for prompt in prompts
    ]
    assert list(chunks[-1].vectors) == alone
    await idle(engine)


async def test_it_depends_on_no_prefix_that_was_kept_and_on_nobody_beside_it(
    start: Start,
) -> None:
    engine = await start(CARDS)
    alone = (await collect(engine.generate(asked("int8", TEXT))))[-1].vectors
    write = Call("int8", prompt=TEXT[:30], max_tokens=30, sampling=GREEDY)
    first, *_ = await asyncio.gather(
        collect(engine.generate(asked("int8", TEXT))), collect(engine.generate(write))
    )
    assert total(first).cached == 0
    assert first[-1].vectors == alone


async def test_what_cannot_be_is_refused(start: Start) -> None:
    engine = await start(CARDS)
    assert engine.capabilities("mean").embeds and not engine.capabilities("tiny").embeds
    for call, error, param in (
        (asked("tiny", TEXT), EngineUnsupported, "model"),
        (asked("mean", (1,) * CONTEXT), ContextOverflow, "input"),
        (asked("mean", TEXT, (10**6,)), BadRequest, "input"),
    ):
        with pytest.raises(error) as caught:
            await collect(engine.generate(call))
        assert caught.value.param == param
    await idle(engine)


async def test_a_prompt_s_tokens_are_as_likely_as_transformers_has_them(
    start: Start, tiny_folder: Path
) -> None:
    engine = await start(CARDS)
    call = Call(
        "tiny",
        prompt=TEXT,
        max_tokens=0,
        sampling=Sampling(logprobs=2),
        decoding=Decoding(scores=True),
    )
    await collect(engine.generate(Call("tiny", prompt=TEXT, max_tokens=2)))  # leaves a prefix
    chunks = await collect(engine.generate(call))
    tokens = [token for chunk in chunks for token in chunk.tokens]
    assert tuple(token.id for token in tokens) == TEXT
    assert (tokens[0].logprob, tokens[0].top) == (None, ())
    assert (total(chunks), chunks[-1].finish) == (Usage(prompt=40), "length")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    with torch.inference_mode():
        scores = model(torch.tensor([TEXT])).logits[0].log_softmax(-1)
    for at, token in enumerate(tokens[1:]):
        assert token.logprob == pytest.approx(float(scores[at, token.id]), abs=1e-4)
        best = scores[at].topk(2)
        assert [each.id for each in token.top] == best.indices.tolist()
        assert [each.logprob for each in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)


async def test_who_leaves_takes_nothing_along(start: Start) -> None:
    engine = await start(CARDS)
    stream = engine.generate(asked("mean", TEXT, TEXT))
    await anext(stream)
    await stream.aclose()
    await idle(engine)
