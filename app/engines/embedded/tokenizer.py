"""Text to token ids and back: the tokenizer and chat template of a GGUF file or a model folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from llguidance import LLTokenizer
from llguidance.hf import from_tokenizer
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.engines.embedded.gguf_file import read_gguf_metadata
from app.engines.embedded.tools import OPEN, calls, spelled
from app.errors import BadRequest, EngineUnsupported
from app.types import Message

_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
# Tokens that end an answer wherever they are special; files often name only one of theirs.
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "</s>")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_TOOLS = re.compile(r"\btools\b")  # among a template's variables
# Of a template; the last one where a call's arguments are nested deeper than it can write.
_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, KeyError, RecursionError)


def _split(numbers: str) -> pre_tokenizers.PreTokenizer:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + numbers
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


# How text is cut before the merges, by the name in `tokenizer.ggml.pre`.
_PRE: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": _digits,
    "qwen2": lambda: _split(r"\p{N}"),
    "llama-bpe": lambda: _split(r"\p{N}{1,3}"),
}


class Tokenizer:
    """Encodes prompts and chats, and knows the bytes of every token."""

    def __init__(self, fast: PreTrainedTokenizerFast, ends: Iterable[int] = ()) -> None:
        self._fast = fast
        self._backend: Backend = fast.backend_tokenizer
        added: dict[int, AddedToken] = self._backend.get_added_tokens_decoder()
        self._added = {id: token.content for id, token in added.items()}
        self._special = {id for id, token in added.items() if token.special}
        self._pieces: dict[int, bytes] = {}
        self._bytes_of = _piece_reader(self._backend)
        known = {i for i in self._special if self._added[i] in _ENDS}
        if fast.eos_token_id is not None:
            known.add(int(fast.eos_token_id))
        self.eos_ids = frozenset(known | set(ends))

    def encode(self, text: str) -> list[int]:
        """The ids of a bare prompt, with whatever the model wants before it (bos).

        Raises BadRequest naming `prompt` for text that is not valid Unicode.
        """
        return self._ids(text, True, "prompt")

    def continued(self, text: str) -> list[int]:
        """The ids of a text that goes on where another one ended."""
        return self._ids(text, False, "said")

    def chat(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
        """The ids of a chat, ready for the assistant's answer.

        Raises BadRequest naming the message's field, or `messages` where the template refuses.
        """
        return self._ids(self.render(messages, tools), False, "messages")

    def render(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """The chat as the template writes it; raises as `chat`.

        A template that knows of tools, and marks their calls as we read them, says so itself.
        """
        if not messages:
            raise BadRequest("messages must not be empty", param="messages")
        if not self._fast.chat_template:
            raise BadRequest(
                "this model has no chat template; ask for a completion", param="messages"
            )
        plain = [_plain(message, f"messages.{i}") for i, message in enumerate(messages)]
        template = str(self._fast.chat_template)
        knows = OPEN in template and _TOOLS.search(template) is not None
        try:
            if not knows:
                plain = spelled(plain, tools)
            text = self._fast.apply_chat_template(
                plain,
                tools=list(tools) if tools and knows else None,
                tokenize=False,
                add_generation_prompt=True,
            )
        except _REFUSALS as error:
            refused = f"the model's chat template refuses these messages: {error}"
            raise BadRequest(refused, param="messages") from error
        return str(text)

    def piece(self, id: int) -> bytes:
        """What this token adds to the text, perhaps part of a character; b"" if it is not shown."""
        piece = self._pieces.get(id)
        if piece is None:
            piece = self._pieces[id] = self._read_piece(id)
        return piece

    def text(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens included; bytes that are no character: U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def names(self, ids: Sequence[int]) -> list[str]:
        """These ids as the vocabulary spells them."""
        return [self._backend.id_to_token(id) or "" for id in ids]

    def guided(self) -> LLTokenizer:
        """This vocabulary as llguidance reads it; takes a second to make."""
        return from_tokenizer(self._fast, eos_token=sorted(self.eos_ids))

    def special_ids(self) -> dict[str, int | list[int] | None]:
        """Where a text begins and ends, under the names that generation_config.json has for it."""
        bos, pad = self._fast.bos_token_id, self._fast.pad_token_id
        return {"bos_token_id": bos, "eos_token_id": sorted(self.eos_ids), "pad_token_id": pad}

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template into this folder."""
        self._fast.save_pretrained(folder)

    def _read_piece(self, id: int) -> bytes:
        if id in self._special:
            return b""
        if id in self._added:
            return self._added[id].encode()
        token = self._backend.id_to_token(id)
        return b"" if token is None else self._bytes_of(token)

    def _ids(self, text: str, add_special: bool, param: str) -> list[int]:
        # Of the two, only the batch call lets other threads run while it works.
        try:
            encodings = self._backend.encode_batch_fast([text], add_special_tokens=add_special)
        except (UnicodeEncodeError, TypeError) as error:
            raise BadRequest("text is not valid Unicode", param=param) from error
        ids: list[int] = encodings[0].ids
        return ids


