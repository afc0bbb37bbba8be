"""What is known of one request of a calibration, once it is answered and graded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.types import Fidelity


@dataclass(frozen=True)
class Point:
    """A way to answer: a model, or a preset at one setting of its dial."""

    name: str  # `careful`, or `careful;threshold=0.5`
    preset: str  # the model's or preset's name
    policy: str  # `direct` for a model
    options: Mapping[str, Any]  # beside the preset's own
    models: tuple[str, ...]  # all that may be asked
    fidelity: Fidelity
    digest: str
    author: str = ""  # the model as whose its answers are distributed; empty: they are its own


@dataclass(frozen=True)
class Observed:
    """One answer."""

    way: str  # a Point's name
    kind: str  # of the prompt: `math`, `code`, `gsm8k`
    question: str  # `kind/number`: the same for every way
    seed: int
    level: int  # requests at once while it was asked
    worth: float  # 0 to 1; of a failure 0
    failed: str  # why there is no answer; empty: there is one
    prompt: int = 0  # tokens that the client sees
    completion: int = 0
    cost: float | None = None  # USD
    gpu_seconds: float | None = None  # idealized
    first_s: float | None = None  # to the first text
    seconds: float | None = None  # to the end
    beside: float = 0.0  # requests that ran beside it, in the mean over its time
    met: int = 0  # that ran when it began
    entropy: float | None = None  # bits: mean over the first tokens, where the way tells it
