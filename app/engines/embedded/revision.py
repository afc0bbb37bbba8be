"""Of a predicted prompt, what its end attends to most is computed after all."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 32
"""Slots that are computed together; their bounds are its multiples."""

_PEAKS = 4  # of a block, that tell how much it is attended to


class Revision:
    """Which of a prompt's predicted tokens are computed, and what that starts from.

    Tokens whose KV matters most are computed, as CacheBlend does for KV that was made in another
    context (Yao et al. 2024, arXiv 2405.16444); which these are, the attention of the prompt's
    last tokens tells, as in GemFilter (Shi et al. 2024, arXiv 2409.17422); here in layers whose
    keys may be predicted.
    """

    def __init__(self, share: float) -> None:
        """`share`: of the predicted tokens, above 0, at most 1."""
        self._share = share
        self._start = -1  # slot of the first stream
        self._streams: list[Tensor] = []
        self._left: deque[range] | None = None

    @property
    def begun(self) -> bool:
        """Whether anything was predicted."""
        return bool(self._streams)

    @property
    def chosen(self) -> bool:
        return self._left is not None

    @property
    def over(self) -> bool:
        return self._left is not None and not self._left

    def keep(self, start: int, stream: Tensor) -> None:
        """Of the next tokens to be predicted, from this slot on, the stream behind the layers that
        are computed, fp32 `[n, hidden]`."""
        if not self._streams:
            self._start = start
        self._streams.append(stream)

    def choose(self, attended: Tensor, chunk: int) -> None:
        """By how much each slot is attended to, `[slots]`, take the blocks to compute: pieces of
        at most `chunk` tokens, or a block."""
        stop = self._start + sum(map(len, self._streams))
        blocks = [
            range(max(at, self._start), min(at + BLOCK, stop))
            for at in range(self._start // BLOCK * BLOCK, stop, BLOCK)
        ]
        count = max(math.floor(self._share * len(blocks) + 0.5), 1)
        best = sorted(range(len(blocks)), key=lambda at: -_peaks(attended, blocks[at]))[:count]
        self._left = deque(_joined((blocks[at] for at in sorted(best)), chunk))

    def take(self) -> tuple[int, Tensor]:
        """The next piece: its first slot, and its stream. In their order: what is computed sees
        what was computed before."""
        if not self._left:
            raise ValueError("nothing is left to compute")
        piece = self._left.popleft()
        rows = torch.cat(self._streams) if len(self._streams) > 1 else self._streams[0]
        self._streams = [rows] if self._left else []
        return piece.start, rows[piece.start - self._start : piece.stop - self._start].clone()


def _peaks(attended: Tensor, block: range) -> float:
    found = attended[block.start : block.stop]
    return float(found.topk(min(_PEAKS, len(found))).values.sum())


def _joined(blocks: Iterator[range], chunk: int) -> Iterator[range]:
    """Neighbours together, as far as a piece may be long."""
    held: range | None = None
    for block in blocks:
        if held is not None and held.stop == block.start and block.stop - held.start <= chunk:
            held = range(held.start, block.stop)
            continue
        if held is not None:
            yield held
        held = block
    if held is not None:
        yield held