_PROBE = "It's 1234567 x½y² YOU'LL  \n\n\tfoo(bar);   日本語 😀 ٣"


def alike(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two cut a text of many kinds into the same tokens, and end at the same ones."""
    return one.encode(_PROBE) == other.encode(_PROBE) and one.eos_ids == other.eos_ids


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in this GGUF file's metadata, or in this folder.

    Raises ValueError for a kind of tokenizer that we cannot build.
    """
    if not path.is_dir():
        return tokenizer_from_metadata(read_gguf_metadata(path))
    fast = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if not isinstance(fast, PreTrainedTokenizerFast):
        raise ValueError(f"{path}: no tokenizer.json to build a fast tokenizer from")
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        file = path / name
        found = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
        ends.update(found if isinstance(found, list) else [] if found is None else [found])
    return Tokenizer(fast, ends)


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """A byte-level BPE from a GGUF's `tokenizer.*` keys; raises ValueError for other kinds."""

    def entry(name: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}", default)

    kind, pre = entry("model"), entry("pre")
    if kind != "gpt2" or pre not in _PRE:
        raise ValueError(
            f"cannot build the tokenizer model={kind!r} pre={pre!r} from GGUF metadata: only "
            f"model='gpt2' with pre in {', '.join(_PRE)}; use a folder with a tokenizer.json"
        )
    tokens: list[str] = entry("tokens")
    backend = _byte_level_bpe(pre, tokens, entry("merges", []), entry("token_type", []))
    names = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        id = entry(f"{key}_token_id")
        if id is not None:
            names[f"{role}_token"] = tokens[id]
    if entry("add_bos_token", pre == "llama-bpe") and "bos_token" in names:
        bos = names["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, int(entry("bos_token_id")))]
        )
    template = metadata.get("tokenizer.chat_template")
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)
    ends = [entry(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    return Tokenizer(fast, [int(id) for id in ends if id is not None])


def _byte_level_bpe(
    pre: str, tokens: Sequence[str], merges: Sequence[str], types: Sequence[int]
) -> Backend:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocab = {token: id for id, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _PRE[pre]()
    backend.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, normalized=False, special=type == _CONTROL)
        for token, type in zip(tokens, types, strict=False)
        if type in (_CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens(added)
    return backend


def _plain(message: Message, where: str) -> dict[str, Any]:
    """Role and text of a message, and the calls it made: all that a template is given."""
    if not isinstance(message, Mapping):
        raise BadRequest("each message must be an object", param=where)
    role = message.get("role")
    if role == "function" or message.get("function_call"):
        raise EngineUnsupported(
            "functions are an older form of tools, which this engine does", param=f"{where}.role"
        )
    if role not in _ROLES:
        raise BadRequest(f"role must be one of {', '.join(_ROLES)}", param=f"{where}.role")
    content = message.get("content")
    if content is None and role == "assistant":
        content = message.get("refusal") or ""  # a client that sends an answer back sends nulls too
    # OpenAI's newer name for the same thing; templates of open models know the older one.
    role = "system" if role == "developer" else str(role)
    made = calls(message, where)
    plain: dict[str, Any] = {"role": role, "content": _text(content, f"{where}.content")}
    return {**plain, "tool_calls": made} if made else plain


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise BadRequest("content must be a string or a list of text parts", param=where)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise EngineUnsupported(
                "this engine reads content parts of type text only", param=where
            )
        if not isinstance(part.get("text"), str):
            raise BadRequest("a text part needs a string `text`", param=where)
        texts.append(part["text"])
    return "\n".join(texts)


def _piece_reader(backend: Backend) -> Callable[[str], bytes]:
    """How this tokenizer's vocabulary spells bytes, told by its decoder."""
    state: Any = backend.decoder.__getstate__() if backend.decoder is not None else b"{}"
    kinds = str(json.loads(state))
    if "'ByteLevel'" not in kinds:
        return _spaced_piece
    spelled = _byte_alphabet()

    def byte_level(token: str) -> bytes:
        if all(char in spelled for char in token):
            return bytes([spelled[char] for char in token])
        return token.encode()

    return byte_level


def _spaced_piece(token: str) -> bytes:
    """SentencePiece: ▁ stands for a space, <0xXX> for a byte."""
    byte = _BYTE_FALLBACK.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself where it prints, else from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return alphabet
