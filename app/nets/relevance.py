"""Which parts of a prompt its end asks about, by the rare words that they share with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

BLOCK = 32
"""Tokens that are taken together; their bounds are its multiples."""

_LEAST, _MOST = 8, 64  # words, tokens: of the paragraph that asks
_SPREAD = 0.5  # of what a block is worth, for either neighbour: sentences do not keep to bounds


def relevant(pieces: Sequence[bytes], within: range, share: float) -> list[range]:
    """The tokens of a prompt, all of whose `pieces` are given, that matter most for what its last
    paragraph asks: of the blocks in `within` this share, above 0 and rounded, one at least; and
    of that paragraph what is in `within`. In their order, neighbours together.

    A block is worth the inverse document frequencies of the paragraph's words in it (BM25's,
    Robertson and Zaragoza 2009, section 3.1), blocks being the documents and words being tokens
    without regard to case; how often one stands there is not counted. What is worth the same is
    taken from the beginning on.
    """
    words = [_word(piece) for piece in pieces]
    asks = _last_paragraph(pieces, words)
    stop = max(within.start, min(within.stop, asks))
    opens = within.start // BLOCK * BLOCK
    blocks = [
        range(max(at, within.start), min(at + BLOCK, stop))
        for at in range(opens, stop if stop > within.start else opens, BLOCK)
    ]
    found = [range(stop, within.stop)] if stop < within.stop else []
    if blocks:
        worth = _worth([{words[at] for at in block} for block in blocks], set(words[asks:]))
        count = max(math.floor(share * len(blocks) + 0.5), 1)
        best = sorted(range(len(blocks)), key=lambda at: -worth[at])[:count]
        found = [*(blocks[at] for at in sorted(best)), *found]
    return _joined(found)


def _word(piece: bytes) -> str | None:
    """The word that a token is, or begins or goes on; None: it is a sign, or marks a turn."""
    text = piece.decode(errors="replace").strip().lower()
    return text if text[:1].isalnum() else None


def _last_paragraph(pieces: Sequence[bytes], words: Sequence[str | None]) -> int:
    """Where it begins. What a template writes behind it is part of it."""
    found = 0
    for at in range(len(pieces) - 1, max(len(pieces) - _MOST, 1) - 1, -1):
        found += words[at] is not None
        lines = pieces[at].count(b"\n") + pieces[at - 1].endswith(b"\n")
        if found >= _LEAST and lines > 1 and b"\n" in pieces[at]:
            return at + 1
    return max(len(pieces) - _MOST, 0)


def _worth(blocks: Sequence[set[str | None]], asked: set[str | None]) -> list[float]:
    holding = Counter(word for block in blocks for word in block)
    alone = [
        sum(_rarity(holding[word], len(blocks)) for word in block & asked if word is not None)
        for block in blocks
    ]
    before, behind = [0.0, *alone[:-1]], [*alone[1:], 0.0]
    return [
        here + _SPREAD * (left + right)
        for here, left, right in zip(alone, before, behind, strict=True)
    ]


def _rarity(holding: int, blocks: int) -> float:
    return math.log(1 + (blocks - holding + 0.5) / (holding + 0.5))


def _joined(found: Sequence[range]) -> list[range]:
    joined: list[range] = []
    for each in found:
        if joined and joined[-1].stop == each.start:
            each = range(joined.pop().start, each.stop)
        joined.append(each)
    return joined
