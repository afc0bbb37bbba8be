"""The closed form finds the maps there are, in any number of pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.training.kv_closed_form import SavedSums, Sums

TRUE = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()


def drawn(count: int, seed: int, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    seeded = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=seeded).double()
    y = x @ TRUE[:, :4].T + TRUE[:, 4]
    return x, y + noise * torch.randn(y.shape, generator=seeded)


def test_it_finds_maps_and_bias_from_pieces() -> None:
    sums = Sums(4, 6)
    x, y = drawn(50, 1)
    for at in range(0, 50, 7):
        sums.add(x[at : at + 7], y[at : at + 7])
    assert sums.tokens == 50
    torch.testing.assert_close(sums.solved(0.0), TRUE)


def test_ridge_makes_weights_small_and_leaves_the_bias() -> None:
    sums = Sums(4, 6)
    x, y = drawn(5000, 1)
    sums.add(x, y)
    maps = sums.solved(1e4)
    assert maps[:, :4].abs().max() < 0.01
    torch.testing.assert_close(maps[:, 4], y.mean(0), atol=1e-3, rtol=0)


def test_ridge_is_least_squares_with_a_penalty() -> None:
    x, y = drawn(30, 2, noise=1.0)
    sums = Sums(4, 6)
    sums.add(x, y)
    maps, ridge = sums.solved(0.1), 0.1 * x.square().sum(0).mean()

    def cost(maps: torch.Tensor) -> float:
        made = x @ maps[:, :4].T + maps[:, 4]
        return float((made - y).square().sum() + ridge * maps[:, :4].square().sum())

    for seed in range(5):
        seeded = torch.Generator().manual_seed(seed)
        assert cost(maps) < cost(maps + 0.01 * torch.randn(maps.shape, generator=seeded).double())


def test_what_is_explained_is_that_of_the_errors() -> None:
    x, y = drawn(400, 3, noise=2.0)
    sums = Sums(4, 6)
    sums.add(x, y)
    fit = sums.explained(TRUE)
    error = (x @ TRUE[:, :4].T + TRUE[:, 4] - y).square().sum(0)
    spread = (y - y.mean(0)).square().sum(0)
    torch.testing.assert_close(fit.error, error)
    torch.testing.assert_close(fit.spread, spread)
    by_twos = [float(1 - error[at : at + 2].sum() / spread[at : at + 2].sum()) for at in (0, 2, 4)]
    assert fit.explained(2) == pytest.approx(by_twos)


def test_sums_go_on_where_they_were(tmp_path: Path) -> None:
    x, y = drawn(20, 4)
    whole, first = Sums(4, 6), Sums(4, 6)
    whole.add(x, y)
    first.add(x[:9], y[:9])
    saved = SavedSums(tmp_path / "s", "these", {"a": first})
    assert saved.texts == 0
    saved.texts = 3
    saved.save()
    second = Sums(4, 6)
    again = SavedSums(tmp_path / "s", "these", {"a": second})
    assert again.texts == 3
    second.add(x[9:], y[9:])
    torch.testing.assert_close(second.xy, whole.xy)
    torch.testing.assert_close(second.yy, whole.yy)


def test_other_sums_are_not_gone_on_with(tmp_path: Path) -> None:
    SavedSums(tmp_path / "s", "these", {"a": Sums(4, 6)}).save()
    with pytest.raises(ValueError, match="was made from other texts"):
        SavedSums(tmp_path / "s", "those", {"a": Sums(4, 6)})
    with pytest.raises(ValueError, match="has the shape"):
        SavedSums(tmp_path / "s", "these", {"a": Sums(4, 7)})
    with pytest.raises(ValueError, match="remove it to begin anew"):
        SavedSums(tmp_path / "s", "these", {"b": Sums(4, 6)})
