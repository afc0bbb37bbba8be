"""Draws follow the distribution that was asked for, and depend on nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from app.engines.embedded.sampling import (
    Drawn,
    Sampler,
    distribution,
    draw,
    likeliest,
    pick,
    uniform,
)
from app.types import Sampling

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -4.0])
VOCABULARY = len(LOGITS)
Probabilities = Mapping[int, float]


def softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def kept(probabilities: Sequence[float], ids: Sequence[int]) -> list[float]:
    total = sum(probabilities[i] for i in ids)
    return [p / total if i in ids else 0.0 for i, p in enumerate(probabilities)]


RAW = LOGITS.tolist()
PLAIN = softmax(RAW)
COLD = softmax([x / 0.5 for x in RAW])
CASES = {
    "temperature 1": (Sampling(), PLAIN),
    "temperature 0.5": (Sampling(temperature=0.5), COLD),
    "top_k 3": (Sampling(top_k=3), kept(PLAIN, [0, 1, 2])),
    # 0.39 + 0.24 + 0.14 pass 0.7 with the third token
    "top_p 0.7": (Sampling(top_p=0.7), kept(PLAIN, [0, 1, 2])),
    # those with at least 0.3 times the probability of the likeliest: x >= 2 - 1.2
    "min_p 0.3": (Sampling(min_p=0.3), kept(PLAIN, [0, 1, 2])),
    "top_k then top_p": (Sampling(top_k=4, top_p=0.85), kept(PLAIN, [0, 1, 2])),
    "temperature then top_p": (Sampling(temperature=0.5, top_p=0.85), kept(COLD, [0, 1])),
    "logit_bias": (
        Sampling(logit_bias={0: -100.0, 7: 5.0}),
        softmax([-98.0, *RAW[1:7], 1.0]),
    ),
}


def chi_square(counts: Counter[int], expected: Sequence[float], n: int) -> tuple[float, float]:
    """The statistic, and the level that chance passes once in ten thousand (Wilson-Hilferty)."""
    likely = [i for i, p in enumerate(expected) if p > 0]
    assert set(counts) <= set(likely)
    statistic = sum((counts[i] - n * expected[i]) ** 2 / (n * expected[i]) for i in likely)
    freedom = len(likely) - 1
    level = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic, level


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_theoretical_distribution(name: str) -> None:
    sampling, expected = CASES[name]
    sampler = Sampler(replace(sampling, seed=7))
    n = 20_000
    counts = Counter(drawn.id for _ in range(n) for drawn in draw([sampler], LOGITS[None]))
    statistic, level = chi_square(counts, expected, n)
    assert statistic < level


def test_the_chi_square_test_sees_a_wrong_distribution() -> None:
    sampler = Sampler(Sampling(temperature=0.95, seed=7))
    counts = Counter(drawn.id for _ in range(20_000) for drawn in draw([sampler], LOGITS[None]))
    statistic, level = chi_square(counts, PLAIN, 20_000)
    assert statistic > level


def run(sampler: Sampler, rows: torch.Tensor) -> list[int]:
    return [draw([sampler], row[None])[0].id for row in rows]


def test_a_token_depends_on_seed_position_and_row_only() -> None:
    """Alone, with neighbours, or taken over in the middle by another sampler: the same tokens."""
    rows = torch.randn(12, 1000, generator=torch.Generator().manual_seed(1))
    alone = run(Sampler(Sampling(seed=5)), rows)
    beside = [Sampler(Sampling(seed=seed)) for seed in range(8)]
    batches = [draw(beside, torch.cat([row[None]] * 8)) for row in rows]
    assert [batch[5].id for batch in batches] == alone
    taken_over = Sampler(Sampling(seed=5), written=alone[:4])
    assert run(taken_over, rows[4:]) == alone[4:]
    assert run(Sampler(Sampling(seed=6)), rows) != alone


def test_without_a_seed_answers_differ() -> None:
    rows = torch.zeros(12, 1000)
    assert run(Sampler(Sampling()), rows) != run(Sampler(Sampling()), rows)


def test_seeds_of_any_size_and_sign_are_different() -> None:
    seeds = [0, 1, -1, 2**63, 2**64, 12, 2**64 + 1]
    numbers = [uniform(seed, position) for seed in seeds for position in (0, 1, 11)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    row = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    plain, reporting = (Sampler(Sampling(temperature=0, logprobs=n)) for n in (None, 0))
    assert plain.plain and not reporting.plain
    assert [draw([s], row)[0].id for s in (plain, reporting)] == [1, 1]


def test_a_tiny_temperature_is_greedy() -> None:
    rows = torch.randn(20, 100, generator=torch.Generator().manual_seed(1)) * 1e4
    for temperature in (1e-300, 1e-5, 1e-3):
        assert run(Sampler(Sampling(temperature=temperature)), rows) == rows.argmax(-1).tolist()


def test_penalties_by_hand() -> None:
    """Presence and frequency count the answer only, repetition the prompt too."""
    sampling = Sampling(
        temperature=0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        repetition_penalty=2.0,
        logprobs=0,
    )
    row = torch.tensor([[2.0, 1.2, -1.0, 0.9]])
    # token 0 is in the prompt: 2 / 2 = 1.0; token 1 twice in the answer: 1.2 / 2 - 0.5 - 0.5
    sampler = Sampler(sampling, prompt=[0, 2], written=[1, 1])
    assert draw([sampler], row)[0].id == 0
    # now token 0 is in the answer: 1.0 - 0.5 - 0.25 = 0.25, less than token 3's 0.9
    assert draw([sampler], row)[0].id == 3
    # token 3: 0.9 / 2 - 0.75 < 0.25
    assert draw([sampler], row)[0].id == 0


def test_a_negative_logit_is_penalised_downwards() -> None:
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), prompt=[0])
    assert draw([sampler], torch.tensor([[-1.0, -1.5]]))[0].id == 1


def report(row: torch.Tensor, **asked: object) -> Drawn:
    entropy = bool(asked.pop("entropy", False))
    return draw([Sampler(Sampling(**asked), entropy=entropy)], row[None])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1000.0])
def test_entropy_and_logprobs_are_of_the_raw_distribution(scale: float) -> None:
    """Equal to a float64 reference whatever temperature, bias and penalties do to the draw."""
    row = torch.randn(49152, generator=torch.Generator().manual_seed(1)) * scale
    logprobs = torch.log_softmax(row.double(), -1)
    entropy = -(logprobs.exp() * logprobs).nan_to_num(0.0).sum().item() / math.log(2)
    drawn = report(row, entropy=True, temperature=0.3, logit_bias={5: 90.0}, top_p=0.5, logprobs=3)
    assert drawn.entropy == pytest.approx(entropy, abs=1e-9)
    assert drawn.logprob == pytest.approx(logprobs[drawn.id].item(), abs=1e-9)
    values = torch.topk(logprobs, 3).values.tolist()
    assert [value for _, value in drawn.top] == pytest.approx(values, abs=1e-9)
    assert [logprobs[id].item() for id, _ in drawn.top] == pytest.approx(values, abs=1e-9)


def test_nothing_is_reported_unasked() -> None:
    assert report(LOGITS, seed=1) == Drawn(report(LOGITS, seed=1).id)
    assert report(LOGITS, logprobs=0).top == ()
    assert report(LOGITS, logprobs=0).logprob is not None
    assert report(LOGITS, logprobs=2).entropy is None


def test_a_weight_of_nothing_is_never_picked() -> None:
    """Not even by a number that falls exactly on its place."""
    weights = np.array([0.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    assert [pick(weights, at) for at in (0.0, 0.25, 0.5, 1 - 2**-53)] == [2, 2, 4, 4]


rows = st.lists(st.integers(-8, 8), min_size=1, max_size=20)


@given(rows, st.integers(1, 25))
def test_likeliest_is_a_stable_sort(row: list[int], count: int) -> None:
    expected = sorted(range(len(row)), key=lambda i: -row[i])[:count]
    assert likeliest(np.array(row, np.float64), count).tolist() == expected


@example([1] + [0] * 30, 0.9, 0.0, 0)
@given(rows, st.floats(0.01, 1), st.floats(0, 0.99), st.integers(0, 25))
def test_filters_are_those_of_a_plain_sort(
    row: list[int], top_p: float, min_p: float, top_k: int
) -> None:
    """The shortcut that spares sorting the whole vocabulary changes no result."""
    sampling = Sampling(top_p=top_p, min_p=min_p, top_k=top_k)
    weights = distribution(np.array(row, np.float64), sampling)
    expected = np.exp(np.array(row, np.float64) - max(row))
    expected[expected < min_p] = 0.0
    order = sorted(range(len(row)), key=lambda i: -expected[i])
    order = order[: top_k or None]
    expected = only(expected, order)
    if top_p < 1:
        reached = np.cumsum(expected[order])
        order = order[: 1 + int(np.searchsorted(reached, top_p * expected.sum()))]
        expected = only(expected, order)
    np.testing.assert_array_equal(weights, expected)


def only(weights: npt.NDArray[np.float64], ids: list[int]) -> npt.NDArray[np.float64]:
    mask = np.zeros(len(weights))
    mask[ids] = 1.0
    return weights * mask


class Only:
    """Allows these ids, whatever came before; remembers what came."""

    def __init__(self, *ids: int) -> None:
        self.ids, self.came = list(ids), list[int]()

    def advance(self, ids: Sequence[int]) -> bool:
        self.came += ids
        return True

    def allowed(self, size: int, ahead: Sequence[int] = ()) -> npt.NDArray[np.bool_]:
        return np.isin(np.arange(size), self.ids)

    def permits(self, ids: Sequence[int]) -> int:
        raise AssertionError("nobody guesses")


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(seed=1),
        Sampling(seed=1, top_k=1),
        Sampling(seed=1, top_p=0.1, min_p=0.9),
        Sampling(temperature=0, logit_bias={0: 100.0}),
        Sampling(seed=1, repetition_penalty=2.0, frequency_penalty=1.0),
    ],
)
def test_what_an_answer_is_held_to_comes_before_all_else(sampling: Sampling) -> None:
    """The likeliest of what may come is kept by every filter; nothing brings the others back."""
    held = Only(4, 6)
    sampler = Sampler(replace(sampling, logprobs=3), entropy=True, held=held)
    drawn = [draw([sampler], LOGITS[None])[0] for _ in range(20)]
    assert {each.id for each in drawn} <= {4, 6}
    assert held.came == [each.id for each in drawn]
    if sampling.top_k or sampling.top_p < 1:
        assert {each.id for each in drawn} == {4}
    likely = softmax([RAW[4], RAW[6]])
    for each in drawn:
        assert each.logprob == pytest.approx(math.log(likely[each.id == 6]))
        assert [id for id, _ in each.top] == [4, 6]  # and no third one, which cannot come
        assert each.entropy == pytest.approx(-sum(p * math.log2(p) for p in likely))


def test_where_one_token_may_come_it_is_certain() -> None:
    sampler = Sampler(Sampling(logprobs=1), entropy=True, held=Only(7))
    drawn = sampler.draw(LOGITS.numpy())
    assert (drawn.id, drawn.logprob, drawn.entropy) == (7, 0.0, 0.0)
