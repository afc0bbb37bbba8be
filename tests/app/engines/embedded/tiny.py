"""A model of random weights and its tokenizer, small enough to run in every test."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, CONTEXT = 2, 64, 96, 4, 2, 512
SPECIAL = ["<|im_start|>", "<|im_end|>"]
EOS = 257  # <|im_end|>
VOCABULARY = 256 + len(SPECIAL)  # one token for each byte
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(folder: Path, context: int = CONTEXT, vocabulary: int = VOCABULARY) -> Path:
    """A Llama folder of safetensors; its token n < 256 is the byte n. A larger vocabulary is
    padded, as some models' are."""
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "eos_token_id": EOS,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(vocabulary), folder / "model.safetensors")
    _tokenizer().save_pretrained(folder)
    return folder


def _weights(vocabulary: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random) / math.sqrt(columns)

    kv = HIDDEN // HEADS * KV_HEADS
    weights = {
        "model.embed_tokens.weight": matrix(vocabulary, HIDDEN) * 8,
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": matrix(vocabulary, HIDDEN) * 3,
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        weights |= {
            f"{at}input_layernorm.weight": torch.ones(HIDDEN),
            f"{at}post_attention_layernorm.weight": torch.ones(HIDDEN),
            f"{at}self_attn.q_proj.weight": matrix(HIDDEN, HIDDEN) * 2,
            f"{at}self_attn.k_proj.weight": matrix(kv, HIDDEN) * 2,
            f"{at}self_attn.v_proj.weight": matrix(kv, HIDDEN) * 2,
            f"{at}self_attn.o_proj.weight": matrix(HIDDEN, HIDDEN) * 2,
            f"{at}mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{at}mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{at}mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
        }
    return weights


def _tokenizer() -> PreTrainedTokenizerFast:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable}
    spelled |= {byte: chr(256 + n) for n, byte in enumerate(others)}
    backend = Tokenizer(models.BPE(vocab={char: byte for byte, char in spelled.items()}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template=TEMPLATE
    )
