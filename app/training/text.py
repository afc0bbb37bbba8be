"""Lets a model write: answers to many prompts at once, drawn from its own distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from app.training.net import Net


@torch.inference_mode()
def write(
    net: Net,
    prompts: Sequence[Tensor],
    longest: int,
    temperatures: Tensor,
    ends: frozenset[int],
    seeded: torch.Generator,
) -> list[Tensor]:
    """An answer, ids int64 `[at most longest]` with the token that ended it, to each prompt.

    `temperatures` `[prompts]`: 0 is greedy. `seeded` is a generator of the net's device.
    """
    writing = _Writing(net, prompts, longest)
    ending = torch.tensor(sorted(ends), device=writing.device)
    temperatures = temperatures.to(writing.device)
    answers = torch.full((len(prompts), longest), -1, device=writing.device)
    rows = torch.arange(len(prompts), device=writing.device)  # those that still write
    over = torch.zeros(len(prompts), dtype=torch.bool, device=writing.device)
    hidden = writing.read()
    for column in range(longest):
        ids = _drawn((hidden @ net.head.T).float(), temperatures[rows], seeded)
        answers[rows, column] = ids
        over[rows] |= torch.isin(ids, ending)
        going = ~over[rows]
        if column + 1 == longest or not going.any():
            break
        # To drop rows is to copy the caches: not for every one that ends.
        if int(going.sum()) < _DENSE * len(rows):
            rows, ids = rows[going], ids[going]
            writing.keep(going)
        hidden = writing.step(ids)
    answers = answers.cpu()
    ended = torch.isin(answers, ending.cpu()).int()
    # What a row wrote after its end, until it was dropped, is no part of its answer.
    kept = (answers >= 0) & (ended.cumsum(1) - ended == 0)
    return [answer[keep] for answer, keep in zip(answers, kept, strict=True)]


def _drawn(logits: Tensor, temperatures: Tensor, seeded: torch.Generator) -> Tensor:
    # One uniform number a row: torch's own multinomial draws as many as there are tokens.
    weights = torch.softmax(logits / temperatures.clamp_min(1e-6)[:, None], -1)
    reached = weights.cumsum_(-1)
    at = torch.rand(len(logits), 1, generator=seeded, device=logits.device) * reached[:, -1:]
    drawn = torch.searchsorted(reached, at, right=True).clamp_max_(logits.shape[1] - 1).squeeze(1)
    return torch.where(temperatures > 0, drawn, logits.argmax(-1))


_DENSE = 0.8  # of a batch's rows still write, or the others are dropped


class _Writing:
    """The state of a batch: prompts padded on the left, so that all write in one column."""

    def __init__(self, net: Net, prompts: Sequence[Tensor], longest: int) -> None:
        self.net, self.device = net, net.embedding.device
        rows, self.at = len(prompts), max(len(prompt) for prompt in prompts)
        width = self.at + longest
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self._ids = torch.zeros(rows, self.at, dtype=torch.int64)
        for row, prompt in zip(self._ids, prompts, strict=True):
            row[self.at - len(prompt) :] = prompt
        columns = torch.arange(width, device=self.device)
        self._before = (self.at - lengths)[:, None]  # columns of padding
        self._shown = columns >= self._before  # [rows, width]
        shape = (rows, net.config.kv_heads, width, net.config.head_dim)
        like = net.embedding
        self._caches = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in net.layers]

    def read(self) -> Tensor:
        """Hidden states `[rows, hidden]` behind the prompts."""
        columns = torch.arange(self.at, device=self.device)
        positions = (columns - self._before).clamp_min(0)
        causal = columns[:, None] >= columns
        # Padding sees itself, since a row that saw nothing would be NaN.
        mask = (causal & self._shown[:, None, : self.at]) | torch.eye(
            self.at, dtype=torch.bool, device=self.device
        )
        return self._run(self._ids.to(self.device), positions, 0, mask[:, None])

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, bool `[rows]`."""
        self._before, self._shown = self._before[rows], self._shown[rows]
        self._caches = [(keys[rows], values[rows]) for keys, values in self._caches]

    def step(self, ids: Tensor) -> Tensor:
        """Hidden states `[rows, hidden]` behind one more token, `[rows]`."""
        positions = self.at - self._before
        mask = self._shown[:, None, None, : self.at + 1]
        hidden = self._run(ids[:, None], positions, self.at, mask)
        self.at += 1
        return hidden

    def _run(self, ids: Tensor, positions: Tensor, at: int, mask: Tensor) -> Tensor:
        turns = self.net.turns(positions)
        rows = F.embedding(ids, self.net.embedding)
        for layer, cache in zip(self.net.layers, self._caches, strict=True):
            rows = layer(rows, turns, cache, at, mask)
        return self.net.normed(rows[:, -1])
