"""The compiled attention: torch's results, and bitwise the same however many rows come at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.engines.embedded.attention import MOST, Attention, serves

SHAPES = [(9, 3, 64), (4, 4, 16), (14, 2, 64), (12, 2, 128), (3, 1, 10)]


def made(
    heads: int, kv_heads: int, width: int, length: int, rows: int, scale: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Rows `[rows, heads + 2 kv_heads, width]`, and a cache of two layers with room for them."""
    seeded = torch.Generator().manual_seed(heads * length + rows)
    cache = torch.randn(2, 2 * kv_heads, length + rows, width, generator=seeded)
    cache[:, :, length:] = float("nan")  # not written yet: must not be read
    new = torch.randn(rows, heads + 2 * kv_heads, width, generator=seeded)
    new[:, :heads] *= scale
    return new, cache


def ours(new: Tensor, cache: Tensor, start: int, pieces: list[int], layer: int = 1) -> Tensor:
    kv_heads = cache.shape[1] // 2
    heads = new.shape[1] - 2 * kv_heads
    attention = Attention(heads // kv_heads, cache.shape[2])
    out = np.full((len(new), heads * new.shape[2]), np.nan, np.float32)
    at = 0
    for count in pieces:
        attention(new.numpy(), at, count, cache, layer, start + at, out)
        at += count
    return torch.from_numpy(out)


def by_torch(new: Tensor, cache: Tensor, start: int, layer: int = 1) -> Tensor:
    kv_heads, rows = cache.shape[1] // 2, len(new)
    heads = new.shape[1] - 2 * kv_heads
    keys, values = cache[layer].double().split_with_sizes([kv_heads, kv_heads])
    by_head = new.double().transpose(0, 1)
    keys[:, start:], values[:, start:] = by_head[heads:].split_with_sizes([kv_heads, kv_heads])
    seen = torch.ones(rows, start + rows, dtype=torch.bool).tril(start)
    result = F.scaled_dot_product_attention(
        by_head[None, :heads], keys[None], values[None], attn_mask=seen, scale=1.0, enable_gqa=True
    )
    return result[0].transpose(0, 1).reshape(rows, -1).float()


@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
@pytest.mark.parametrize("start", [0, 1, 5, 127, 700])
def test_it_is_attention(heads: int, kv_heads: int, width: int, start: int) -> None:
    new, cache = made(heads, kv_heads, width, start, 3)
    expected = by_torch(new, cache, start)
    torch.testing.assert_close(ours(new, cache, start, [3]), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
def test_a_row_is_bitwise_the_same_whatever_comes_with_it(
    heads: int, kv_heads: int, width: int
) -> None:
    for start in (0, 3, 64, 333):
        new, cache = made(heads, kv_heads, width, start, MOST)
        together = ours(new, cache.clone(), start, [MOST])
        for pieces in ([1] * MOST, [5, 1, 11], [16, 1]):
            assert torch.equal(ours(new, cache.clone(), start, pieces), together)


def test_keys_and_values_are_written_where_they_belong() -> None:
    new, cache = made(4, 2, 16, 7, 2)
    before = cache.clone()
    ours(new, cache, 7, [2], layer=0)
    written = new[:, 4:].transpose(0, 1)
    assert torch.equal(cache[0, :, 7:], written)
    assert torch.equal(cache[0, :, :7], before[0, :, :7])
    assert torch.equal(cache[1].nan_to_num(), before[1].nan_to_num())


@pytest.mark.parametrize("scale", [0.0, 30.0, 1e4, 1e30])
def test_scores_far_apart_and_all_alike(scale: float) -> None:
    """Exponents that underflow count as nothing, and none becomes infinite."""
    new, cache = made(9, 3, 64, 50, 2, scale=scale)
    found = ours(new, cache, 50, [2])
    assert found.isfinite().all()
    torch.testing.assert_close(found, by_torch(new, cache, 50), rtol=1e-3, atol=1e-4)


def test_for_which_caches_it_is() -> None:
    assert serves(torch.device("cpu"), torch.float32)
    assert not serves(torch.device("cpu"), torch.bfloat16)
    assert not serves(torch.device("cuda"), torch.float32)
