"""What is written with guesses is distributed as it is without; the lenient rules are as said."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from app.engines.embedded.sampling import Row, Sampler
from app.engines.embedded.speculation import acceptance
from app.engines.embedded.speculation.acceptance import Acceptance, Draft
from app.types import Sampling, Speculation
from tests.app.engines.embedded.speculation import chi_square, toy
from tests.app.engines.embedded.speculation.chi_square import CHANCE
from tests.app.engines.embedded.speculation.toy import (
    DRAFT,
    MODEL,
    NEAR,
    PROMPT,
    VOCABULARY,
    Answers,
    Drafter,
    normal,
)

SAMPLES = 20_000
EXACT = Acceptance(Speculation())
GREEDY = Sampling(temperature=0)
CASES = {
    "plain": Sampling(),
    "cold": Sampling(temperature=0.6),
    "hot": Sampling(temperature=1.7),
    "top_p": Sampling(top_p=0.7),
    "top_k": Sampling(top_k=3),
    "min_p": Sampling(min_p=0.2),
    "filters": Sampling(temperature=0.8, min_p=0.05, top_k=5, top_p=0.9),
    "penalties": Sampling(presence_penalty=0.7, frequency_penalty=0.4, repetition_penalty=1.4),
    "bias": Sampling(logit_bias={0: -100.0, 2: 1.5, 5: -1.0}),
}
DRAFTERS: dict[str, Drafter] = {
    "drawn": partial(toy.drawn, by=DRAFT),
    "near": partial(toy.drawn, by=NEAR),
    "trimmed": partial(toy.drawn, by=NEAR, columns=(0, 2, 3, 6)),
    "chosen": partial(toy.chosen, by=NEAR),
}


PAIRS = [
    *((name, "near") for name in CASES),
    ("plain", "drawn"),
    ("hot", "drawn"),
    ("filters", "trimmed"),
    ("penalties", "trimmed"),
    ("filters", "chosen"),
    ("bias", "chosen"),
]


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Each test draws the same guesses, whichever ran before it."""
    toy.NUMBERS.seed(0)


@pytest.mark.parametrize(("name", "drafter"), PAIRS)
def test_answers_are_distributed_as_the_models_own(name: str, drafter: str) -> None:
    """Of two tokens together, whichever way these were guessed, or refused, or left over."""
    answers = Answers(EXACT, DRAFTERS[drafter], MODEL)
    counts = answers.counts(CASES[name], SAMPLES, 2)
    assert chi_square.of(counts, toy.expected(CASES[name], MODEL, 2)) > CHANCE


def test_a_draft_of_the_model_itself_is_kept_whole() -> None:
    """Where p and q are equal each guess stays, whatever number was drawn."""
    for sampler in toy.samplers(Sampling(top_p=0.8), 500):
        draft = toy.drawn(sampler, PROMPT[-1], 3, MODEL)
        kept = list(EXACT.verify(sampler, MODEL[[PROMPT[-1], *draft.ids]], draft))
        assert [guessed for _, guessed in kept] == [True, True, True, False]


def test_guesses_are_accepted_as_often_as_the_two_overlap() -> None:
    """sum(min(p, q)), which is 1 - the total variation distance."""
    p, q = (normal(np.exp(t[PROMPT[-1]].astype(np.float64))) for t in (MODEL, NEAR))
    alpha = float(np.minimum(p, q).sum())
    accepted = 0
    for sampler in toy.samplers(Sampling(), SAMPLES):
        draft = toy.drawn(sampler, PROMPT[-1], 1, NEAR)
        accepted += next(EXACT.verify(sampler, MODEL[[PROMPT[-1], *draft.ids]], draft))[1]
    counts = {True: accepted, False: SAMPLES - accepted}
    assert chi_square.of(counts, {True: alpha, False: 1 - alpha}) > CHANCE


class AcceptsAll(Acceptance):
    """A wrong rule."""

    def _judge(self, sampler, row, id, draft, place):  # type: ignore[no-untyped-def]  # as above
        return sampler.take(row, id), True


