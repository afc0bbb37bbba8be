"""The choices behind a draft: what it keeps of its target, reads, minimises, and for how long."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from app.training.divergence import KINDS, Divergence, Kind

Source = Literal["draft", "target", "fixed", "mixed"]
SOURCES: tuple[Source, ...] = get_args(Source)
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("tokens", "batch", "piece", "answer", "every", "layers", "texts"), (1, math.inf)
    ),
    **dict.fromkeys(("columns", "invented", "drafting"), (0, math.inf)),
    "beta": (0.001, 0.999),
    "learning_rate": (1e-9, 1.0),
    "warmup": (0.0, 0.99),
    "weight_decay": (0.0, 1.0),
    "temperature": (0.01, 10.0),
}


@dataclass(frozen=True)
class Recipe:
    """All that decides what comes out, beside the inputs and the machine's arithmetic."""

    kept: tuple[int, ...] = ()  # layers of the model that it starts from; none: of all, evenly
    layers: int = 6  # how many, where `kept` does not say which
    source: Source = "target"
    divergence: Kind = "forward_kl"
    beta: float = 0.5  # of jsd, between 0 and 1
    texts: int = 4000  # that the target writes, where it is a source
    invented: int = 1000  # prompts that it invents beside those given
    tokens: int = 4_000_000  # of answers, trained on
    batch: int = 8  # texts a step
    columns: int = 8192  # of the vocabulary, that a step compares; 0: all
    piece: int = 4096  # tokens in memory at a time, padding included
    answer: int = 192  # tokens of the longest answer
    learning_rate: float = 1e-3
    warmup: float = 0.03  # share of the tokens until the rate is reached
    weight_decay: float = 0.01
    temperature: float = 1.0  # of what the draft writes
    seed: int = 0
    every: int = 100  # steps between two looks at the held-out texts
    drafting: int = 16_384  # tokens that the trimmed head knows; 0: no trimmed head

    def __post_init__(self) -> None:
        """Raises ValueError, naming the option."""
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                allowed = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)}")
        for name, known in (("source", SOURCES), ("divergence", KINDS)):
            if getattr(self, name) not in known:
                among = ", ".join(known)
                raise ValueError(f"{name} must be one of {among}, not {getattr(self, name)!r}")
        if self.source == "mixed" and self.batch < 2:
            raise ValueError("batch must be at least 2 where the source is mixed")

    @property
    def minimised(self) -> Divergence:
        return Divergence(self.divergence, self.beta)

    def chosen(self, layers: int) -> tuple[int, ...]:
        """Which of so many layers are kept: the ends, and others evenly between them.

        Raises ValueError where the model has not got them.
        """
        if not self.kept:
            if self.layers > layers:
                raise ValueError(f"layers: the model has {layers}, fewer than {self.layers}")
            step = (layers - 1) / max(1, self.layers - 1)
            return tuple(round(index * step) for index in range(self.layers))
        if any(not 0 <= index < layers for index in self.kept):
            raise ValueError(f"kept: the model's layers are 0 to {layers - 1}, not {self.kept}")
        return self.kept

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """What `to_dict` gave, by way of JSON. Raises ValueError."""
        try:
            return cls(**{**values, "kept": tuple(values.get("kept", ()))})
        except TypeError as error:
            raise ValueError(f"is no recipe of a training: {error}") from error
