"""Our tokenizers are the model's own: same ids, same chats, and exact bytes for every token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.engines.embedded.gguf_file import read_gguf_metadata
from app.engines.embedded.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_metadata
from app.errors import BadRequest, EngineUnsupported
from app.types import Message

TEXTS = [
    "",
    "Hello, world! It's 2024; I've 1,234,567.89 reasons (or 10^9).",
    "def f(x: int) -> str:\n\treturn f'{x!r:>10}'  # ünïcödé\n\n\n    pass\n",
    "Ünïcode: naïve café, Straße, Ελληνικά, Русский, 中文字符, 日本語テキスト, العربية, हिन्दी",
    "emoji: 😀 👩‍👩‍👧‍👦 🇨🇭 ❤️ and ½ ² ٣ Ⅷ ①",
    "e\u0301 is not \u00e9; \u00a0nbsp\u2003em space\u200bzero width",
    "   leading, trailing   \r\n\r\n  tabs\t\t\tand   runs      of spaces   ",
    "<|im_start|>user\n<|im_end|> inside text, <|endoftext|>, <|not_special|>",
    "can't won't I'M YOU'LL he'd 'tis ''quotes'' 'S",
    "x" * 300 + " " + "9" * 40 + " https://example.org/a?b=c&d=%20#frag",
]
CHAT: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is 17 + 4?\n"},
    {"role": "assistant", "content": "21."},
    {"role": "user", "content": "And in 日本語? 😀"},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system must come first') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_level(special: list[str]) -> Backend:
    """A small byte-level BPE, trained on the texts above."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def metadata(pre: str = "gpt-2", **more: Any) -> dict[str, Any]:
    """What a GGUF file would say of that tokenizer."""
    model = json.loads(byte_level(["<s>", "<|im_end|>"]).to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<think>"]
    types = [3 if token in ("<s>", "<|im_end|>") else 1 for token in tokens]
    types[-1] = 4  # a user's own token: shown, but never split
    given = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "merges": [" ".join(merge) for merge in model["merges"]],
        "token_type": types,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **more,
    }
    entries = {f"tokenizer.ggml.{key}": value for key, value in given.items()}
    return {**entries, "tokenizer.chat_template": TEMPLATE}


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return tokenizer_from_metadata(metadata())


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_pieces_spell_the_text_exactly(pre: str) -> None:
    tokenizer = tokenizer_from_metadata(metadata(pre, add_bos_token=False))
    for text in TEXTS:
        ids = tokenizer.encode(text)
        # qwen2 normalises to NFC
        expected = text.replace("e\u0301", "\u00e9") if pre == "qwen2" else text
        shown = expected.replace("<|im_end|>", "")
        assert b"".join(map(tokenizer.piece, ids)).decode() == shown


def test_special_tokens_are_found_in_text_and_show_nothing(small: Tokenizer) -> None:
    ids = small.encode("a<|im_end|>b<think>")
    assert [small.piece(id) for id in ids] == [b"a", b"", b"b", b"<think>"]
    assert small.piece(10**6) == b""


def test_an_answer_ends_at_any_special_token_that_means_so(small: Tokenizer) -> None:
    assert small.eos_ids == {0, *small.encode("<|im_end|>")}
    assert tokenizer_from_metadata(metadata(eot_token_id=7)).eos_ids > {7}


def test_bos_comes_only_where_the_metadata_says_so(small: Tokenizer) -> None:
    with_bos = tokenizer_from_metadata(metadata(add_bos_token=True))
    assert with_bos.encode("ab") == [0, *small.encode("ab")]
    # A chat template writes its own.
    assert with_bos.chat(CHAT) == small.chat(CHAT)
    assert with_bos.chat(CHAT).count(0) == 1


def test_numbers_are_cut_as_the_name_says() -> None:
    """`9999` is one token for gpt-2, where it is a merge; no merge crosses a digit in smollm."""
    backend = byte_level([])
    assert backend.encode("99999999").ids != [backend.token_to_id("9")] * 8
    for pre, single in (("gpt-2", False), ("smollm", True), ("qwen2", True), ("llama-bpe", False)):
        tokenizer = tokenizer_from_metadata(metadata(pre, add_bos_token=False))
        ids = tokenizer.encode("99999999")
        assert (len(ids) == 8) is single, pre


@pytest.mark.parametrize("odd", [{"pre": "tekken"}, {"pre": None}, {"model": "llama"}])
def test_an_unknown_kind_is_named(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model='.*' pre=.*gpt-2, smollm, qwen2, llama-bpe"):
        tokenizer_from_metadata({**metadata(), **{f"tokenizer.ggml.{k}": odd[k] for k in odd}})


def test_text_parts_are_joined(small: Tokenizer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert small.chat([{"role": "user", "content": parts}]) == small.chat(
        [{"role": "user", "content": "one\ntwo"}]
    )


def test_a_developer_is_the_system(small: Tokenizer) -> None:
    assert small.render([{"role": "developer", "content": "x"}]) == "<s>[system]x\n[assistant]"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "refusal": "No."}, "No."),
        ({"content": None, "refusal": None}, ""),
        ({"content": "Yes.", "refusal": None, "tool_calls": None, "annotations": []}, "Yes."),
        ({}, ""),
    ],
)
def test_an_answer_comes_back_as_it_was_sent(
    small: Tokenizer, message: dict[str, Any], text: str
) -> None:
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", **message}]
    assert small.render(chat) == f"<s>[user]x\n[assistant]{text}\n[assistant]"


