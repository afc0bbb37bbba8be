"""Prompts and reference answers as the ids of chats with the target's template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from app.prompt_files import read_prompts
from app.training.inputs import Texts
from app.types import Message

HELD_OUT = 16  # of so many prompts one is held out, and of a file at most so many
_MARK = "\u2603"


class ChatTokenizer(Protocol):
    """What is needed of the engine's tokenizer."""

    def chat(self, messages: Sequence[Message]) -> list[int]: ...

    def continued(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Prepared:
    """What a run reads of the files: prompts to learn on, prompts held out, reference answers."""

    prompts: Texts
    held: Texts
    fixed: Texts
    opening: Tensor  # int64, the ids before what a user says
    closing: Tensor  # int64, those between that and the answer


def prepare(paths: Sequence[Path], tokenizer: ChatTokenizer, longest: int, end: int) -> Prepared:
    """Read these files; of prompts over `longest` tokens the end is left out.

    `end` is the token behind an answer. Raises as `read_prompts`, and ValueError where nothing
    is left to learn on.
    """
    names = [path.stem for path in paths]
    learned, held, fixed = [], [], []
    for group, path in enumerate(paths):
        for number, prompt in enumerate(read_prompts(path)):
            ids = torch.tensor(_fitting(prompt.asked, tokenizer, longest))
            nothing = torch.zeros(0, dtype=torch.int64)
            if number % HELD_OUT == HELD_OUT - 1 and number < HELD_OUT**2:
                held.append((ids, nothing, group))
                continue
            learned.append((ids, nothing, group))
            if prompt.answer is not None:
                answer = torch.tensor([*tokenizer.continued(prompt.answer), end])
                fixed.append((ids, answer, group))
    if not learned:
        raise ValueError("there are no prompts to learn on")
    opening, closing = _template(tokenizer)
    return Prepared(
        Texts.of(learned, names), Texts.of(held, names), Texts.of(fixed, names), opening, closing
    )


def _fitting(text: str, tokenizer: ChatTokenizer, longest: int) -> list[int]:
    ids = _chat(text, tokenizer)
    while len(ids) > longest and len(text) > 1:
        text = text[: int(len(text) * min(0.95, longest / len(ids)))]
        ids = _chat(text, tokenizer)
    return ids


def _chat(text: str, tokenizer: ChatTokenizer) -> list[int]:
    return tokenizer.chat([{"role": "user", "content": text}])


def _template(tokenizer: ChatTokenizer) -> tuple[Tensor, Tensor]:
    """What the template puts before and behind a user's words: what two chats share."""
    one, other = _chat("Why?", tokenizer), _chat(f"{_MARK}{_MARK}", tokenizer)
    before = _shared(one, other)
    behind = _shared(one[before:][::-1], other[before:][::-1])
    return torch.tensor(one[:before]), torch.tensor(one[len(one) - behind :])


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    pairs: Iterator[tuple[int, int]] = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
