"""The real model, guessed for by its small one, writes what it writes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from app.engines.embedded.sequence import RunningSequence
from app.types import LengthRule
from tests.app.engines.embedded.rig import GREEDY
from tests.app.engines.embedded.speculation.duo import DRAFTERS, Duo, adds_up, chunks, usage
from tests.app.engines.embedded.speculation.real import chats, ids, real
from tests.app.engines.embedded.test_exactness import TIE
from tests.prompts import OWN

pytestmark = pytest.mark.model
TOKENS = 64
REPORTING = replace(GREEDY, logprobs=2)
# Those in which look-up finds something are among the first.
SOME = (OWN[16], OWN[4], OWN[11], *OWN[:4], OWN[18])


@pytest.fixture(scope="module")
def int8(smollm2_gguf: Path) -> Duo:
    return real(smollm2_gguf, "int8")


@pytest.fixture(scope="module")
def plain(int8: Duo) -> list[RunningSequence]:
    return int8.answers(chats(int8, SOME), None, together=8, limit=TOKENS, sampling=REPORTING)


@pytest.mark.parametrize(
    ("drafter", "rule", "adaptive"),
    [
        ("model", "head", True),
        ("model", "adaedl", False),
        ("look-up", "fixed", False),
        ("both", "confidence", True),
    ],
)
def test_greedy_int8_is_that_without_guesses(
    int8: Duo, plain: list[RunningSequence], drafter: str, rule: LengthRule, adaptive: bool
) -> None:
    """Two alone and eight together: tokens, text and log-probabilities, to the last bit."""
    asked = replace(DRAFTERS[drafter], rule=rule, adaptive=adaptive)
    prompts = chats(int8, SOME)
    for count, together in ((2, 1), (8, 8)):
        found = int8.answers(
            prompts[:count], asked, together=together, limit=TOKENS, sampling=REPORTING
        )
        for one, other in zip(found, plain, strict=False):
            assert chunks(one) == chunks(other)
            adds_up(one)
        assert sum(usage(one).accepted for one in found) > 0


@pytest.mark.parametrize("by", ["model", pytest.param("look-up", marks=pytest.mark.slow)])
def test_greedy_fp32_is_that_without_guesses(smollm2_gguf: Path, by: str) -> None:
    """But where the two best logits tie, and rounding decides."""
    pair = real(smollm2_gguf, "fp32")
    prompts = chats(pair, SOME[:3])
    plain = pair.answers(prompts, None, together=3, limit=TOKENS, sampling=REPORTING)
    told = replace(DRAFTERS[by], adaptive=False)
    found = pair.answers(prompts, told, together=3, limit=TOKENS, sampling=GREEDY)
    for one, other in zip(found, plain, strict=True):
        at = first_difference(*ids([one, other]))
        assert at == TOKENS or gap(other, at) <= TIE
    assert sum(usage(one).accepted for one in found) > 0


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=True))
    return next((at for at, (left, right) in pairs if left != right), len(one))


def gap(sequence: RunningSequence, at: int) -> float:
    """Between the two best logits at this token."""
    tokens = [token for chunk in sequence.outbox for token in chunk.tokens]
    best, second = tokens[at].top[:2]
    return best.logprob - second.logprob
