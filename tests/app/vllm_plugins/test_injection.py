"""Keys and values get to where vLLM will look for them, or it is said that they did not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.nets.kv_predictor import About, KVPredictor, normed
from app.nets.route import Route
from app.vllm_plugins.first_layers import FirstLayers, PromptCache
from app.vllm_plugins.injection import Injection
from app.vllm_plugins.predictions import Job, Orders, Span
from tests.app.vllm_plugins.straw_model import (
    EPSILON,
    HIDDEN,
    KV_HEADS,
    SIZE,
    model,
    reference,
    turned,
)

LAYERS, KEPT, BLOCK = 3, 1, 4
IDS = list(range(3, 15))
BLOCKS = [5, 2, 7]


class Cache:
    """What was written of each layer, by slot."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.rows: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        if self.fails:
            raise RuntimeError("as a test wants it")
        for slot, key, value in zip(slots.tolist(), keys, values, strict=True):
            self.rows[layer, slot] = key, value

    def layer(self, layer: int, places: range) -> tuple[Tensor, Tensor]:
        slots = [BLOCKS[at // BLOCK] * BLOCK + at % BLOCK for at in places]
        found = [self.rows[layer, slot] for slot in slots]
        keys, values = zip(*found, strict=True)
        return torch.stack(keys), torch.stack(values)


OF = model(LAYERS)


def predictor() -> KVPredictor:
    torch.manual_seed(1)
    width = KV_HEADS * SIZE
    found = KVPredictor(About("b", "f", HIDDEN, LAYERS, width, layer_weights=9, kept=KEPT))
    torch.nn.init.normal_(found.weight)
    return found.requires_grad_(False)


PREDICTOR = predictor()


def injection() -> Injection:
    shape, device = (KV_HEADS, SIZE), torch.device("cpu")
    return Injection(FirstLayers(OF), {"p": PREDICTOR}, shape, BLOCK, device)


def job(span: Span, name: str = "r", turns: tuple[int, ...] = (0, 11)) -> Job:
    return Job(name, IDS[: span.end], BLOCKS, span, "p", Route(turns))


def steps(ours: Injection, cache: Cache, first: Orders, budget: int) -> int:
    """Steps until something is finished."""
    ours.step(first, cache.write)
    for number in range(1, 99):
        done, lost = ours.finished()
        if done:
            assert done == {job.request for job in first.new} and not lost
            return number
        ours.step(Orders(budget=budget), cache.write)
    raise AssertionError("nothing is finished")


@pytest.mark.parametrize("budget", [99, 5, 1])
@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("true", [0, 3])
def test_what_is_predicted_and_what_is_computed_are_where_they_belong(
    start: int, true: int, budget: int
) -> None:
    ours, cache, span = injection(), Cache(), Span(start, 11, 11 - true)
    number = steps(ours, cache, Orders([job(span, turns=(true, 11))], budget=budget), budget)
    assert (number == 1) == (budget == 99)
    stream, rows = reference(OF.model, torch.tensor(IDS[:11]), LAYERS)
    stream, _ = reference(OF.model, torch.tensor(IDS[:11]), KEPT)
    made = PREDICTOR(normed(stream, EPSILON))
    for layer in range(LAYERS):
        places = range(span.start, span.end)
        keys, values = (each.clone() for each in rows[layer])
        if layer >= KEPT:
            guessed = made[:, layer - KEPT].unflatten(-1, (KV_HEADS, SIZE))
            keys[true:] = turned(torch.arange(11), guessed[:, 0])[true:]
            values[true:] = guessed[true:, 1]
        found = cache.layer(layer, places)
        for each, wanted in zip(found, (keys, values), strict=True):
            torch.testing.assert_close(each, wanted[span.start : 11], rtol=1e-4, atol=1e-5)
    assert len(cache.rows) == LAYERS * (11 - span.start)  # nothing else is touched


@pytest.mark.parametrize("budget", [99, 5, 1])
@pytest.mark.parametrize("start", [0, 4, 8])
def test_what_is_computed_in_the_midst_sees_what_is_predicted(start: int, budget: int) -> None:
    ours, cache, span = injection(), Cache(), Span(start, 11, 11)
    turns = (1, 6, 9, 11)
    steps(ours, cache, Orders([job(span, turns=turns)], budget=budget), budget)
    ids, layers, seen = torch.tensor(IDS[:11]), FirstLayers(OF), PromptCache(11)
    stream, rows = reference(OF.model, ids, KEPT)
    guessed = PREDICTOR(normed(stream, EPSILON)).unflatten(-1, (KV_HEADS, SIZE))
    for layer in range(KEPT, LAYERS):
        keys = turned(torch.arange(11), guessed[:, layer - KEPT, 0])
        rows.append((keys, guessed[:, layer - KEPT, 1].clone()))
    for begin, end in [(0, 1), (6, 9)]:
        # Of what is cached predictions are seen, but for the prompt's beginning.
        begin = max(begin, start) if begin else 0
        for layer, (keys, values) in enumerate(rows):
            seen.put(layer, 0, keys[:begin], values[:begin])
        _, true = layers.run(ids[begin:end], begin, seen, LAYERS)
        for (keys, values), (new_keys, new_values) in zip(rows, true, strict=True):
            keys[begin:end], values[begin:end] = new_keys, new_values
    for layer in range(LAYERS):
        for each, wanted in zip(cache.layer(layer, range(start, 11)), rows[layer], strict=True):
            torch.testing.assert_close(each, wanted[start:], rtol=1e-4, atol=1e-5)


def test_a_step_does_no_more_than_it_may() -> None:
    ours, cache = injection(), Cache()
    both = Orders([job(Span(0, 11, 11), "a"), job(Span(0, 11, 11), "b")], budget=13)
    ours.step(both, cache.write)
    assert ours.finished() == ({"a"}, set())
    ours.step(Orders(budget=8), cache.write)
    assert ours.finished() == (set(), set())
    ours.step(Orders(budget=1), cache.write)
    assert ours.finished() == ({"b"}, set())


def test_who_is_over_gets_nothing_more_and_is_let_go_once() -> None:
    ours, cache = injection(), Cache()
    ours.step(Orders([job(Span(0, 11, 11))], budget=2), cache.write)
    written = len(cache.rows)
    ours.step(Orders(over={"r", "another"}, budget=99), cache.write)
    assert ours.finished() == ({"r"}, set())
    ours.step(Orders(over={"r"}, budget=99), cache.write)
    assert ours.finished() == (set(), set())
    assert len(cache.rows) == written


def test_what_fails_is_said_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ours = injection()
    for name in ("a", "b"):
        ours.step(Orders([job(Span(0, 11, 11), name)], budget=99), Cache(fails=True).write)
        assert ours.finished() == ({name}, {name})
    assert caplog.text.count("KV prediction failed") == 1
    ours.step(Orders([job(Span(0, 11, 11), "c")], budget=99), Cache().write)
    assert ours.finished() == ({"c"}, set())
