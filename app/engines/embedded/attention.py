"""Attention of a few new tokens to all before them, on a CPU in fp32, compiled by numba."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

MOST = 17
"""New tokens of one sequence, at most: one and the guesses behind it. More are for torch."""

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int32]
_Compiled: TypeAlias = Callable[..., None]

# exp2 on [0, 1): Taylor's coefficients, whose error there is below 2e-7 of the value.
_T0, _T1, _T2 = np.float32(1.0), np.float32(0.6931471805599453), np.float32(0.2402265069591007)
_T3, _T4 = np.float32(0.05550410866482158), np.float32(0.009618129107628477)
_T5, _T6 = np.float32(0.0013333558146428443), np.float32(0.00015403530393381606)
_T7 = np.float32(1.5252733804059841e-05)
_TO_BASE_2 = np.float32(1.4426950408889634)
_ZERO, _LOWEST = np.float32(0), np.float32(-126)
# Sums may be made in another order than written, which vectors need; always in the same one.
_FAST = {"reassoc", "contract", "nsz"}


def _compiled(function: _Compiled) -> _Compiled:
    """Compiled at its first call, a matter of seconds; on disk, where there is room, for others."""
    made: _Compiled
    try:
        made = njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")(function)
    except RuntimeError:  # no folder to write to: a container need not have one
        made = njit(nogil=True, fastmath=_FAST, error_model="numpy")(function)
    return made


class Attention:
    """Calls the compiled code for one decoder, whose scratch memory it holds; for one thread.

    Against torch's kernel for a single query (SmolLM2-135M's shape, behind 200 tokens, on an
    AVX-512 AMD) it takes 8 to 10 us instead of 24, and as much for each further row, since it
    shares keys between heads and is called once for all of them. It lets go of the GIL.
    """

    def __init__(self, group: int, context: int) -> None:
        """`group`: query heads to a head of keys; `context`: tokens, at most."""
        self._scores = np.zeros((group + 1, context), np.float32)
        self._powers = self._scores.view(np.int32)
        compile_all()

    def __call__(
        self, rows: Floats, at: int, count: int, cache: Tensor, layer: int, start: int, out: Floats
    ) -> None:
        """Attention of rows[at : at + count], into out[at : at + count]; their keys and values go
        into the cache, where `start` tokens are.

        rows `[n, heads + 2 * kv_heads, head_dim]`: queries, already scaled, keys, values; cache
        `[layers, 2 * kv_heads, slots, head_dim]`, keys first; out `[n, heads * head_dim]`. Every
        row's result is bitwise the same whatever `count` is.
        """
        scores, powers = self._scores, self._powers
        _attend_compiled(rows, at, count, cache.numpy(), layer, start, scores, powers, out)


def compile_all() -> None:
    """Takes some seconds when it is first called in a process."""
    rows, cache = np.zeros((1, 3, 8), np.float32), np.zeros((1, 2, 4, 8), np.float32)
    scores, out = np.zeros((2, 4), np.float32), np.zeros((1, 8), np.float32)
    _attend_compiled(rows, 0, 1, cache, 0, 0, scores, scores.view(np.int32), out)


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for caches of this kind."""
    return device.type == "cpu" and dtype == torch.float32


def _score(query: Floats, keys: Floats, length: int, scores: Floats) -> None:
    """Products of the query `[width]` with the first `length` keys."""
    width = query.shape[0]
    for place in range(length):
        total, key = _ZERO, keys[place]
        for d in range(width):
            total += query[d] * key[d]
        scores[place] = total


def _softmax(scores: Floats, powers: Ints, whole: Floats, length: int) -> None:
    """In place, of the first `length`; `powers` is the scores' memory, `whole` is scratch."""
    top = np.float32(-np.inf)
    for place in range(length):
        top = max(top, scores[place])
    for place in range(length):
        # exp(x) = 2^n * 2^f, of which 2^f comes first.
        x = max((scores[place] - top) * _TO_BASE_2, _LOWEST)
        n = np.floor(x)
        whole[place] = n
        f = x - n
        high = _T4 + f * (_T5 + f * (_T6 + f * _T7))
        scores[place] = _T0 + f * (_T1 + f * (_T2 + f * (_T3 + f * high)))
    for place in range(length):
        powers[place] += np.int32(whole[place]) << np.int32(23)  # 2^n, in the exponent's bits
    total = _ZERO
    for place in range(length):
        total += scores[place]
    for place in range(length):
        scores[place] /= total


def _mix(shares: Floats, values: Floats, length: int, out: Floats) -> None:
    """The sum of the first `length` values `[slots, width]`, by their shares."""
    width = out.shape[0]
    for d in range(width):
        out[d] = _ZERO
    fours = length - length % 4
    for place in range(0, fours, 4):
        a, b = shares[place], shares[place + 1]
        c, e = shares[place + 2], shares[place + 3]
        v, w = values[place], values[place + 1]
        x, y = values[place + 2], values[place + 3]
        for d in range(width):
            out[d] += a * v[d] + b * w[d] + c * x[d] + e * y[d]
    for place in range(fours, length):
        a, v = shares[place], values[place]
        for d in range(width):
            out[d] += a * v[d]


_score_compiled: _Compiled = _compiled(_score)
_softmax_compiled: _Compiled = _compiled(_softmax)
_mix_compiled: _Compiled = _compiled(_mix)


def _attend(
    rows: Floats,
    at: int,
    count: int,
    cache: Floats,
    layer: int,
    start: int,
    scores: Floats,
    powers: Ints,
    out: Floats,
) -> None:
    """Causal softmax attention with shared keys (GQA); see `Attention`.

    scores `[group + 1, context]` and `powers`, the same memory as integers, are scratch.
    """
    kv_heads = cache.shape[1] // 2
    heads = rows.shape[1] - 2 * kv_heads
    group, width = heads // kv_heads, rows.shape[2]
    for shared in range(kv_heads):  # outermost: its keys and values stay near for all rows
        keys, values = cache[layer, shared], cache[layer, kv_heads + shared]
        for each in range(count):
            row, length = rows[at + each], start + each + 1
            for d in range(width):
                keys[length - 1, d] = row[heads + shared, d]
                values[length - 1, d] = row[heads + kv_heads + shared, d]
            for member in range(group):
                _score_compiled(row[shared * group + member], keys, length, scores[member])
            for member in range(group):
                _softmax_compiled(scores[member], powers[member], scores[group], length)
            for member in range(group):
                first = (shared * group + member) * width
                result = out[at + each, first : first + width]
                _mix_compiled(scores[member], values, length, result)


_attend_compiled: _Compiled = _compiled(_attend)
