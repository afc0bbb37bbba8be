"""A hundred prompts of 128 tokens for each drafter and rule, and drawn answers to real prompts.

Takes an hour and more. `--prompts 3` makes it minutes.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.engines.embedded.sequence import RunningSequence
from app.types import LengthRule, Sampling, Speculation
from tests.app.engines.embedded.rig import GREEDY
from tests.app.engines.embedded.speculation import chi_square
from tests.app.engines.embedded.speculation.duo import DRAFT, DRAFTERS, Duo, chunks, usage
from tests.app.engines.embedded.speculation.real import ASKED, chats, many, real
from tests.prompts import OWN

pytestmark = [pytest.mark.model, pytest.mark.slow]
TOKENS = 128
REPORTING = replace(GREEDY, logprobs=1)
DRAWN_PROMPTS, SAMPLES, COUNTED = (OWN[0], OWN[1], OWN[12], OWN[15]), 400, 3
DRAWN = Sampling(temperature=1.0, ignore_eos=True)


@pytest.fixture(scope="module")
def pair(smollm2_gguf: Path) -> Duo:
    return real(smollm2_gguf, "int8")


@pytest.fixture(scope="module")
def prompts(pair: Duo, pytestconfig: pytest.Config) -> list[list[int]]:
    return chats(pair, many(pytestconfig.getoption("--prompts")))


@pytest.fixture(scope="module")
def plain(pair: Duo, prompts: list[list[int]]) -> list[RunningSequence]:
    return pair.answers(prompts, None, together=8, limit=TOKENS, sampling=REPORTING)


@pytest.mark.parametrize("together", [1, 8])
@pytest.mark.parametrize("driven", ["told", "measured"])
@pytest.mark.parametrize(("drafter", "rule"), ASKED)
def test_greedy_answers_are_those_without_guesses(
    pair: Duo,
    prompts: list[list[int]],
    plain: list[RunningSequence],
    drafter: str,
    rule: LengthRule,
    driven: str,
    together: int,
    record_property: Any,
) -> None:
    """All of its guesses, and those that the controller lets through: to the last bit."""
    told = driven == "told"
    asked = replace(DRAFTERS[drafter], rule=rule, adaptive=not told)
    found = pair.answers(
        prompts,
        asked,
        together=together,
        seconds=1.0 if told else None,
        limit=TOKENS,
        sampling=REPORTING,
    )
    wrong = [at for at, both in enumerate(zip(found, plain, strict=True)) if differ(*both)]
    assert wrong == []
    record_property("accepted", sum(usage(one).accepted for one in found))


def differ(one: RunningSequence, other: RunningSequence) -> bool:
    return chunks(one) != chunks(other)


@pytest.mark.parametrize("rule", ["head", "fixed"])
def test_drawn_answers_to_real_prompts_are_of_one_distribution(
    pair: Duo, monkeypatch: pytest.MonkeyPatch, rule: LengthRule
) -> None:
    """The first tokens of some hundred answers to each prompt, with guesses of the small model and
    without; the p-values of all prompts together."""
    monkeypatch.setattr("secrets.randbits", random.Random(1).getrandbits)
    asked = Speculation(draft=DRAFT, rule=rule, longest=4, adaptive=False)
    p_values = []
    for prompt in chats(pair, DRAWN_PROMPTS):
        with_guesses, without = counts(pair, prompt, asked), counts(pair, prompt, None)
        p_values.append(chi_square.between(with_guesses, without))
    assert chi_square.together(p_values) > 1e-4


def counts(pair: Duo, prompt: list[int], asked: Speculation | None) -> Counter[tuple[int, ...]]:
    """How often an answer begins so. Its last two tokens are there to be guessed ahead of."""
    found: Counter[tuple[int, ...]] = Counter()
    prompts = [prompt] * SAMPLES
    limit = COUNTED + 2
    for one in pair.answers(prompts, asked, together=16, limit=limit, sampling=DRAWN):
        found[tuple(one.tokens[one.prompt_length :][:COUNTED])] += 1
    return found
