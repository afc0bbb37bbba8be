"""Which server has seen a conversation before: its prefix cache makes the next call cheaper."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from app.types import Call

_LINKS = 128  # what comes later in a prompt no longer tells conversations apart
_CHARACTERS, _IDS = 256, 64  # of a bare prompt in one link


def links(call: Call) -> tuple[bytes, ...]:
    """The prompt's beginnings, shortest first, each as a hash.

    Two prompts share as many links as they share leading messages, or blocks of a bare prompt. An
    incomplete last block is left out: it would be no beginning of a longer prompt.
    """
    found: list[bytes] = []
    link = b""
    for part in _parts(call):
        link = blake2b(link + part, digest_size=12).digest()
        found.append(link)
    return tuple(found)


def _parts(call: Call) -> Iterator[bytes]:
    prompt = call.prompt
    if prompt is None:
        for message in call.messages[:_LINKS]:
            yield b"m" + json.dumps(dict(message), sort_keys=True, default=repr).encode()
        return
    size = _CHARACTERS if isinstance(prompt, str) else _IDS
    for at in range(0, min(len(prompt), _LINKS * size) - size + 1, size):
        block = prompt[at : at + size]
        if isinstance(block, str):
            yield b"t" + block.encode("utf-8", "surrogatepass")
        else:
            yield b"i" + repr(block).encode()


class Affinity:
    """Remembers the latest `most` answers and `most` beginnings of prompts, and who saw them.

    Servers are known by their names, so what is remembered keeps none of them alive.
    """

    def __init__(self, most: int = 16_384) -> None:
        self._most = most
        self._answers: OrderedDict[str, str] = OrderedDict()
        self._seen: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers) + len(self._seen)

    def of_answer(self, answer: str) -> str | None:
        """The server that wrote this answer last."""
        return self._answers.get(answer)

    def of_prompt(self, chain: Sequence[bytes]) -> Iterator[tuple[str, ...]]:
        """The servers that saw this prompt's beginnings, those of the longest first."""
        for link in reversed(chain):
            if link in self._seen:
                yield self._seen[link]

    def wrote(self, answer: str, server: str) -> None:
        if answer:
            self._answers[answer] = server
            self._answers.move_to_end(answer)
            if len(self._answers) > self._most:
                self._answers.popitem(last=False)

    def read(self, chain: Sequence[bytes], server: str, servers: Sequence[str]) -> None:
        """This server reads this prompt; `servers`: all there are, others are forgotten."""
        # The shortest beginning is touched last, as it serves the most: the longest go first.
        for link in reversed(chain):
            seen = self._seen.get(link, ())
            if server not in seen:
                self._seen[link] = (*(name for name in seen if name in servers), server)
            self._seen.move_to_end(link)
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