@pytest.mark.parametrize(
    ("message", "param", "kind"),
    [
        ({"role": "user"}, "messages.1.content", BadRequest),
        ({"role": "user", "content": None}, "messages.1.content", BadRequest),
        ({"role": "user", "content": 7}, "messages.1.content", BadRequest),
        ({"role": "user", "content": ["x"]}, "messages.1.content", BadRequest),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.1.content", BadRequest),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages.1.content",
            EngineUnsupported,
        ),
        ({"role": "wizard", "content": "x"}, "messages.1.role", BadRequest),
        ({"role": ["user"], "content": "x"}, "messages.1.role", BadRequest),
        ({"content": "x"}, "messages.1.role", BadRequest),
        ({"role": "function", "content": "x"}, "messages.1.role", EngineUnsupported),
        ({"role": "tool", "content": None}, "messages.1.content", BadRequest),
        (
            {"role": "assistant", "content": None, "tool_calls": [{}]},
            "messages.1.tool_calls.0.function",
            BadRequest,
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}],
            },
            "messages.1.tool_calls.0.function.arguments",
            BadRequest,
        ),
        ("hello", "messages.1", BadRequest),
        ({"role": "user", "content": "\ud800"}, "messages", BadRequest),
        ({"role": "system", "content": "late"}, "messages", BadRequest),
    ],
)
def test_what_a_chat_cannot_hold_is_named(
    small: Tokenizer, message: Any, param: str, kind: type[BadRequest]
) -> None:
    with pytest.raises(kind) as caught:
        small.chat([{"role": "user", "content": "hi"}, message])
    assert caught.value.param == param


def test_no_messages_and_no_template_are_refused(small: Tokenizer) -> None:
    entries = metadata()
    del entries["tokenizer.chat_template"]
    bare = tokenizer_from_metadata(entries)
    for tokenizer, messages in ((small, []), (bare, CHAT)):
        with pytest.raises(BadRequest) as caught:
            tokenizer.chat(messages)
        assert caught.value.param == "messages"


def test_text_that_is_not_unicode_is_refused(small: Tokenizer) -> None:
    with pytest.raises(BadRequest) as caught:
        small.encode("a\ud800")
    assert caught.value.param == "prompt"


def test_a_folder_gives_its_own_tokenizer(tmp_path: Path) -> None:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<s>", "</s>"]), bos_token="<s>", chat_template=TEMPLATE
    )
    fast.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 5}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [6, 7]}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_ids == {1, 5, 6, 7}
    for text in TEXTS:
        assert tokenizer.encode(text) == fast.encode(text)
    whole = fast.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert tokenizer.chat(CHAT) == whole


def test_a_sentencepiece_folder_spells_spaces_and_bytes(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "\u2581Hello": 1, "\u2581": 2, "<0xE2>": 3, "<0x82>": 4, "<0xAC>": 5}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = load_tokenizer(tmp_path)
    assert b"".join(map(tokenizer.piece, [1, 2, 3, 4, 5])).decode() == " Hello \u20ac"


@pytest.fixture(scope="module")
def real(smollm2_gguf: Path) -> tuple[Tokenizer, Any]:
    theirs = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    return tokenizer_from_metadata(read_gguf_metadata(smollm2_gguf)), theirs


@pytest.mark.model
def test_a_gguf_gives_the_ids_that_transformers_gives(real: tuple[Tokenizer, Any]) -> None:
    """But for numerals like ½, which transformers does not cut off when it reads a GGUF.

    llama.cpp (`\\p{N}`) and the model's own tokenizer.json (Digits) do, and so do we.
    """
    ours, theirs = real
    text = "\n".join(TEXTS)
    for numeral in "½²٣Ⅷ①":
        text = text.replace(numeral, "")
        ids = ours.encode(f" {numeral}")
        assert ours.piece(ids[0]) == b" "
    for part in [text, *text.split("\n")]:
        assert ours.encode(part) == theirs.encode(part)


@pytest.mark.model
def test_a_gguf_gives_the_chat_that_transformers_gives(real: tuple[Tokenizer, Any]) -> None:
    ours, theirs = real
    for chat in (CHAT, CHAT[1:], CHAT[1:2]):
        expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert ours.chat(chat) == expected


@pytest.mark.model
def test_every_token_of_the_real_model_has_its_bytes(real: tuple[Tokenizer, Any]) -> None:
    ours, theirs = real
    assert ours.eos_ids == {0, 2}
    for id in range(len(theirs)):
        text = "" if id < 17 else theirs.decode([id], clean_up_tokenization_spaces=False)
        assert ours.piece(id).decode("utf-8", "replace") == text
