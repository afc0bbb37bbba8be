"""What a KV predictor is tuned by: long prompts, and what the base writes or would copy behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""Ids of a prompt, and of what stands behind it."""

_SPAN = (12, 32)  # tokens of what is said again


@dataclass(frozen=True)
class Template:
    """The ids around what a user says, up to where the answer begins."""

    opening: Tensor
    closing: Tensor

    def said(self, chat: Tensor) -> Tensor:
        return chat[len(self.opening) : len(chat) - len(self.closing)]

    def asked(self, *parts: Tensor) -> Tensor:
        return torch.cat([self.opening, *parts, self.closing])


def examples(
    chats: Sequence[Tensor],
    answered: Sequence[Pair],
    template: Template,
    answer: int,
    count: int,
    seed: int,
) -> list[Pair]:
    """So many prompts about as long as `chats`, each with at most `answer` tokens behind it.

    Half of them are followed by pieces of themselves, as who answers from a text has to find and
    copy these; of the others some are questions with their answers, padded with another chat, and
    some are followed by their own last tokens. All is drawn by the seed; chats of fewer than four
    answers' length are left out, and where there are no answered questions the rest goes on.
    """
    drawn = torch.Generator().manual_seed(seed)
    long = [chat for chat in chats if len(chat) >= 4 * answer]
    found: list[Pair] = []
    while long and len(found) < count:
        chat = long[_below(len(long), drawn)]
        kind = float(torch.rand((), generator=drawn))
        if kind < 0.5:
            found.append((chat, _again(template.said(chat), answer, drawn)))
        elif kind < 0.8 and answered:
            found.append(_padded(answered[_below(len(answered), drawn)], chat, template, drawn))
        else:
            text = chat[: len(chat) - len(template.closing)]
            cut = len(text) - answer
            found.append((text[:cut], text[cut:]))
    return [(prompt, behind[:answer]) for prompt, behind in found]


def _again(said: Tensor, tokens: int, drawn: torch.Generator) -> Tensor:
    """Pieces of what was said, until there are so many tokens."""
    pieces: list[Tensor] = []
    while sum(map(len, pieces)) < tokens:
        length = _SPAN[0] + _below(_SPAN[1] - _SPAN[0], drawn)
        start = _below(max(len(said) - length, 1), drawn)
        pieces.append(said[start : start + length])
    return torch.cat(pieces)[:tokens]


def _padded(pair: Pair, chat: Tensor, template: Template, drawn: torch.Generator) -> Pair:
    """A question, and what another chat says before or behind it, as long as that chat."""
    asked, other = template.said(pair[0]), template.said(chat)
    other = other[: max(len(other) - len(asked), 0)]
    parts = (other, asked) if _below(2, drawn) else (asked, other)
    return template.asked(*parts), pair[1]


def _below(count: int, drawn: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=drawn))
