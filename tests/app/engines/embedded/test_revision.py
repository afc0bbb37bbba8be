"""What is computed of a predicted prompt after all: which tokens, and that they come out exact."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.engines.embedded.model import Span
from app.engines.embedded.revision import Revision
from app.engines.embedded.weights import open_checkpoint
from app.training.net import Layer, _norm, _turn, read_net
from tests.app.engines.embedded.rig import Rig
from tests.app.engines.embedded.test_predicted_prompts import (
    ASKED,
    PROMPT,
    answers,
    asking,
    folder,
    model,
    predictor,
    used,
)

__all__ = ["folder", "model"]  # fixtures


def revision(share: float, start: int, sizes: list[int]) -> Revision:
    found, at = Revision(share), start
    for size in sizes:
        found.keep(at, torch.arange(at, at + size)[:, None].float())
        at += size
    return found


def taken(found: Revision) -> list[tuple[int, int]]:
    """Pieces by their bounds, each with the streams of its own slots."""
    pieces = []
    while not found.over:
        start, stream = found.take()
        assert stream[:, 0].tolist() == list(range(start, start + len(stream)))
        pieces.append((start, start + len(stream)))
    return pieces


def test_the_blocks_that_are_attended_to_most_are_taken_in_their_order() -> None:
    attended = torch.full((300,), 0.1)
    attended[250], attended[40], attended[33] = 9.0, 5.0, 1.0
    attended[128:160] = 1.0  # much in all, but no peak of it
    found = revision(0.2, 4, [60, 64, 64, 64, 44])
    assert found.begun and not found.chosen
    found.choose(attended, 64)  # ten blocks, of which two
    assert taken(found) == [(32, 64), (224, 256)]


def test_neighbours_are_computed_together_as_far_as_a_piece_goes() -> None:
    found = revision(1.0, 10, [300])
    found.choose(torch.zeros(310), 64)
    assert taken(found) == [(10, 64), (64, 128), (128, 192), (192, 256), (256, 310)]
    found = revision(1.0, 10, [300])
    found.choose(torch.zeros(310), 8)  # a block at least
    assert taken(found)[:3] == [(10, 32), (32, 64), (64, 96)]


def test_one_block_at_least_is_taken() -> None:
    found = revision(0.01, 0, [10])
    found.choose(torch.ones(10), 64)
    assert taken(found) == [(0, 10)] and found.over


@pytest.mark.parametrize(("first", "last"), [(0, 1), (5, 40), (70, 70)])
@pytest.mark.parametrize("chunk", [8, 32, 64])
def test_where_all_is_computed_after_all_the_answer_is_exact(
    model: Rig, folder: Path, first: int, last: int, chunk: int
) -> None:
    """However wrong the predictions were."""
    wrong = predictor(model, folder, noise=2.0)
    (plain,) = answers(model.scheduler(prefill_chunk=32), [asking(model, None)])
    asked = replace(ASKED, first=first, last=last, recompute=1.0)
    sequence = asking(model, wrong, asked=asked)
    other = [asking(model, None, PROMPT[:30]), asking(model, wrong, PROMPT[:90], asked)]
    assert answers(model.scheduler(prefill_chunk=chunk), [sequence, *other])[0] == plain
    assert used(sequence).predicted == 0
    less = asking(model, wrong, asked=replace(asked, recompute=0.0))
    assert answers(model.scheduler(prefill_chunk=chunk), [less]) != [plain]


def test_a_part_is_computed_and_the_rest_stays_predicted(model: Rig, folder: Path) -> None:
    told, model.revised = predictor(model, folder), []
    sequence = asking(model, told, asked=replace(ASKED, first=5, last=20, recompute=0.4))
    answers(model.scheduler(prefill_chunk=32), [sequence])
    computed = sum(map(len, model.revised))
    assert 32 <= computed <= 64 and used(sequence).predicted == 125 - computed


def test_int8_does_not_depend_on_the_pieces(model: Rig, folder: Path) -> None:
    if model.decoder.precision != "int8":
        pytest.skip("fp32 sums in other orders")
    wrong = predictor(model, folder, noise=2.0)
    asked = replace(ASKED, recompute=0.3)
    found = [
        answers(model.scheduler(prefill_chunk=chunk), [asking(model, wrong, asked=asked)])
        for chunk in (16, 32, 64, 100)
    ]
    assert found[1:] == found[:-1]


def test_what_is_in_the_cache_already_is_not_revised(model: Rig, folder: Path) -> None:
    told, scheduler = predictor(model, folder), model.scheduler()
    asked = replace(ASKED, recompute=0.5, conversation="c")
    answers(scheduler, [asking(model, told, asked=asked)])
    model.revised = []
    (sequence,) = [asking(model, told, asked=asked)]
    answers(scheduler, [sequence])
    assert model.revised == [] and used(sequence).cached == 149


def test_attention_is_that_of_the_projections(model: Rig, folder: Path) -> None:
    if model.decoder.precision != "fp32":
        pytest.skip("in int8 it is near that")
    net, ids = read_net(open_checkpoint(folder)), torch.tensor(PROMPT[:40])
    turns = net.turns(torch.arange(40)[None])
    rows = torch.nn.functional.embedding(ids[None], net.embedding)
    layer, config = net.layers[0], net.config
    assert isinstance(layer, Layer)
    queries, keys, _ = layer._project(_norm(rows, layer.attention_norm, config.norm_epsilon))
    queries, keys = _turn(queries, turns)[0], _turn(keys, turns)[0]
    keys = keys.repeat_interleave(config.heads // config.kv_heads, 0)
    logits = queries[:, 36:] @ keys[:, :36].transpose(1, 2) / math.sqrt(config.head_dim)
    wanted = logits.softmax(-1).amax(0).sum(0)
    cache = model.decoder.kv_memory(2**24, 0).acquire(PROMPT[:40], 40)
    assert cache is not None
    model.decoder.forward(ids[:36], [Span(cache, 36)])
    found = model.decoder.attended(ids[36:], Span(cache, 4), range(1))
    assert cache.length == 36
    torch.testing.assert_close(found, wanted.detach(), atol=1e-2, rtol=2e-2)
