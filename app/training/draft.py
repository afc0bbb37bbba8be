"""DistillSpec: a draft learns its target's next-token distributions, on texts of its own too."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from app.training.divergence import Columns, head_loss
from app.training.inputs import Texts
from app.training.net import Net
from app.training.recipe import Recipe
from app.training.saving import replace_file
from app.training.text import write


class Known(Protocol):
    """The target's hidden states of texts, where somebody has computed them already."""

    def __call__(self, index: int) -> Tensor | None:
        """Those of the text's positions, `[len(text), hidden]`, in the target's dtype."""
        ...


def nothing_known(index: int) -> Tensor | None:
    """No text's."""
    return None


@dataclass(frozen=True)
class Row:
    """A text of a step."""

    ids: Tensor  # int64
    first: int  # from which token on it is learned; those before are only read
    answer: int  # where the answer begins
    hidden: Tensor | None = None  # the target's, of every position


@dataclass(frozen=True)
class Material:
    """What is read: prompts for the draft to answer, and texts that the target or others wrote."""

    prompts: Texts
    texts: Texts | None  # None: the draft alone writes
    ends: frozenset[int]  # tokens that end an answer
    opening: int = 1  # tokens that all prompts begin with: there is nothing to learn from them
    known: Known = nothing_known  # of `texts`
    common: Tensor | None = None  # int64: tokens that every step compares, where not all


