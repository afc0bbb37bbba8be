"""A vLLM of straw: as much of 0.32 as the speculating worker touches."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import app.vllm_plugins  # noqa: F401  so that it is there to be cleared

VOCABULARY = 8
OURS = (
    "app.vllm_plugins.sampling_fault",
    "app.vllm_plugins.seed_fault",
    "app.vllm_plugins.draft_proposer",
)


class Worker:
    """Makes a runner."""

    def __init__(self, config: Any, runner: Any) -> None:
        self.vllm_config = config
        self._runner = runner

    def init_device(self) -> None:
        self.device = torch.device("cpu")
        self.model_runner = self._runner

    def take_draft_token_ids(self) -> Any:
        runner = self.model_runner
        if not runner._draft_token_req_ids:
            return None
        guesses = runner._draft_token_ids
        guesses = guesses.tolist() if torch.is_tensor(guesses) else guesses
        return DraftTokenIds(runner._draft_token_req_ids, guesses)


class ModelRunner:
    """As much of it as is replaced where requests have seeds."""

    def sample_tokens(self, grammar: Any) -> Any:
        """Draws nothing."""


@dataclass
class DraftTokenIds:
    req_ids: list[str]
    draft_token_ids: list[list[int]]


class Proposer:
    """vLLM's loop over guesses, as far as it calls what may be overridden."""

    def __init__(self, config: Any, device: Any, runner: Any = None) -> None:
        self.device = device
        self.model = SimpleNamespace(compute_logits=lambda states: states.clone())
        self.states: list[torch.Tensor] = []  # of each pass: the logits that follow
        self.passes = 0
        self._last_draft_probs: torch.Tensor | None = None

    def propose(self, num_speculative_tokens: int, **keys: Any) -> torch.Tensor:
        self._last_draft_probs = None
        guesses = []
        for step in range(max(num_speculative_tokens, 1)):
            self.passes += 1
            if num_speculative_tokens:
                found, _ = self._sample_draft_tokens(self.states[step], keys["sampling_metadata"])
                guesses.append(found)
        return torch.stack(guesses, 1) if guesses else torch.empty(0)

    def _sample_draft_tokens(self, states: torch.Tensor, sampling: Any) -> Any:
        return self._sample_from_logits(self.model.compute_logits(states), sampling)

    def _sample_from_logits(self, logits: torch.Tensor, sampling: Any) -> Any:
        return logits.argmax(-1), None if sampling.all_greedy else logits.softmax(-1)


class RejectionSampler(torch.nn.Module):
    """Remembers by which draft probabilities and logits it verified."""

    def __init__(self, sampler: Any, config: Any = None, device: Any = None) -> None:
        super().__init__()
        self.sampler = sampler
        self.seen: list[Any] = []

    def forward(self, metadata: Any, draft_probs: Any, logits: Any, sampling: Any) -> Any:
        guessed = torch.ones(len(logits), dtype=torch.bool)
        guessed[metadata.bonus_logits_indices] = False
        changed = self.apply_logits_processors(logits[guessed], sampling, metadata)
        self.seen.append((draft_probs, changed))
        return "verified"

    def apply_logits_processors(self, logits: Any, sampling: Any, metadata: Any) -> Any:
        return logits


class Kernels:
    """A sampling that is wrong until its kernel is replaced, if that helps."""

    def __init__(self, right: bool, mends: bool) -> None:
        self.expand = _expand if right else _lose
        self.mends = mends
        self.replaced: list[str] = []

    def register(self, overrides: dict[str, Any]) -> None:
        self.replaced += overrides
        if self.mends:
            (self.expand,) = overrides.values()

    def constrain(self, logits: torch.Tensor, ends: torch.Tensor, sampling: Any) -> torch.Tensor:
        def spread(values: torch.Tensor, start: float = 0, end: float = 0) -> torch.Tensor:
            out = torch.full((len(logits),), 7, dtype=values.dtype)
            self.expand(out, values, ends, start, end)
            return out

        logits = logits / spread(sampling.temperature, 0, 1).unsqueeze(1)
        for row, (k, p) in enumerate(
            zip(spread(sampling.top_k), spread(sampling.top_p), strict=True)
        ):
            order = logits[row].argsort(descending=True)
            mass = logits[row][order].softmax(-1).cumsum(0)
            keep = max(1, min(int(k), int((mass < float(p)).sum()) + 1))
            logits[row, order[keep:]] = -torch.inf
        return logits

    def reject(
        self, guesses: Any, counts: Any, most: int, ends: Any, draft: Any, target: Any, bonus: Any,
        sampling: Any,
    ) -> torch.Tensor:  # fmt: skip
        out, start = torch.full((len(counts), most + 1), -1), 0
        probs = target.softmax(-1)
        for row, count in enumerate(counts):
            for place in range(count):
                index = start + place
                guess = int(guesses[index])
                if probs[index, guess] < draft[index, guess]:
                    out[row, place] = int((probs[index] - draft[index]).argmax())
                    break
                out[row, place] = guess
            else:
                out[row, count] = bonus[row, 0]
            start += count
        return out


