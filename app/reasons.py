"""What a policy tells of itself in band: what it decided, and among which ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal[
    "switch",
    "steer",
    "failover",
    "plain",
    "predict",
    "repair",
    "whole",
    "keep",
    "escalate",
    "select",
    "refine",
    "compress",
    "precision",
    "plan",
    "route",
]
STRATEGIES = ("keep", "escalate", "select", "refine", "compress", "precision", "plan", "route")
"""The kinds that are decided around whole answers."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy decided in mid-answer, and why."""

    # By entropy, for want of money, of an engine; plain: nothing was guessed, predicted or left
    # out, as the engine cannot or it does not pay; predict: the prompt's KV was predicted; repair:
    # and has been computed; whole: one model answers alone, as a hand-over would spoil what is
    # asked for.
    # Of whole answers: keep, escalate: one is good enough, or the next model answers; select: the
    # best of several; refine: the best of its versions; compress: some of the prompt was left out;
    # precision: in which the model answers; plan: in which way the request is answered; route: by
    # the small model or the large one.
    kind: Kind
    model: str  # who writes from here on
    # Index in the answer of the first token that is written under it; keep, escalate: how many
    # there were of the answer that it is about.
    token: int
    entropy: float | None = None  # rolling mean, bits
    threshold: float | None = None  # bits, or of the confidence
    confidence: float | None = None  # 0 to 1: chance of being right, share of votes, score
    answers: int | None = None  # that were made for this one
    dropped: int | None = None  # tokens of the prompt that were left out
    detail: str = ""  # in our words, nothing of prompt or answer; 200 characters at most
    steered: bool = False  # it was for want of money; of a `steer` that goes without saying
    saves: float | None = None  # seconds by which the answer begins sooner, by estimate
    rest_usd: float | None = None  # stamped by the gateway
    choice: int = 0  # of which answer; stamped by the gateway too


@dataclass(frozen=True, slots=True)
class Shortened:
    """What a model read in place of the request's prompt: for its client alone."""

    before: int  # tokens
    after: int
    messages: tuple[Mapping[str, Any], ...] = ()
    prompts: tuple[str | tuple[int, ...], ...] = ()  # of a bare completion


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of what is expected of a way to answer. None: nobody knows a worse value."""

    cost: float | None = None  # USD, that nearly all answers do not pass; so the times
    first_token: float | None = None
    latency: float | None = None
    quality: float | None = None  # that it is known to have at least
    doubt: float | None = None  # standard error of the expected quality
    worst: float | None = None  # USD at worst, where that was asked for
    able: bool = True  # whether it could serve the request as it was measured


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the ways that there were. None: nobody looked, or it cannot be said."""

    kind: Literal["plan", "model", "preset", "reading", "answer"]
    """What the name is of: what the request asks for; a model that answers alone; another preset;
    a way to read the prompt; one of the answers that were made."""
    name: str
    chosen: bool
    reason: str  # why, or why not: in our words
    cost: int | None = None  # 1e-12 USD, at worst
    fits: bool | None = None  # what had to be kept to: the budget, or the time
    tokens: int | None = None  # of an answer, that the budget buys
    first_token: float | None = None  # seconds until the answer begins
    latency: float | None = None  # seconds until it is whole
    quality: float | None = None  # as measured, relative to the best way's
    bounds: Bounds | None = None  # how sure all of that is
    propensity: float | None = None  # how likely it was to be chosen, before it was
    chance: float | None = None  # that it keeps to money and time
    delay: float | None = None  # seconds that other answers come later, all together


PlanKind: TypeAlias = Literal["best", "explored", "short", "failover"]


@dataclass(frozen=True, slots=True)
class Promise:
    """What the planner expected of the way in which it has a request answered."""

    way: str  # `careful;threshold=0.5`
    preset: str  # of these the preset, or the model
    cost: float  # USD
    first_token: float  # seconds until the answer begins
    latency: float  # seconds until it is whole
    kind: PlanKind = "best"
    """Why it was taken: it should be; it was drawn to learn of it; nothing keeps to what is asked;
    the way that was taken first failed before its first word."""
    after: tuple[str, ...] = ()  # ways that failed, the one that was taken first ahead
    cost_high: float | None = None  # what nearly all answers do not pass
    first_token_high: float | None = None
    latency_high: float | None = None
