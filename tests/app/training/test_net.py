"""The module that learns computes what the engine's decoder does, and writes what it would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.weights import load, open_checkpoint
from app.training.net import Net, read_net
from app.training.text import _Writing, write
from tests.app.engines.embedded import reference
from tests.app.engines.embedded.test_model import MODELS

IDS = torch.randint(97, (3, 20), generator=torch.Generator().manual_seed(0))
NO_END = frozenset[int]()


@pytest.fixture
def net(tiny_folder: Path) -> Net:
    return read_net(open_checkpoint(tiny_folder)).requires_grad_(False)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_hidden_states_are_the_decoders(make: Callable[[], Any], tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    net = read_net(open_checkpoint(tmp_path)).requires_grad_(False)
    decoder = Decoder(*load(tmp_path), "fp32")
    logits = net(IDS) @ net.head.T
    for ids, ours in zip(IDS, logits, strict=True):
        theirs = decoder.logits(hidden(decoder, ids))
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def hidden(decoder: Decoder, ids: Tensor) -> Tensor:
    cache = decoder.kv_memory(2**24).acquire(ids.tolist(), len(ids) + 30)
    assert cache is not None
    return decoder.forward(ids, [Span(cache, len(ids))])


def test_some_layers_alone_are_a_smaller_model(tmp_path: Path) -> None:
    reference.llama().save_pretrained(tmp_path)
    found = open_checkpoint(tmp_path)
    net = read_net(found, (1,))
    assert net.config.layers == len(net.layers) == 1 < found.config.layers
    own = dict(net.layers[0].named_parameters())
    torch.testing.assert_close(own["down"], read_net(found).layers[1].get_parameter("down"))


def test_padding_on_the_right_is_seen_by_nobody(net: Net) -> None:
    short = net(IDS[:, :12])
    torch.testing.assert_close(net(IDS)[:, :12], short, atol=1e-5, rtol=1e-5)


def test_greedy_answers_are_the_decoders(net: Net, tiny_folder: Path) -> None:
    """Of prompts of several lengths at once, with tokens that end some of them early."""
    decoder = Decoder(*load(tiny_folder), "fp32")
    prompts = [IDS[0, :1], IDS[1, :7], IDS[2], IDS[0, 3:15]]
    free = write(net, prompts, 20, torch.zeros(4), NO_END, torch.Generator())
    assert [len(answer) for answer in free] == [20] * 4
    ends = frozenset({int(free[0][3]), int(free[2][9])})
    ended = write(net, prompts, 20, torch.zeros(4), ends, torch.Generator())
    assert len(ended[0]) <= 4 and len(ended[2]) <= 10
    for prompt, answer, whole in zip(prompts, ended, free, strict=True):
        at = next((i for i, id in enumerate(whole.tolist()) if id in ends), 19)
        assert answer.tolist() == whole[: at + 1].tolist()
        text = torch.cat([prompt, answer])
        best = decoder.logits(hidden(decoder, text[:-1])).argmax(-1)
        assert best[len(prompt) - 1 :].tolist() == answer.tolist()


def test_who_has_ended_is_written_no_further(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [IDS[0, :1], IDS[1, :7], IDS[2], IDS[0, 3:15]]
    free = write(net, prompts, 20, torch.zeros(4), NO_END, torch.Generator())
    ends = frozenset(int(answer[at]) for answer, at in zip(free, (2, 5, 9, 12), strict=True))
    rows: list[int] = []
    step = _Writing.step

    def counted(writing: _Writing, ids: torch.Tensor) -> torch.Tensor:
        rows.append(len(ids))
        return step(writing, ids)

    monkeypatch.setattr(_Writing, "step", counted)
    ended = write(net, prompts, 20, torch.zeros(4), ends, torch.Generator())
    lengths = [len(answer) for answer in ended]
    assert len(rows) == max(lengths) - 1 < 19
    assert rows == [sum(length > at + 1 for length in lengths) for at in range(len(rows))]


def test_drawn_answers_have_the_models_distribution(net: Net) -> None:
    prompt = IDS[0, :5]
    for warmth in (1.0, 0.5):
        drawn = write(
            net,
            [prompt] * 4000,
            1,
            torch.full((4000,), warmth),
            NO_END,
            torch.Generator().manual_seed(1),
        )
        counts = Counter(int(answer[0]) for answer in drawn)
        logits = (net(prompt[None])[0, -1] @ net.head.T) / warmth
        wanted = logits.softmax(-1)
        found = torch.tensor([counts[id] / 4000 for id in range(len(wanted))])
        distance = float((wanted - found).abs().sum() / 2)
        # What as many true draws would be away from it, on average about half of this.
        assert distance < float((wanted * (1 - wanted) / 4000).sqrt().sum())


def test_a_seed_gives_the_same_answers(net: Net) -> None:
    def once(seed: int) -> list[list[int]]:
        seeded = torch.Generator().manual_seed(seed)
        prompts = [IDS[0, :5], IDS[1, :9]]
        return [a.tolist() for a in write(net, prompts, 12, torch.ones(2), NO_END, seeded)]

    assert once(1) == once(1) != once(2)


def test_the_frozen_copy_computes_the_same(net: Net) -> None:
    copy = net.frozen()
    torch.testing.assert_close(copy(IDS), net(IDS))
    assert copy.embedding is net.embedding
    assert not any(parameter.requires_grad for parameter in copy.parameters())
