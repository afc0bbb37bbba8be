"""How well a draft guesses its target on texts held out: acceptance, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.estimates import Estimate, ratio
from app.training.divergence import agreement, log_probabilities
from app.training.draft import Row, padded, pieces, targets
from app.training.net import Net


@torch.inference_mode()
def guesses(
    draft: Net,
    target: Net,
    rows: Sequence[Row],
    *,
    piece: int = 4096,
    drafting: Tensor | None = None,
) -> Tensor:
    """Of each text: positions, sum of acceptances, equal likeliest tokens; float64 `[texts, 3]`.

    The short texts come first. With `drafting`, the draft has these tokens alone, and its
    probabilities sum to 1 over them.
    """
    found: list[Tensor] = []
    head = draft.head
    if drafting is not None:
        shut = torch.full((len(head),), -torch.inf, device=head.device)
        shut[drafting] = 0.0
    for some in pieces(rows, piece):
        ids, taught = padded(some)
        ids, taught = ids.to(head.device), taught.to(head.device)
        theirs, ours = targets(target, some, ids)[taught], draft(ids)[taught]
        each = []
        for at in range(0, len(ours), 128):
            log_q = log_probabilities(ours[at : at + 128], head)
            if drafting is not None:
                log_q = torch.log_softmax(log_q + shut, -1)
            log_p = log_probabilities(theirs[at : at + 128], target.head)
            here = agreement(log_p, log_q)
            ones = torch.ones_like(here.acceptance)
            each.append(torch.stack([ones, here.acceptance, here.same.float()], 1))
        owner = torch.nonzero(taught)[:, 0]
        sums = torch.zeros(len(some), 3, dtype=torch.float64, device=head.device)
        sums.index_add_(0, owner, torch.cat(each).double())
        found.append(sums.cpu())
    return torch.cat(found)


def estimate(sums: Tensor, column: int) -> Estimate:
    """The mean of a column (1 acceptance, 2 equal likeliest tokens) over all positions."""
    return ratio(sums[:, column].tolist(), sums[:, 0].tolist())