class Run:
    """A training of `draft` towards `target` (DistillSpec, 2310.08461, algorithm 1).

    Everything drawn at a step is a function of the seed and the step's number, so that a run
    that goes on from a saved state does what it would have done.
    """

    def __init__(self, draft: Net, target: Net, material: Material, recipe: Recipe) -> None:
        """Both nets on one device; of the draft, the layers are trained, fp32."""
        self.draft, self.target = draft, target
        self.step, self.tokens = 0, 0
        self._material, self._recipe = material, recipe
        self._device = target.embedding.device
        matrices = [p for p in draft.parameters() if p.ndim == 2]
        others = [p for p in draft.parameters() if p.ndim != 2]
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))

    @property
    def done(self) -> bool:
        return self.tokens >= self._recipe.tokens

    def advance(self) -> dict[str, float]:
        """One step of the optimizers; what a log says of it."""
        recipe = self._recipe
        seeded = torch.Generator().manual_seed(_mixed(recipe.seed, self.step, 0))
        rows = self._rows(seeded)
        columns = self._columns(rows, seeded)
        rate = _rate(self.tokens / recipe.tokens, recipe)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        count = sum(len(row.ids) - row.first for row in rows)
        loss = sum(self._learn(piece, count, columns) for piece in pieces(rows, recipe.piece))
        norm = float(torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 1.0))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += sum(len(row.ids) - row.answer for row in rows)
        said = {"step": self.step, "tokens": self.tokens, "loss": loss}
        return said | {"gradient": norm, "learning_rate": rate}

    def _rows(self, seeded: torch.Generator) -> list[Row]:
        """The texts of this step."""
        recipe, material = self._recipe, self._material
        own = {"draft": recipe.batch, "mixed": recipe.batch // 2}.get(recipe.source, 0)
        rows: list[Row] = []
        if own:
            prompts = [material.prompts.prompt(i) for i in material.prompts.draw(own, seeded)]
            drawing = torch.Generator(self._device).manual_seed(_mixed(recipe.seed, self.step, 1))
            warmth = torch.full((own,), recipe.temperature)
            answers = write(
                self.draft.frozen(), prompts, recipe.answer, warmth, material.ends, drawing
            )
            rows += [self._row(torch.cat(b), len(b[0])) for b in zip(prompts, answers, strict=True)]
        if own < recipe.batch:
            assert material.texts is not None
            for index in material.texts.draw(recipe.batch - own, seeded):
                start = int(material.texts.prompts[index])
                ids = material.texts.text(index)[: start + recipe.answer]
                rows.append(self._row(ids, start, material.known(index)))
        return rows

    def _row(self, ids: Tensor, start: int, hidden: Tensor | None = None) -> Row:
        return Row(ids, min(start, self._material.opening), start, hidden)

    def _columns(self, rows: Sequence[Row], seeded: torch.Generator) -> Columns | None:
        """Half of them the common ones, with those of these texts; half drawn from the others."""
        common, vocabulary = self._material.common, len(self.draft.head)
        if common is None:
            return None
        sure = torch.cat([common, *(row.ids for row in rows)])
        others = self._recipe.columns - len(common)
        return Columns.drawn(sure, others, vocabulary, seeded).to(self._device)

    def _learn(self, piece: Sequence[Row], count: int, columns: Columns | None) -> float:
        ids, taught = padded(piece)
        ids, taught = ids.to(self._device), taught.to(self._device)
        theirs = targets(self.target, piece, ids)[taught]
        ours = self.draft(ids)[taught]
        heads = self.draft.head, self.target.head
        loss = head_loss(ours, theirs, heads, self._recipe.minimised, columns).sum() / count
        torch.autograd.backward(loss)
        return float(loss.detach())

    def save(self, path: Path, said: str) -> None:
        """All that `restore` needs, in one safetensors file; `said` tells whose it is."""
        tensors = {f"draft.{name}": p.detach() for name, p in self.draft.named_parameters()}
        for name, parameter in self.draft.named_parameters():
            for key, value in self._state(parameter).items():
                tensors[f"optimizer.{name}.{key}"] = value
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        metadata = {"said": said, "at": json.dumps([self.step, self.tokens])}
        replace_file(path, save(tensors, metadata))

    def restore(self, path: Path, said: str) -> None:
        """Go on where `save` was called. Raises ValueError where that was another run."""
        check_state(path, said)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                for name, parameter in self.draft.named_parameters():
                    parameter.data.copy_(file.get_tensor(f"draft.{name}"))
                    ahead = f"optimizer.{name}."
                    for key in file.keys():  # noqa: SIM118  no dict
                        if key.startswith(ahead):
                            tensor = file.get_tensor(key)
                            # The count of steps, a number, stays on the CPU.
                            moved = tensor.to(self._device) if tensor.ndim else tensor
                            self._state(parameter)[key.removeprefix(ahead)] = moved
                self.step, self.tokens = json.loads(metadata["at"])
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path}: is no state of such a run: {error}") from error

    def _state(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._optimizer.state[parameter]
        return found


def check_state(path: Path, said: str) -> None:
    """Raises ValueError where a run that is not this one has left this state."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: is no state of such a run: {error}") from error
    if metadata.get("said") != said:
        raise ValueError(f"{path}: was left by a run with other options or inputs")


def _mixed(seed: int, step: int, use: int) -> int:
    return (seed * 1_000_003 + step) * 2 + use


def _rate(share: float, recipe: Recipe) -> float:
    """Of the learning rate at this share of the tokens: linear warm-up, then a cosine to 5 %."""
    if share < recipe.warmup:
        return recipe.learning_rate * max(share / recipe.warmup, 0.05)
    done = (share - recipe.warmup) / (1 - recipe.warmup)
    return recipe.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


_ALIKE = 1.5  # how much longer than the shortest a row of the same piece may be


def pieces(rows: Sequence[Row], most: int) -> Iterator[list[Row]]:
    """Rows of like length together, at most so many tokens with the padding."""
    piece: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        longer = piece and len(row.ids) > _ALIKE * len(piece[0].ids)
        if longer or (piece and (len(piece) + 1) * len(row.ids) > most):
            yield piece
            piece = []
        piece.append(row)
    if piece:
        yield piece


@torch.no_grad()
def targets(target: Net, piece: Sequence[Row], ids: Tensor) -> Tensor:
    """The target's hidden states, of the piece's `ids`, computed where nobody has yet."""
    hidden = target.head.new_zeros(*ids.shape, target.head.shape[1])
    new = [at for at, row in enumerate(piece) if row.hidden is None]
    if new:
        hidden[new] = target(ids[new])
    for at, row in enumerate(piece):
        if row.hidden is not None:
            hidden[at, : len(row.ids)] = row.hidden[: len(row.ids)].to(ids.device)
    return hidden


def padded(piece: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Ids `[rows, time]`, and which positions' next tokens are learned, bool of that shape."""
    width = max(len(row.ids) for row in piece)
    ids = torch.zeros(len(piece), width, dtype=torch.int64)
    taught = torch.zeros(len(piece), width, dtype=torch.bool)
    for at, row in enumerate(piece):
        ids[at, : len(row.ids)] = row.ids
        taught[at, row.first - 1 : len(row.ids) - 1] = True
    return ids, taught