def test_the_test_sees_a_rule_that_accepts_all() -> None:
    answers = Answers(AcceptsAll(Speculation()), DRAFTERS["near"], MODEL)
    counts = answers.counts(Sampling(), SAMPLES, 2)
    assert chi_square.of(counts, toy.expected(Sampling(), MODEL, 2)) < CHANCE


def test_the_test_sees_a_residual_that_is_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing anew from p, rather than from what p has more than q, is a common mistake."""
    monkeypatch.setattr(acceptance, "_residual", lambda weights, *_: weights)
    counts = Answers(EXACT, DRAFTERS["near"], MODEL).counts(Sampling(), SAMPLES, 2)
    assert chi_square.of(counts, toy.expected(Sampling(), MODEL, 2)) < CHANCE


def test_the_test_sees_a_q_of_another_temperature() -> None:
    def otherwise(sampler: Sampler, last: int, count: int) -> Draft:
        """Drawn at temperature 1, and said to be drawn as it is asked for."""
        draft = toy.drawn(sampler, last, count, NEAR)
        warm = Sampler(replace(sampler.sampling, temperature=1.0), PROMPT)
        warm.position = sampler.position
        draft.ids = toy.drawn(warm, last, count, NEAR).ids
        draft.likely = [float(q[id]) for q, id in zip(draft.drawn_from, draft.ids, strict=True)]  # type: ignore[index]  # all were drawn
        return draft

    cold = CASES["cold"]
    counts = Answers(EXACT, otherwise, MODEL).counts(cold, SAMPLES, 2)
    assert chi_square.of(counts, toy.expected(cold, MODEL, 2)) < CHANCE


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("greedy", [True, False])
def test_with_chosen_guesses_a_seed_gives_the_same_answer(name: str, greedy: bool) -> None:
    """Token for token, and greedily too; with what is reported of each."""
    asked = replace(CASES[name], logprobs=2)
    if greedy:
        asked = replace(asked, temperature=0.0)
    answers = Answers(EXACT, DRAFTERS["chosen"], MODEL)
    for seed in range(100):
        sampling = replace(asked, seed=seed)
        found = answers.answer(Sampler(sampling, PROMPT, entropy=True), 12)
        assert found == toy.plain(Sampler(sampling, PROMPT, entropy=True), MODEL, 12)


def test_greedily_the_first_of_the_likeliest_is_kept() -> None:
    rows = np.zeros((2, VOCABULARY), np.float32)
    rows[0, [2, 4]] = 1.0
    for id, kept in ((2, True), (4, False)):
        draft = Draft()
        draft.choose([id])
        verified = list(EXACT.verify(Sampler(GREEDY), rows, draft))
        assert [token.id for token, _ in verified] == ([2, 0] if kept else [2])
        assert verified[0][1] is kept


def test_what_is_not_taken_is_not_drawn() -> None:
    """An answer that ends inside its draft: no number is drawn, no penalty counted, behind it."""
    draft = Draft()
    draft.choose([1, 1, 1])
    sampler = Sampler(Sampling(temperature=0, presence_penalty=0.5), PROMPT)
    rows = np.zeros((4, VOCABULARY), np.float32)
    rows[:, 1] = 9.0
    verified = EXACT.verify(sampler, rows, draft)
    next(verified)
    assert sampler.position == 1
    assert sampler.adjusted(rows[0])[1] == pytest.approx(8.5)


def test_an_empty_draft_is_a_plain_step() -> None:
    sampling = Sampling(seed=4)
    verified = list(EXACT.verify(Sampler(sampling, PROMPT), MODEL[[5]], Draft()))
    assert verified == [(Sampler(sampling, PROMPT).draw(MODEL[5]), False)]


def test_accepted_tokens_are_reported_as_the_model_sees_them() -> None:
    """Log-probability, the likeliest, entropy: of the raw distribution, guessed or not."""
    sampling = Sampling(temperature=0.5, logprobs=3, logit_bias={1: 2.0})
    some = 0
    for seed in range(60):
        sampler = Sampler(replace(sampling, seed=seed), PROMPT, entropy=True)
        draft = toy.drawn(sampler, PROMPT[-1], 3, NEAR)
        last = PROMPT[-1]
        for drawn, guessed in EXACT.verify(sampler, MODEL[[last, *draft.ids]], draft):
            told = Sampler(sampling, entropy=True).take(MODEL[last], drawn.id)
            assert drawn == told and drawn.logprob is not None
            last, some = drawn.id, some + guessed
    assert some > 20


def test_a_draft_may_be_gone_on_with() -> None:
    sampler = Sampler(Sampling(seed=1), PROMPT)
    draft = toy.drawn(sampler, PROMPT[-1], 2, NEAR)
    ids = list(draft.ids)
    assert len(ids) == len(draft.drawn_from) == len(draft.likely) == 2
    draft.choose([7])
    assert (draft.ids, draft.drawn_from[2], draft.likely[2]) == ([*ids, 7], None, 1.0)


def mixed(sampler: Sampler, last: int, count: int) -> Draft:
    """Guesses of a model, and behind them one that was looked up."""
    draft = toy.drawn(sampler, last, count - 1, NEAR)
    draft.choose(toy.chosen(sampler, draft.ids[-1], 1, NEAR).ids)
    return draft


def test_looked_up_guesses_behind_drawn_ones_are_exact_too() -> None:
    counts = Answers(EXACT, mixed, MODEL, longest=2).counts(Sampling(), SAMPLES, 2)
    assert chi_square.of(counts, toy.expected(Sampling(), MODEL, 2)) > CHANCE


def lenient(epsilon: float) -> Acceptance:
    return Acceptance(Speculation(acceptance="lenient", lenience=epsilon))


def lenient_distribution(p: Row, q: Row, epsilon: float) -> Row:
    """By the formula: kept with min(1, p / (epsilon q)), else from max(0, p - q)."""
    kept = q * np.minimum(1.0, p / (epsilon * q))
    rest = np.maximum(p - q, 0.0)
    return np.asarray(kept + (1 - kept.sum()) * rest / rest.sum())


@pytest.mark.parametrize("epsilon", [0.9, 0.5, 0.2])
def test_leniently_a_drawn_guess_stays_with_p_over_epsilon_q(epsilon: float) -> None:
    p, q = (normal(np.exp(t[PROMPT[-1]].astype(np.float64))) for t in (MODEL, NEAR))
    counts: Counter[int] = Counter()
    accepted = 0
    for sampler in toy.samplers(Sampling(), SAMPLES):
        draft = toy.drawn(sampler, PROMPT[-1], 1, NEAR)
        rows = MODEL[[PROMPT[-1], *draft.ids]]
        drawn, kept = next(lenient(epsilon).verify(sampler, rows, draft))
        counts[drawn.id] += 1
        accepted += kept
        if kept:
            assert drawn.id == draft.ids[0]
    alpha = float((q * np.minimum(1.0, p / (epsilon * q))).sum())
    both = {True: accepted, False: SAMPLES - accepted}
    assert chi_square.of(both, {True: alpha, False: 1 - alpha}) > CHANCE
    wanted = dict(enumerate(lenient_distribution(p, q, epsilon).tolist()))
    assert chi_square.of(counts, wanted) > CHANCE


@pytest.mark.parametrize("id", range(VOCABULARY))
def test_leniently_a_chosen_guess_stays_with_p_over_epsilon(id: int) -> None:
    """Its q is 1; a token that is drawn in its place is one of the others."""
    epsilon, p = 0.3, normal(np.exp(MODEL[PROMPT[-1]].astype(np.float64)))
    counts: Counter[tuple[int, bool]] = Counter()
    for sampler in toy.samplers(Sampling(), 4000):
        draft = Draft()
        draft.choose([id])
        drawn, kept = next(lenient(epsilon).verify(sampler, MODEL[[PROMPT[-1], id]], draft))
        counts[drawn.id, kept] += 1
    stays = min(1.0, float(p[id]) / epsilon)
    others = {(n, False): float(p[n] / (1 - p[id])) * (1 - stays) for n in range(VOCABULARY)}
    assert chi_square.of(counts, others | {(id, False): 0.0, (id, True): stays}) > CHANCE


@pytest.mark.parametrize("epsilon", [1.0, 0.9, 0.5, 0.1])
def test_greedily_lenience_keeps_what_is_nearly_the_likeliest(epsilon: float) -> None:
    """p(x) >= epsilon max p; else the likeliest is written."""
    for last, id in itertools.product(range(VOCABULARY), range(VOCABULARY)):
        row = MODEL[last]
        p = normal(np.exp(row.astype(np.float64)))
        draft = Draft()
        draft.choose([id])
        drawn, kept = next(lenient(epsilon).verify(Sampler(GREEDY), MODEL[[last, id]], draft))
        assert kept == (p[id] >= epsilon * p.max())
        assert drawn.id == (id if kept else int(row.argmax()))


def test_lenience_goes_by_what_penalties_and_bias_have_left() -> None:
    row = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    biased = Sampling(temperature=0, logit_bias={1: 2.0})
    for id, kept in ((0, False), (1, True)):
        draft = Draft()
        draft.choose([id])
        drawn, stays = next(lenient(0.5).verify(Sampler(biased), row, draft))
        assert (drawn.id, stays) == (1, kept)


@pytest.mark.parametrize("sampling", [Sampling(), GREEDY, Sampling(temperature=0.7, top_p=0.8)])
@pytest.mark.parametrize("drafter", ["near", "chosen"])
def test_lenience_of_one_is_exact(sampling: Sampling, drafter: str) -> None:
    """Token for token what the exact rule writes with the same numbers."""
    assert lenient(1.0).exact and not lenient(0.99).exact
    if sampling is GREEDY:
        drafter = "chosen"
    found = []
    for rule in (EXACT, lenient(1.0)):
        toy.NUMBERS.seed(0)
        found.append(Answers(rule, DRAFTERS[drafter], MODEL).counts(sampling, 300, 6))
    assert found[0] == found[1]


def test_the_exact_rule_has_no_lenience() -> None:
    assert Acceptance(Speculation(acceptance="exact", lenience=0.3)).exact


TYPICAL = Acceptance(Speculation(acceptance="typical"))


def level(p: Row) -> float:
    entropy = -sum(float(x) * math.log(float(x)) for x in p if x > 0)
    return min(0.09, 0.3 * math.exp(-entropy))


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("sampling", [Sampling(), GREEDY, Sampling(temperature=0.6, top_k=5)])
def test_typical_acceptance_is_medusas(sampling: Sampling, scale: float) -> None:
    """p(x) > min(0.09, 0.3 exp(-H)): of the distribution that the token is drawn from, greedily
    of the one at temperature 1. Flat ones, where the second bound counts, and sharp ones."""
    model = (MODEL * scale).astype(np.float32)
    refused = 0
    for last, id in itertools.product(range(VOCABULARY), range(VOCABULARY)):
        warm = replace(sampling, temperature=sampling.temperature or 1.0)
        p = normal(Sampler(warm).weigh(model[last]))
        draft = Draft()
        draft.choose([id])
        sampler = Sampler(replace(sampling, seed=id))
        drawn, kept = next(TYPICAL.verify(sampler, model[[last, id]], draft))
        if p[id] > level(p):
            assert (drawn.id, kept) == (id, True)
        else:
            # The token drawn may be the one that was guessed.
            wanted = Sampler(replace(sampling, seed=id)).draw(model[last])
            assert drawn == wanted and kept == (drawn.id == id)
            refused += 1
    assert refused > 0 or scale < 1  # of a flat one all are typical
