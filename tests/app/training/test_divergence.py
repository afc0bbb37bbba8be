"""The four divergences are what they are defined as, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.training.divergence import KINDS, Columns, Divergence, Kind, agreement, head_loss

ROWS, VOCABULARY, HIDDEN = 5, 11, 7


def logits(seed: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def defined(kind: Kind, beta: float, p: Tensor, q: Tensor) -> Tensor:
    """DistillSpec, section 3, by the letter."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    m = beta * p + (1 - beta) * q
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, m) + (1 - beta) * kl(q, m),
        "tvd": lambda: (p - q).abs().sum(-1) / 2,
    }[kind]()


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient(kind: Kind, beta: float) -> None:
    target, draft = logits(1).double(), logits(2).double().requires_grad_()
    wanted = defined(kind, beta, target.softmax(-1), draft.softmax(-1))
    wanted.sum().backward()
    value, slope = Divergence(kind, beta)(target.log_softmax(-1), draft.detach().log_softmax(-1))
    torch.testing.assert_close(value, wanted.detach())
    assert draft.grad is not None
    torch.testing.assert_close(slope, draft.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_have_none(kind: Kind) -> None:
    log_p = logits(1).log_softmax(-1)
    value, slope = Divergence(kind)(log_p, log_p)
    torch.testing.assert_close(value, torch.zeros(ROWS), atol=1e-6, rtol=0)
    torch.testing.assert_close(slope, torch.zeros(ROWS, VOCABULARY), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_far_apart_it_stays_finite(kind: Kind) -> None:
    log_p = torch.tensor([[0.0, -200.0, -300.0]]).log_softmax(-1)
    log_q = torch.tensor([[-300.0, -200.0, 0.0]]).log_softmax(-1)
    value, slope = Divergence(kind)(log_p, log_q)
    assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_the_head_in_pieces_is_the_head_at_once(kind: Kind, rows: int) -> None:
    seeded = torch.Generator().manual_seed(3)
    heads = [torch.randn(VOCABULARY, HIDDEN, generator=seeded) for _ in range(2)]
    target = torch.randn(ROWS, HIDDEN, generator=seeded)
    draft = torch.randn(ROWS, HIDDEN, generator=seeded).requires_grad_()
    weights = torch.arange(1.0, ROWS + 1)
    q, p = (draft @ heads[0].T).softmax(-1), (target @ heads[1].T).softmax(-1)
    (defined(kind, 0.5, p, q) * weights).sum().backward()
    wanted, draft.grad = draft.grad, None
    loss = head_loss(draft, target, (heads[0], heads[1]), Divergence(kind), rows=rows)
    (loss * weights).sum().backward()
    torch.testing.assert_close(loss.detach(), defined(kind, 0.5, p, q).detach())
    torch.testing.assert_close(draft.grad, wanted)


def test_acceptance_is_one_less_the_total_variation() -> None:
    log_p, log_q = logits(1, 500).log_softmax(-1), logits(2, 500).log_softmax(-1)
    found = agreement(log_p, log_q)
    torch.testing.assert_close(found.acceptance, 1 - Divergence("tvd")(log_p, log_q)[0])
    assert (found.same == (log_p.argmax(-1) == log_q.argmax(-1))).all()
    # And it is what speculative sampling accepts: min(1, p/q) of tokens drawn from q.
    drawn = torch.multinomial(log_q.exp(), 4000, replacement=True)
    accepted = (log_p - log_q).gather(1, drawn).exp().clamp_max(1).mean()
    assert abs(float(accepted - found.acceptance.mean())) < 0.005


def test_columns_stand_for_a_vocabulary() -> None:
    """Sums over tokens are right on average, whatever is drawn; the sure ones count as one."""
    seeded, values = torch.Generator().manual_seed(5), torch.rand(1000)
    sure = torch.tensor([3, 3, 17, 999])
    sums = []
    for _ in range(400):
        columns = Columns.drawn(sure, 50, 1000, seeded)
        assert len(columns.ids) == len(columns.ids.unique()) == 53
        counts = columns.shares.exp()
        assert counts[torch.isin(columns.ids, sure)].tolist() == [1, 1, 1]
        torch.testing.assert_close(counts.sum(), torch.tensor(1000.0))
        sums.append(float((values[columns.ids] * counts).sum()))
    assert sum(sums) / 400 == pytest.approx(float(values.sum()), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_by_columns_learns_what_the_head_does(kind: Kind) -> None:
    seeded = torch.Generator().manual_seed(3)
    head = torch.randn(2000, 16, generator=seeded)
    target = torch.randn(ROWS, 16, generator=seeded)
    draft = torch.randn(ROWS, 16, generator=seeded).requires_grad_()

    def slope(columns: Columns | None) -> torch.Tensor:
        draft.grad = None
        head_loss(draft, target, (head, head), Divergence(kind), columns).sum().backward()
        assert draft.grad is not None
        return draft.grad

    whole = slope(None)
    every = torch.arange(2000)
    torch.testing.assert_close(slope(Columns.drawn(every, 0, 2000, seeded)), whole)
    # The likeliest tokens of both, and a part of the others, over and over.
    likely = torch.cat([target, draft.detach()]) @ head.T
    sure = likely.topk(50).indices.unique()
    drawn = [slope(Columns.drawn(sure, 300, 2000, seeded)) for _ in range(50)]
    mean = torch.stack(drawn).mean(0)
    assert float((mean - whole).norm() / whole.norm()) < 0.1
