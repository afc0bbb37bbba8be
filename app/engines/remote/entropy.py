"""The entropy of a next token's distribution, as far as its likeliest tokens tell."""

from __future__ import annotations

import math
from collections.abc import Iterable

MOST_VOCABULARY = 2**19  # where a server does not tell: no model known to us has more


def interval(logprobs: Iterable[float], vocabulary: int) -> tuple[float, float]:
    """Bounds of the entropy in bits, `[low, high]`, from the k likeliest tokens' logprobs.

    With p_1 >= ... >= p_k, H_k their part of the entropy and m = 1 - sum p the mass of the other
    `vocabulary - k` tokens, none of them likelier than p_k:
    H_k + m log2(1/p_k) <= H <= H_k + m log2((vocabulary - k)/m).
    The low end is the tail estimate too: m spread over m/p_k tokens as likely as the k-th.
    """
    # Above 0 are the rounded ones, and lies.
    likeliest = sorted((math.exp(min(logprob, 0.0)) for logprob in logprobs), reverse=True)
    likeliest = [p for p in likeliest if p > 0.0]
    if not likeliest:
        return 0.0, math.log2(vocabulary)
    known = math.fsum(-p * math.log2(p) for p in likeliest)
    rest = max(1.0 - math.fsum(likeliest), 0.0)
    others = vocabulary - len(likeliest)
    if rest <= 0.0 or others <= 0:
        return known, known
    high = known + rest * math.log2(others / rest)
    low = known + rest * math.log2(1.0 / likeliest[-1])
    return min(low, high), high
