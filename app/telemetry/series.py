"""How many series there can be: what bounds them is the catalog, never what clients send."""

from __future__ import annotations

from math import prod

from app.reasons import STRATEGIES
from app.telemetry.counting import (
    DRIFTS,
    FALLBACKS,
    KINDS,
    OUTCOMES,
    PLANNED,
    STATUSES,
    TRIED,
    reasons,
)
from app.telemetry.metrics import METRICS, Metric
from app.telemetry.names import Names
from app.types import HAND_OVERS

_FIDELITIES = 2
_WORDS = {  # labels whose values are in the code, by metric where they differ
    ("farthing_tokens_total", "kind"): len(KINDS),
    ("farthing_switches_total", "kind"): len(HAND_OVERS),
    ("farthing_fallbacks_total", "kind"): len(FALLBACKS),
    ("farthing_strategies_total", "kind"): len(STRATEGIES),
    ("farthing_plans_total", "kind"): len(PLANNED),
    ("farthing_plan_drift_ratio", "kind"): len(DRIFTS),
    ("farthing_engine_attempts_total", "outcome"): len(TRIED),
}


def most_series(names: Names, endpoints: int, answering: int) -> int:
    """The most samples that a scrape may have, under names that are known now.

    `endpoints`: routes; `answering`: those of them where a model answers. Buckets, sums and counts
    of histograms are samples too.
    """
    models = len(names.models) + 1  # and `other`
    hows = len(names.pairs) - 1  # without that of nobody
    whos = models * hows
    values = {
        "model": models,
        "way": len(names.ways) + 1,
        "preset,policy": hows,
        "model,preset,policy": whos,
        "model,server": len(names.servers) + models,
        # Elsewhere nobody answers; and `other` is what is no route.
        "endpoint,model,preset,policy": endpoints + 1 + answering * whos,
        "version,prices": 1,
    }
    return sum(_labels(name, metric, values) * _samples(metric) for name, metric in METRICS.items())


def _labels(name: str, metric: Metric, values: dict[str, int]) -> int:
    """In how many ways this metric may be labelled."""
    words = {
        "status": len(STATUSES) + 1,
        "reason": len(reasons()),
        "fidelity": _FIDELITIES,
        "outcome": len(OUTCOMES) + 1,
        "to": values["model"],
    }
    free = [label for label in metric.labels if label in words or label == "kind"]
    bound = ",".join(label for label in metric.labels if label not in free)
    each = [_WORDS.get((name, label)) or words[label] for label in free]
    return prod(each) * (values[bound] if bound else 1)


def _samples(metric: Metric) -> int:
    # Of a histogram also the last bucket, the sum and the count.
    return len(metric.buckets) + 3 if metric.kind == "histogram" else 1
