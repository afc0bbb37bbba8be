"""Products are right in every precision, and in int8 a row's is bitwise its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from app.engines.embedded.linear import (
    LEVELS,
    PEAKED_LEVELS,
    DenseLinear,
    Int8Linear,
    Linear,
    PackedLinear,
    Precision,
    make_linear,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, params=[1, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Work is shared out to threads by its size, so their number must not show either."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def all_forms(linear: Linear, rows: torch.Tensor) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        plain = linear(rows)
        # Residual and root belong to the row, so that rows can be compared between batches.
        residual = rows.sum(1, keepdim=True) * torch.randn(plain.shape[1], generator=random)
        return [
            plain,
            linear.divided(rows, 1 + rows.abs().mean(1, keepdim=True)),
            linear.add_to(residual.clone(), rows),
        ]


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("bf16", 1e-2), ("int8", 3e-2)])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_the_three_forms(precision: Precision, error: float, rows: int) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(72, 56, generator=random)
    x = torch.randn(rows, 56, generator=random)
    exact = all_forms(DenseLinear(weight), x)
    torch.testing.assert_close(exact[0], F.linear(x, weight))
    for ours, right in zip(all_forms(make_linear(weight, precision, CPU), x), exact, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - right).norm() / right.norm()) < error


def test_fp32_is_packed_on_a_cpu() -> None:
    """What `PackedLinear` reports as its gain would otherwise be lost without a sign."""
    assert isinstance(make_linear(torch.ones(4, 4), "fp32", CPU), PackedLinear)


@pytest.mark.parametrize(("out", "inner"), [(960, 576), (50, 20), (7, 1), (33, 130), (300, 1536)])
def test_int8_of_a_row_does_not_depend_on_the_others(out: int, inner: int) -> None:
    random = torch.Generator().manual_seed(0)
    linear = Int8Linear(torch.randn(out, inner, generator=random), CPU)
    scales = torch.logspace(-4, 4, 131)[:, None]
    batch = torch.randn(131, inner, generator=random) * scales
    together = all_forms(linear, batch)
    for at in (0, 1, 64, 130):
        alone = all_forms(linear, batch[at : at + 1].clone())
        few = all_forms(linear, batch[max(at - 7, 0) : at + 1].clone())
        for whole, one, some in zip(together, alone, few, strict=True):
            assert torch.equal(whole[at : at + 1], one)
            assert torch.equal(some[-1:], one)


@pytest.mark.parametrize("levels", [LEVELS, PEAKED_LEVELS])
def test_int8_does_not_saturate(levels: int) -> None:
    """Every number at its largest: the worst there is for sums in 16 bits."""
    weight = torch.ones(16, 64)
    weight[8:, ::2] = -1
    rows = torch.stack([torch.ones(64), -torch.ones(64), weight[8]])
    linear = Int8Linear(weight, CPU, levels)
    product = linear(rows)
    # Seen on CPUs without VNNI only; so the largest sum of two products is also worked out.
    quantised = torch.ops.quantized.linear_unpack(linear._packed)[0].int_repr()
    assert 2 * (2 * levels) * int(quantised.abs().max()) < 2**15
    torch.testing.assert_close(product, rows @ weight.T, rtol=1e-5, atol=1e-4)


def test_int8_zeros() -> None:
    """Neither a row nor an output of zeros divides by zero; NaN is not hidden."""
    weight = torch.randn(5, 12)
    weight[3] = 0
    rows = torch.randn(4, 12)
    rows[2] = 0
    plain, divided, added = all_forms(Int8Linear(weight, CPU), rows)
    for result in (plain, divided, added):
        assert result.isfinite().all()
        assert not result[2].any()
    assert not plain[:, 3].any()
    rows[2, 5] = torch.nan
    assert Int8Linear(weight, CPU)(rows)[2].isnan().all()


def test_int8_stays_on_the_cpu() -> None:
    with pytest.raises(ValueError, match="int8 runs on x86 CPUs only"):
        make_linear(torch.ones(4, 4), "int8", torch.device("cuda"))
