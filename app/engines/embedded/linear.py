"""Matrix products in fp32, bf16 and int8, in the three forms in which a decoder wants them."""

import warnings
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Precision = Literal["fp32", "bf16", "int8"]

# How many levels int8 gives a row's numbers on each side of zero, ordinarily and where a few of
# them are far larger than the rest; see Int8Linear.
LEVELS = 90
PEAKED_LEVELS = 127


class Linear(Protocol):
    """A matrix `[out, in]` without bias. Rows come and go in fp32, whatever it computes in."""

    def __call__(self, rows: Tensor) -> Tensor:
        """`[n, in]` to `[n, out]`."""
        ...

    def divided(self, rows: Tensor, root: Tensor) -> Tensor:
        """The product of `rows / root`, root being `[n, 1]`, divided wherever that is cheap."""
        ...

    def add_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """Residual `[n, out]` with the product of the rows added to it, possibly in place."""
        ...


def make_linear(
    weight: Tensor, precision: Precision, device: torch.device, levels: int = LEVELS
) -> Linear:
    """The fastest form known here of an fp32 matrix `[out, in]`; `levels` are for int8.

    Raises ValueError for int8 on an accelerator, or on a CPU for which there is no fbgemm.
    """
    if precision == "int8":
        return Int8Linear(weight, device, levels)
    if (
        precision == "fp32"
        and device.type == "cpu"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return PackedLinear(weight)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return DenseLinear(weight.to(device, dtype))


class DenseLinear:
    """torch's own product, in the weight's dtype and on its device."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, rows: Tensor) -> Tensor:
        return self._product(rows).float()

    def divided(self, rows: Tensor, root: Tensor) -> Tensor:
        return self._product(rows) / root  # an fp32 root makes an fp32 quotient

    def add_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        return residual.add_(self._product(rows))

    def _product(self, rows: Tensor) -> Tensor:
        return F.linear(rows.to(self.weight.dtype), self.weight)


class PackedLinear:
    """fp32 on a CPU by oneDNN, with the weight laid out for it once.

    Against F.linear (MKL) on a 2-core AVX-512 AMD: a 49152 x 576 head takes 2.2 ms for 1 row, not
    7.1 (MKL runs one row on one thread), and 2.6 for 8, not 11.7; a prompt takes 0.4 of the time.
    These are the operations that torch's own compiler emits for frozen weights.
    """

    def __init__(self, weight: Tensor) -> None:
        # The number only suggests which layout to choose; any number of rows may follow.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 8)

    def __call__(self, rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, None, "none", [], ""
        )
        return product

    def divided(self, rows: Tensor, root: Tensor) -> Tensor:
        return self(rows).div_(root)

    def add_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        total: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, residual, self._weight, None, "add"
        )
        return total


class Int8Linear:
    """int8 weights, a scale for each output; uint8 activations, a scale for each row (fbgemm).

    A row's result is bitwise the same whatever stands beside it: each row is brought to [-1, 1] by
    itself, and one fixed scale quantises them all. (torch.ao's dynamic linear takes its scale from
    the whole batch.)

    Neither side has all of its 8 bits: without VNNI pairs of products are summed in 16 bits, which
    would saturate. The more levels activations have, the fewer are left for weights, such that
    `2 * (2 * levels) * weight_levels < 2^15`. With 63 and 127 the mean KL divergence from fp32 is
    0.054 on 457 tokens (SmolLM2-135M), with 90 and 91 it is 0.031, and with 127 and 64 for
    the matrices whose rows have peaks, 0.026.
    """

    def __init__(self, weight: Tensor, device: torch.device, levels: int = LEVELS) -> None:
        """Raises ValueError where fbgemm cannot run."""
        if device.type != "cpu" or "fbgemm" not in torch.backends.quantized.supported_engines:
            raise ValueError("int8 runs on x86 CPUs only (fbgemm)")
        self._levels = levels
        self._packed = _pack(weight, (2**15 - 1) // (4 * levels))

    def __call__(self, rows: Tensor) -> Tensor:
        product, top = self._product(rows)
        return product.mul_(top)

    def divided(self, rows: Tensor, root: Tensor) -> Tensor:
        product, top = self._product(rows)
        return product.mul_(top / root)

    def add_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        product, top = self._product(rows)
        return residual.addcmul_(product, top)

    def _product(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        top = rows.abs().amax(-1, keepdim=True)
        # A row of zeros becomes NaN here, NaN quantises to some integer, and the integer's finite
        # product is multiplied by top = 0. Avoiding that would cost an operation for each product.
        product: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows / top, 1 / self._levels, self._levels, self._packed
        )
        return product, top


def _pack(weight: Tensor, levels: int) -> Any:
    # A row of zeros still needs a positive scale.
    scale = (weight.abs().amax(1) / levels).clamp_min(torch.finfo(torch.float32).tiny)
    zero_points = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():
        # torch moves quantised tensors to torchao, whose CPU kernels are no match for fbgemm's;
        # torch's version is bounded in pyproject.toml, so the removal cannot take us unawares.
        warnings.filterwarnings(
            "ignore", "torch.quantize_per_tensor, torch.quantize_per_channel", UserWarning
        )
        quantised = torch.quantize_per_channel(
            weight, scale.double(), zero_points, axis=0, dtype=torch.qint8
        )
    return torch.ops.quantized.linear_prepack(quantised, None)


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix `[out, in]` as int8 and, for each of its rows, what one level stands for."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    scale[scale == 0] = 1  # a row of zeros
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale
