"""The small model answers what looks easy, the large one the rest: each request whole by one."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, PrivateAttr

from app.catalog import Catalog, ModelCard
from app.errors import BadRequest
from app.prompt_features import Classifier, features_of
from app.types import Call, Chunk, Decision, Fidelity, MeteredEngine, Usage
from policies.answers.routing import First, Pair, Routed
from policies.base import OneOf, Policy, Ranking, Whole, afforded, most_likely, rich_first


class Route(Policy):
    """A router of requests in the manner of RouteLLM (Ong et al. 2024, arXiv 2406.18665): a score
    says how hard a request is, and a threshold of it which share of them the large model answers.

    `features`: the score is the chance that a large model is needed, of a classifier on features of
    the prompt. `entropy`: the mean entropy of the small model's first tokens, which are held back
    until then; where it is too high they are dropped, and the large model answers from scratch.
    Where an engine knows only bounds of the entropy, the lower one counts. The threshold is that
    quantile of the scores which `farthing calibrate` saw that leaves `share` of them at or above.
    """

    fidelity: ClassVar[Fidelity] = "approximate"

    small: str = Field("", description="answers what looks easy; default: the cheapest kin")
    large: str = Field("", description="answers the rest; default: the model named")
    share: float = Field(
        0.5, ge=0, le=1, description="of the requests that were measured, what the large one gets"
    )
    by: Literal["features", "entropy"] = Field(
        "features", description="features of the prompt, or entropy of the small one's first tokens"
    )
    threshold: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="the large one answers at this chance or above (features, 0 to 1), or this mean"
        " (entropy, bits); default: by `share`",
    )
    tokens: PositiveInt = Field(
        8, le=256, description="that entropy looks at; the profile's are of 8"
    )

    _pair: Pair | None = PrivateAttr(default=None)
    _classifier: Classifier | None = PrivateAttr(default=None)
    _level: float = PrivateAttr(default=math.inf)  # the threshold; infinite: nothing needs a score
    _foreign: bool = PrivateAttr(default=False)  # whether one is another server's model

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        named = self.large or model
        if named is None:
            raise BadRequest("policy route: `large` is missing", param="policy")
        large = catalog.model(named)
        kin = (card for card in catalog.family(large.name) if card.embeds != "only")
        small = catalog.model(self.small) if self.small else next(kin, large)
        _check(small, large, self.by)
        fitted = self.model_copy(update={"small": small.name, "large": large.name})
        fitted._pair = Pair(small.name, large.name, small.price, large.price)
        fitted._foreign = "openai" in (small.engine, large.engine)
        fitted._level, fitted._classifier = self._scored(catalog, small.name)
        return fitted

    def _scored(self, catalog: Catalog, small: str) -> tuple[float, Classifier | None]:
        """The threshold, and whose scores it is of. Raises BadRequest where nothing was measured.

        Scores that tie with the threshold count as above it, so that all or none are exact.
        """
        if self.threshold is None and self.share in (0, 1):
            return -math.inf if self.share else math.inf, None
        profile = catalog.profile
        if self.by == "entropy":
            seen = () if profile is None else profile.entropies.get(small, ())
            if self.threshold is None and not seen:
                raise _unmeasured(small, "the entropy of its answers", "or give a `threshold`")
            return self._above(seen), None
        known = None if profile is None else profile.difficulty.get(small)
        if known is None or "large" not in known.classes:
            raise _unmeasured(small, "which prompts it answers", "or go `by` entropy")
        seen = () if profile is None else profile.difficulties.get(small, ())
        if self.threshold is None and not seen:
            raise _unmeasured(small, "how hard prompts are for it", "or give a `threshold`")
        return self._above(seen), known

    def _above(self, seen: Sequence[float]) -> float:
        return quantile(seen, 1 - self.share) if self.threshold is None else self.threshold

    @property
    def one_of(self) -> bool:
        return not self._watches

    @property
    def _watches(self) -> bool:
        """Whether the small model is begun to see how hard it finds it."""
        return self.by == "entropy" and math.isfinite(self._level)

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        whole = Usage(prompt=prompt, completion=completion)
        if not self._watches:
            return {self.small: whole, self.large: whole}
        # Left for the large model, which fails: then it is gone on with.
        again = Usage(prompt=prompt + min(self.tokens, completion))
        return {self.small: whole + again, self.large: whole}

    def best_first(self, model: str) -> Sequence[str]:
        return self.large, self.small

    def most_calls(self, call: Call) -> int:
        return 3 if self._watches else 2

    def serving(self, call: Call, engine: MeteredEngine, prices: Mapping[str, Any]) -> Policy:
        """Choices of another server cannot be put beside ours: the large model makes all of them.
        What is asked of servers that answer in their own words may have any form."""
        relays = self.relays(call, engine)
        if self._foreign and call.choices > 1 and not relays:
            return Whole(models=(self.large,), prices={self.large: prices[self.large]})
        return self if relays else super().serving(call, engine, prices)

    def relays(self, call: Call, engine: MeteredEngine) -> bool:
        able = engine.capabilities
        return not self._watches and able(self.small).native and able(self.large).native

    async def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        pair = self._pair
        if pair is None:
            raise BadRequest("policy route: no model was named", param="policy")
        if self._watches:
            stream = Routed(pair, First(self.tokens, self._level), call, engine).chunks()
        else:
            stream = _Scored.of(pair, self._verdict(call)).run(call, engine)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk

    def _verdict(self, call: Call) -> _Verdict:
        if self._classifier is None:
            hard = self._level < 0
            return _Verdict(hard, f"the large model's share is {self.share:g}")
        # Choices that a server makes at once may be of several prompts: the hardest one decides.
        asked = map(features_of, call.apart())
        chance = max(self._classifier.probabilities(found)["large"] for found in asked)
        hard = chance >= self._level
        side = "at least" if hard else "below"
        said = f"a large model is needed with a chance of {chance:.3f}, {side} {self._level:.3f}"
        return _Verdict(hard, said, chance, self._level)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Whether a request is for the large model, told before anything is written."""

    hard: bool
    said: str
    chance: float | None = None
    threshold: float | None = None


