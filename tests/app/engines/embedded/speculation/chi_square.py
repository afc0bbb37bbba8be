"""Whether counts are those of a distribution, or of one distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

K = TypeVar("K")

CHANCE = 1e-5
"""A p-value under this is no accident: a suite of a hundred such tests would be right for years."""
_FEW = 5.0  # of what is expected in a cell, under which cells are put together


def of(counts: Mapping[K, int], expected: Mapping[K, float]) -> float:
    """The p-value of these counts under these probabilities; 0 where one had no chance at all."""
    total = sum(counts.values())
    if any(expected.get(key, 0.0) <= 0.0 for key, count in counts.items() if count):
        return 0.0
    cells = [(counts.get(key, 0), total * p) for key, p in expected.items() if p > 0]
    return _p_value(_pooled(cells))


def between(one: Mapping[K, int], other: Mapping[K, int]) -> float:
    """The p-value of two samples being of one distribution."""
    sizes = sum(one.values()), sum(other.values())
    share = sizes[0] / sum(sizes)
    cells: list[tuple[float, float, float]] = []
    # All that are rare make one cell: which go with which must not depend on where they were seen.
    rare = [0.0, 0.0, 0.0]
    for key in {**one, **other}:
        found, both = float(one.get(key, 0)), float(one.get(key, 0) + other.get(key, 0))
        cell = (found, both * share, both * (1 - share))
        if min(cell[1:]) < _FEW:
            rare = [total + part for total, part in zip(rare, cell, strict=True)]
        else:
            cells.append(cell)
    if min(rare[1:]) >= _FEW:
        cells.append((rare[0], rare[1], rare[2]))
    statistic = sum((found - a) ** 2 / a + (found - a) ** 2 / b for found, a, b in cells)
    return _tail(statistic, len(cells) - 1)


def together(p_values: Sequence[float]) -> float:
    """Of several tests the p-value of them all (Fisher)."""
    logs = torch.tensor(p_values, dtype=torch.float64).clamp_min(1e-300).log()
    return _tail(float(-2 * logs.sum()), 2 * len(p_values))


def _pooled(cells: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Cells of which little is expected, put together."""
    pooled: list[tuple[float, float]] = []
    for found, wanted in sorted(cells, key=lambda cell: cell[1]):
        if pooled and pooled[-1][1] < _FEW:
            pooled[-1] = (pooled[-1][0] + found, pooled[-1][1] + wanted)
        else:
            pooled.append((found, wanted))
    return pooled


def _p_value(cells: Sequence[tuple[float, float]]) -> float:
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in cells)
    return _tail(statistic, len(cells) - 1)


def _tail(statistic: float, freedom: int) -> float:
    """The chance that a chi-square variable of so many degrees of freedom is greater."""
    if freedom < 1:
        return 1.0
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
