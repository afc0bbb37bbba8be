"""Prompts that were read before but for an edit: what follows it is moved, not read (PIE).

Positional Integrity Encoding: He et al. 2024, arXiv 2407.03157.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
_ANCHOR = 8  # tokens at the prompt's end, by which what it shares is looked for
LEAST = 16
"""Tokens behind an edit that are worth moving, at least."""


@dataclass(frozen=True)
class Moved:
    """Tokens that stand elsewhere in a kept sequence: its `start` on, `count` of them, are the
    prompt's from `at` on."""

    start: int
    at: int
    count: int


def moved(kept: Ids, tokens: Sequence[int], read: int) -> Moved | None:
    """What of a prompt's end stands in a kept sequence behind the `read` tokens that both begin
    with, at another place or not; all but the prompt's last token, which must be computed.

    None where that is not worth it, or they begin with nothing in common: that is no edit.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    end = len(ids) - 1
    if read < 1 or end - read < LEAST or len(kept) - read < LEAST:
        return None
    anchor = ids[end - _ANCHOR : end]
    windows = np.lib.stride_tricks.sliding_window_view(kept[read:], _ANCHOR)
    best: Moved | None = None
    for place in np.nonzero((windows == anchor).all(1))[0].tolist():
        stop = read + place + _ANCHOR
        longest = min(stop - read, end - read)
        same = kept[stop - longest : stop] == ids[end - longest : end]
        differs = np.nonzero(~same)[0]
        count = longest - (int(differs[-1]) + 1 if len(differs) else 0)
        if count >= LEAST and (best is None or count > best.count):
            best = Moved(stop - count, end - count, count)
    return best
