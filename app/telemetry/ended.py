"""What is known of a request once it has ended, and the line that an access log has of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.telemetry.counting import CLIENT_GONE, PICO, Answered
from app.telemetry.names import NOBODY, Who
from app.types import Call

log = logging.getLogger("farthing.access")


class Asked(Protocol):
    """What an answer answers."""

    @property
    def call(self) -> Call: ...
    @property
    def span(self) -> object: ...


class Known(Answered, Protocol):
    """An answer that has ended, as far as traces and logs tell of it."""

    @property
    def order(self) -> Asked: ...
    @property
    def estimate(self) -> int: ...
    @property
    def outcome(self) -> str: ...
    @property
    def finishes(self) -> Sequence[str]: ...
    @property
    def visible(self) -> Mapping[str, int]: ...
    @property
    def tokens(self) -> tuple[int, int, int]:
        """Prompt, of it cached, answer."""
        ...


@dataclass(frozen=True, slots=True)
class Ended:
    """One HTTP request that has ended."""

    method: str
    route: str  # empty: there is none for it
    path: str
    scheme: str
    status: int  # 0: its client left before there was one
    seconds: float
    request_id: str
    ttft: float | None = None  # seconds until the answer's first token
    who: Who = NOBODY
    reason: str = ""  # why it was refused, or its answer broken off
    gone: bool = False  # its client left
    key: str = ""  # the API key's id
    answer: Known | None = None

    @property
    def failed(self) -> bool:
        """By our fault or an engine's: not by its client's."""
        broke_off = self.status == 200 and bool(self.reason)
        return self.status >= 500 or broke_off

    @property
    def outcome(self) -> str:
        """How its answer ended; or in a word how it ended itself."""
        if self.answer is not None and self.answer.outcome:
            return self.answer.outcome
        if self.gone or not self.status:
            return "closed"
        return "failed" if self.failed else "refused" if self.status >= 400 else "kept"

    @property
    def fields(self) -> dict[str, Any]:
        """What an access log says of it: nothing that was said in it."""
        told: dict[str, Any] = {
            "method": self.method,
            "route": self.route or "none",
            "status": self.status or CLIENT_GONE,
            "seconds": round(self.seconds, 6),
        }
        if self.ttft is not None:
            told["ttft"] = round(self.ttft, 6)
        told |= {"policy": self.who.policy, "preset": self.who.preset, "model": self.who.model}
        if self.answer is not None:
            prompt, _, completion = self.answer.tokens
            told |= {"prompt_tokens": prompt, "completion_tokens": completion}
            told["cost_usd"] = self.answer.bill.cost / PICO
        told["outcome"] = self.outcome
        if self.reason:
            told["reason"] = self.reason
        return told | {"key": self.key or "none"}


def note(request: Ended) -> None:
    """Write its line."""
    told = request.fields
    text = " ".join(f"{name}={value}" for name, value in list(told.items())[3:])
    log.info("%s %s %s %s", told["method"], told["route"], told["status"], text, extra=told)
