"""An exported folder is the model that was exported: to us, and to transformers."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from app.engines.embedded.export import export, quantized
from app.engines.embedded.linear import Precision
from app.engines.embedded.tokenizer import load_tokenizer
from app.engines.embedded.weights import load
from app.errors import ConfigError
from tests.app.engines.embedded import reference
from tests.app.engines.embedded.test_model import LLAMA3
from tests.app.engines.embedded.test_tokenizer import CHAT, TEXTS, metadata
from tests.app.engines.embedded.test_weights import same
from tests.app.engines.embedded.tiny import write_model


def words(pre: str = "qwen2", **more: Any) -> dict[str, Any]:
    """A tokenizer's metadata, with a token that transformers adds to a Qwen2 that has none."""
    entries = metadata(pre, **more)
    entries["tokenizer.ggml.tokens"].append("<|endoftext|>")
    entries["tokenizer.ggml.token_type"].append(3)
    return entries


TOKENS = len(words()["tokenizer.ggml.tokens"])
IDS = torch.arange(1, 90)


def llama(**changes: Any) -> PreTrainedModel:
    return reference.llama(vocab_size=TOKENS, **changes)


def qwen2(**changes: Any) -> PreTrainedModel:
    return reference.qwen2(vocab_size=TOKENS, **changes)


def gguf(model: PreTrainedModel, path: Path, **changes: Any) -> Path:
    head_dim = model.model.layers[0].self_attn.head_dim
    given = {"tokenizer": words(), "attention.key_length": head_dim, **changes}
    return reference.write_gguf(model, path, **given)


def exported(
    source: Path, target: Path, precision: Precision = "fp32", force: bool = False
) -> Path:
    console = Console(file=io.StringIO())
    return export("tiny", source, target, precision, force=force, console=console)


