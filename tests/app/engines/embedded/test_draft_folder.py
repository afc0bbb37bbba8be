"""A draft's folder is a model like any other beside its base, and beside no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engines.embedded.draft_folder import FORMAT, WEIGHTS, sha256
from app.engines.embedded.engine import EmbeddedEngine
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.weights import load, open_checkpoint
from app.errors import ConfigError
from app.training.inputs import Texts
from app.training.net import read_net
from app.training.result import most_written, write_draft
from app.types import Call
from tests.app.engines.embedded import reference
from tests.app.engines.embedded.tiny import VOCABULARY
from tests.app.engines.embedded.tiny_engine import CALL, GREEDY, card, collect, ids

IDS = torch.randint(97, (20,), generator=torch.Generator().manual_seed(0))


def made(folder: Path, model: Any, kept: tuple[int, ...] = (2, 0), head: bool = True) -> Path:
    """A draft of these layers of the model, in `folder / "draft"`, and the model beside it."""
    model.save_pretrained(folder / "base")
    base = open_checkpoint(folder / "base")
    draft = read_net(base, kept)
    drafting = torch.tensor([1, 5, 30, 96]) if head else None
    write_draft(folder / "draft", draft, base, "the base", drafting, {"seed": 7})
    return folder / "draft"


def logits(decoder: Decoder) -> torch.Tensor:
    return decoder.logits(hidden(decoder))


def hidden(decoder: Decoder) -> torch.Tensor:
    cache = decoder.kv_memory(2**24).acquire(IDS.tolist(), len(IDS))
    assert cache is not None
    return decoder.forward(IDS, [Span(cache, len(IDS))])


@pytest.mark.parametrize("model", [reference.llama, reference.qwen2])
def test_it_computes_what_the_layers_do(tmp_path: Path, model: Any) -> None:
    draft = made(tmp_path, model())
    decoder = Decoder(*load(draft, tmp_path / "base"), "fp32")
    net = read_net(open_checkpoint(tmp_path / "base"), (2, 0)).requires_grad_(False)
    wanted = net(IDS[None])[0] @ net.head.T
    # int8 with a scale for each row: near, and not the same.
    distance = (logits(decoder) - wanted).abs().mean() / wanted.abs().mean()
    assert 0 < float(distance) < 0.06


def test_a_gguf_may_be_the_base(tmp_path: Path) -> None:
    """Its rows of q and k stand in another order, which is the base's and not the draft's."""
    model = reference.llama()
    path = reference.write_gguf(model, tmp_path / "base.gguf")
    base = open_checkpoint(path)
    write_draft(tmp_path / "draft", read_net(base, (2, 0)), base, "b", None, {})
    other = made(tmp_path / "folder", model)
    from_gguf = Decoder(*load(tmp_path / "draft", path), "fp32")
    from_folder = Decoder(*load(other, tmp_path / "folder" / "base"), "fp32")
    torch.testing.assert_close(logits(from_gguf), logits(from_folder), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_trimmed_head_is_rows_of_the_head(tmp_path: Path, precision: Any) -> None:
    draft = made(tmp_path, reference.llama())
    decoder = Decoder(*load(draft, tmp_path / "base"), precision)
    assert decoder.drafting is not None
    state = hidden(decoder)
    trimmed = decoder.draft_logits(state)
    torch.testing.assert_close(trimmed, decoder.logits(state)[:, decoder.drafting])


def test_without_a_trimmed_head_it_drafts_with_the_whole(tmp_path: Path) -> None:
    draft = made(tmp_path, reference.llama(), head=False)
    decoder = Decoder(*load(draft, tmp_path / "base"), "fp32")
    state = hidden(decoder)
    assert decoder.drafting is None
    assert torch.equal(decoder.draft_logits(state), decoder.logits(state))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_it_shares_is_in_memory_once(tmp_path: Path, precision: Any) -> None:
    draft = made(tmp_path, reference.llama())
    base = Decoder(*load(tmp_path / "base"), precision)
    weights = load(draft, tmp_path / "base")
    shared = Decoder(*weights, precision, beside=base)
    assert shared._embedding is base._embedding and shared._head is base._head
    assert torch.equal(logits(shared), logits(Decoder(*weights, precision)))


def test_another_base_is_refused(tmp_path: Path) -> None:
    draft = made(tmp_path / "one", reference.llama())
    made(tmp_path / "other", reference.qwen2())
    with pytest.raises(ValueError, match=r"is a draft of the base.*and not of"):
        load(draft, tmp_path / "other" / "base")


def test_a_base_is_needed_and_only_here(tmp_path: Path) -> None:
    draft = made(tmp_path, reference.llama())
    with pytest.raises(ValueError, match="name the model that it shares as its base"):
        load(draft)
    with pytest.raises(ValueError, match="is no draft's folder"):
        load(tmp_path / "base", tmp_path / "base")


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    """The SHA-256 is of the file of weights, and in config.json."""
    draft = made(tmp_path, reference.llama())
    tensors = load_file(draft / WEIGHTS)
    name = next(name for name in tensors if name.endswith("_scale"))
    tensors[name][0] *= 2
    save_file(tensors, draft / WEIGHTS)
    with pytest.raises(ValueError, match=r"model.safetensors: SHA-256 is .* damaged or changed"):
        load(draft, tmp_path / "base")


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_a_file_that_is_none_of_its_kind(tmp_path: Path, content: bytes | None) -> None:
    draft = made(tmp_path, reference.llama())
    file = draft / WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    about = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**about, "sha256": sha256(file)}))
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load(draft, tmp_path / "base")


def test_a_layer_that_is_missing_is_named(tmp_path: Path) -> None:
    draft = made(tmp_path, reference.llama())
    about = json.loads((draft / "config.json").read_text())
    assert about["format"] == FORMAT
    (draft / "config.json").write_text(json.dumps({**about, "layers": 3}))
    with pytest.raises(ValueError, match="model.layers.2"):
        load(draft, tmp_path / "base")


@pytest.mark.parametrize("without", ["base", "layers", "sha256"])
def test_a_config_that_does_not_tell_all(tmp_path: Path, without: str) -> None:
    draft = made(tmp_path, reference.llama())
    about = json.loads((draft / "config.json").read_text())
    del about[without]
    (draft / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="must tell base.name, base.shared, layers and sha256"):
        load(draft, tmp_path / "base")


def test_anybody_may_read_it(tmp_path: Path) -> None:
    draft = made(tmp_path, reference.llama())
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in draft.iterdir())


def test_most_written_tokens_and_then_the_lowest_ids() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    texts = Texts.of([(torch.tensor([9, 9, 4, 7, 7, 7]), nothing, 0)], ["one"])
    assert most_written([texts], 5, VOCABULARY).tolist() == [0, 1, 4, 7, 9]


async def test_the_engine_serves_it_beside_its_base(tiny_folder: Path, tmp_path: Path) -> None:
    base = open_checkpoint(tiny_folder)
    write_draft(tmp_path, read_net(base, (1,)), base, "tiny", None, {})
    cards = [
        card("draft", base="tiny"),
        card("tiny"),
        card("draft-int8", base="tiny", precision="int8"),
    ]
    paths = {"draft": tmp_path, "tiny": tiny_folder, "draft-int8": tmp_path}
    engine = EmbeddedEngine(cards, paths, threads=1, kv_memory=2**26)
    await engine.start()
    try:
        decoder = Decoder(*load(tmp_path, tiny_folder), "fp32")
        call = Call("draft", prompt=tuple(IDS.tolist()), max_tokens=1, sampling=GREEDY)
        best = int(logits(decoder)[-1].argmax())
        assert ids(await collect(engine.generate(call))) == [best]
        assert await engine.count(CALL.to("draft-int8")) == await engine.count(CALL)
        served = [engine.models[name] for name in ("draft", "tiny", "draft-int8")]
        assert len({id(each.tokenizer) for each in served}) == 1
    finally:
        await engine.aclose()


async def test_the_wrong_base_is_an_error_of_the_configuration(
    tiny_folder: Path, tmp_path: Path
) -> None:
    draft = made(tmp_path, reference.llama())
    cards = [card("draft", base="tiny"), card("tiny")]
    engine = EmbeddedEngine(cards, {"draft": draft, "tiny": tiny_folder})
    with pytest.raises(ConfigError, match=r"\[models.draft\]: weights: .* is a draft of the base"):
        await engine.start()
