"""The choices behind a KV predictor: what it is told, how it is fitted, and how it is tuned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("tokens", "longest", "examples", "answer", "batch", "every"), (1, math.inf)),
    **dict.fromkeys(("units", "steps", "first"), (0, math.inf)),
    "ridge": (0.0, 1e6),
    "learning_rate": (1e-9, 1.0),
    "warmup": (0.0, 0.99),
    **dict.fromkeys(("divergence", "entropy", "consistency"), (0.0, 1e6)),
}


@dataclass(frozen=True)
class KVRecipe:
    """All that decides what comes out, beside the inputs and the machine's arithmetic."""

    kept: tuple[int, ...] = (18, 15, 8)  # of the base's layers, a predictor for each; none: (a)
    ridge: float = 1e-3
    tokens: int = 300_000  # that the closed form is fitted on
    longest: int = 1024  # tokens of a text; shorter ones are put together
    units: int = 0  # of an MLP beside the maps, which only tuning teaches
    steps: int = 0  # of tuning by gradients; 0: the closed form is all
    examples: int = 320  # that tuning draws, and goes through as often as its steps last
    batch: int = 4  # of them a step
    answer: int = 112  # tokens behind a prompt, by which tuning judges
    first: int = 4  # tokens at a prompt's beginning that are computed all the same
    divergence: float = 1.0  # weight of the divergence from what the base says itself
    entropy: float = 0.0  # of the cross-entropy of what stands behind the prompt
    consistency: float = 0.0  # of the L1 distance to the true KV, the layers' mean
    learning_rate: float = 4e-4
    warmup: float = 0.05
    every: int = 40  # texts or steps between two saved states
    seed: int = 0
    # Another model that tells of the prompt. Digests have more of it than its name.
    auxiliary: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Raises ValueError, naming the option."""
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                allowed = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)}")
        if len(set(self.kept)) < len(self.kept) or any(kept < 1 for kept in self.kept):
            raise ValueError(f"kept must be numbers of layers, each once, not {self.kept}")
        if bool(self.kept) == bool(self.auxiliary):
            raise ValueError("kept layers, or an auxiliary model, must be named: one of them")
        if self.units and self.auxiliary:
            raise ValueError("units: only where the base's own layers tell of the prompt")
        if self.steps and not self.divergence + self.entropy + self.consistency:
            raise ValueError("divergence, entropy, consistency: tuning needs a loss, and all are 0")
        if self.units and not self.steps:
            raise ValueError("units: an MLP learns in steps of tuning only, and steps is 0")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KVRecipe:
        """What `to_dict` gave, by way of JSON. Raises ValueError."""
        try:
            return cls(**{**values, "kept": tuple(values.get("kept", ()))})
        except TypeError as error:
            raise ValueError(f"is no recipe of a KV predictor: {error}") from error
