"""How far a draft's next token is from its target's: four divergences, and the acceptance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Kind = Literal["forward_kl", "reverse_kl", "jsd", "tvd"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Divergence:
    """D(p || q) of a target's p and a draft's q (DistillSpec, section 3), in nats.

    `beta` is of the generalised Jensen-Shannon divergence alone:
    `beta * KL(p || m) + (1 - beta) * KL(q || m)` with `m = beta * p + (1 - beta) * q`.
    """

    kind: Kind = "forward_kl"
    beta: float = 0.5

    def __call__(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row `[n]`, and its gradient in the draft's logits `[n, vocabulary]`.

        Both sides are normalised log-probabilities `[n, vocabulary]`.
        """
        q = log_q.exp()
        if self.kind == "forward_kl":
            p = log_p.exp()
            return _mean(p, log_p - log_q), q - p
        if self.kind == "reverse_kl":
            slope = log_q - log_p
            value = _mean(q, slope)
        elif self.kind == "tvd":
            gap = log_p.exp() - q
            value, slope = gap.abs().sum(-1) / 2, gap.sign() / -2
        else:
            value, slope = self._jsd(log_p, log_q, q)
        return value, q * (slope - _mean(q, slope)[:, None])

    def _jsd(self, log_p: Tensor, log_q: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.beta
        p = log_p.exp()
        log_m = (beta * p + (1 - beta) * q).clamp_min(torch.finfo(torch.float32).tiny).log()
        slope = (1 - beta) * (log_q - log_m)
        return beta * _mean(p, log_p - log_m) + _mean(q, slope), slope


def _mean(weights: Tensor, values: Tensor) -> Tensor:
    return (weights * values).sum(-1)


@dataclass(frozen=True)
class Agreement:
    """What speculation lives on, of each position `[n]`."""

    acceptance: Tensor  # sum of min(p, q): how likely a token drawn from q is accepted
    same: Tensor  # whether the likeliest tokens are the same: greedy acceptance


def agreement(log_p: Tensor, log_q: Tensor) -> Agreement:
    """Of rows `[n, vocabulary]` of log-probabilities."""
    accepted = torch.minimum(log_p, log_q).exp().sum(-1)
    return Agreement(accepted, log_p.argmax(-1) == log_q.argmax(-1))


@dataclass(frozen=True)
class Columns:
    """Tokens that stand for a whole vocabulary, as in a sampled softmax: each for so many.

    Sums over the vocabulary are estimated without bias, and with a logit raised by `shares`
    they are those of a smaller vocabulary.
    """

    ids: Tensor  # int64 [c]
    shares: Tensor  # fp32 [c], logarithms of how many tokens each of them stands for

    @classmethod
    def drawn(cls, sure: Tensor, others: int, vocabulary: int, seeded: torch.Generator) -> Columns:
        """The tokens `sure`, and of the rest so many, each as likely; all on the CPU."""
        sure, rest = torch.unique(sure), torch.ones(vocabulary, dtype=torch.bool)
        rest[sure] = False
        left = torch.nonzero(rest).flatten()
        some = left[torch.randperm(len(left), generator=seeded)[:others]]
        each = torch.full((len(some),), len(left) / max(1, len(some)))
        shares = torch.cat([torch.zeros(len(sure)), each.log()])
        return cls(torch.cat([sure, some]), shares)

    def to(self, device: torch.device) -> Columns:
        return Columns(self.ids.to(device), self.shares.to(device))


class _HeadLoss(torch.autograd.Function):
    """Computes gradients on the way forward, in pieces: whole logits would not fit."""

    @staticmethod
    def forward(
        ctx: Any,
        draft: Tensor,
        target: Tensor,
        heads: tuple[Tensor, Tensor],
        divergence: Divergence,
        shares: Tensor | float,
        rows: int,
    ) -> Tensor:
        values, gradient = [], torch.empty_like(draft)
        for at in range(0, len(draft), rows):
            piece = slice(at, at + rows)
            log_q = log_probabilities(draft[piece], heads[0], shares)
            log_p = log_probabilities(target[piece], heads[1], shares)
            value, slope = divergence(log_p, log_q)
            values.append(value)
            gradient[piece] = slope.to(heads[0].dtype) @ heads[0]
        ctx.save_for_backward(gradient)
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0][:, None].to(gradient.dtype), None, None, None, None, None


def head_loss(
    draft: Tensor,
    target: Tensor,
    heads: tuple[Tensor, Tensor],
    divergence: Divergence,
    columns: Columns | None = None,
    rows: int = 128,
) -> Tensor:
    """The divergence of each position, `[n]`, from the hidden states `[n, hidden]` of both.

    `heads` are the draft's and the target's, `[vocabulary, hidden]`, neither of them trained;
    with `columns` an estimate from these tokens. `rows` positions at a time have their logits
    in memory.
    """
    shares: Tensor | float = 0.0
    if columns is not None:
        shares, same = columns.shares, heads[0] is heads[1]
        ours = heads[0][columns.ids]
        heads = ours, ours if same else heads[1][columns.ids]
    apply: Callable[..., Tensor] = _HeadLoss.apply
    return apply(draft, target, heads, divergence, shares, rows)


def log_probabilities(hidden: Tensor, head: Tensor, shares: Tensor | float = 0.0) -> Tensor:
    """fp32 `[n, vocabulary]` of hidden states `[n, hidden]`; `shares` as those of `Columns`."""
    return torch.log_softmax((hidden.to(head.dtype) @ head.T).float() + shares, -1)
