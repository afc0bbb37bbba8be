"""How likely an answer is right, calibrated: by its tokens' log-probabilities and entropy."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from app.types import Message, Token

SELF_CHECK = "Is that answer right? Say Yes or No, and nothing else."
VERDICTS = 20  # likeliest first tokens of a verdict among which Yes and No are looked for
_LEAST = -100.0  # natural: what is below it is no likelier than never
_BITS = 64.0  # of an entropy, at most: what bounds say of a tail may be infinite

Feature = Literal[
    "mean_logprob", "min_logprob", "mean_entropy", "max_entropy", "log_tokens", "self_check"
]
ENTROPIES = ("mean_entropy", "max_entropy")
Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class Signals:
    """What the tokens of an answer so far tell of it."""

    mean_logprob: float  # natural
    min_logprob: float
    mean_entropy: float | None  # bits; None: not all of the tokens have one
    max_entropy: float | None
    tokens: int
    self_check: float | None = None  # the chance of being right that the model itself names

    @property
    def raw(self) -> float:
        """exp of the mean log-probability: a confidence before any calibration."""
        return math.exp(self.mean_logprob)

    def feature(self, name: Feature) -> float:
        """Raises ValueError where this answer does not have it."""
        value = math.log(self.tokens) if name == "log_tokens" else getattr(self, name)
        if value is None:
            raise ValueError(f"the answer comes without {name}")
        return float(value)


def signals(tokens: Sequence[Token], self_check: float | None = None) -> Signals | None:
    """Of these tokens, those of the answer so far; None: not each of them has a log-probability.

    An entropy that is known within bounds is taken as the lower, which estimates the tail.
    """
    logprobs = [token.logprob for token in tokens if token.logprob is not None]
    if not logprobs or len(logprobs) < len(tokens):
        return None
    entropies = [token.entropy[0] for token in tokens if token.entropy is not None]
    told = len(entropies) == len(tokens)
    return Signals(
        mean_logprob=max(sum(logprobs) / len(logprobs), _LEAST),
        min_logprob=max(min(logprobs), _LEAST),
        mean_entropy=min(sum(entropies) / len(entropies), _BITS) if told else None,
        max_entropy=min(max(entropies), _BITS) if told else None,
        tokens=len(logprobs),
        self_check=self_check,
    )


def checking(messages: Sequence[Message], answer: str) -> tuple[Message, ...]:
    """A conversation in which the model judges its answer: P(True) of Kadavath et al. (2022).

    The verdict is the first token written, asked for with the `VERDICTS` likeliest of its place.
    """
    said = {"role": "assistant", "content": answer}, {"role": "user", "content": SELF_CHECK}
    return (*messages, *said)


def approval(verdict: Token) -> float | None:
    """P(yes) by P(yes) + P(no), whatever their case; None: neither is among the likeliest."""
    chances = {"yes": 0.0, "no": 0.0}
    for one in verdict.top:
        word = one.piece.decode(errors="replace").strip(" \n*.\"'").lower()
        if word in chances:
            chances[word] += math.exp(one.logprob)
    both = sum(chances.values())
    return chances["yes"] / both if both else None


class Score(BaseModel):
    """From signals to a chance of being right: logistic, then temperature, then isotonic.

    The logit is bias + sum of weight * (feature - mean) / scale, by temperature. It is kept within
    what was seen in fitting, so that no answer is promised more than those were. `steps` are an
    isotonic regression: (logit, chance), joined by lines; where there are none the chance is the
    logit's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: tuple[Feature, ...]
    means: tuple[FiniteFloat, ...]
    scales: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    weights: tuple[FiniteFloat, ...]
    bias: FiniteFloat
    temperature: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    seen: tuple[FiniteFloat, FiniteFloat]  # the least and the greatest logit in fitting
    steps: tuple[tuple[FiniteFloat, Probability], ...] = ()
    objective: Literal["nll", "squared"] = "nll"  # what the weights were fitted by
    answers: PositiveInt  # that it was fitted on
    right: NonNegativeInt  # of these

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        number = len(self.features)
        if {len(self.means), len(self.scales), len(self.weights)} != {number}:
            raise ValueError("features, means, scales and weights must be as many")
        if len(set(self.features)) < number:
            raise ValueError("features must differ")
        if self.seen[0] > self.seen[1] or self.right > self.answers:
            raise ValueError("seen must rise, and right be at most answers")
        pairs = zip(self.steps, self.steps[1:], strict=False)
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in pairs):
            raise ValueError("steps must rise")
        return self

    def logit(self, of: Signals) -> float:
        """Raises ValueError where a feature is missing."""
        total = self.bias
        columns = zip(self.features, self.means, self.scales, self.weights, strict=True)
        for name, mean, scale, weight in columns:
            total += weight * (of.feature(name) - mean) / scale
        return min(max(total / self.temperature, self.seen[0]), self.seen[1])

    def probability(self, of: Signals) -> float:
        """In 0..1. Raises ValueError where a feature is missing."""
        logit = self.logit(of)
        if not self.steps:
            return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
        at = bisect_left(self.steps, logit, key=lambda step: step[0])
        if at in (0, len(self.steps)):
            return self.steps[min(at, len(self.steps) - 1)][1]
        (left, low), (right, high) = self.steps[at - 1], self.steps[at]
        return low + (high - low) * (logit - left) / (right - left)


