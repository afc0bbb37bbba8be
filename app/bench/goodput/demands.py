"""What requests demand: a first token, a whole answer in time, for no more than so much."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from app.bench.grading import Question
from app.errors import ConfigError
from app.tariffs import PICO, usd

FIRST_TOKEN, LATENCY, USD = "X-Budget-Ttft-Ms", "X-Budget-Latency-Ms", "X-Budget-Usd"
_LIKE = "NAME;first_token=SECONDS;latency=SECONDS;usd=USD;weight=SHARE"


@dataclass(frozen=True)
class Slo:
    """A class of requests. None: it does not matter."""

    name: str
    first_token: float | None = None  # seconds to the first text
    latency: float | None = None  # seconds to the end
    usd: int | None = None  # 1e-12, of one request
    weight: float = 1.0  # how many requests are of it, beside the others

    @property
    def headers(self) -> Mapping[str, str]:
        """What tells a gateway of it."""
        told = {}
        if self.first_token is not None:
            told[FIRST_TOKEN] = f"{1000 * self.first_token:.10g}"
        if self.latency is not None:
            told[LATENCY] = f"{1000 * self.latency:.10g}"
        if self.usd is not None:
            told[USD] = usd(self.usd)
        return told


DEFAULT = (
    Slo("interactive", first_token=0.5, latency=4.0, usd=20_000_000),
    Slo("ordinary", first_token=2.0, latency=10.0, usd=10_000_000),
    Slo("batch", latency=60.0, usd=5_000_000),
)
"""For the fleet that comes with Farthing, on two cores."""


def parse(text: str) -> Slo:
    """`NAME;first_token=0.5;latency=4;usd=0.00001;weight=2`: all but the name may be left out.
    Raises ConfigError."""
    name, *parts = text.split(";")
    values: dict[str, Decimal] = {}
    for part in parts:
        what, _, value = part.partition("=")
        if what not in ("first_token", "latency", "usd", "weight") or what in values:
            raise ConfigError(f"--slo: must look like {_LIKE}, not {text!r}")
        try:
            values[what] = Decimal(value)
        except InvalidOperation:
            raise ConfigError(f"--slo {name}: {what}: must be a number, not {value!r}") from None
        if not (values[what].is_finite() and values[what] > 0):
            raise ConfigError(f"--slo {name}: {what}: must be above 0, not {value!r}")
    if not name:
        raise ConfigError(f"--slo: must look like {_LIKE}, not {text!r}")
    return Slo(
        name,
        first_token=float(values["first_token"]) if "first_token" in values else None,
        latency=float(values["latency"]) if "latency" in values else None,
        usd=int(values["usd"] * PICO) if "usd" in values else None,
        weight=float(values.get("weight", 1)),
    )


@dataclass(frozen=True)
class Wanted:
    """A request to come, the same for every way."""

    number: int  # of its window
    at: float  # seconds from the window's first
    question: Question
    slo: Slo


def wanted(
    arrivals: Sequence[float], questions: Sequence[Question], slos: Sequence[Slo], seed: int
) -> list[Wanted]:
    """A window of requests: each draws a kind of question, one of that kind, and its class. What is
    drawn of one does not depend on the others."""
    kinds: dict[str, list[Question]] = {}
    for one in questions:
        kinds.setdefault(one.task.name, []).append(one)
    asking, classes = random.Random(f"question {seed}"), random.Random(f"class {seed}")
    weights, found = [slo.weight for slo in slos], []
    for number, at in enumerate(arrivals):
        question = asking.choice(kinds[asking.choice(list(kinds))])
        (slo,) = classes.choices(slos, weights)
        found.append(Wanted(number, at, question, slo))
    return found
