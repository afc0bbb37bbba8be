"""What an acceptance head learns from: a draft's guesses, its states, and what the target says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from app.training.divergence import log_probabilities
from app.training.net import Net
from app.training.saving import replace_file

_ROWS = 128  # distributions in memory at a time


@dataclass(frozen=True)
class Samples:
    """Guesses `[n]`. Of a draft of several, all are here, one behind the other."""

    before: Tensor  # bf16 [n, hidden]: the state that each was drawn from
    after: Tensor  # bf16 [n, hidden]: the state once it was fed
    extras: Tensor  # fp32 [n, 3], as `AcceptanceHead.forward` takes them
    accepted: Tensor  # fp32 [n]: how likely the target keeps it
    reached: Tensor  # fp32 [n]: how likely it keeps those before it in the same draft
    text: Tensor  # int64 [n], which text it is from

    def __len__(self) -> int:
        return len(self.text)

    def at(self, chosen: Tensor) -> Samples:
        """Those of these indices, or where this is true."""
        return Samples(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def save(self, path: Path, said: dict[str, str]) -> None:
        """Write a file that appears when it is complete. Raises OSError."""
        tensors = {f.name: getattr(self, f.name).contiguous().cpu() for f in fields(self)}
        replace_file(path, save(tensors, said))

    @classmethod
    def read(cls, path: Path, said: dict[str, str]) -> Samples | None:
        """What `save` wrote with these words; None where it is not there, or not whole."""
        try:
            with safe_open(path, framework="pt") as file:
                if file.metadata() != said:
                    return None
                return cls(*(file.get_tensor(field.name) for field in fields(cls)))
        except (OSError, SafetensorError):
            return None


@dataclass(frozen=True)
class Guesses:
    """Tokens drawn from a draft's distributions, with what the head is told of them."""

    ids: Tensor  # int64 [n]
    extras: Tensor  # fp32 [n, 3]


class Pair:
    """A draft and its target, both frozen, on one device."""

    def __init__(
        self, draft: Net, target: Net, drafting: Tensor | None, ends: frozenset[int]
    ) -> None:
        """`drafting`: ids int64 of the draft's trimmed head, where it has one."""
        self.draft, self.target, self._drafting = draft, target, drafting
        self._head = draft.head if drafting is None else draft.head[drafting]
        self._ends = torch.tensor(sorted(ends), device=draft.head.device)

    @torch.no_grad()
    def mixed(self, ids: Tensor, prompt: int, mixing: float, seeded: torch.Generator) -> Samples:
        """SpecDec++'s samples: at each position of an answer the draft draws one token, and then
        reads the text with these in the place of all but a share `mixing` of its tokens.

        Those that it reads are the samples; with a share of 1 it reads the text alone, all of its
        guesses are samples, and there is no state after them: it is that of the text's own token.
        It is done at temperature 1, and again greedily. `ids` is int64 `[length]`, of which
        `prompt` are the prompt's.
        """
        places = torch.arange(prompt, len(ids), device=ids.device)
        own, theirs = self.draft(ids[None])[0], self.target(ids[None])[0][places - 1]
        found = []
        for flag in (False, True):
            greedy = torch.full_like(places, flag, dtype=torch.bool)
            guesses = self._guesses(own[places - 1], greedy, seeded)
            accepted = self._accepted(theirs, guesses)
            # Drawn on the CPU, so that one seed is one text whatever the device.
            kept = (torch.rand(len(places), generator=seeded) < mixing).to(ids.device)
            read, chosen = own, torch.ones_like(kept)
            if mixing < 1:
                text = ids.clone()
                text[places] = torch.where(kept, ids[places], guesses.ids)
                read, chosen = self.draft(text[None])[0], ~kept
            before, after = read[places - 1][chosen], read[places][chosen]
            extras, accepted = guesses.extras[chosen], accepted[chosen]
            found.append(_samples(before, after, extras, accepted, torch.ones_like(accepted)))
        return Samples.joined(found)

    @torch.no_grad()
    def rounds(
        self, ids: Tensor, starts: Tensor, longest: int, greedy: Tensor, seeded: torch.Generator
    ) -> Samples:
        """Drafts as the engine makes them: at each of `starts`, int64 `[drafts]`, behind the text
        before it, the draft writes `longest` tokens: at temperature 1, or, where `greedy`, bool
        `[drafts]`, greedily. A draft's samples are neighbours.

        None is reached behind a guess that ends the answer.
        """
        drafts, shape = len(starts), (len(starts), longest)
        draft, target = (_Reading(net, ids, starts, longest) for net in (self.draft, self.target))
        hidden, states, found = draft.text[starts - 1], [], list[Guesses]()
        for step in range(longest):
            states.append(hidden)
            found.append(self._guesses(hidden, greedy, seeded))
            hidden = draft.read(found[-1].ids, step)
        states.append(hidden)
        guesses = Guesses(torch.cat([g.ids for g in found]), torch.cat([g.extras for g in found]))
        theirs = target.text[starts - 1]
        if longest > 1:
            theirs = torch.cat([theirs, target.read(guesses.ids[:-drafts], 0)])
        accepted = self._accepted(theirs, guesses).view(longest, drafts).T
        going = ~torch.isin(guesses.ids, self._ends).view(longest, drafts).T
        reached = torch.ones(shape, device=ids.device)
        reached[:, 1:] = (accepted * going)[:, :-1].cumprod(1)
        by_draft = torch.stack(states, 1)  # [drafts, longest + 1, hidden]
        extras = guesses.extras.view(longest, drafts, -1).transpose(0, 1)
        before, after = by_draft[:, :-1].flatten(0, 1), by_draft[:, 1:].flatten(0, 1)
        return _samples(before, after, extras.flatten(0, 1), accepted.flatten(), reached.flatten())

    def _guesses(self, hidden: Tensor, greedy: Tensor, seeded: torch.Generator) -> Guesses:
        ids, extras = [], []
        for begin in range(0, len(hidden), _ROWS):
            rows = hidden[begin : begin + _ROWS]
            log_q = log_probabilities(rows, self._head)
            q = log_q.exp()
            # One number for each row, drawn on the CPU, as in `text.write`.
            numbers = torch.rand(len(rows), 1, generator=seeded).to(q.device)
            sums = q.cumsum(-1)
            drawn = torch.searchsorted(sums, numbers * sums[:, -1:], right=True)
            drawn.clamp_max_(q.shape[1] - 1)
            flags = greedy[begin : begin + _ROWS, None]
            at = torch.where(flags, log_q.argmax(-1, keepdim=True), drawn)
            entropy = -(q * log_q).sum(-1)
            told = log_q.gather(1, at), entropy[:, None], flags.float()
            extras.append(torch.cat(told, 1))
            ids.append(at[:, 0] if self._drafting is None else self._drafting[at[:, 0]])
        return Guesses(torch.cat(ids), torch.cat(extras))

    def _accepted(self, theirs: Tensor, guesses: Guesses) -> Tensor:
        """min(1, p / q) of each guess; of greedy ones, whether the target would write it too."""
        found = []
        for begin in range(0, len(theirs), _ROWS):
            some = slice(begin, begin + _ROWS)
            log_p = log_probabilities(theirs[some], self.target.head)
            ids, extras = guesses.ids[some], guesses.extras[some]
            ratio = (log_p.gather(1, ids[:, None])[:, 0] - extras[:, 0]).exp().clamp_max(1)
            same = (log_p.argmax(-1) == ids).float()
            found.append(torch.where(extras[:, 2] > 0, same, ratio))
        return torch.cat(found)


