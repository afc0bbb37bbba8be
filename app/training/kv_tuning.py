"""Tunes a KV predictor by what the base writes behind predicted prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from app.nets.kv_predictor import KVPredictor
from app.training.draft import check_state
from app.training.kv_cases import Case, behind_predicted
from app.training.kv_recipe import KVRecipe
from app.training.net import Net
from app.training.saving import replace_file


@dataclass(frozen=True)
class Losses:
    """Of one example; means over its late tokens."""

    divergence: Tensor  # of the base's distribution from the one behind the prediction, nats
    entropy: Tensor  # cross-entropy of what stands there, nats
    agreed: Tensor  # share of the tokens that are likeliest in both
    distance: Tensor | None  # L1, of KV, the mean over layers (the paper's lambda_C = 1 / layers)

    def weighted(self, recipe: KVRecipe) -> Tensor:
        total = recipe.divergence * self.divergence + recipe.entropy * self.entropy
        if self.distance is not None:
            total = total + recipe.consistency * self.distance
        return total


def losses(net: Net, predictor: KVPredictor, case: Case) -> Losses:
    """The paper's (2410.08391, section 3): cross-entropy and the distance of KV; and instead of the
    first, as in distillation, the divergence from what the base says where nothing is predicted."""
    hidden, made = behind_predicted(net, predictor, case)
    logs = torch.log_softmax((hidden @ net.head.T).float(), -1)
    with torch.no_grad():
        exact = torch.log_softmax((case.exact @ net.head.T).float(), -1)
    return Losses(
        divergence=F.kl_div(logs, exact, reduction="batchmean", log_target=True),
        entropy=F.nll_loss(logs, case.ids),
        agreed=(logs.argmax(-1) == exact.argmax(-1)).float().mean(),
        distance=None if case.true is None else (made - case.true.float()).abs().mean(),
    )


class Tuning:
    """Steps of AdamW; one that goes on from a saved state does what it would have done."""

    def __init__(
        self, net: Net, predictor: KVPredictor, cases: Sequence[Case], recipe: KVRecipe
    ) -> None:
        """`predictor` is tuned where it is."""
        self.predictor, self.step = predictor, 0
        self._net, self._cases, self._recipe = net, cases, recipe
        self._optimizer = torch.optim.AdamW(
            predictor.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )

    def advance(self) -> float:
        """One step; the loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        self._optimizer.zero_grad()
        total = 0.0
        for case in self._drawn():
            found = losses(self._net, self.predictor, case).weighted(self._recipe)
            (found / self._recipe.batch).backward()  # type: ignore[no-untyped-call]  # torch's
            total += float(found.detach()) / self._recipe.batch
        torch.nn.utils.clip_grad_norm_(self.predictor.parameters(), 1.0)
        self._optimizer.step()
        self.step += 1
        return total

    def _drawn(self) -> list[Case]:
        """This step's examples: each once before any comes again, in another order every time."""
        found = []
        for at in range(self.step * self._recipe.batch, (self.step + 1) * self._recipe.batch):
            epoch, place = divmod(at, len(self._cases))
            seeded = torch.Generator().manual_seed(self._recipe.seed * 100_003 + epoch)
            order = torch.randperm(len(self._cases), generator=seeded)
            found.append(self._cases[int(order[place])])
        return found

    def _rate(self) -> float:
        recipe, done = self._recipe, (self.step + 1) / self._recipe.steps
        if done < recipe.warmup:
            return recipe.learning_rate * done / recipe.warmup
        left = (1 - done) / (1 - recipe.warmup)
        return recipe.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (1 - left))))

    def save(self, path: Path, said: str) -> None:
        """Raises OSError."""
        tensors = {f"p.{n}": p.detach() for n, p in self.predictor.named_parameters()}
        for name, parameter in self.predictor.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = torch.as_tensor(value)
        about = {"said": said, "step": str(self.step)}
        replace_file(path, save({n: t.cpu().contiguous() for n, t in tensors.items()}, about))

    def restore(self, path: Path, said: str) -> None:
        """Raises ValueError where the state is another run's."""
        check_state(path, said)
        with safe_open(path, framework="pt") as file:
            self.step = int((file.metadata() or {})["step"])
            with torch.no_grad():
                for name, parameter in self.predictor.named_parameters():
                    parameter.copy_(file.get_tensor(f"p.{name}"))
                    self._optimizer.state[parameter] = {
                        key: file.get_tensor(f"{key}.{name}").to(parameter.device)
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }
