"""A small model answers; where it is not likely to be right, the next larger one answers anew."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Self

from pydantic import Field, PrivateAttr

from app.catalog import Catalog, ModelCard
from app.errors import BadRequest
from app.types import Call, Chunk, Fidelity, MeteredEngine, Usage
from policies.answers.cascading import Answer, Rule
from policies.answers.judging import Stage, checking_reads
from policies.base import Models, Policy, Whole


class Cascade(Policy):
    """A cascade of two to four models (the line of FrugalGPT, Chen et al. 2023, arXiv 2305.05176):
    each answers from scratch, and its answer is kept where its chance of being right is at least
    `threshold`. The last one's is kept in any case.

    The chance is told from the answer's own log-probabilities and entropy by the calibration of
    its model. What is promised: the mean of the calibrated chances of the answers that were kept,
    each as it was where that was decided, is at least the threshold. It is the share of right ones
    among them as far as the calibration holds where it was asked. With `early` it is asked at
    several points of one answer and the first one that suffices counts: each is calibrated by
    itself, on all answers that come so far, not on those left undecided before.

    An answer is left early where reading on is not worth it. By Markov's inequality one that is
    now right with chance p is kept at its end with chance p / threshold at most, if chances are
    calibrated; where that is no more than what a token costs here by what it costs with the next
    model, that one is asked at once.
    """

    fidelity: ClassVar[Fidelity] = "approximate"

    models: Models = Field(
        (),
        max_length=4,
        description="two to four, cheapest first; default: the cheapest of the family, then the"
        " one named",
    )
    threshold: float = Field(
        0.7, ge=0, le=1, description="the chance of being right with which an answer is kept"
    )
    early: bool = Field(
        True, description="decide after the first tokens where that can be; false: at the end only"
    )
    self_check: bool = Field(
        False, description="ask each model whether its own answer is right, as a further signal"
    )

    _stages: tuple[Stage, ...] = PrivateAttr(default=())
    _foreign: bool = PrivateAttr(default=False)  # whether the last is another server's model

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        named = None if model is None else catalog.model(model).name
        names = self.models
        if not names and named is not None:
            names = (catalog.family(named)[0].name, named)
        cards = [catalog.model(name) for name in names]
        _check(cards, named)
        fitted = self.model_copy(update={"models": tuple(card.name for card in cards)})
        fitted._stages = tuple(map(Stage.of, cards))
        fitted._foreign = cards[-1].engine == "openai"
        return fitted

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        worst = dict.fromkeys(self.models, Usage(prompt=prompt, completion=completion))
        for stage in self._stages[:-1]:
            if self.early and stage.checkpoints:
                # Left early, and gone on with as none of the others could be asked.
                worst[stage.model] += Usage(prompt=prompt + completion)
            if self.self_check:
                worst[stage.model] += Usage(checking_reads(prompt, completion), completion=1)
        return worst

    def best_first(self, model: str) -> Sequence[str]:
        return self.models[::-1]

    def most_calls(self, call: Call) -> int:
        return len(self.models) + (len(self.models) - 1) * self.self_check + 1

    def serving(self, call: Call, engine: MeteredEngine, prices: Mapping[str, Any]) -> Policy:
        """Choices of another server cannot be put beside ours: there it makes all of them."""
        if self._foreign and call.choices > 1:
            last = self.models[-1]
            return Whole(models=(last,), prices={last: prices[last]})
        return super().serving(call, engine, prices)

    async def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        rule = Rule(self.threshold, self.early, self.self_check)
        answer = Answer(rule, self._stages, call, engine)
        async with aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk


def _check(cards: Sequence[ModelCard], named: str | None) -> None:
    """Raises BadRequest for models that are no cascade."""
    names = [card.name for card in cards]
    if len(names) < 2 or len(set(names)) < len(names):
        cheapest = f": {named} is the cheapest of its family" if names == [named] * 2 else ""
        raise BadRequest(
            f"policy cascade: models: two to four that differ are needed{cheapest};"
            " name them, cheapest first",
            param="policy",
        )
    if named not in (None, names[-1]):
        raise BadRequest(
            f"policy cascade: models: must end with {named}, the model that was named",
            param="policy",
        )
    for card in cards:
        if card.embeds == "only":
            raise BadRequest(f"policy cascade: models: {card.name} writes nothing", param="policy")
    for cheap, dear in zip(cards, cards[1:], strict=False):
        if cheap.price.output > dear.price.output:
            raise BadRequest(
                f"policy cascade: models: a token of {cheap.name} costs more than one of"
                f" {dear.name}; exchange them",
                param="policy",
            )
        if cheap.engine == "openai":
            raise BadRequest(
                f"policy cascade: models: {cheap.name} is another server's, which does not tell"
                " how sure it is; it can only be the last",
                param="policy",
            )
