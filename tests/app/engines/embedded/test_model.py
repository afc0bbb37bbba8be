"""The decoder computes what transformers computes, in any portions, and in int8 to the bit."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.engines.embedded.kv_cache import SequenceCache
from app.engines.embedded.linear import DenseLinear, PackedLinear, Precision
from app.engines.embedded.model import Decoder, Span, _swiglu
from app.engines.embedded.tokenizer import tokenizer_from_metadata
from app.engines.embedded.weights import GGUFFile, ModelConfig, Weights, load
from tests.app.engines.embedded import reference

IDS = torch.randint(97, (60,), generator=torch.Generator().manual_seed(0))
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": reference.llama,
    "llama tied": lambda: reference.llama(tie_word_embeddings=True),
    "llama wide heads": lambda: reference.llama(head_dim=16, rope_parameters={"rope_theta": 50.0}),
    "llama3 rope": lambda: reference.llama(rope_parameters=LLAMA3),
    "linear rope": lambda: reference.llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
    ),
    "qwen2": reference.qwen2,
    "qwen2 untied": lambda: reference.qwen2(tie_word_embeddings=False),
}


def loaded(model: Any, folder: Path) -> tuple[ModelConfig, Weights]:
    model.save_pretrained(folder)
    return load(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, Weights]:
    return loaded(reference.qwen2(), tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module", params=["fp32", "int8"])
def decoder(small: tuple[ModelConfig, Weights], request: pytest.FixtureRequest) -> Decoder:
    return Decoder(*small, request.param)


def fresh(decoder: Decoder, capacity: int = 100) -> SequenceCache:
    cache = decoder.kv_memory(2**30).acquire([0], capacity)
    assert cache is not None
    return cache


def read(decoder: Decoder, ids: Tensor, portions: Sequence[int] | None = None) -> Tensor:
    """Logits of all ids, read in portions."""
    cache = fresh(decoder, len(ids))
    parts = ids.split(list(portions or [len(ids)]))
    return torch.cat([decoder.logits(decoder.forward(p, [Span(cache, len(p))])) for p in parts])


def error(ours: Tensor, right: Tensor) -> float:
    return float((ours - right).norm() / right.norm())


@pytest.mark.parametrize("name", MODELS)
def test_fp32_is_transformers(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    decoder = Decoder(*loaded(model, tmp_path), "fp32")
    torch.testing.assert_close(
        read(decoder, IDS), reference.logits(model, IDS), rtol=1e-4, atol=1e-4
    )


def test_greedy_from_gguf_is_transformers(tmp_path: Path) -> None:
    """A Qwen2 from GGUF, token by token through the cache, writes what `generate` writes."""
    model = reference.qwen2()
    decoder = Decoder(*load(reference.write_gguf(model, tmp_path / "model.gguf")), "fp32")
    theirs = model.generate(
        IDS[None, :12], max_new_tokens=40, do_sample=False, pad_token_id=0, eos_token_id=None
    )[0].tolist()
    cache, ours = fresh(decoder), IDS[:12].tolist()
    new = IDS[:12]
    while len(ours) < len(theirs):
        hidden = decoder.forward(new, [Span(cache, len(new))])
        new = decoder.logits(hidden[-1:]).argmax(-1)
        ours += new.tolist()
    assert ours == theirs


@pytest.mark.parametrize("portions", [[60], [16, 16, 16, 12], [1] * 60, [50, 1, 1, 5, 3]])
def test_portions_do_not_matter(decoder: Decoder, portions: list[int]) -> None:
    """A prompt in chunks, one by one, or some at once behind others, as in verification."""
    tolerance = 1e-5 if decoder.precision == "fp32" else 0.05  # int8 rounds what is nearly equal
    assert error(read(decoder, IDS, portions), read(decoder, IDS)) < tolerance


def test_after_truncate_it_goes_on_as_if_never_written(decoder: Decoder) -> None:
    cache = fresh(decoder)
    decoder.forward(IDS[:20], [Span(cache, 20)])
    right = decoder.forward(IDS[20:25], [Span(cache, 5)])
    cache.truncate(20)
    decoder.forward(IDS[40:50], [Span(cache, 10)])
    cache.truncate(20)
    assert torch.equal(decoder.forward(IDS[20:25], [Span(cache, 5)]), right)


def test_a_prefix_from_the_store_goes_on_as_the_sequence_would(decoder: Decoder) -> None:
    kv = decoder.kv_memory(2**30)
    first = kv.acquire(IDS[:20].tolist(), 100)
    assert first is not None
    decoder.forward(IDS[:20], [Span(first, 20)])
    right = decoder.forward(IDS[20:23], [Span(first, 3)])
    kv.release(first, IDS[:23].tolist())
    copied = kv.acquire([*IDS[:20].tolist(), 0], 100)
    assert copied is not None
    assert copied.length == 20
    assert torch.equal(decoder.forward(IDS[20:23], [Span(copied, 3)]), right)
    taken = kv.acquire(IDS[:24].tolist(), 100)
    assert taken is not None
    assert taken.length == 23
    taken.truncate(20)
    assert torch.equal(decoder.forward(IDS[20:23], [Span(taken, 3)]), right)


def together(decoder: Decoder, size: int, seed: int) -> None:
    """A sequence alone, then again beside others that decode, verify and read prompts at random."""
    random = torch.Generator().manual_seed(seed)

    def draw(below: int, least: int = 1) -> int:
        return int(torch.randint(least, below, (), generator=random))

    def ids(count: int) -> Tensor:
        return torch.randint(decoder.config.vocabulary, (count,), generator=random)

    portions = [ids(count) for count in (draw(30), 1, 1, draw(6), 1)]
    cache = fresh(decoder)
    alone = [decoder.forward(part, [Span(cache, len(part))]) for part in portions]
    cache = fresh(decoder)
    others = [fresh(decoder, 250) for _ in range(size - 1)]
    for part, right in zip(portions, alone, strict=True):
        at = draw(size, 0)
        spans = [Span(other, 1 if draw(3) == 1 else draw(48)) for other in others]
        spans.insert(at, Span(cache, len(part)))
        tokens = [part if span.cache is cache else ids(span.count) for span in spans]
        hidden = decoder.forward(torch.cat(tokens), spans)
        start = sum(span.count for span in spans[:at])
        assert torch.equal(hidden[start : start + len(part)], right)
        batch, single = decoder.logits(hidden), decoder.logits(right)
        assert torch.equal(batch[start : start + len(part)], single)


@pytest.fixture(params=[1, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# Sizes at which rows do not end where vectors do, and at which torch begins to use threads.
@pytest.mark.parametrize("intermediate", [40, 1003])
def test_int8_is_bitwise_the_same_alone_and_in_a_batch(
    tmp_path: Path, threads: int, intermediate: int
) -> None:
    model = reference.llama(intermediate_size=intermediate)
    decoder = Decoder(*loaded(model, tmp_path), "int8")
    for seed in range(2):
        together(decoder, 8, seed)


def test_swiglu_of_a_row_does_not_depend_on_the_others(threads: int) -> None:
    """Nor where torch would cut a large matrix in the middle of rows."""
    random = torch.Generator().manual_seed(0)
    for width in (40, 1003, 1536):
        rows = torch.randn(211, 2 * width, generator=random)
        alone = torch.cat([_swiglu(row[None].clone()) for row in rows])
        for count in (2, 33, 68, 131, 211):
            assert torch.equal(_swiglu(rows[:count].clone()), alone[:count])


def test_int8_and_bf16_are_near(small: tuple[ModelConfig, Weights]) -> None:
    right = read(Decoder(*small, "fp32"), IDS)
    assert error(read(Decoder(*small, "bf16"), IDS), right) < 0.05
    assert error(read(Decoder(*small, "int8"), IDS), right) < 0.1


@pytest.mark.parametrize("form", [PackedLinear, DenseLinear])
def test_fp32_without_onednn(
    small: tuple[ModelConfig, Weights], form: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch has no oneDNN, its own product does as well."""
    right = read(Decoder(*small, "fp32"), IDS)
    monkeypatch.setattr("app.engines.embedded.model.make_linear", lambda w, *_: form(w))
    assert error(read(Decoder(*small, "fp32"), IDS), right) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_no_weights_are_kept_alive(tmp_path: Path, precision: Precision) -> None:
    """Once packed or converted, matrices are not held twice."""
    config, weights = loaded(reference.llama(), tmp_path)
    matrices = [
        weakref.ref(matrix)
        for layer in weights.layers
        for matrix in (layer.qkv, layer.output, layer.gate_up, layer.down)
    ]
    embedding, head = weakref.ref(weights.embedding), weakref.ref(weights.head)
    decoder = Decoder(config, weights, precision)
    del weights
    gc.collect()
    assert [matrix() for matrix in matrices] == [None] * 12
    assert head() is None
    assert (embedding() is None) == (precision != "fp32")
    assert read(decoder, IDS).isfinite().all()


