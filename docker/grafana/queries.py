"""PromQL over the gateway's metrics, kept to what a dashboard's variables pick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.telemetry.metrics import METRICS

NOW = "$__rate_interval"  # how things go, point by point
RANGE = "$__range"  # over all the time that is shown
VARIABLES = ("model", "preset", "instance")
SERVED = 'endpoint!~"/(health|metrics).*"'  # probes and scrapes are nobody's requests
_SUFFIXES = ("_bucket", "_sum", "_count")


@dataclass(frozen=True)
class Query:
    """One line of a panel, or a column of a table. Without a legend the panel's title is enough."""

    expr: str
    legend: str = ""


def series(name: str, *matchers: str) -> str:
    """A selector of this metric, with a matcher for each variable whose label the metric has; of
    requests those that clients made. Raises KeyError where no metric has this name."""
    metric = None if name == "up" else METRICS[_base(name)]
    labels = (*(metric.labels if metric else ()), "instance")
    picked = (f'{label}=~"${label}"' for label in VARIABLES if label in labels)
    served = [SERVED] if "endpoint" in labels else []
    return f"{name}{{{', '.join([*matchers, *served, *picked])}}}"


def _base(name: str) -> str:
    for suffix in _SUFFIXES:
        if name not in METRICS and name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def total(expr: str, by: Sequence[str] = (), how: str = "sum") -> str:
    labels = f" by ({', '.join(by)}) " if by else ""
    return f"{how}{labels}({expr})"


def of_servers(name: str, by: Sequence[str] = ()) -> str:
    """The sum over servers of a gauge that servers tell of themselves: gateways that share a server
    tell the same of it, while each has embedded engines of its own."""
    shared = total(series(name, 'server!="embedded"'), ("model", "server"), "max")
    own = series(name, 'server="embedded"')
    return total(f"{shared} or {own}", by)


def rate(name: str, *matchers: str, by: Sequence[str] = (), window: str = NOW) -> str:
    """A counter's growth a second, summed over all labels but `by`."""
    if window == RANGE:  # `rate` is for windows that fit the resolution
        return f"{grown(name, *matchers, by=by)} / $__range_s"
    return total(f"rate({series(name, *matchers)}[{window}])", by)


def grown(name: str, *matchers: str, by: Sequence[str] = ()) -> str:
    """How much a counter has grown over all the time that is shown."""
    return total(f"increase({series(name, *matchers)}[{RANGE}])", by)


def ratio(part: str, whole: str) -> str:
    """`part` of `whole`; nothing, rather than a division by zero, where there is no whole."""
    return f"{part} / ({whole} > 0)"


def share(name: str, part: str, by: Sequence[str] = (), window: str = NOW) -> str:
    """What `part` matches of all of this counter; 0 where it matches none and there are some."""
    over = grown if window == RANGE else rate
    whole = over(name, by=by)
    return ratio(f"({over(name, part, by=by)} or 0 * {whole})", whole)


def quantile(q: float, name: str, by: Sequence[str] = (), window: str = NOW) -> str:
    over = "increase" if window == RANGE else "rate"
    buckets = total(f"{over}({series(f'{name}_bucket')}[{window}])", ("le", *by))
    return f"histogram_quantile({q:g}, {buckets})"


def mean(name: str, by: Sequence[str] = ()) -> str:
    return ratio(rate(f"{name}_sum", by=by), rate(f"{name}_count", by=by))


def within(name: str, variable: str) -> str:
    """The share of a histogram's values up to the bucket bound that a variable names."""
    return ratio(rate(f"{name}_bucket", f'le="${variable}"'), rate(f"{name}_count"))


def spread(name: str) -> tuple[Query, ...]:
    """A histogram as four lines: what is usual, what is not, and the mean."""
    quantiles = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    return (
        *(Query(quantile(q, name), legend) for q, legend in quantiles),
        Query(mean(name), "mean"),
    )
