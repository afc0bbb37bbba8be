"""A small model writes; the large one takes the pen where the next tokens are hard to call."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from app.catalog import Catalog
from app.errors import (
    BadRequest,
    ContextOverflow,
    EngineError,
    FarthingError,
    Overloaded,
    Unaffordable,
    UnknownModel,
)
from app.types import (
    Call,
    Chunk,
    Decision,
    Decoding,
    EntropyStop,
    Fidelity,
    MeteredEngine,
    Token,
    Usage,
)
from policies.base import Policy

Above = Annotated[float, Field(ge=0)]  # infinity: never
Below = Annotated[float, Field(le=64)]  # minus infinity: never


class EntropySwitch(Policy):
    """Entropy Adaptive Decoding (Simonds 2025, arXiv 2502.06833), with two thresholds.

    The rolling mean of the next-token entropy (bits, full vocabulary, before temperature) over
    `window` tokens decides who writes. The token at which it crosses is discarded and written
    anew by the model that takes over. Unlike the paper's single threshold, `raise_at` is of the
    small model's entropy and `lower_at` of the large one's, which is sharper.

    Where an engine knows only bounds of the entropy, the lower one counts. Models of two families
    hand over between two words, as text. When one of the two fails, the other one ends the answer.
    """

    fidelity: ClassVar[Fidelity] = "approximate"

    small: str = Field("", description="model that writes the easy part; default: the cheapest kin")
    large: str = Field("", description="model that writes the hard part; default: the one named")
    start: Literal["small", "large"] = "small"
    raise_at: Above = Field(2.5, description="bits: to the large model at this mean or above")
    lower_at: Below = Field(1.0, description="bits: back to the small one at this mean or below")
    window: PositiveInt = Field(5, le=1024, description="tokens in the rolling mean")
    d_min: PositiveInt = Field(10, le=1024, description="tokens between two switches, at least")
    expected_tokens: PositiveInt = Field(256, description="length of an answer, for pacing")
    switch_at: tuple[PositiveInt, ...] = Field(
        (), description="switch at these token indexes only (for tests)"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.window > self.d_min:
            raise ValueError("window must not exceed d_min: it would mix two models' entropies")
        if list(self.switch_at) != sorted(set(self.switch_at)):
            raise ValueError("switch_at must rise")
        return self

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        large = self.large or model
        if large is None:
            raise BadRequest("policy entropy_switch: `large` is missing", param="policy")
        large = catalog.model(large).name
        small = self.small or next(c.name for c in catalog.family(large))
        small = catalog.model(small).name
        if small == large:
            raise BadRequest(
                f"policy entropy_switch: {large} is the cheapest of its family, so there is"
                " nothing to switch to; name a larger `model` or another `small`",
                param="policy",
            )
        if catalog.model(small).price.output > catalog.model(large).price.output:
            raise BadRequest(
                f"policy entropy_switch: a token of {small} costs more than one of {large};"
                " exchange `small` and `large`",
                param="policy",
            )
        for name in (small, large):
            if catalog.model(name).engine == "openai":
                raise BadRequest(
                    f"policy entropy_switch: {name} is another server's, which does not work token"
                    " by token",
                    param="policy",
                )
        foreign = catalog.model(small).family != catalog.model(large).family
        if foreign and self.switch_at:
            raise BadRequest(
                f"policy entropy_switch: switch_at: {small} and {large} are not of one family,"
                " so they can hand over between two words only",
                param="policy",
            )
        return self.model_copy(update={"small": small, "large": large})

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        most = 1 + (len(self.switch_at) or completion // self.d_min)  # one more may be to steer
        small_runs = (most + 2) // 2
        read = small_runs * (prompt + completion)  # every run reads all that was written before
        writer = {
            # Each run may discard the token at which it crossed.
            self.small: Usage(prompt=read, completion=small_runs),
            self.large: Usage(prompt=read, completion=completion + small_runs),
        }
        first = self.small if self.start == "small" else self.large
        return {first: writer[first], **writer}

    def best_first(self, model: str) -> Sequence[str]:
        return self.large, self.small

    async def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        answer = _Answer(self, call, engine)
        while True:
            try:
                async with (
                    aclosing(engine.generate(answer.segment())) as stream,
                    aclosing(answer.read(stream)) as kept,
                ):
                    async for chunk in kept:
                        yield chunk
            except Unaffordable:
                if not answer.written and (answer.alone or answer.writer == self.small):
                    raise
                answer.cannot_pay()
            except (EngineError, Overloaded, UnknownModel, BadRequest) as error:
                if not answer.goes_on_after(error):
                    raise
            step = answer.next_step()
            yield step
            if step.finish is not None:
                return


@dataclass
class _Answer:
    """Where one answer stands: who writes, since when, and how uncertain."""

    policy: EntropySwitch
    call: Call
    engine: MeteredEngine
    writer: str = ""
    written: list[int] = field(default_factory=list)
    by_large: int = 0
    began: int = 0  # index of the first token since the last switch
    recent: deque[float] = field(default_factory=deque)  # bits, of the current writer
    text: str = ""
    end: Literal["crossed", "steered", "cut", "budget", "failed", "over"] = "over"  # last segment's
    last: Chunk = Chunk()  # the finish chunk of the last segment
    crossed: tuple[float, float] | None = None  # mean and threshold, where it ended by them
    stops: bool = False  # whether the engine was asked to stop by itself where it crosses
    left: int = 0  # what was left for the small model at the large one's last token
    alone: bool = False  # whether the other model has failed
    full: bool = False  # since its context could not take the answer
    foreign: bool = False  # whether the two have no tokenizer in common
    said: int = 0  # foreign: characters of `text` that were there when the writer took over
    due: tuple[float, float] | None = None  # foreign: it crossed, but amid a word

    def __post_init__(self) -> None:
        policy = self.policy
        able = self.engine.capabilities
        self.foreign = able(policy.small).family != able(policy.large).family
        self.writer = policy.small if policy.start == "small" else policy.large
        self.recent = deque(maxlen=policy.window)

    @property
    def mean(self) -> float | None:
        full = len(self.recent) == self.policy.window
        return sum(self.recent) / self.policy.window if full else None

    def segment(self) -> Call:
        """The call that lets the current writer go on."""
        call = self.call.to(self.writer).after(tuple(self.written))
        if self.foreign:
            own = tuple(self.written[self.began :])
            call = replace(call, said=self.text[: self.said], written=own)
        self.stops = False
        if self.alone:
            return call.decoded(Decoding(entropy=True))
        if self.policy.switch_at:
            ahead = [at - len(self.written) for at in self.policy.switch_at]
            ahead = [tokens for tokens in ahead if tokens > 0]
            if ahead and (call.max_tokens is None or ahead[0] < call.max_tokens):
                call = replace(call, max_tokens=ahead[0])
            return call.decoded(Decoding(entropy=True))
        stop, rising = None, self.writer == self.policy.small
        able = self.engine.capabilities(self.writer).stop_on_entropy
        # Where the small model must go on anyhow, a stop would only make it read all again.
        self.stops = able and (self._can_rise() or not rising) and not self.foreign
        self.stops = self.stops and math.isfinite(self._threshold())
        if self.stops:
            since = len(self.written) - self.began
            stop = EntropyStop(
                level=self._threshold(),
                rising=rising,
                window=self.policy.window,
                # One more than d_min, as the token that crosses is not kept.
                after=max(self.policy.d_min + 1 - since, 0),
            )
        return call.decoded(Decoding(entropy=True, stop=stop))

    async def read(self, stream: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
        """The tokens that stay; `end` says afterwards why the segment ended."""
        self.end, self.last, self.left = "over", Chunk(), 0
        async for chunk in stream:
            if chunk.finish is not None:
                self._finished(chunk)
                return
            if self.end != "over":
                return  # the engine went on after the token that crossed: close its stream
            self.crossed = self._crosses(chunk.tokens) or self.due
            if self.crossed and not self._between_words(chunk.text):
                self.crossed, self.due = None, self.crossed
            if self.crossed:
                self.end = "crossed"
                if not self.stops:
                    return
                continue  # its finish comes next
            self._keep(chunk)
            yield chunk
            if chunk.tokens and self._must_steer():
                self.end = "steered"
                return

    def next_step(self) -> Chunk:
        """A switch, with its Decision, or the chunk that ends the answer."""
        policy = self.policy
        if self.end == "over":
            if self.last.finish == "entropy":
                # The level had been paced up since it was asked for: go on, if more may follow.
                limit = self.call.max_tokens
                if limit is None or len(self.written) < limit:
                    return Chunk()
                return replace(self.last, finish="length")
            return self.last
        if self.end == "budget":
            stuck = self.alone or self.writer == policy.small
            if stuck or self.engine.allowance(policy.small) < 1:
                return replace(self.last, finish="length", reason="budget")
            self.end = "steered"
        self.writer = policy.large if self.writer == policy.small else policy.small
        self.began, self.said = len(self.written), len(self.text)
        self.recent.clear()
        mean, threshold = self.crossed or (None, None)
        self.due = None
        kinds: dict[str, Literal["steer", "failover"]]
        kinds = {"steered": "steer", "failed": "failover"}
        decided = Decision(
            kind=kinds.get(self.end, "switch"),
            model=self.writer,
            token=self.began,
            entropy=mean,
            threshold=threshold,
        )
        return Chunk(model=self.writer, decision=decided)

    def goes_on_after(self, error: FarthingError) -> bool:
        """Whether the other model takes over from one that fails, or the answer may end here."""
        # Who has nothing to lose had better hear of it. In mid-answer a model is unknown since the
        # catalog has been exchanged, and what one model refuses the other one has taken.
        early = isinstance(error, Overloaded | UnknownModel | BadRequest) and not self.written
        own = self.alone or self.began < len(self.written)
        if isinstance(error, ContextOverflow) and self.written and own:
            self.end, self.last = "over", Chunk(model=self.writer, finish="length")
            return True  # it is as long as either model can make it
        if self.alone or early:
            return False
        self.full = isinstance(error, ContextOverflow)
        self.alone, self.end, self.crossed = True, "failed", None
        return True

    def cannot_pay(self) -> None:
        """The budget does not pay for the next call, which may be no loss."""
        self.end, self.crossed = "budget", None
        if self.full:
            self.end, self.last = "over", Chunk(model=self.writer, finish="length")

    def _finished(self, chunk: Chunk) -> None:
        if self.end == "crossed":
            return
        self.last = chunk
        if chunk.finish == "entropy" and chunk.mean is not None:
            # The engine stopped before it drew the token: what it says must do.
            threshold = self._threshold()
            if self._is_across(chunk.mean, threshold):
                self.end, self.crossed = "crossed", (chunk.mean, threshold)
            return
        if chunk.reason == "budget":
            self.end = "budget"
        elif chunk.finish == "length" and len(self.written) in self.policy.switch_at:
            limit = self.call.max_tokens
            self.end = "over" if limit is not None and len(self.written) >= limit else "cut"
        elif chunk.finish == "length" and self._other_has_room():
            self.alone, self.full, self.end = True, True, "failed"

    def _other_has_room(self) -> bool:
        """Whether an answer that has filled the writer's context may go on with the other model."""
        limit, policy = self.call.max_tokens, self.policy
        if self.alone or (limit is not None and len(self.written) >= limit):
            return False
        other = policy.large if self.writer == policy.small else policy.small
        able = self.engine.capabilities
        return able(other).context > able(self.writer).context

    def _keep(self, chunk: Chunk) -> None:
        self.written += [token.id for token in chunk.tokens]
        self.text += chunk.text if self.foreign else ""
        if self.writer == self.policy.large:
            self.by_large += len(chunk.tokens)

    def _crosses(self, tokens: tuple[Token, ...]) -> tuple[float, float] | None:
        """The mean and the threshold if the writer changes at this token, else None.

        An engine that reports entropy sends one token a chunk.
        """
        for token in tokens:
            if token.entropy is not None:
                self.recent.append(token.entropy[0])
        since = len(self.written) - self.began + len(tokens)
        mean = self.mean
        if not tokens or self.policy.switch_at or mean is None or since <= self.policy.d_min:
            return None
        threshold = self._threshold()
        return (mean, threshold) if self._is_across(mean, threshold) else None

    def _is_across(self, mean: float, threshold: float) -> bool:
        if self.alone:
            return False
        if self.writer == self.policy.large:
            return mean <= threshold
        return mean >= threshold and self._can_rise()

    def _between_words(self, next_text: str) -> bool:
        """Whether the answer may be handed on as text before this one."""
        if not self.foreign or not self.text:
            return True
        return self.text[-1].isspace() or next_text[:1].isspace()

    def _can_rise(self) -> bool:
        """Whether a run of the large model leaves enough for the small one to end the answer."""
        large = self.engine.allowance(self.policy.large)
        small = self.engine.allowance(self.policy.small)
        if large < self.policy.d_min or small < 1:
            return False
        return self.policy.d_min / large + self._expected_rest() / small <= 1

    def _must_steer(self) -> bool:
        """Whether the large model must stop now, so that the small one can end the answer."""
        if self.writer == self.policy.small or self.policy.switch_at or self.alone:
            return False
        before, self.left = self.left, self.engine.allowance(self.policy.small)
        # One more token takes as much again: stop while what is left then still suffices.
        next_time = self.left - (before - self.left if before else 0)
        return 0 < self._expected_rest() > next_time

    def _threshold(self) -> float:
        """The level at which the writer changes: `raise_at` rises as the money runs short."""
        if self.writer == self.policy.large:
            return self.policy.lower_at
        allowance = self.engine.allowance(self.policy.large)
        if allowance == sys.maxsize:
            return self.policy.raise_at
        # With one run of either model as prior, so that it is defined from the first token on.
        prior = self.policy.d_min
        share = (self.by_large + prior) / (len(self.written) + 2 * prior)
        short = self._expected_rest() * share / max(allowance, 1)
        return self.policy.raise_at * max(1.0, short)

    def _expected_rest(self) -> int:
        expected = max(self.policy.expected_tokens - len(self.written), self.policy.d_min)
        if self.call.max_tokens is None:
            return expected
        return min(expected, self.call.max_tokens - len(self.written))
