"""Drawn answers through the scheduler: with guesses and without they are of one distribution."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.engines.embedded.speculation import acceptance
from app.types import Sampling, Speculation
from tests.app.engines.embedded.speculation import chi_square
from tests.app.engines.embedded.speculation.chi_square import CHANCE
from tests.app.engines.embedded.speculation.duo import DRAFT, Duo, acceptance_head, duo, written

# A few tokens share nearly all of the chance, so that answers of four can be counted.
FEW = [65, 66, 67, 68]
SAMPLING = Sampling(
    temperature=2.5, ignore_eos=True, top_p=0.98, logit_bias=dict.fromkeys(FEW, 30.0)
)
PROMPT = [10, 65, 66, 67, 65, 66, 20, 65, 66]
SAMPLES, TOGETHER = 2500, 16
LIMIT, COUNTED = 5, 4  # tokens of an answer; the last one cannot be guessed
TOLD = Speculation(draft=DRAFT, adaptive=False, longest=4)


@pytest.fixture(scope="module")
def pair(tiny_folder: Path) -> Duo:
    """fp32, which takes less time than int8; the draft guesses what the bias is for."""
    return duo(tiny_folder, "fp32", memory_of=0.1, noise=0.5, head=acceptance_head(), favours=FEW)


def counts(pair: Duo, asked: Speculation | None, samples: int = SAMPLES) -> Counter[Any]:
    """How often each answer is given, to calls without a seed."""
    found: Counter[Any] = Counter()
    prompts = [PROMPT] * samples
    for one in pair.answers(prompts, asked, limit=LIMIT, sampling=SAMPLING, together=TOGETHER):
        found[tuple(written(one)[:COUNTED])] += 1
    return found


@pytest.fixture(scope="module")
def plain(pair: Duo) -> Counter[Any]:
    return counts(pair, None, 2 * SAMPLES)


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls without a seed draw one: here from numbers that are the same each time."""
    numbers = random.Random(1)
    monkeypatch.setattr("secrets.randbits", numbers.getrandbits)


KINDS = {
    "model": TOLD,
    "head": replace(TOLD, rule="head"),
    "adaptive": replace(TOLD, rule="confidence", adaptive=True),
    "look-up": Speculation(lookup=True, adaptive=False),
    "both": replace(TOLD, lookup=True, longest=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_distributed_as_without_guesses(
    pair: Duo, plain: Counter[Any], kind: str
) -> None:
    assert chi_square.between(counts(pair, KINDS[kind]), plain) > CHANCE


def test_there_is_enough_to_tell(plain: Counter[Any]) -> None:
    """Many answers that are given often; and two samples of plain ones are alike."""
    assert sum(count >= 25 for count in plain.values()) >= 15


def test_the_test_sees_a_residual_that_is_not_one(
    pair: Duo, plain: Counter[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "_residual", lambda weights, *_: weights)
    assert chi_square.between(counts(pair, TOLD), plain) < CHANCE


def test_lenience_is_another_distribution(pair: Duo, plain: Counter[Any]) -> None:
    asked = replace(TOLD, acceptance="lenient", lenience=0.4)
    assert chi_square.between(counts(pair, asked), plain) < CHANCE