def _samples(*tensors: Tensor) -> Samples:
    before, after, extras, accepted, reached = (tensor.cpu() for tensor in tensors)
    text = torch.zeros(len(accepted), dtype=torch.int64)
    return Samples(before.bfloat16(), after.bfloat16(), extras, accepted, reached, text)


class _Reading:
    """A net that has read a text, and reads drafts behind several places of it."""

    def __init__(self, net: Net, ids: Tensor, starts: Tensor, longest: int) -> None:
        self._net, self._starts, self._length = net, starts, len(ids)
        shape = (1, net.config.kv_heads, len(ids) + longest * len(starts), net.config.head_dim)
        like = net.embedding
        self._caches: list[Any] = [
            (like.new_zeros(shape), like.new_zeros(shape)) for _ in net.layers
        ]
        positions = torch.arange(len(ids), device=ids.device)
        self.text = self._run(ids, positions, 0, None)

    def read(self, ids: Tensor, step: int) -> Tensor:
        """Hidden states `[n, hidden]` behind each draft's token of this step, and perhaps of some
        steps more: ids `[n]`, first all those of `step`."""
        drafts = len(self._starts)
        steps = torch.arange(step, step + len(ids) // drafts, device=ids.device)
        positions = (self._starts + steps[:, None]).flatten()
        at = self._length + step * drafts
        # A draft's token sees the text before the draft, and the draft up to itself.
        text = torch.arange(self._length, device=ids.device) < self._starts[:, None]
        text = text.repeat(len(steps), 1)
        number = torch.arange(at + len(ids) - self._length, device=ids.device)
        mine = torch.arange(step * drafts, step * drafts + len(ids), device=ids.device)[:, None]
        own = (number % drafts == mine % drafts) & (number <= mine)
        return self._run(ids, positions, at, torch.cat([text, own], 1)[None, None])

    def _run(self, ids: Tensor, positions: Tensor, at: int, mask: Tensor | None) -> Tensor:
        turns = self._net.turns(positions[None])
        rows = F.embedding(ids[None], self._net.embedding)
        for layer, cache in zip(self._net.layers, self._caches, strict=True):
            rows = layer(rows, turns, cache, at, mask)
        return self._net.normed(rows)[0]
