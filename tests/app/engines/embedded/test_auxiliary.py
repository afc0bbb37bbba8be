"""Prompts whose KV another model tells of: true KV gives true answers, and nothing is left over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engines.embedded.auxiliary import (
    AuxiliaryPredictor,
    auxiliary_print,
    check_print,
)
from app.engines.embedded.engine import EmbeddedEngine
from app.engines.embedded.linear import Precision
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.weights import load, open_checkpoint
from app.errors import BadRequest, ConfigError
from app.nets.kv_predictor import KVPredictor
from app.types import Decoding, KVPrediction
from tests.app.engines.embedded import reference
from tests.app.engines.embedded.identity import identity
from tests.app.engines.embedded.rig import Rig, answers, cache_of, predicting, rig, used
from tests.app.engines.embedded.tiny import write_model
from tests.app.engines.embedded.tiny_engine import CALL, Start, card, collect, ids, total

IDS = torch.randint(97, (40,), generator=torch.Generator().manual_seed(0))
PROMPT = [(7 * n) % 250 for n in range(150)]
ASKED = KVPrediction("small")


def told(base: Decoder, auxiliary: Decoder, weights: KVPredictor) -> AuxiliaryPredictor:
    return AuxiliaryPredictor(weights, base.config, base.precision, base.device, auxiliary)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("make", [reference.llama, reference.qwen2])
def test_what_a_cache_tells_is_before_rope(make: Any, precision: Precision, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    decoder = Decoder(*load(tmp_path), precision)
    computed, read, placed = (cache_of(decoder) for _ in range(3))
    decoder.forward(IDS, [Span(computed, 40)])
    decoder.read(IDS[:23], Span(read, 23))
    decoder.read(IDS[23:], Span(read, 17))  # behind others
    torch.testing.assert_close(read.buffer[:, :, :40], computed.buffer[:, :, :40])
    before = computed.buffer.clone()
    for start, stop in ((0, 1), (1, 25), (25, 40)):
        decoder.place(decoder.keys_and_values(computed, start, stop).flatten(2), placed)
    torch.testing.assert_close(placed.buffer[:, :, :40], computed.buffer[:, :, :40])
    assert torch.equal(computed.buffer[:, :, :40], before[:, :, :40])  # nothing was done to it
    # In the first layer a token's key and value do not know where it stands.
    decoder.forward(IDS[39:], [Span(alone := cache_of(decoder), 1)])
    first, last = decoder.keys_and_values(alone, 0, 1), decoder.keys_and_values(computed, 39, 40)
    assert first.shape == (1, 3, 2, 16)
    torch.testing.assert_close(first[:, 0], last[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sources", [(0, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_maps_are_those_of_the_net(
    sources: tuple[int, ...], precision: Precision, tmp_path: Path
) -> None:
    """In the decoder's order of dimensions as in that of the weights."""
    for name, changes in (("base", {}), ("small", {"num_hidden_layers": 2, "hidden_size": 36})):
        reference.llama(**changes).save_pretrained(tmp_path / name)
    base = Decoder(*load(tmp_path / "base"), precision)
    small = Decoder(*load(tmp_path / "small"), precision)
    plain = identity(base.config).about
    weights = KVPredictor(replace(plain, sources=sources, auxiliary_width=12))
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    small.forward(IDS, [Span(cache := cache_of(small), 40)])
    found = small.keys_and_values(cache, 0, 40)
    made = told(base, small, weights)(found).clone()
    rows = found.clone()
    pairs = rows[:, :, 0].view(40, 2, 2, 3, 2)  # heads, pairs: in the weights' order halves
    rows[:, :, 0] = pairs.transpose(-1, -2).reshape(40, 2, 12)
    wanted = weights(rows).detach()
    keys = wanted[:, :, 0].view(40, 3, 2, 2, 4).transpose(-1, -2)
    wanted[:, :, 0] = keys.reshape(40, 3, 16)
    least = 1e-4 if precision == "fp32" else 0.03 * float(wanted.abs().max())
    torch.testing.assert_close(made, wanted.flatten(2), atol=least, rtol=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=["fp32", "int8"])
def model(folder: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    precision: Literal["fp32", "int8"] = request.param
    yield rig(folder, precision)


def predictor(model: Rig, noise: float = 0.0) -> AuxiliaryPredictor:
    weights = identity(model.decoder.config)
    seeded = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weights.weight += noise * torch.randn(weights.weight.shape, generator=seeded)
    return told(model.decoder, model.decoder, weights)


def asking(
    model: Rig,
    by: AuxiliaryPredictor | None,
    prompt: list[int] = PROMPT,
    asked: KVPrediction = ASKED,
    limit: int = 12,
) -> RunningSequence:
    return predicting(model, by, prompt, asked, limit)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 40), (5, 1), (70, 70), (0, 500)])
