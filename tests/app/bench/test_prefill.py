"""Ways to read a prompt: what is true of each on a model that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.bench.prefill import Way, read, truncated
from app.bench.reading import Measured, Weights
from app.engines.embedded.model import Span
from app.types import Sampling
from tests.app.bench.predictors import true_predictor
from tests.app.engines.embedded.tiny import write_model

PROMPT = [(7 * n) % 250 for n in range(150)]
REFERENCE = [104, 105, 33]
Passes = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(folder: Path) -> Measured:
    return Measured.load(Weights("tiny", folder, None, "fp32"))


def predicting(model: Measured, folder: Path, noise: float = 0.0, **asked: int) -> Way:
    predictor = model.decoder.predictor(true_predictor(folder, noise))
    return Way("predicted", model, 0.5, predictor, **asked)


@pytest.fixture
def passes(model: Measured, monkeypatch: pytest.MonkeyPatch) -> Passes:
    """What the decoder did: predicted or computed, from which token on, how many."""
    found: Passes = []
    decoder: Any = model.decoder
    forward, predict = decoder.forward, decoder.predict

    def computed(tokens: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
        found.append(("computed", spans[0].cache.length, len(tokens)))
        hidden: torch.Tensor = forward(tokens, spans)
        return hidden

    def predicted(tokens: torch.Tensor, span: Span, predictor: Any) -> None:
        found.append(("predicted", span.cache.length, len(tokens)))
        predict(tokens, span, predictor)

    monkeypatch.setattr(decoder, "forward", computed)
    monkeypatch.setattr(decoder, "predict", predicted)
    return found


def test_the_exact_way_is_the_model_s_own(model: Measured) -> None:
    found = read(Way("exact", model, 1.0), PROMPT, REFERENCE, None, 12, 3)
    (answer,) = model.write([PROMPT], 12, Sampling(temperature=0.0))
    assert list(found.answer) == answer
    logs = model.log_probabilities([*PROMPT, *REFERENCE], len(PROMPT))
    own = -float(logs.gather(1, torch.tensor(REFERENCE)[:, None]).mean())
    assert found.nats == pytest.approx(own, abs=1e-4)
    assert found.agreed == 1
    assert found.seconds > 0


def test_an_answer_ends_where_the_model_ends_it(
    model: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = Way("exact", model, 1.0)
    whole = read(way, PROMPT, REFERENCE, None, 12, 3).answer
    monkeypatch.setattr(model.tokenizer, "eos_ids", frozenset({whole[4]}))
    ended = read(way, PROMPT, REFERENCE, None, 12, 3).answer
    assert ended == whole[: whole.index(whole[4]) + 1]


@pytest.mark.parametrize(("first", "last"), [(0, 1), (4, 64)])
def test_with_true_keys_and_values_nothing_is_lost(
    model: Measured, folder: Path, first: int, last: int
) -> None:
    exact = read(Way("exact", model, 1.0), PROMPT, REFERENCE, None, 12, 3)
    way = predicting(model, folder, first=first, last=last)
    found = read(way, PROMPT, REFERENCE, exact.answer, 12, 3)
    assert found.agreed == 1
    assert found.answer == exact.answer
    assert found.nats == pytest.approx(exact.nats, abs=1e-3)


def test_with_false_ones_something_is(model: Measured, folder: Path) -> None:
    exact = read(Way("exact", model, 1.0), PROMPT, REFERENCE, None, 12, 3)
    found = read(predicting(model, folder, noise=1.0), PROMPT, REFERENCE, exact.answer, 12, 3)
    assert found.agreed < 1
    assert found.nats != pytest.approx(exact.nats, abs=1e-2)


def test_what_is_predicted_and_in_which_pieces(
    model: Measured, folder: Path, passes: Passes
) -> None:
    way = predicting(model, folder, first=4, last=64)
    read(way, PROMPT, REFERENCE, None, 1, 3)
    assert passes[:6] == [  # pieces end where the kind changes, and at multiples of 64 from there
        ("computed", 0, 4),
        ("predicted", 4, 64),
        ("predicted", 68, 18),
        ("computed", 86, 63),
        ("computed", 149, 1),
        ("computed", 150, 2),
    ]
    passes.clear()
    read(replace(way, last=200), PROMPT, REFERENCE, None, 1, 3)
    assert not [each for each in passes if each[0] == "predicted"]  # all of it is the end


def test_a_part_of_a_prompt_is_its_opening_and_its_end(model: Measured, passes: Passes) -> None:
    way = Way("truncated", model, 0.5, kept=0.5)
    part = read(way, PROMPT, REFERENCE, None, 5, 3)
    assert sum(count for _, at, count in passes if at < 75) == 75
    whole = read(Way("exact", model, 1.0), [*PROMPT[:3], *PROMPT[-72:]], REFERENCE, None, 5, 3)
    assert (part.answer, part.nats) == (whole.answer, whole.nats)


@pytest.mark.parametrize(
    ("kept", "found"),
    [(1.0, range(10)), (0.5, [0, 1, 7, 8, 9]), (0.3, [0, 1, 9]), (0.01, [0, 1, 9])],
)
def test_how_much_is_left(kept: float, found: Sequence[int]) -> None:
    assert truncated(range(10), kept, 2) == list(found)


def test_what_a_way_costs(model: Measured, folder: Path) -> None:
    assert Way("exact", model, 1.0).cost(100) == 1
    assert Way("truncated", model, 0.25, kept=0.25).cost(100) == 0.25
    way = predicting(model, folder, first=4, last=16)
    assert way.cost(100) == pytest.approx((20 + 80 * 0.5) / 100)
    assert way.cost(10) == 1  # there nothing is predicted
