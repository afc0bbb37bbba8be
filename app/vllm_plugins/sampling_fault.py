"""vLLM 0.32's sampling of guesses on a CPU: seen to be right, or mended, or known to be wrong.

Without Triton for the CPU the kernel that spreads a request's temperature, top_k and top_p over
its guesses writes its result into a copy that is dropped, unless it is of int64: guesses are then
accepted by whatever the memory held. At temperature 0 nothing reads it.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import torch
from vllm.triton_utils.dispatcher import register_kernels
from vllm.v1.sample import rejection_sampler

KERNEL = "vllm.v1.sample.rejection_sampler.expand_kernel"

logger = logging.getLogger("vllm.farthing")


def mended(device: torch.device) -> bool:
    """Whether guesses are sampled as they should be, once the kernel is replaced if need be."""
    try:
        if not is_right(device):
            register_kernels({KERNEL: expand})
        return is_right(device)
    except Exception:
        logger.exception("farthing: vLLM's sampling of guesses is not what we know")
        return False


def expand(
    output: torch.Tensor,
    input_val: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: int | None = None,
) -> None:
    """Spread values [requests] over `output` [guesses], `replace_from` becoming `replace_to`.

    `cu_num_tokens` [requests]: numbers of guesses, summed up.
    """
    ends = cu_num_tokens.long()
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    values = torch.where(input_val == replace_from, replace_to, input_val)
    output.copy_(values.repeat_interleave(counts)[: len(output)])


def is_right(device: torch.device) -> bool:
    """Whether vLLM's own functions do on a few small tensors what they are for."""
    try:
        return _spreads(device) and _accepts(device)
    except (RuntimeError, IndexError):  # top_k by what the memory held
        return False


def _sampling(device: torch.device, temperature: list[float], **more: Any) -> Any:
    fields = {"all_greedy": False, "all_random": 0.0 not in temperature, "generators": {}}
    spread = {"temperature": torch.tensor(temperature, device=device), "top_k": None, "top_p": None}
    return SimpleNamespace(**fields, **{**spread, **more})


def _spreads(device: torch.device) -> bool:
    """Temperatures, top_k and top_p reach the guesses they are for."""
    ends = torch.tensor([2, 2, 3, 5], dtype=torch.int32, device=device)
    rows = [0, 0, 2, 3, 3]
    logits = torch.arange(40.0, device=device).reshape(5, 8).sin()
    sampling = _sampling(
        device,
        [0.5, 9.0, 0.0, 2.0],
        top_k=torch.tensor([8, 1, 8, 3], dtype=torch.int32, device=device),
        top_p=torch.tensor([1.0, 0.1, 1.0, 1.0], device=device),
    )
    scales = torch.tensor([0.5, 9.0, 1.0, 2.0], device=device)[rows]
    wanted = logits / scales.unsqueeze(1)
    least = wanted.topk(3, dim=-1).values[:, -1:]
    few = torch.tensor([False, False, False, True, True], device=device).unsqueeze(1)
    wanted = wanted.masked_fill(few & (wanted < least), -torch.inf)
    for _ in range(3):  # memory that was never written may hold what is wanted once
        found = rejection_sampler.apply_sampling_constraints(logits.clone(), ends, sampling)
        if not torch.allclose(found, wanted, atol=1e-5):
            return False
    return True


def _accepts(device: torch.device) -> bool:
    """Guesses drawn from the model's own distribution all stay; those it never makes, none."""
    ends = torch.tensor([3, 6], dtype=torch.int32, device=device)
    logits = torch.full((6, 8), -torch.inf, device=device)
    logits[:, :4] = torch.arange(24.0, device=device).reshape(6, 4).cos()
    draft = logits.softmax(-1, dtype=torch.float32)
    draft[3:] = torch.tensor([0.0] * 4 + [0.25] * 4, device=device)
    guesses = torch.tensor([0, 1, 2, 4, 5, 6], dtype=torch.int32, device=device)
    bonus = torch.tensor([[3], [3]], dtype=torch.int32, device=device)
    found = rejection_sampler.rejection_sample(
        guesses, [3, 3], 3, ends, draft, logits, bonus, _sampling(device, [1.0, 1.0])
    ).tolist()
    return bool(found[0] == [0, 1, 2, 3] and 0 <= found[1][0] < 4 and found[1][1:] == [-1] * 3)
