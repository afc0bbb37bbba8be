"""Guesses for an answer that is held to a form change nothing of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.engines.embedded.grammar import Grammars
from app.engines.embedded.sequence import RunningSequence
from app.types import Call, Sampling, Speculation
from tests.app.engines.embedded.speculation.duo import (
    DRAFTERS,
    Duo,
    chunks,
    duo,
    prompts,
    run,
    usage,
    written,
)

# Some of it leaves no choice, some of it nearly all.
FORM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "sizes": {"type": "array", "items": {"enum": ["small", "large"]}, "maxItems": 3},
    },
    "required": ["name", "sizes"],
}
LIMIT = 100  # tokens: bytes, of which a character may have four


@pytest.fixture(scope="module")
def pair(tiny_folder: Path) -> Duo:
    return duo(tiny_folder, "int8")


@pytest.fixture(scope="module")
def grammars(pair: Duo) -> Grammars:
    return Grammars(pair.target.tokenizer)


def answers(
    pair: Duo, grammars: Grammars, asked: Speculation | None, sampling: Sampling, **bounds: Any
) -> list[RunningSequence]:
    """All at once, each held to the form."""
    call = Call("tiny", prompt="x", extra={"guided_json": FORM})
    scheduler = pair.scheduler(prefill_chunk=16, **bounds)
    sequences = [
        pair.sequence(
            prompt,
            asked,
            limit=LIMIT,
            sampling=sampling,
            constraint=asyncio.run(grammars.constraint(call)),
        )
        for prompt in prompts(6)
    ]
    run(scheduler, *sequences)
    assert pair.held(scheduler) == (0, 0)
    return sequences


def text(pair: Duo, sequence: RunningSequence) -> str:
    return b"".join(map(pair.target.tokenizer.piece, written(sequence))).decode()


@pytest.mark.parametrize("drafter", ["model", "look-up", "both"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, logprobs=3),
        Sampling(seed=11, logprobs=3),
        Sampling(seed=3, top_p=0.7, min_p=0.1, presence_penalty=0.5),
    ],
)
def test_guesses_change_nothing(
    pair: Duo, grammars: Grammars, drafter: str, sampling: Sampling
) -> None:
    asked = replace(DRAFTERS[drafter], adaptive=False)
    plain = answers(pair, grammars, None, sampling)
    guessed = answers(pair, grammars, asked, sampling)
    for one, other in zip(guessed, plain, strict=True):
        assert chunks(one) == chunks(other)
        json.loads(text(pair, one))
    assert sum(usage(one).accepted for one in guessed) > 0


def test_drawn_guesses_keep_the_form(pair: Duo, grammars: Grammars) -> None:
    """Without a seed the draft model draws too, from what the form allows."""
    asked = replace(DRAFTERS["model"], adaptive=False)
    guessed = answers(pair, grammars, asked, Sampling())
    for one in guessed:
        json.loads(text(pair, one))
    used = [usage(one) for one in guessed]
    assert sum(each.accepted for each in used) > 0.5 * sum(each.drafted for each in used)


def test_a_draft_model_guesses_only_what_the_form_allows(pair: Duo, grammars: Grammars) -> None:
    """Where it leaves one choice only, no guess is wrong."""
    call = Call("tiny", prompt="x", extra={"guided_choice": ["abcdefghijkl"]})
    scheduler = pair.scheduler()
    sequence = pair.sequence(
        [1, 2, 3],
        replace(DRAFTERS["model"], adaptive=False),
        limit=LIMIT,
        sampling=Sampling(temperature=0),
        constraint=asyncio.run(grammars.constraint(call)),
    )
    run(scheduler, sequence)
    assert text(pair, sequence) == "abcdefghijkl"
    assert usage(sequence).passes < len("abcdefghijkl") / 2


def test_looked_up_guesses_that_the_form_refuses_are_not_made(
    pair: Duo, grammars: Grammars
) -> None:
    """It leaves one choice, and the prompt says another: no guess is wrong all the same."""
    only = "abcabdabcabe"
    call = Call("tiny", prompt="x", extra={"guided_choice": [only]})
    scheduler = pair.scheduler()
    sequence = pair.sequence(
        pair.target.tokenizer.continued("abcabcabcabc"),
        replace(DRAFTERS["look-up"], adaptive=False),
        limit=LIMIT,
        sampling=Sampling(temperature=0),
        constraint=asyncio.run(grammars.constraint(call)),
    )
    run(scheduler, sequence)
    assert text(pair, sequence) == only
    assert usage(sequence).accepted > 0 and usage(sequence).wasted == 0
