"""What PromQL asks for: its selectors, and the labels that its answers have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import promql_parser as promql

SCRAPED = frozenset({"job", "instance"})  # labels that Prometheus adds
SCALARS = ("time", "vector", "scalar")
Series = Mapping[str, frozenset[str]]  # each series that there is, and its labels


class Wrong(Exception):
    """An expression that could never answer what it is meant to."""


@dataclass(frozen=True)
class Selector:
    """One series that is asked for, `within` the function that is applied to it.

    `window`: over how long; None: now.
    """

    name: str
    matchers: tuple[tuple[str, str, str], ...]  # label, operator, value
    within: str
    window: timedelta | None


def parsed(expr: str) -> Any:
    """Raises ValueError where it is no PromQL."""
    return promql.parse(expr)


def selectors(expr: str) -> list[Selector]:
    return list(_selectors(parsed(expr), "", None))


def _selectors(node: Any, within: str, window: timedelta | None) -> Iterator[Selector]:
    match node:
        case promql.VectorSelector():
            found = ((m.name, str(m.op), m.value) for m in node.matchers.matchers)
            yield Selector(str(node.name), tuple(found), within, window)
        case promql.MatrixSelector():
            yield from _selectors(node.vector_selector, within, node.range)
        case promql.Call():
            for argument in node.args:
                yield from _selectors(argument, str(node.func.name), window)
        case promql.BinaryExpr():
            yield from _selectors(node.lhs, "", window)
            yield from _selectors(node.rhs, "", window)
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr():
            yield from _selectors(node.expr, "", window)
        case promql.SubqueryExpr():
            yield from _selectors(node.expr, within, node.range)


def divisions(expr: str) -> Iterator[Any]:
    """What is divided by."""
    stack = [parsed(expr)]
    while stack:
        node = stack.pop()
        if isinstance(node, promql.BinaryExpr) and str(node.op) == "/":
            yield node.rhs
        stack += [getattr(node, name) for name in ("lhs", "rhs", "expr") if hasattr(node, name)]
        stack += getattr(node, "args", [])


def labels(expr: str, series: Series) -> frozenset[str] | None:
    """The labels of what this expression answers; None: it is a number.

    Raises Wrong where it names series or labels that are not there, or joins what never meets.
    """
    return _labels(parsed(expr), series)


def _labels(node: Any, series: Series) -> frozenset[str] | None:
    match node:
        case promql.NumberLiteral() | promql.StringLiteral():
            return None
        case promql.VectorSelector():
            return _selected(node, series)
        case promql.MatrixSelector():
            return _selected(node.vector_selector, series)
        case promql.Call():
            return _called(node, series)
        case promql.AggregateExpr():
            return _aggregated(node, series)
        case promql.BinaryExpr():
            return _joined(node, series)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return _labels(node.expr, series)
    raise Wrong(f"{type(node).__name__} is not known here")


def _selected(node: Any, series: Series) -> frozenset[str]:
    if node.name not in series:
        raise Wrong(f"there is no {node.name}")
    has = series[node.name]
    for matcher in node.matchers.matchers:
        if matcher.name not in has:
            raise Wrong(f"{node.name} has no label {matcher.name}")
    return has


def _called(node: Any, series: Series) -> frozenset[str] | None:
    name = node.func.name
    inner = [_labels(argument, series) for argument in node.args]
    if name == "absent":
        matchers = node.args[0].matchers.matchers
        return frozenset(each.name for each in matchers if str(each.op) == "MatchOp.Equal")
    if name in SCALARS:
        return frozenset() if name == "vector" else None
    if name == "histogram_quantile":
        vector = inner[1]
        if vector is None or "le" not in vector:
            raise Wrong("histogram_quantile without `le`")
        return vector - {"le"}
    (vector,) = [each for each in inner if each is not None]
    return vector


def _aggregated(node: Any, series: Series) -> frozenset[str]:
    inner = _labels(node.expr, series)
    kept = frozenset(node.modifier.labels if node.modifier else ())
    if inner is None or not kept <= inner:
        raise Wrong(f"{node.op} by {sorted(kept)} of what has {sorted(inner or ())}")
    return kept


def _joined(node: Any, series: Series) -> frozenset[str] | None:
    left, right = _labels(node.lhs, series), _labels(node.rhs, series)
    op = str(node.op)
    if left is None or right is None:
        return right if left is None else left
    if op == "or":
        return left | right
    if left != right:
        raise Wrong(f"{sorted(left)} {op} {sorted(right)} never meet")
    return left
