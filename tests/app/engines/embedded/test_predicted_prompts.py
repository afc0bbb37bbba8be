"""Prompts whose KV is predicted: the same answers from true KV, and never a word to others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from app.engines.embedded.model import Span
from app.engines.embedded.prediction import Predictor
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.weights import open_checkpoint
from app.nets.kv_predictor import About, KVPredictor
from app.nets.route import Route
from app.training.net import read_net
from app.types import KVPrediction
from tests.app.engines.embedded.rig import Rig, answers, predicting, rig, used
from tests.app.engines.embedded.tiny import write_model

ASKED = KVPrediction("layers-1")
PROMPT = [(7 * n) % 250 for n in range(150)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=["fp32", "int8"])
def model(folder: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    precision: Literal["fp32", "int8"] = request.param
    yield rig(folder, precision)


def predictor(model: Rig, folder: Path, noise: float = 0.0) -> Predictor:
    """The last layer's own projections, which are true; and noise."""
    net = read_net(open_checkpoint(folder))
    config, layer = net.config, net.layers[1]
    width = config.kv_heads * config.head_dim
    made = KVPredictor(About("m", "", config.hidden, config.layers, width, 1000, 1))
    seeded = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for which, name in enumerate(("k", "v")):
            weight = getattr(layer, name) * layer.attention_norm
            made.weight[which] = weight + noise * torch.randn(weight.shape, generator=seeded)
    return model.decoder.predictor(made)


def asking(
    model: Rig,
    told: Predictor | None,
    prompt: list[int] = PROMPT,
    asked: KVPrediction = ASKED,
    limit: int = 12,
) -> RunningSequence:
    return predicting(model, told, prompt, asked, limit)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 40), (5, 1), (70, 70), (0, 500)])
def test_from_true_keys_and_values_comes_the_true_answer(
    model: Rig, folder: Path, first: int, last: int
) -> None:
    told = predictor(model, folder)
    (plain,) = answers(model.scheduler(prefill_chunk=32), [asking(model, None)])
    sequence = asking(model, told, asked=replace(ASKED, first=first, last=last))
    assert answers(model.scheduler(prefill_chunk=32), [sequence]) == [plain]
    assert used(sequence).predicted == max(150 - first - last, 0)
    assert used(sequence).prompt == 150


def test_eight_at_once_beside_others(model: Rig, folder: Path) -> None:
    told = predictor(model, folder)
    prompts = [[(n * 11 + at) % 250 for at in range(20 + 17 * n)] for n in range(8)]
    plain = [answers(model.scheduler(), [asking(model, None, p)])[0] for p in prompts]
    mixed = [asking(model, told if n % 2 else None, p) for n, p in enumerate(prompts)]
    assert answers(model.scheduler(prefill_chunk=32), mixed) == plain


def test_beside_choices_that_wait_for_each_other(model: Rig, folder: Path) -> None:
    scheduler = model.scheduler(prefill_chunk=32)
    one, two, three = (model.sequence(80 * [7], id="a") for _ in range(3))
    sequence = asking(model, predictor(model, folder))
    answers(scheduler, [one, two, sequence, three])
    assert used(sequence).predicted == 149
    assert [used(each).cached for each in (one, two, three)] == [0, 79, 79]


def test_only_the_first_layers_run(model: Rig, folder: Path) -> None:
    """Predicted pieces are no passes of the whole model, whose last token is one."""
    answers(model.scheduler(prefill_chunk=32), [asking(model, predictor(model, folder), limit=1)])
    assert model.passes == [[1]]


def test_a_wrong_prediction_is_seen_and_stays_where_it_is(model: Rig, folder: Path) -> None:
    """Between exact requests of the same words predicted ones flood the prefix cache."""
    wrong, scheduler = predictor(model, folder, noise=2.0), model.scheduler(prefill_chunk=32)
    alone = model.scheduler(prefill_chunk=32)  # to which nobody comes but those who want exact KV
    seen = 0
    for prompt in [PROMPT[: 40 + 10 * n] for n in range(6)] * 2:
        (plain,) = answers(alone, [asking(model, None, prompt)])
        for conversation in ("", "c"):
            asked = replace(ASKED, conversation=conversation)
            (other,) = answers(scheduler, [asking(model, wrong, prompt, asked)])
            seen += other != plain
        assert answers(scheduler, [asking(model, None, prompt)]) == [plain]
    assert seen > 0, "the noise changes nothing: this test shows nothing"


