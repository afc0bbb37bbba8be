"""Speculation by request on a vLLM server with our worker: what it can do, and in which words."""

from __future__ import annotations

from typing import Any

from app.errors import EngineUnsupported
from app.types import LengthRule, Sampling, Speculates, Speculation
from app.vllm_plugins import asks

_CONFIDENCE = 0.4  # Hugging Face's, where no level is named


def able(server: asks.Speculating | None) -> Speculates | None:
    """What the server can do of a Speculation; None: nothing by request."""
    if server is None:
        return None
    rules: tuple[LengthRule, ...] = ("confidence", "fixed")
    return Speculates(
        drafts=("",),
        rules=rules if server.level is None else ("head", *rules),
        acceptance=("exact", "lenient"),
        longest=server.longest,
        sampled=server.sampled,
    )


def xargs(
    asked: Speculation, sampling: Sampling, server: asks.Speculating | None
) -> dict[str, Any]:
    """The asks that this Speculation becomes. Raises EngineUnsupported for what cannot be done.

    `adaptive` allows to guess less where that is faster, which such a server does not measure.
    """
    can = able(server)
    if server is None or can is None:
        raise _unsupported("this server does not speculate by request")
    if asked.draft or asked.lookup:
        raise _unsupported("this server guesses by the draft model that it was started with")
    if asked.rule not in can.rules:
        raise _unsupported(f"this server does not end drafts by the rule {asked.rule!r}")
    if asked.acceptance not in can.acceptance:
        raise _unsupported(f"this server does not accept guesses by {asked.acceptance!r}")
    if sampling.temperature > 0 and not can.sampled:
        raise _unsupported("this server speculates at temperature 0 only")
    found: dict[str, Any] = {asks.SPEC_K: min(asked.longest, can.longest)}
    if asked.rule == "head":
        found[asks.SPEC_STOP] = server.level if asked.level is None else asked.level
    elif asked.rule == "confidence":
        found[asks.SPEC_CONFIDENCE] = _CONFIDENCE if asked.level is None else asked.level
    if asked.acceptance == "lenient":
        found[asks.SPEC_LENIENCE] = asked.lenience
    return found


def _unsupported(message: str) -> EngineUnsupported:
    return EngineUnsupported(message, param="policy")