def _expand(output: Any, values: Any, ends: Any, start: float, end: float) -> None:
    counts = torch.diff(ends, prepend=ends.new_zeros(1)).long()
    output.copy_(torch.where(values == start, end, values).repeat_interleave(counts))


def _lose(output: Any, values: Any, ends: Any, start: float, end: float) -> None:
    """The fault: what is computed is dropped."""


def load(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels | None = None, version: str = "0.32.0"
) -> Any:
    """Our worker's module, imported into such a vLLM."""
    kernels = kernels or Kernels(right=True, mends=True)
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": version},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: True)},
        "vllm.triton_utils.dispatcher": {"register_kernels": kernels.register},
        "vllm.v1.outputs": {"DraftTokenIds": DraftTokenIds},
        "vllm.v1.sample.rejection_sampler": {
            "RejectionSampler": RejectionSampler,
            "apply_sampling_constraints": kernels.constrain,
            "rejection_sample": kernels.reject,
        },
        "vllm.v1.spec_decode.draft_model": {"DraftModelProposer": Proposer},
        "vllm.v1.worker.cpu_worker": {"CPUWorker": Worker},
        "vllm.v1.worker.cpu_model_runner": {"CPUModelRunner": type("R", (ModelRunner,), {})},
    }
    for name, content in contents.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            package = ".".join(parts[:end])
            if package not in sys.modules or end == len(parts):
                monkeypatch.setitem(sys.modules, package, ModuleType(package))
        sys.modules[name].__dict__.update(content)
        if len(parts) > 1:
            setattr(sys.modules[name.rpartition(".")[0]], parts[-1], sys.modules[name])
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
        package, _, own = name.rpartition(".")
        monkeypatch.delattr(sys.modules[package], own, raising=False)
    return import_module(OURS[-1])


def runner(
    asks: list[dict[str, Any] | None], unread: tuple[int, ...] = (), hidden: int = VOCABULARY
) -> Any:
    """A model runner with a request a row."""
    names = [f"r{row}" for row in range(len(asks))]
    mask = np.zeros(len(asks) + 1, dtype=bool)
    mask[list(unread)] = True
    draft = SimpleNamespace(get_hidden_size=lambda: hidden)
    device = torch.device("cpu")
    return SimpleNamespace(
        device=device,
        drafter=Proposer(None, device),
        rejection_sampler=None,
        sampler=plain_sampler,
        speculative_config=SimpleNamespace(num_speculative_tokens=4, draft_model_config=draft),
        input_batch=SimpleNamespace(req_ids=names, num_reqs=len(names)),
        requests={
            name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args=given))
            for name, given in zip(names, asks, strict=True)
        },
        discard_request_mask=SimpleNamespace(np=mask),
    )


def plain_sampler(logits: torch.Tensor, sampling_metadata: Any) -> Any:
    """The likeliest token of each row, and where logprobs are asked for some."""
    likeliest = logits.argmax(-1, keepdim=True)
    told = getattr(sampling_metadata, "told", None)
    return SimpleNamespace(sampled_token_ids=likeliest, logprobs_tensors=told)


def config(**changes: Any) -> Any:
    """vLLM's configuration, for which our drafting may take the place of its own."""
    fields: dict[str, Any] = {
        "method": "draft_model", "use_heterogeneous_vocab": False, "parallel_drafting": False,
        "rejection_sample_method": "standard", "async_scheduling": False, "world_size": 1,
        "data_parallel_size": 1,
    }  # fmt: skip
    fields |= changes
    return SimpleNamespace(
        speculative_config=SimpleNamespace(**fields) if fields["method"] else None,
        scheduler_config=SimpleNamespace(async_scheduling=fields["async_scheduling"]),
        parallel_config=SimpleNamespace(
            world_size=fields["world_size"], data_parallel_size=fields["data_parallel_size"]
        ),
    )


def sampling(*temperatures: float, told: Any = None, seeded: tuple[int, ...] = ()) -> Any:
    """A batch's sampling metadata; `seeded` rows have generators of their own."""
    return SimpleNamespace(
        all_greedy=not any(temperatures),
        all_random=all(temperatures),
        temperature=torch.tensor(temperatures),
        told=told,
        generators={row: torch.Generator() for row in seeded},
    )
