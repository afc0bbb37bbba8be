"""Telemetry for who wants no metrics: it knows the names, and counts nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from app.telemetry.counting import Answered, Telemetry
from app.telemetry.instruments import Labels
from app.telemetry.names import Names, Who
from app.trail import CallRecord


class Muted(Telemetry):
    """It has nothing to show: without metrics there is no page of them."""

    def __init__(self) -> None:
        self.names = Names()
        self.shared = False

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        yield

    def requested(self, endpoint: str, who: Who, status: int, seconds: float) -> None: ...

    def refused(self, reason: str) -> None: ...

    def first_token(self, who: Who, seconds: float) -> None: ...

    def next_tokens(self, who: Who) -> Callable[[float, int], None]:
        return _nothing

    def entropies(self, who: Who, model: str) -> Callable[[float], None]:
        return _nothing

    def handed_over(self, who: Who, model: str, seconds: float) -> None: ...

    def called(self, answer: Answered, record: CallRecord) -> None: ...

    def answered(self, answer: Answered, outcome: str) -> None: ...

    def show(self, name: str, values: Mapping[Labels, float]) -> None: ...

    def show_process(self) -> None: ...

    def settled(self, count: int) -> None: ...

    def wrote(self, seconds: float) -> None: ...


def _nothing(*told: object) -> None:
    pass