class _Scored(OneOf):
    """The model that a verdict says; the other one where that fails, or cannot be paid for."""

    fidelity: ClassVar[Fidelity] = "approximate"

    pair: Pair
    verdict: _Verdict

    @classmethod
    def of(cls, pair: Pair, verdict: _Verdict) -> _Scored:
        order = (pair.large, pair.small) if verdict.hard else (pair.small, pair.large)
        return cls(models=order, pair=pair, verdict=verdict)

    async def ranked(self, call: Call, engine: MeteredEngine) -> Ranking:
        pair = self.pair
        prices = {pair.small: pair.price_small, pair.large: pair.price_large}
        buys, wanted = await afforded(call, engine, prices), most_likely(call)
        order = rich_first(self.models, buys, wanted)
        return _ByScore(order, buys, wanted, self.models[0], self.verdict)


@dataclass(frozen=True)
class _ByScore(Ranking):
    """By the verdict, and by what the budget pays for."""

    meant: str  # for which model the request is, by the verdict
    verdict: _Verdict

    def decided(self, chosen: str) -> Decision:
        steered = self.models[0] != self.meant
        why = self.verdict.said
        if chosen != self.models[0]:
            why = f"{self.models[0]} failed; {why}"
        elif steered:
            why = f"the budget does not pay for {self.meant}; {why}"
        return Decision(
            kind="route",
            model=chosen,
            token=0,
            confidence=self.verdict.chance,
            threshold=self.verdict.threshold,
            detail=why,
            steered=steered and chosen == self.models[0],
        )

    def reason(self, model: str, chosen: str) -> str:
        if model == self.meant and self.models[0] != self.meant:
            return f"the budget does not pay for {self.wanted} tokens of it"
        if model == self.meant or (model == chosen and self.models[0] == self.meant):
            return self.verdict.said
        if model == chosen:
            return f"the budget does not pay for {self.meant}"
        return f"not asked: {self.verdict.said}"


def quantile(seen: Sequence[float], share: float) -> float:
    """Of evenly spaced quantiles 0 to 1, the one that `share` of all is below."""
    at = share * (len(seen) - 1)
    below = min(int(at), max(len(seen) - 2, 0))
    above = min(below + 1, len(seen) - 1)
    return seen[below] + (seen[above] - seen[below]) * (at - below)


def _check(small: ModelCard, large: ModelCard, by: str) -> None:
    """Raises BadRequest for two models between which nothing can be routed."""
    if small.name == large.name:
        raise BadRequest(
            f"policy route: {large.name} is the cheapest of its family, so there is nothing to"
            " choose between; name a larger `model` or another `small`",
            param="policy",
        )
    if small.price.output > large.price.output:
        raise BadRequest(
            f"policy route: a token of {small.name} costs more than one of {large.name}; exchange"
            " `small` and `large`",
            param="policy",
        )
    for card in (small, large):
        if card.embeds == "only":
            raise BadRequest(f"policy route: {card.name} writes nothing", param="policy")
    if by == "entropy" and small.engine == "openai":
        raise BadRequest(
            f"policy route: {small.name} is another server's, which does not tell its entropy; go"
            " `by` features",
            param="policy",
        )


def _unmeasured(small: str, what: str, instead: str) -> BadRequest:
    return BadRequest(
        f"policy route: it has not been measured for {small} {what}: run `farthing calibrate` and"
        f" name its profile in [planner] of farthing.toml, {instead}",
        param="policy",
    )
