"""What was measured of every way to answer: `farthing calibrate` writes it, `auto` goes by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt

from app.prompt_features import Classifier
from app.types import Fidelity

Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Frozen(BaseModel):
    """Part of a profile."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Frozen):
    """A mean, and the 95 % interval that it lies in."""

    mean: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    questions: PositiveInt


class Length(Frozen):
    """Tokens of an answer that its client sees."""

    mean: Amount
    high: Amount  # nine of ten answers have no more


class Law(Frozen):
    """An amount by the tokens of prompt and answer, and by how many calls run.

    (base + prompt * tokens of the prompt + completion * tokens of the answer) * (1 + load * calls):
    `calls` are those that run or wait beside it on what the models of the way run on.
    """

    base: Amount
    prompt: Amount  # of a token of the prompt
    completion: Amount  # of a token of the answer
    load: Amount = 0.0  # share by which each other call makes it more
    high: Amount = 1.0  # nine of ten times it is at most so many times what this says
    error: Amount = 0.0  # mean absolute error on questions that it was not fitted to

    @property
    def known(self) -> bool:
        """Whether it says anything: a law of nothing is that of an amount which nobody told."""
        return bool(self.base or self.prompt or self.completion)

    def at(self, prompt: float, completion: float, calls: float = 0) -> float:
        """The amount to expect, in the unit of what it was fitted to: USD, or seconds."""
        amount = self.base + self.prompt * prompt + self.completion * completion
        return amount * (1 + self.load * calls)


class Way(Frozen):
    """A model, or a preset at one setting of its dial."""

    name: str  # `careful`, or `careful;threshold=0.5`
    preset: str  # the model's or preset's name in farthing.toml
    policy: str  # `direct` for a model
    options: Mapping[str, Any]  # beside the preset's own: the dial
    models: tuple[str, ...]  # all that may be asked
    fidelity: Fidelity
    digest: str  # `digest_of` when it was measured: what has changed since is another way
    quality: Mapping[str, Interval]  # of an answer, 0 to 1, by kind of prompt
    length: Mapping[str, Length]  # by kind of prompt
    cost: Law  # USD; `load` is 0
    first_token: Law  # seconds
    latency: Law  # seconds, to the answer's end


class Runtime(Frozen):
    """Idealized runtime of a model (Narayanan et al. 2023, arXiv 2305.02440): F by the tokens of an
    uncached prompt, seconds to the first token; g, seconds for each further one. Alone.
    """

    first: Mapping[NonNegativeInt, Amount]
    each: Amount


class Profile(Frozen):
    """One fleet's, of one machine."""

    version: Literal[1] = 1
    measured: str  # when, ISO 8601, and by which command
    best: str  # the way of the best quality over all kinds: relative quality is by its
    ways: tuple[Way, ...]
    kinds: Classifier  # of prompts: how likely each kind is
    difficulty: Mapping[str, Classifier] = {}
    """By small model: classes `small` and `large`; how likely a large one is needed."""
    entropies: Mapping[str, tuple[FiniteFloat, ...]] = {}
    """By small model: quantiles 0 to 1, evenly spaced, of the mean entropy of its answers' first
    tokens, in bits."""
    difficulties: Mapping[str, tuple[FiniteFloat, ...]] = {}
    """By small model: the same of the chance that `difficulty` says."""
    runtimes: Mapping[str, Runtime] = {}  # by model
