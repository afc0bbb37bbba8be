"""An answer with guesses is, to the last bit in int8, the answer without."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engines.embedded.model import Span
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.speculation.speculator import LONGEST
from app.types import AcceptanceRule, Decoding, EntropyStop, LengthRule, Sampling, Speculation
from tests.app.engines.embedded.rig import GREEDY
from tests.app.engines.embedded.speculation.duo import (
    DRAFT,
    DRAFTERS,
    RULES,
    Duo,
    acceptance_head,
    adds_up,
    chunks,
    duo,
    prompts,
    usage,
    written,
)

LIMIT = 32  # tokens of an answer
REPORTING = replace(GREEDY, logprobs=2)
PROMPTS = prompts(8)
# How the guessing is driven: as it is told, or adaptively, with a model that is dear, and with one
# whose cost is measured.
DRIVEN = {"told": (False, 1.0), "pays": (True, 1.0), "measured": (True, None)}
ASKED = [
    *(("model", rule) for rule in RULES),
    *(("both", rule) for rule in RULES),
    ("look-up", "fixed"),
]


def plain(pair: Duo, some: Sequence[Sequence[int]], **call: Any) -> list[RunningSequence]:
    return pair.answers(some, None, **{"limit": LIMIT, "sampling": REPORTING, **call})


def guessed(
    pair: Duo, some: Sequence[Sequence[int]], asked: Speculation, **call: Any
) -> list[RunningSequence]:
    found = pair.answers(some, asked, **{"limit": LIMIT, "sampling": REPORTING, **call})
    for sequence in found:
        adds_up(sequence)
    return found


def accepted(sequences: Sequence[RunningSequence]) -> int:
    return sum(usage(sequence).accepted for sequence in sequences)


def same(one: Sequence[RunningSequence], other: Sequence[RunningSequence]) -> None:
    """All that a reader is sent, log-probabilities to the last bit."""
    for first, second in zip(one, other, strict=True):
        assert chunks(first) == chunks(second)


@pytest.mark.parametrize(("drafter", "rule"), ASKED)
@pytest.mark.parametrize("driven", DRIVEN)
def test_greedy_answers_are_those_without_guesses(
    int8_duo: Duo, repeating: Duo, drafter: str, rule: LengthRule, driven: str
) -> None:
    """Alone and eight at a time, in int8: tokens, text and log-probabilities."""
    pair = int8_duo if drafter == "model" else repeating
    adaptive, seconds = DRIVEN[driven]
    asked = replace(DRAFTERS[drafter], rule=rule, adaptive=adaptive)
    wanted = plain(pair, PROMPTS)
    alone = guessed(pair, PROMPTS[:4], asked, seconds=seconds)
    same(alone, wanted[:4])
    together = guessed(pair, PROMPTS, asked, together=8, seconds=seconds)
    same(together, wanted)
    if seconds is not None:
        assert accepted(alone) > 0 and accepted(together) > 0


@pytest.mark.parametrize(("drafter", "rule"), ASKED)
def test_in_fp32_too(fp32_duo: Duo, drafter: str, rule: LengthRule) -> None:
    """Token for token; rounding decides nothing here."""
    asked = replace(DRAFTERS[drafter], rule=rule, adaptive=False)
    wanted = plain(fp32_duo, PROMPTS, sampling=GREEDY)
    for together in (1, 8):
        found = guessed(fp32_duo, PROMPTS, asked, sampling=GREEDY, together=together)
        assert [written(one) for one in found] == [written(one) for one in wanted]
        assert accepted(found) > 0


@pytest.mark.parametrize("longest", [1, 2, 16])
def test_drafts_of_any_length(int8_duo: Duo, longest: int) -> None:
    asked = Speculation(draft=DRAFT, longest=longest, adaptive=False)
    found = guessed(int8_duo, PROMPTS, asked, together=8)
    same(found, plain(int8_duo, PROMPTS))
    most = max(one.usage.drafted for sequence in found for one in sequence.outbox)
    assert most == longest


@pytest.mark.parametrize(
    "draft",
    [
        {"layers": 1},
        {"noise": 0.0},
        {"drafting": [id for id in range(258) if id % 4 != 3]},
        {"head": acceptance_head("after")},
        {},
    ],
    ids=["fewer layers", "the same", "trimmed head", "lagging head", "no head"],
)
def test_drafts_of_any_kind(tiny_folder: Path, draft: dict[str, Any]) -> None:
    pair = duo(tiny_folder, "int8", **draft)
    rule: LengthRule = "head" if "head" in draft else "confidence"
    for adaptive in (True, False):
        asked = Speculation(draft=DRAFT, rule=rule, adaptive=adaptive)
        found = guessed(pair, PROMPTS, asked, together=8)
        same(found, plain(pair, PROMPTS))
        assert accepted(found) > 0


def test_a_draft_that_never_pays_is_not_asked_much(int8_duo: Duo) -> None:
    """Beside a model that takes no time at all; and the answer is the same."""
    found = guessed(int8_duo, PROMPTS, Speculation(draft=DRAFT), seconds=1e-9, limit=60)
    same(found, plain(int8_duo, PROMPTS, limit=60))
    assert sum(usage(one).drafted for one in found) < sum(one.written for one in found) / 10


def test_prompts_longer_than_the_draft_reads(repeating: Duo) -> None:
    """It reads the end of a long prompt, in pieces; what it knows not of it costs guesses only."""
    long = [
        (prompt * 150)[:length] for prompt, length in zip(PROMPTS, (257, 321, 400), strict=False)
    ]
    for name in ("model", "both"):
        asked = replace(DRAFTERS[name], adaptive=False)
        found = guessed(repeating, long, asked, together=2, limit=60)
        same(found, plain(repeating, long, limit=60))
        assert accepted(found) > 30


def test_a_penalised_and_biased_answer_is_the_same(int8_duo: Duo) -> None:
    sampling = replace(
        REPORTING, presence_penalty=0.4, frequency_penalty=0.3, repetition_penalty=1.2,
        logit_bias={5: 3.0, 9: -100.0},
    )  # fmt: skip
    for asked in DRAFTERS.values():
        asked = replace(asked, adaptive=False)
        found = guessed(int8_duo, PROMPTS, asked, sampling=sampling, together=8)
        same(found, plain(int8_duo, PROMPTS, sampling=sampling))


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_seed_gives_the_same_answer_with_and_without(repeating: Duo, drafter: str) -> None:
    sampling = Sampling(temperature=0.3, seed=5, ignore_eos=True, logprobs=1, top_p=0.9)
    asked = replace(DRAFTERS[drafter], adaptive=False)
    found = guessed(repeating, PROMPTS, asked, sampling=sampling, together=8)
    same(found, plain(repeating, PROMPTS, sampling=sampling))
    assert accepted(found) > 0


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("limit", range(1, 13))
def test_max_tokens_may_end_inside_a_draft(repeating: Duo, drafter: str, limit: int) -> None:
    asked = replace(DRAFTERS[drafter], adaptive=False)
    found = guessed(repeating, PROMPTS[:3], asked, limit=limit)
    same(found, plain(repeating, PROMPTS[:3], limit=limit))
    assert [one.written for one in found] == [limit] * 3


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_stop_ids_may_come_inside_a_draft(repeating: Duo, drafter: str) -> None:
    """At each of the first tokens in turn, wherever these are in a draft."""
    asked = replace(DRAFTERS[drafter], adaptive=False)
    (whole,) = plain(repeating, PROMPTS[:1])
    for place in range(1, 16):
        sampling = replace(REPORTING, stop_token_ids=(written(whole)[place],))
        found = guessed(repeating, PROMPTS[:1], asked, sampling=sampling)
        same(found, plain(repeating, PROMPTS[:1], sampling=sampling))
        assert found[0].outbox[-1].stopped_by == written(whole)[place]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_models_own_end_may_come_inside_a_draft(
    repeating: Duo, drafter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(DRAFTERS[drafter], adaptive=False)
    (whole,) = plain(repeating, PROMPTS[:1])
    sampling = replace(REPORTING, ignore_eos=False)
    for place in range(1, 16):
        monkeypatch.setattr(repeating.target.tokenizer, "eos_ids", {written(whole)[place]})
        found = guessed(repeating, PROMPTS[:1], asked, sampling=sampling)
        same(found, plain(repeating, PROMPTS[:1], sampling=sampling))
        assert (found[0].outbox[-1].finish, found[0].outbox[-1].stopped_by) == ("stop", None)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_stop_string_may_end_inside_a_draft(repeating: Duo, drafter: str) -> None:
    """Of two characters, at each place in turn; what was verified beyond it is not written."""
    asked = replace(DRAFTERS[drafter], adaptive=False)
    (whole,) = plain(repeating, PROMPTS[:1])
    text = "".join(chunk.text for chunk in whole.outbox)
    for place in range(1, 16):
        sampling = replace(REPORTING, stop=(text[place : place + 2],))
        found = guessed(repeating, PROMPTS[:1], asked, sampling=sampling)
        same(found, plain(repeating, PROMPTS[:1], sampling=sampling))
        assert found[0].outbox[-1].stopped_by == text[place : place + 2]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_entropy_is_reported_and_stopped_on_as_without(repeating: Duo, drafter: str) -> None:
    """At levels that are crossed at different tokens, in a draft and out of one."""
    asked = replace(DRAFTERS[drafter], adaptive=False)
    (whole,) = plain(repeating, PROMPTS[:1], decoding=Decoding(entropy=True))
    told = [token.entropy for chunk in whole.outbox for token in chunk.tokens]
    ends = set()
    for level, rising in itertools.product(sorted({e[0] for e in told if e})[::4], (True, False)):
        stop = EntropyStop(level, rising=rising, window=2, after=3)
        decoding = Decoding(entropy=True, stop=stop)
        found = guessed(repeating, PROMPTS[:1], asked, decoding=decoding)
        same(found, plain(repeating, PROMPTS[:1], decoding=decoding))
        if found[0].outbox[-1].finish == "entropy":
            ends.add(found[0].written)
    assert len(ends) > 3


@pytest.mark.parametrize("acceptance", ["lenient", "typical"])
def test_a_lenient_answer_need_not_be_the_same(int8_duo: Duo, acceptance: AcceptanceRule) -> None:
    """More of its guesses stay; of all that is written it is still told truly."""
    asked = Speculation(draft=DRAFT, adaptive=False, acceptance=acceptance, lenience=0.1)
    lenient = guessed(int8_duo, PROMPTS, asked, together=8)
    exact = guessed(int8_duo, PROMPTS, replace(asked, acceptance="exact"), together=8)
    assert accepted(lenient) > accepted(exact)
    assert [written(one) for one in lenient] != [written(one) for one in exact]


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("start", [1, 30])
def test_guesses_are_read_as_if_they_came_one_by_one(
    int8_duo: Duo, start: int, others: int
) -> None:
    """In int8, the longest draft and the token before it: hidden states, keys and values to the
    last bit, also beside other sequences."""
    decoder, count = int8_duo.target.decoder, LONGEST + 1
    ids = torch.randint(256, (start + count,), generator=torch.Generator().manual_seed(start))

    def state(together: bool) -> tuple[torch.Tensor, torch.Tensor]:
        memory = decoder.kv_memory(2**26, 0)
        caches = [memory.acquire([0], len(ids)) for _ in range(1 + others)]
        one, *rest = [cache for cache in caches if cache is not None]
        decoder.forward(ids[:start], [Span(one, start)])
        if not together:
            found = [decoder.forward(id[None], [Span(one, 1)]) for id in ids[start:]]
            return torch.cat(found), one.buffer[:, :, : len(ids)].clone()
        spans = [Span(one, count), *(Span(cache, 3 + n) for n, cache in enumerate(rest))]
        beside = torch.arange(sum(span.count for span in spans[1:])) % 256
        hidden = decoder.forward(torch.cat([ids[start:], beside]), spans)
        return hidden[:count], one.buffer[:, :, : len(ids)].clone()

    for one, other in zip(state(True), state(False), strict=True):
        assert torch.equal(one, other)
