"""What an embedded model cannot do is refused by name, and what changes nothing is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.errors import (
    BadRequest,
    ContextOverflow,
    EngineUnsupported,
    FarthingError,
    UnknownModel,
)
from app.types import Call, Decoding, EntropyStop, Message, Sampling
from tests.app.engines.embedded.tiny import CONTEXT
from tests.app.engines.embedded.tiny_engine import CALL, CARDS, Start, collect


def asking(**extra: Any) -> Call:
    return replace(CALL, extra=extra)


def sampled(**sampling: Any) -> Call:
    return replace(CALL, sampling=Sampling(**sampling))


LONG: tuple[Message, ...] = ({"role": "user", "content": "x" * CONTEXT},)


@pytest.mark.parametrize(
    ("call", "kind", "param"),
    [
        (replace(CALL, model="nobody"), UnknownModel, "model"),
        (replace(CALL, messages=()), BadRequest, "messages"),
        (replace(CALL, prompt=""), BadRequest, "prompt"),
        (replace(CALL, prompt=()), BadRequest, "prompt"),
        (replace(CALL, prompt=(1, 258)), BadRequest, "prompt"),
        (replace(CALL, prompt=(-1,)), BadRequest, "prompt"),
        (replace(CALL, written=(300,)), BadRequest, "written"),
        (replace(CALL, messages=LONG), ContextOverflow, "messages"),
        (replace(CALL, prompt="x" * CONTEXT), ContextOverflow, "prompt"),
        (replace(CALL, prompt="x" * 500, max_tokens=13), ContextOverflow, "max_tokens"),
        (replace(CALL, max_tokens=0), BadRequest, "max_tokens"),
        (sampled(logit_bias={258: 1.0}), BadRequest, "logit_bias"),
        (sampled(logit_bias={1: float("nan")}), BadRequest, "logit_bias"),
        (sampled(stop_token_ids=(-1,)), BadRequest, "stop_token_ids"),
        (sampled(temperature=float("inf")), BadRequest, "temperature"),
        (sampled(temperature=-1.0), BadRequest, "temperature"),
        (sampled(top_p=1.5), BadRequest, "top_p"),
        (sampled(repetition_penalty=0.0), BadRequest, "repetition_penalty"),
        (CALL.decoded(Decoding(stop=EntropyStop(1.0, True, window=0))), BadRequest, "policy"),
        (asking(tools=[{"type": "function"}]), BadRequest, "tools.0.function.name"),
        (asking(tool_choice="required"), BadRequest, "tool_choice"),
        (asking(functions=[{}]), EngineUnsupported, "functions"),
        (asking(response_format={"type": "xml"}), EngineUnsupported, "response_format.type"),
        (replace(CALL, choices=2), EngineUnsupported, "n"),
        (asking(echo=True), EngineUnsupported, "echo"),
        (asking(guided_json={"not": {}}), BadRequest, "guided_json"),
    ],
)
async def test_what_it_cannot_do_is_refused_before_the_first_chunk(
    start: Start, call: Call, kind: type[FarthingError], param: str
) -> None:
    engine = await start(CARDS[:1])
    with pytest.raises(kind) as caught:
        await anext(engine.generate(call))
    assert caught.value.param == param
    assert len(await collect(engine.generate(CALL))) == 14  # and it goes on


async def test_what_changes_nothing_is_accepted(start: Start) -> None:
    engine = await start(CARDS[:1])
    call = asking(
        tools=[], tool_choice="auto", response_format={"type": "text"}, n=1, user="me", seed2={}
    )
    assert len(await collect(engine.generate(call))) == 14
    await engine.count(call)


async def test_the_numbers_of_an_overflow_are_told(start: Start) -> None:
    engine = await start(CARDS[:1])
    with pytest.raises(ContextOverflow, match="500 tokens .* 13 more.*512.*at most 12"):
        await anext(engine.generate(replace(CALL, prompt="x" * 500, max_tokens=13)))
