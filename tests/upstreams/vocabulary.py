"""A tokenizer small enough to see through: words, single bytes, and a smiley in two halves."""

from __future__ import annotations

import re
from collections.abc import Iterable

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
START, END = 1, 2
_WORDS = re.findall(
    r"\w+",
    "user assistant system The the sky is blue because small particles scatter short waves most of"
    " all and violet light there less to begin with as it was said long ago",
)
_HALVES = (b"\xf0\x9f", b"\x98\x80")  # of a smiley; only together are they a character
_PIECES: list[bytes] = [
    *(text.encode() for text in SPECIAL),
    *(bytes([byte]) for byte in range(256)),
    *(word.encode() for word in _WORDS),
    *(f" {word}".encode() for word in _WORDS),
    *_HALVES,
]
SIZE = len(_PIECES)
_IDS = {piece: id for id, piece in enumerate(_PIECES) if id >= len(SPECIAL)}
_LONGEST = max(map(len, _IDS))
_SPLIT = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")


def encode(text: str) -> list[int]:
    """The ids of a text, special tokens by their names."""
    ids: list[int] = []
    for part in _SPLIT.split(text):
        if part in SPECIAL:
            ids.append(SPECIAL.index(part))
            continue
        data = part.encode()
        while data:
            length = next(n for n in range(_LONGEST, 0, -1) if data[:n] in _IDS)
            ids.append(_IDS[data[:length]])
            data = data[length:]
    return ids


def piece(id: int) -> bytes:
    return _PIECES[id]


def decode(ids: Iterable[int], *, special: bool = True) -> str:
    """Bytes that are no whole character come as U+FFFD, as they do from vLLM."""
    data = b"".join(_PIECES[id] for id in ids if special or id >= len(SPECIAL))
    return data.decode(errors="replace")


def chat(messages: Iterable[dict[str, object]], tools: object = None) -> list[int]:
    """The ids of a chat, rendered."""
    told = f"<|im_start|>system\n{tools}<|im_end|>\n" if tools else ""
    for message in messages:
        told += f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
    return encode(told + "<|im_start|>assistant\n")