def test_bad_passes_are_refused_and_change_nothing(decoder: Decoder) -> None:
    cache, other = fresh(decoder, 10), fresh(decoder, 300)
    decoder.forward(IDS[:4], [Span(cache, 4)])
    for tokens, spans, complaint in (
        (IDS[:3], [Span(cache, 2)], "3 tokens, but spans of"),
        (IDS[:0], [], "0 tokens, but spans of"),
        (IDS[:0], [Span(cache, 0)], "0 tokens after 4"),
        (IDS[:7], [Span(cache, 7)], "7 tokens after 4 do not fit a cache of 10"),
        (IDS[:2], [Span(cache, 1), Span(cache, 1)], "one cache in two spans"),
        (IDS[:1].expand(257), [Span(other, 257)], "a context of 256"),
    ):
        with pytest.raises(ValueError, match=complaint):
            decoder.forward(tokens, spans)
    with pytest.raises(IndexError):
        decoder.forward(torch.tensor([5, 97]), [Span(cache, 1), Span(other, 1)])
    assert (cache.length, other.length) == (4, 0)


def test_an_error_in_mid_pass_leaves_the_lengths(
    small: tuple[ModelConfig, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(*small, "fp32")
    cache = fresh(decoder)
    right = decoder.forward(IDS[:4], [Span(cache, 4)])
    cache.truncate(0)
    with monkeypatch.context() as patch:
        patch.setattr(decoder._layers[-1], "down", None)
        with pytest.raises(AttributeError):
            decoder.forward(IDS[:4], [Span(cache, 4)])
    assert cache.length == 0
    assert torch.equal(decoder.forward(IDS[:4], [Span(cache, 4)]), right)


def test_int8_runs_on_the_cpu_whatever_is_asked(small: tuple[ModelConfig, Weights]) -> None:
    assert Decoder(*small, "int8", "cuda").device.type == "cpu"


TEXT = """The harbour of Lisbon lies at the mouth of the Tagus, and for centuries ships left it for
Africa, India and Brazil. A baker starts work long before the sun rises: the dough has to rest, to
be shaped and to rest again, and the oven must be hot when the first customers arrive. To sort a
list of numbers, a program may compare neighbours and swap them until no pair is out of order; this
is simple to write but slow for long lists. Water boils at a lower temperature on a mountain, since
the air presses less upon it, so that an egg takes longer to cook there than at the sea."""


@pytest.fixture(scope="module")
def real(smollm2_gguf: Path) -> tuple[Decoder, Decoder, Tensor]:
    file = GGUFFile(smollm2_gguf)
    config, weights = load(file)
    ids = tokenizer_from_metadata(file.metadata).encode(TEXT)
    return Decoder(config, weights, "fp32"), Decoder(config, weights, "int8"), torch.tensor(ids)


@pytest.mark.model
def test_int8_of_the_default_model_is_near_its_fp32(real: tuple[Decoder, Decoder, Tensor]) -> None:
    """The likeliest next token is mostly the same, and the text hardly less likely."""
    fp32, int8, ids = real
    right, ours = (read(each, ids).log_softmax(-1) for each in (fp32, int8))
    agreed = (right.argmax(-1) == ours.argmax(-1)).float().mean()
    divergence = (right.exp() * (right - ours)).sum(-1).mean()
    assert float(agreed) > 0.85
    assert float(divergence) < 0.06


@pytest.mark.model
def test_int8_of_the_default_model_is_bitwise_the_same_in_a_batch(
    real: tuple[Decoder, Decoder, Tensor],
) -> None:
    together(real[1], 8, seed=0)
