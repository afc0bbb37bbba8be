"""What tuning a KV predictor needs of an example, computed once: the base itself stays frozen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from app.nets.kv_predictor import KVPredictor, normed
from app.training.kv_examples import Pair
from app.training.kv_states import keys_and_values
from app.training.net import Layer, Net


@dataclass(frozen=True)
class Case:
    """Of one example, for one predictor. The prompt's last token is not predicted, as when it is
    used: it and what stands behind it are the `late` tokens."""

    told: Tensor  # fp16, of each token of the prompt but its last
    first: Tensor  # true KV of the prompt's first tokens, `[first, predicted, 2, width]`
    late: Tensor  # the stream into the first predicted layer, `[late, hidden]`
    exact: Tensor  # the base's own final hidden states, normed, `[late, hidden]`
    ids: Tensor  # of what stands behind the prompt, one for each of the late tokens
    true: Tensor | None  # KV of all that is predicted, `[prompt, predicted, 2, width]`, fp16


@torch.inference_mode()
def cases(
    net: Net, pair: Pair, kept: Iterable[int], auxiliary: Net | None, first: int, true: bool
) -> dict[int, Case]:
    """One example, by how many layers are kept; with an auxiliary model that is 0.

    `first`: tokens at the prompt's beginning that are computed all the same; `true`: whether the
    true KV is to be kept, twelve times what else is.
    """
    prompt, behind = pair
    ids, count = torch.cat([prompt, behind[:-1]]), len(prompt) - 1
    turns = net.turns(torch.arange(len(ids), device=ids.device)[None])
    depths, streams, made = set(kept), dict[int, Tensor](), []
    rows = F.embedding(ids[None], net.embedding)
    for depth, layer in enumerate(net.layers):
        assert isinstance(layer, Layer)
        if depth in depths:
            streams[depth] = rows[0]
        made.append(layer.keys_and_values(rows[:, :count] if true else rows[:, :first])[0])
        rows = layer(rows, turns)
    exact, found = net.normed(rows)[0, count:].clone(), {}
    for depth, stream in streams.items():
        if auxiliary is None:
            told = normed(stream[:count].float(), net.config.norm_epsilon)
        else:
            told = keys_and_values(auxiliary, prompt[:-1]).float()
        known = torch.stack(made[depth:], 1)
        found[depth] = Case(
            told=told.half(),
            first=known[:first].clone(),
            late=stream[count:].clone(),
            exact=exact,
            ids=behind,
            true=known.half() if true else None,
        )
    return found


def behind_predicted(net: Net, predictor: KVPredictor, case: Case) -> tuple[Tensor, Tensor]:
    """The base behind a prompt whose later layers' KV is predicted.

    Final hidden states of the late tokens, normed, `[late, hidden]`, and the predicted KV, fp32
    `[prompt, predicted, 2, width]`; both have gradients.

    The paper's training predicts the KV of every position, its inference all but the last token's
    (2410.08391, section 3); here training does what inference does.
    """
    made = predictor(case.told.float())
    known = torch.cat([case.first, made[len(case.first) :].to(case.first.dtype)])
    late, positions = case.late[None], len(known) + len(case.late)
    turns = net.turns(torch.arange(positions, device=late.device)[None])
    for at, layer in enumerate(net.layers[predictor.about.kept :]):
        assert isinstance(layer, Layer)
        late = layer.behind(late, turns, known[None, :, at])
    return net.normed(late)[0], made
