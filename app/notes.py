"""What is noted of an answer only to explain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.budget import Meter
from app.choices import Part
from app.orders import Plan
from app.types import Alternative, Chunk, Shortened
from policies.base import Planned, Policy


@dataclass
class Notes:
    """Of one answer, so far."""

    plan: Plan
    meter: Meter
    planned: Planned  # what answers it: the plan's policy, or what that says
    drawn: int  # choices that are made of each prompt
    found: Sequence[Part] = ()  # once its prompts are counted
    considered: dict[int, tuple[Alternative, ...]] = field(default_factory=dict)  # by choice
    shortened: dict[int, Shortened] = field(default_factory=dict)  # by choice; never written down
    decided: list[float] = field(default_factory=list)  # time.monotonic() of each decision
    further: int = 0  # calls beyond those that are kept
    error: Exception | None = None  # what ended it

    @property
    def serving(self) -> Policy:
        """The policy that answers."""
        return self.planned.policy

    @property
    def worst(self) -> int:
        """The most that the plan may cost, whatever the budget; 1e-12 USD."""
        return sum(part.most for part in self.found)

    @property
    def worst_gpu(self) -> int | None:
        """The most that it may take, 1e-12 accelerator-seconds, where that is bounded too."""
        below = [part.beneath.most for part in self.found if part.beneath is not None]
        return sum(below) if below else None

    @property
    def limit_gpu(self) -> int | None:
        return None if self.meter.beneath is None else self.meter.beneath.limit

    def replan(self, planned: Planned, found: Sequence[Part]) -> None:
        """What answers, and what is run for that; what others said of their ways is forgotten."""
        self.planned, self.found = planned, found
        self.considered.clear()
        self.shortened.clear()

    def note(self, chunk: Chunk) -> None:
        """What the policy says of its ways."""
        self.considered.setdefault(chunk.index, chunk.considered)
        if chunk.shortened is not None:
            self.shortened.setdefault(chunk.index, chunk.shortened)
