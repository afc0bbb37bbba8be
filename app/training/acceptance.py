"""The training of an acceptance head, as SpecDec++ says: weighted soft cross-entropy, AdamW."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from app.nets.acceptance_head import About, AcceptanceHead, Sees
from app.training.acceptance_samples import Samples
from app.training.draft import check_state
from app.training.saving import replace_file

_WARMEST = 2.0  # log of the highest temperature that is fitted: a head that tells nothing
Made = Literal["mixed", "rounds"]
MADE: tuple[Made, ...] = get_args(Made)
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("texts", "answer", "epochs", "batch", "every", "longest"), (1, math.inf)),
    "depth": (0, 16),
    "mixing": (0.0, 1.0),
    "rejection_weight": (0.01, 100.0),
    "learning_rate": (1e-9, 1.0),
    "warmup": (0.0, 0.99),
    "weight_decay": (0.0, 1.0),
    "cost": (0.0, 10.0),
}


@dataclass(frozen=True)
class HeadRecipe:
    """All that decides what comes out, beside the texts and the machine's arithmetic."""

    depth: int = 3
    tied: bool = False
    extras: bool = True
    sees: Sees = "before"
    made: Made = "mixed"  # SpecDec++'s mixed texts, or drafts as the engine makes them
    mixing: float = 0.15  # share of the target's own tokens in a mixed text
    rejection_weight: float = 6.0
    texts: int = 800  # of the target's, that are read
    answer: int = 192  # tokens of the longest answer
    epochs: int = 3
    batch: int = 512  # samples a step
    learning_rate: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.01
    every: int = 100  # steps between two saved states
    longest: int = 8  # guesses of a held-out draft
    cost: float = 0.2  # time of a guess by that of the target's pass, for the default level
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the option."""
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                allowed = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)}")
        for name, known in (("sees", get_args(Sees)), ("made", MADE)):
            if getattr(self, name) not in known:
                among = ", ".join(known)
                raise ValueError(f"{name} must be one of {among}, not {getattr(self, name)!r}")
        if self.made == "mixed" and self.sees == "after" and self.mixing == 1:
            raise ValueError("mixing must be below 1 where sees is after: no guess is ever read")

    def about(self, hidden: int, draft: str, target: str) -> About:
        return About(
            hidden=hidden,
            depth=self.depth,
            tied=self.tied,
            extras=self.extras,
            sees=self.sees,
            draft=draft,
            target=target,
            rejection_weight=self.rejection_weight,
            mixing=self.mixing if self.made == "mixed" else 1.0,
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeadRecipe:
        """What `to_dict` gave, by way of JSON. Raises ValueError."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"is no recipe of an acceptance head: {error}") from error


class HeadRun:
    """A training in steps; one that goes on from a saved state does what it would have done."""

    def __init__(self, head: AcceptanceHead, samples: Samples, recipe: HeadRecipe) -> None:
        """`head` is trained where it is; the samples stay on the CPU."""
        self.head, self.step = head, 0
        self._samples, self._recipe = samples, recipe
        self._states = samples.before if recipe.sees == "before" else samples.after
        self._device = head.output.weight.device
        self._optimizer = torch.optim.AdamW(
            head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self._order: tuple[int, Tensor] = (-1, torch.zeros(0, dtype=torch.int64))

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self._recipe.epochs * self._in_epoch

    @property
    def _in_epoch(self) -> int:
        return -(-len(self._samples) // self._recipe.batch)

    def advance(self) -> float:
        """One step; its loss."""
        recipe = self._recipe
        rate = recipe.learning_rate * _share(self.step / self.steps, recipe.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        chosen = self._chosen()
        states = self._states[chosen].float().to(self._device)
        extras = self._samples.extras[chosen].to(self._device)
        logits = self.head(states, extras)
        kept = self._samples.accepted[chosen].to(self._device)
        weight = self._samples.reached[chosen].to(self._device)
        loss = weighted_loss(logits, kept, weight, recipe.rejection_weight)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def _chosen(self) -> Tensor:
        epoch, at = divmod(self.step, self._in_epoch)
        if self._order[0] != epoch:
            seeded = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + epoch)
            self._order = (epoch, torch.randperm(len(self._samples), generator=seeded))
        return self._order[1][at * self._recipe.batch : (at + 1) * self._recipe.batch]

    def save(self, path: Path, said: str) -> None:
        """All that `restore` needs; `said` tells whose it is. Raises OSError."""
        tensors = {}
        for name, parameter in self.head.named_parameters():
            tensors[f"head.{name}"] = parameter.detach()
            for key, value in self._optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        replace_file(path, save(tensors, {"said": said, "at": json.dumps(self.step)}))

    def restore(self, path: Path, said: str) -> None:
        """Go on where `save` was called. Raises ValueError where that was another run."""
        check_state(path, said)
        try:
            with safe_open(path, framework="pt") as file:
                for name, parameter in self.head.named_parameters():
                    parameter.data.copy_(file.get_tensor(f"head.{name}"))
                    state = self._optimizer.state[parameter]
                    for key in ("step", "exp_avg", "exp_avg_sq"):
                        tensor = file.get_tensor(f"optimizer.{name}.{key}")
                        # The count of steps, a number, stays on the CPU.
                        state[key] = tensor.to(self._device) if tensor.ndim else tensor
                self.step = json.loads(file.metadata()["at"])
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path}: is no state of such a run: {error}") from error


def weighted_loss(logits: Tensor, kept: Tensor, weight: Tensor, rejection_weight: float) -> Tensor:
    """SpecDec++'s: -[p log a + w (1 - p) log(1 - a)], by the sum of all weights.

    `kept` is p; `weight` is how much each of the samples `[n]` counts by itself.
    """
    good, bad = kept * weight, rejection_weight * (1 - kept) * weight
    each = good * F.softplus(-logits) + bad * F.softplus(logits)
    return each.sum() / (good + bad).sum().clamp_min(1e-6)


@torch.no_grad()
def logits_of(head: AcceptanceHead, samples: Samples) -> Tensor:
    """The raw output for each, fp32 on the CPU."""
    states = samples.before if head.sees == "before" else samples.after
    device, found = head.output.weight.device, []
    for at in range(0, len(samples), 4096):
        rows = states[at : at + 4096].float().to(device)
        found.append(head(rows, samples.extras[at : at + 4096].to(device)).cpu())
    return torch.cat(found)


def calibrated(head: AcceptanceHead, samples: Samples) -> About:
    """The head's description with the temperature and offset at which the corrected probabilities
    of these samples are likeliest (Platt's scaling).

    They must be of texts that neither head nor draft has learned: what a draft was trained on it
    guesses better than what it will be asked.
    """
    logits = logits_of(head, samples) + math.log(head.about.rejection_weight)
    fitted = torch.zeros(2, requires_grad=True)  # log of the temperature, offset
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        [fitted], max_iter=100, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimizer.zero_grad()
        scaled = logits * torch.exp(-fitted[0].clamp(-_WARMEST, _WARMEST)) + fitted[1]
        found = weighted_loss(scaled, samples.accepted, samples.reached, 1.0)
        torch.autograd.backward(found)
        return float(found.detach())

    optimizer.step(loss)
    log_temperature, offset = fitted.detach().tolist()
    temperature = math.exp(min(max(log_temperature, -_WARMEST), _WARMEST))
    return replace(head.about, temperature=round(temperature, 4), offset=round(offset, 4))


def _share(done: float, warmup: float) -> float:
    """Of the learning rate: linear warm-up, then a cosine to 0."""
    if done < warmup:
        return max(done / warmup, 0.05)
    return (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