class Calibration(BaseModel):
    """How sure a model's answers make it to be right: what `farthing train confidence` writes.

    It holds for what it was fitted on: one model, and prompts like those.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    model: str  # by its name in the fleet where it was fitted
    tasks: tuple[str, ...]
    prompts_sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of the files of prompts
    seed: int
    max_tokens: PositiveInt  # of an answer
    whole: Score  # of an answer that has ended
    at: Mapping[PositiveInt, Score] = Field(default={}, max_length=64)
    """Of an answer of which no more than so many tokens are known."""
    caution: float = Field(0.0, ge=0, allow_inf_nan=False)  # logits, by which these are lowered
    checked: Score | None = None  # of one that has ended, and that the model itself has judged
    held_out: Mapping[str, FiniteFloat] = {}  # how it did on prompts that it was not fitted on

    @model_validator(mode="after")
    def _asks_only_what_there_is(self) -> Self:
        if any("self_check" in score.features for score in (self.whole, *self.at.values())):
            raise ValueError("self_check may be a feature of checked alone")
        return self

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """After how many tokens there is something to say, rising."""
        return tuple(sorted(self.at))

    @property
    def entropy(self) -> bool:
        """Whether tokens must come with their entropy."""
        scores = (self.whole, self.checked, *self.at.values())
        return any(set(ENTROPIES) & set(score.features) for score in scores if score is not None)

    def probability(self, of: Signals, at: int | None = None) -> float:
        """The chance in 0..1 that the answer is right; `at`: its signals are those of so many of
        its tokens only, one of the checkpoints; None: of the whole. With caution, as it is asked
        several times which answers to keep.

        Raises ValueError where there is no such checkpoint, or a feature is missing.
        """
        chance = self.plainly(of, at)
        return chance if at is None else _lowered(chance, self.caution)

    def plainly(self, of: Signals, at: int | None = None) -> float:
        """The same without caution: of all answers like it, whichever are kept. Raises as it."""
        if at is not None:
            if at not in self.at:
                known = ", ".join(map(str, self.checkpoints)) or "none"
                raise ValueError(
                    f"{at} tokens are no checkpoint of {self.model}; there are: {known}"
                )
            return self.at[at].probability(of)
        if of.self_check is not None and self.checked is not None:
            return self.checked.probability(of)
        return self.whole.probability(of)


def _lowered(chance: float, level: float) -> float:
    """By so many logits less."""
    if not level:
        return chance
    odds = chance * math.exp(-level)
    return odds / (odds + 1 - chance)