def test_only_one_s_own_conversation_goes_on_from_it(model: Rig, folder: Path) -> None:
    told, scheduler = predictor(model, folder), model.scheduler()

    def cached(asked: KVPrediction | None, account: str = "") -> int:
        sequence = asking(model, told if asked else None, asked=asked or ASKED)
        sequence.call = replace(sequence.call, account=account)
        answers(scheduler, [sequence])
        return used(sequence).cached

    assert cached(replace(ASKED, conversation="a")) == 0
    assert cached(replace(ASKED, conversation="b")) == 0
    assert cached(ASKED) == 0
    assert cached(replace(ASKED, conversation="a"), "another's") == 0
    assert cached(replace(ASKED, conversation="a")) == 149
    assert cached(None) == 0  # exact: none of theirs
    assert cached(ASKED) == 149  # what is exact may serve them all
    assert cached(None) == 149  # and is still there


ABOUT = replace(ASKED, first=5, last=20, relevant=0.3)
ROUTE = Route((5, 32, 64, 86))  # PROMPT's, with that


def test_what_the_end_asks_about_is_computed(model: Rig, folder: Path) -> None:
    """What of it sees predictions is as if they were true, and so is what is predicted next."""
    told, decoder = predictor(model, folder, noise=0.5), model.decoder
    sequence = asking(model, told, asked=ABOUT)
    assert sequence.route == ROUTE
    (found,) = answers(model.scheduler(prefill_chunk=32), [sequence])
    assert used(sequence).predicted == 27 + 22
    cache = decoder.kv_memory(2**24, 0).acquire(PROMPT, 200)
    assert cache is not None
    ids = torch.tensor(PROMPT)
    for start, end in zip((0, 5, 32, 64, 86), (5, 32, 64, 86, 150), strict=True):
        span = Span(cache, end - start)
        if ROUTE.predicts(start):
            decoder.predict(ids[start:end], span, told)
        else:
            hidden = decoder.forward(ids[start:end], [span])
    wanted: list[int] = []
    while len(wanted) < len(found):
        wanted.append(int(decoder.logits(hidden[-1:]).argmax()))
        hidden = decoder.forward(torch.tensor(wanted[-1:]), [Span(cache, 1)])
    assert found == wanted
    (less,) = answers(model.scheduler(), [asking(model, told, asked=replace(ABOUT, relevant=0.0))])
    (plain,) = answers(model.scheduler(), [asking(model, None)])
    assert len({tuple(each) for each in (found, less, plain)}) > 1, "the noise changes nothing"


@pytest.mark.parametrize("chunk", [8, 32, 64])
def test_behind_true_predictions_it_is_exact(model: Rig, folder: Path, chunk: int) -> None:
    (plain,) = answers(model.scheduler(prefill_chunk=32), [asking(model, None)])
    others = [asking(model, None, PROMPT[:30]), asking(model, predictor(model, folder))]
    sequence = asking(model, predictor(model, folder), asked=ABOUT)
    assert answers(model.scheduler(prefill_chunk=chunk), [sequence, *others])[0] == plain


def test_int8_does_not_depend_on_the_pieces(model: Rig, folder: Path) -> None:
    if model.decoder.precision != "int8":
        pytest.skip("fp32 sums in other orders")
    wrong = predictor(model, folder, noise=2.0)
    found = [
        answers(model.scheduler(prefill_chunk=chunk), [asking(model, wrong, asked=ABOUT)])
        for chunk in (16, 32, 64, 100)
    ]
    assert found[1:] == found[:-1]


def test_a_failure_hits_the_one_that_predicts(model: Rig, folder: Path) -> None:
    scheduler, told = model.scheduler(), predictor(model, folder)
    writing, broken = asking(model, None, limit=40), asking(model, told)
    scheduler.submit(writing)
    while writing.written < 3:
        scheduler.step()
    broken.predictor = None
    scheduler.submit(broken)
    for _ in range(100):
        try:
            if not scheduler.step():
                break
        except ValueError:
            scheduler.fail("broken")
    assert broken.error is not None
    assert writing.finished and writing.error is None
    assert scheduler.memory.running_bytes == 0