def config(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return values


def theirs(folder: Path) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report  # nothing missing, nothing left over
    result: PreTrainedModel = model.eval()
    return result


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, wide heads": lambda: llama(head_dim=16),
    "qwen2, tied": qwen2,
    "qwen2, untied": lambda: qwen2(tie_word_embeddings=False),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_gguf_comes_back_bitwise(tmp_path: Path, make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    source = gguf(model, tmp_path / "model.gguf")
    folder = exported(source, tmp_path / "folder")
    (config, weights), (config_before, before) = load(folder), load(source)
    assert config == config_before
    assert same(weights, before)
    assert torch.equal(weights.inverse_frequencies, before.inverse_frequencies)
    # As transformers reads it, it is the model that the GGUF was made from.
    model.config.rms_norm_eps = config.norm_epsilon
    reread = theirs(folder)
    assert type(reread) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(reread.state_dict()[name], tensor), name
    torch.testing.assert_close(reference.logits(reread, IDS), reference.logits(model, IDS))


def test_a_folder_comes_back_bitwise(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    folder = exported(source, tmp_path / "folder")
    assert load(folder)[0] == load(source)[0]
    assert same(load(folder)[1], load(source)[1])
    for text in TEXTS:
        assert load_tokenizer(folder).encode(text) == load_tokenizer(source).encode(text)
    assert load_tokenizer(folder).chat(CHAT) == load_tokenizer(source).chat(CHAT)
    theirs(folder)


def test_biases_make_a_qwen2_whatever_the_file_calls_it(tmp_path: Path) -> None:
    """transformers' Llama has biases in more places than we read them from."""
    source = exported(gguf(qwen2(), tmp_path / "model.gguf"), tmp_path / "source")
    (source / "config.json").write_text(json.dumps(config(source) | {"model_type": "llama"}))
    assert load(source)[0].architecture == "llama"
    folder = exported(source, tmp_path / "folder")
    assert config(folder)["architectures"] == ["Qwen2ForCausalLM"]
    assert same(load(folder)[1], load(source)[1])
    theirs(folder)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.bias"]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ConfigError, match=r"'model.layers.1.self_attn.k_proj.bias' is missing"):
        exported(source, tmp_path / "other")


@pytest.mark.parametrize(
    "rope",
    [
        LLAMA3,
        {"rope_type": "linear", "rope_theta": 5e3, "factor": 4.0},
        {"rope_type": "default", "rope_theta": 5e5},
    ],
)
def test_rope_is_kept(tmp_path: Path, rope: dict[str, Any]) -> None:
    model = llama(rope_parameters=rope)
    model.save_pretrained(tmp_path / "source")
    AutoTokenizer.from_pretrained(write_model(tmp_path / "tiny")).save_pretrained(
        tmp_path / "source"
    )
    folder = exported(tmp_path / "source", tmp_path / "folder")
    assert config(folder)["rope_parameters"] == rope
    torch.testing.assert_close(reference.logits(theirs(folder), IDS), reference.logits(model, IDS))


def test_older_spellings_of_rope_are_brought_up_to_date(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    older = {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    (source / "config.json").write_text(json.dumps(config(source) | older))
    folder = exported(source, tmp_path / "folder")
    rope = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
    assert config(folder)["rope_parameters"] == rope


def test_llama3_s_scaling_is_told_from_what_a_gguf_keeps_of_it(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = llama(head_dim=32, rope_parameters=rope)
    plain = 5e5 ** (-torch.arange(0, 32, 2) / 32)
    factors = plain / model.model.rotary_emb.inv_freq
    source = gguf(model, tmp_path / "model.gguf", rope_freqs=factors)
    folder = exported(source, tmp_path / "folder")
    assert config(folder)["rope_parameters"] == rope
    torch.testing.assert_close(
        load(folder)[1].inverse_frequencies, load(source)[1].inverse_frequencies
    )
    odd = gguf(model, tmp_path / "odd.gguf", rope_freqs=factors.flip(0))
    with pytest.raises(ConfigError, match="rope_freqs.weight other than Llama 3's"):
        exported(odd, tmp_path / "other")


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
@pytest.mark.parametrize("bos", [True, False])
def test_text_becomes_the_same_ids(tmp_path: Path, pre: str, bos: bool) -> None:
    entries = words(pre, add_bos_token=bos, eot_token_id=7, padding_token_id=1)
    make = qwen2 if pre == "qwen2" else llama
    source = gguf(make(), tmp_path / "model.gguf", tokenizer=entries)
    folder = exported(source, tmp_path / "folder")
    ours, reread = load_tokenizer(source), load_tokenizer(folder)
    transformers_ = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode(text) == reread.encode(text) == transformers_.encode(text), text
        bare = transformers_(text, add_special_tokens=False)["input_ids"]
        assert bare == ours.encode(text)[bos:]
    for chat in (CHAT, CHAT[1:]):
        rendered = transformers_.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        assert rendered == ours.render(chat)
        assert ours.chat(chat) == reread.chat(chat)
    assert [ours.piece(id) for id in range(TOKENS)] == [reread.piece(id) for id in range(TOKENS)]
    ends = sorted(ours.eos_ids)
    assert len(ends) == 4
    assert config(folder)["eos_token_id"] == ends
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "eos_token_id": ends, "pad_token_id": 1}
    assert reread.eos_ids == ours.eos_ids


def test_a_tokenizer_that_transformers_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    for entries in (words("gpt-2"), metadata("qwen2")):
        model = reference.qwen2(vocab_size=len(entries["tokenizer.ggml.tokens"]))
        source = gguf(model, tmp_path / "model.gguf", tokenizer=entries)
        with pytest.raises(ConfigError, match="transformers makes another tokenizer"):
            exported(source, tmp_path / "folder")


def test_bf16_is_every_tensor_rounded(tmp_path: Path) -> None:
    model = qwen2(tie_word_embeddings=False)
    folder = exported(gguf(model, tmp_path / "model.gguf"), tmp_path / "folder", "bf16")
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensors[name], tensor.bfloat16())
    assert theirs(folder).dtype == torch.bfloat16


def test_int8_is_within_half_a_step_of_each_row(tmp_path: Path) -> None:
    model = qwen2(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = 0
    folder = exported(gguf(model, tmp_path / "model.gguf"), tmp_path / "folder", "int8")
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in model.state_dict().items():
        found = tensors.pop(name)
        if not name.endswith("_proj.weight"):
            assert found.dtype == torch.float32
            assert torch.equal(found, tensor)
            continue
        scale = tensors.pop(f"{name}_scale")
        assert (found.dtype, scale.dtype) == (torch.int8, torch.float32)
        assert scale.shape == (len(tensor), 1)
        assert bool(scale.isfinite().all() and (scale > 0).all())
        # The levels are used to the last, and no row takes another's.
        peaks = tensor.abs().amax(1, keepdim=True)
        torch.testing.assert_close((found.abs().amax(1, keepdim=True) * scale), peaks)
        error = (found * scale - tensor).abs()
        assert bool((error <= scale * 0.5 * (1 + 1e-5)).all())
    assert not tensors


def test_int8_is_symmetric() -> None:
    levels, _ = quantized(torch.tensor([[-1.0, 0.5, 1.0]]))
    assert levels.tolist() == [[-127, 64, 127]]


def test_int8_is_described_as_vllm_expects(tmp_path: Path) -> None:
    folder = exported(gguf(llama(), tmp_path / "model.gguf"), tmp_path / "folder", "int8")
    described = config(folder)["quantization_config"]
    assert described["quant_method"] == "compressed-tensors"
    assert described["format"] == "int-quantized"
    assert described["quantization_status"] == "compressed"
    assert described["ignore"] == ["lm_head"]
    (group,) = described["config_groups"].values()
    assert group["targets"] == ["Linear"]
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    assert group["weights"] == {**eight, "strategy": "channel", "dynamic": False}
    assert group["input_activations"] == {**eight, "strategy": "token", "dynamic": True}
    assert config(folder)["dtype"] == "float32"


def test_a_tensor_that_would_be_left_out_is_named(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    file = source / "model.safetensors"
    save_file(load_file(file) | {"model.extra.weight": torch.ones(1)}, file)
    with pytest.raises(ConfigError, match="not supported: tensor 'model.extra.weight'"):
        exported(source, tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]


def test_biases_with_heads_that_vllm_would_take_for_others_are_refused(tmp_path: Path) -> None:
    source = gguf(qwen2(head_dim=16), tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="biases and heads of another size"):
        exported(source, tmp_path / "target")


# The real model


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    return exported(smollm2_gguf, tmp_path_factory.mktemp("real") / "smollm2")


@pytest.mark.model
def test_the_default_model_comes_back_bitwise(real: Path, smollm2_gguf: Path) -> None:
    (config, weights), (config_before, before) = load(real), load(smollm2_gguf)
    assert config == config_before
    assert same(weights, before)
    assert torch.equal(weights.inverse_frequencies, before.inverse_frequencies)


@pytest.mark.model
def test_the_default_model_s_text_becomes_the_same_ids(real: Path, smollm2_gguf: Path) -> None:
    ours, transformers_ = load_tokenizer(smollm2_gguf), AutoTokenizer.from_pretrained(real)
    for text in [*TEXTS, "\n".join(TEXTS), "12345 ½", "x½y² 日本語 😀"]:
        assert transformers_.encode(text) == ours.encode(text)
    for chat in (CHAT, CHAT[1:], CHAT[1:2]):
        ids = transformers_.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert ids == ours.chat(chat)
    assert json.loads((real / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


@pytest.mark.model
@pytest.mark.slow  # that it comes back bitwise says as much, and that its text becomes the same ids
def test_the_default_model_writes_the_same(real: Path, smollm2_gguf: Path) -> None:
    """That the embedded engine writes what transformers makes of the GGUF, others have tested."""
    tokenizer = AutoTokenizer.from_pretrained(real)
    models = [
        theirs(real),
        AutoModelForCausalLM.from_pretrained(
            smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
        ),
    ]
    for question in ("Say hi.", "Why is 17 + 4 = 21? ½ 日本語 😀"):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        options = {"max_new_tokens": 32, "do_sample": False, "eos_token_id": [0, 2]}
        one, other = (model.generate(**ids, **options)[0].tolist() for model in models)
        assert one == other