def test_the_base_as_its_own_auxiliary_answers_exactly(folder: Path, first: int, last: int) -> None:
    model = rig(folder, "fp32")
    by = predictor(model)
    (plain,) = answers(model.scheduler(prefill_chunk=32), [asking(model, None)])
    sequence = asking(model, by, asked=replace(ASKED, first=first, last=last))
    assert answers(model.scheduler(prefill_chunk=32), [sequence]) == [plain]
    assert used(sequence).predicted == max(150 - first - last, 0)
    assert used(sequence).prompt == 150
    assert by.memory.running_bytes == 0


@pytest.mark.parametrize(("first", "last"), [(0, 64), (5, 20), (40, 33)])
def test_what_the_end_asks_about_is_the_base_s_own(folder: Path, first: int, last: int) -> None:
    """Also where the last piece is, and the auxiliary need not read so far."""
    model = rig(folder, "fp32")
    by = predictor(model)
    (plain,) = answers(model.scheduler(prefill_chunk=32), [asking(model, None)])
    for relevant in (0.1, 0.5, 1.0):
        asked = replace(ASKED, first=first, last=last, relevant=relevant)
        sequence = asking(model, by, asked=asked)
        assert answers(model.scheduler(prefill_chunk=32), [sequence]) == [plain]
        assert used(sequence).predicted == sequence.route.predicted(0, 150)
        assert by.memory.running_bytes == 0


def test_wrong_maps_are_seen(model: Rig) -> None:
    """Else the test above would show nothing."""
    (plain,) = answers(model.scheduler(), [asking(model, None)])
    assert answers(model.scheduler(), [asking(model, predictor(model, noise=2.0))]) != [plain]


def test_int8_is_the_same_however_the_prompt_comes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside others, and behind what is kept of its conversation: bitwise."""
    model, pieces = rig(folder, "int8"), list[int]()
    read = model.decoder.read

    def seen(tokens: torch.Tensor, span: Span) -> None:
        pieces.append(span.count)
        read(tokens, span)

    monkeypatch.setattr(model.decoder, "read", seen)
    by, asked = predictor(model), replace(ASKED, conversation="c")
    fresh = asking(model, by)
    answers(model.scheduler(prefill_chunk=32), [fresh])

    def same_as_fresh(sequence: RunningSequence) -> bool:
        mine, its = (
            [token.logprob for chunk in each.outbox for token in chunk.tokens]
            for each in (sequence, fresh)
        )
        return mine == its and sequence.tokens == fresh.tokens

    others = [asking(model, by, [(n * 11) % 250 for n in range(40 + 9 * at)]) for at in range(3)]
    beside = asking(model, by)
    answers(model.scheduler(prefill_chunk=32), [*others[:2], beside, others[2]])
    assert same_as_fresh(beside)
    for length in (32, 37, 90):
        scheduler = model.scheduler(prefill_chunk=32)
        opening = asking(model, by, PROMPT[:length] + [3], asked, limit=1)
        answers(scheduler, [opening])
        later = asking(model, by, asked=asked)
        pieces.clear()
        answers(scheduler, [later])
        assert pieces == [32, 32, 32, 32, 21]
        assert used(later).cached == length and used(later).predicted == 149 - length
        assert same_as_fresh(later)
    assert by.memory.running_bytes == 0


def test_a_sequence_that_ends_early_leaves_no_memory(
    model: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    by, scheduler = predictor(model), model.scheduler(prefill_chunk=32)

    def broken(tokens: torch.Tensor, span: Span) -> None:
        raise RuntimeError("broken")

    for end in ("cancelled", "failed", "closed"):
        sequence = asking(model, by)
        scheduler.submit(sequence)
        scheduler.step()
        assert by.memory.running_bytes == 149 * by.memory.bytes_per_token
        if end == "cancelled":
            scheduler.cancel(sequence)
            while scheduler.step():
                pass
        elif end == "failed":
            with monkeypatch.context() as patch:
                patch.setattr(model.decoder, "read", broken)
                with pytest.raises(RuntimeError):
                    scheduler.step()
            scheduler.fail("broken")
            assert sequence.error is not None
        else:
            scheduler.close("the end")
        assert by.memory.running_bytes == scheduler.memory.running_bytes == 0


def test_only_predictions_take_memory_and_only_while_they_last(model: Rig) -> None:
    by, scheduler = predictor(model), model.scheduler(prefill_chunk=32)
    sequence = asking(model, by, asked=replace(ASKED, first=40, last=50))
    scheduler.submit(sequence)
    held = []
    while scheduler.step():
        assert sequence.cache is None or sequence.cache.length > 0
        held.append(by.memory.running_bytes // by.memory.bytes_per_token)
    # 32, then 8 tokens by the base; 64 by the auxiliary, of which the base gets 24, and the rest.
    assert held[:7] == [0, 0, 100, 100, 100, 0, 0]
    assert not any(held[7:])
    assert model.passes[:4] == [[32], [8], [32], [18]]  # of the base


def test_a_predictor_of_another_shape_is_refused(model: Rig) -> None:
    config, weights = model.decoder.config, identity(model.decoder.config)
    other = KVPredictor(replace(weights.about, hidden=config.hidden + 1))
    with pytest.raises(ValueError, match="this KV predictor is for 2 layers of 65"):
        told(model.decoder, model.decoder, other)
    for changes in ({"auxiliary_width": 8}, {"sources": (0, config.layers)}):
        with pytest.raises(ValueError, match="small has 2 layers of 32"):
            told(model.decoder, model.decoder, KVPredictor(replace(weights.about, **changes)))
    layers = replace(weights.about, kept=1, auxiliary="", sources=(), auxiliary_width=0)
    with pytest.raises(ValueError, match="is told by first layers"):
        told(model.decoder, model.decoder, KVPredictor(layers))
    with pytest.raises(ValueError, match="is told by another model"):
        model.decoder.predictor(weights)


def test_a_print_tells_models_apart(folder: Path, tmp_path: Path) -> None:
    found = open_checkpoint(folder)
    known = identity(found.config, known=auxiliary_print(found))
    check_print(known, open_checkpoint(folder))
    with pytest.raises(ValueError, match="knows small by other weights"):
        check_print(identity(found.config), found)
    # Of the same embedding, and with another layer.
    other = write_model(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"] *= 2
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(ValueError, match="knows small by other weights"):
        check_print(known, open_checkpoint(other))


@pytest.fixture
def file(tiny_folder: Path, tmp_path: Path) -> Path:
    found = open_checkpoint(tiny_folder)
    path = tmp_path / "kv.safetensors"
    identity(found.config, known=auxiliary_print(found)).save(path)
    return path


async def test_the_engine_finds_the_auxiliary_by_its_name(start: Start, file: Path) -> None:
    cards = [card("tiny", kv_predictors=(str(file),)), card("small")]
    engine = await start(cards)
    able = engine.capabilities("tiny").kv
    assert able is not None and list(able) == ["small"]
    assert engine.capabilities("small").kv is None
    plain = await collect(engine.generate(CALL))
    kv = KVPrediction("small", last=2, conversation="mine")
    found = await collect(engine.generate(replace(CALL, decoding=Decoding(kv=kv))))
    assert ids(found) == ids(plain)
    # The same words were computed before, and what is exact serves all.
    assert total(found).cached > 0
    other = replace(CALL, messages=({"role": "user", "content": "something else"},))
    plain = await collect(engine.generate(replace(other, model="small")))
    found = await collect(engine.generate(replace(other, decoding=Decoding(kv=kv))))
    assert ids(found) == ids(plain)
    assert total(found).predicted > 0
    with pytest.raises(BadRequest, match="last must be 1 or more"):
        wrong = Decoding(kv=replace(kv, last=0))
        await collect(engine.generate(replace(CALL, decoding=wrong)))


async def test_an_auxiliary_that_is_not_there_or_not_it(start: Start, file: Path) -> None:
    tiny = card("tiny", kv_predictors=(str(file),))
    with pytest.raises(ConfigError, match="small, whose KV it is told, is no embedded model"):
        await start([tiny, card("tiny-int8", precision="int8")])
    weights = KVPredictor.load(file)
    weights.about = replace(weights.about, auxiliary_print="another")
    weights.save(file)
    with pytest.raises(ConfigError, match=r"\[models.tiny\]: kv_predictors: .*other weights"):
        await start([tiny, card("small")])


async def test_an_auxiliary_that_reads_less_than_its_base(tmp_path: Path) -> None:
    paths = {"tiny": write_model(tmp_path / "tiny"), "small": write_model(tmp_path / "small", 256)}
    found = open_checkpoint(paths["small"])
    identity(found.config, known=auxiliary_print(found)).save(tmp_path / "kv")
    cards = [card("tiny", kv_predictors=(str(tmp_path / "kv"),)), card("small")]
    with pytest.raises(ConfigError, match="small reads 256 tokens, and this model 512"):
        await EmbeddedEngine(cards, paths, threads=1).start()
    cards[0] = cards[0].model_copy(update={"context": 256})
    engine = EmbeddedEngine(cards, paths, threads=1)
    await engine.start()
    assert engine.capabilities("tiny").kv
    await engine.aclose()
