"""In which precision of its weights a model answers, by how many calls run."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

from pydantic import Field, PrivateAttr

from app.catalog import Catalog, ModelCard
from app.errors import BadRequest
from app.types import Call, Decision, MeteredEngine
from policies.base import Models, OneOf, Ranking, afforded, most_likely, rich_first

Hardware: TypeAlias = Literal["mid", "high"]
Table: TypeAlias = Mapping[int, float]  # calls running -> tokens/s of all of them together

# NOMINAL, for models without a table of their own: in times what 16 bits write alone. The order is
# that of the guideline of "Give Me BF16 or Give Me Death" (Kurtic et al. 2024, arXiv 2411.02355,
# abstract): weights of 4 bits for one request at a time and on mid-tier GPUs, W8A8 for many at once
# on high-end ones. The numbers, and that 32 calls are many, are ours: that 4 and 8 bits are read in
# less time, that they must be unpacked to compute, that mid-tier stands for Ampere without FP8.
# FP8 goes before INT8, which is as quick, since the paper finds it near-lossless.
_NOMINAL: Mapping[Hardware, Mapping[str, Table]] = {
    "high": {
        "fp32": {1: 0.5, 32: 8.0},
        "16 bits": {1: 1.0, 32: 16.0},
        "fp8": {1: 1.6, 32: 26.0},
        "w8a8": {1: 1.6, 32: 25.0},
        "w4a16": {1: 2.4, 32: 16.0},
    },
    "mid": {
        "fp32": {1: 0.5, 32: 5.0},
        "16 bits": {1: 1.0, 32: 10.0},
        "fp8": {1: 1.6, 32: 10.0},
        "w8a8": {1: 1.6, 32: 15.0},
        "w4a16": {1: 2.4, 32: 16.0},
    },
}
_ALIKE = {"int8": "w8a8", "int4": "w4a16", "fp16": "16 bits", "bf16": "16 bits"}


class Precision(OneOf):
    """The quickest of a model's precisions at the present load: each writes at its measured pace
    (`throughput` in its table), or where one of them has none all do at a nominal one.

    It keeps no state: what most calls run on stays until another is better by `margin`. Models
    that are not healthy come last, before them those of which the budget does not pay for as long
    an answer as may come.
    """

    models: Models = Field(
        (),
        max_length=8,
        description="best first, but for the one that the client names; default: those with its"
        " weights and family",
    )
    margin: float = Field(
        0.15,
        ge=0,
        le=10,
        description="by which another must be better than the one on which most calls run",
    )
    shared: bool = Field(
        True,
        description="they share a machine: all calls count, and what all of them get; else the"
        " calls of each, and what one gets",
    )
    hardware: Hardware = Field(
        "high", description="mid or high: whose nominal pace, where a model has no `throughput`"
    )

    _cards: dict[str, ModelCard] = PrivateAttr(default_factory=dict)

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        first = [] if model is None else [catalog.model(model)]
        named = [catalog.model(name) for name in self.models]
        cards = {card.name: card for card in (*first, *(named or _kin(catalog, first)))}
        if len(cards) < 2:
            alone = f"farthing.toml has no other with the weights of {model}; " if model else ""
            raise BadRequest(f"policy precision: models: {alone}name two at least", param="policy")
        if len(families := dict.fromkeys(card.family for card in cards.values())) > 1:
            raise BadRequest(
                f"policy precision: models: they are of several families: {', '.join(families)}",
                param="policy",
            )
        fitted = self.model_copy(update={"models": tuple(cards)})
        fitted._cards = cards
        return fitted

    async def ranked(self, call: Call, engine: MeteredEngine) -> Ranking:
        prices = {model: card.price for model, card in self._cards.items()}
        buys, wanted = await afforded(call, engine, prices), most_likely(call)
        paces = self._paces(engine, call.choices)
        healthy = [model for model in self.models if paces[model].healthy]
        quick_first = sorted(healthy, key=lambda model: -paces[model].worth)
        stays = self._incumbent(paces, quick_first)
        if stays:
            quick_first.remove(stays)
            quick_first.insert(0, stays)
        order = rich_first(quick_first, buys, wanted)
        order += [model for model in self.models if model not in order]
        return _ByPace(order, buys, wanted, wanted // call.choices, paces, self.margin, stays)

    def _paces(self, engine: MeteredEngine, choices: int) -> dict[str, _Pace]:
        """How quick each would be with `choices` more calls."""
        loads = {model: engine.load(model) for model in self.models}
        running = {model: load.running + load.waiting for model, load in loads.items()}
        all_of_them = sum(running.values())
        measured = all(card.throughput for card in self._cards.values())
        return {
            model: _Pace(
                table=card.throughput if measured else nominal(card.precision, self.hardware),
                measured=measured,
                precision=card.precision,
                running=running[model],
                calls=(all_of_them if self.shared else running[model]) + choices,
                shared=self.shared,
                healthy=loads[model].healthy,
            )
            for model, card in self._cards.items()
        }

    def _incumbent(self, paces: Mapping[str, _Pace], quick_first: list[str]) -> str:
        """That on which most calls run, if no other is better by the margin; else empty."""
        most = max((paces[model].running for model in quick_first), default=0)
        if not most:
            return ""
        model = next(model for model in quick_first if paces[model].running == most)
        bound = paces[model].worth * (1 + self.margin)
        return "" if paces[quick_first[0]].worth > bound else model


@dataclass(frozen=True, slots=True)
class _Pace:
    """How quick a model is expected to be."""

    table: Table
    measured: bool
    precision: str
    running: int  # calls, and those that wait there
    calls: int  # with which it shares a machine, the new ones included
    shared: bool
    healthy: bool

    @property
    def worth(self) -> float:
        """What models are compared by: tokens/s of all calls, or of one."""
        return total(self.table, self.calls) if self.shared else self.each

    @property
    def each(self) -> float:
        """Tokens/s of one call."""
        return total(self.table, self.calls) / self.calls

    def __str__(self) -> str:
        calls = "1 call" if self.calls == 1 else f"{self.calls} calls"
        if not self.measured:
            return f"nominally {self.worth:.3g} times 16 bits alone, with {calls}"
        of = f"of {calls} together" if self.shared else f"of each of {calls}"
        return f"{self.worth:.4g} tokens/s {of}"


@dataclass(frozen=True)
class _ByPace(Ranking):
    """By how quick they are expected to be."""

    each: int  # tokens of one choice
    paces: Mapping[str, _Pace]
    margin: float
    stays: str  # on which most calls run, and that goes first for it; empty: none

    def decided(self, chosen: str) -> Decision:
        pace = self.paces[chosen]
        detail = f"{pace.precision}: {pace}"
        return Decision(kind="precision", model=chosen, token=0, detail=detail)

    def reason(self, model: str, chosen: str) -> str:
        return f"{self.paces[model]}; {self._why(model, chosen)}"

    def _why(self, model: str, chosen: str) -> str:
        pace = self.paces[model]
        if not pace.healthy:
            return "no other answers" if model == chosen else "it is not healthy"
        if not self.affords(model):
            most = f"the budget does not pay for {self.wanted} tokens"
            return f"{most}; of this one it pays for most" if model == chosen else most
        if model == chosen:
            return "most calls run on it" if model == self.stays else "the quickest that can answer"
        if chosen == self.stays:
            return f"not better by {self.margin:.0%}, and most calls run on {chosen}"
        return f"{chosen} answers"

    def latency(self, model: str) -> float | None:
        pace = self.paces[model]
        return self.each / pace.each if pace.measured else None


def total(table: Table, calls: int) -> float:
    """Tokens/s of so many calls together. With fewer calls than were measured each of them is no
    quicker than then; more get no more in all."""
    measured = sorted(table)
    if calls <= measured[0]:
        return table[measured[0]] * calls / measured[0]
    if calls >= measured[-1]:
        return table[measured[-1]]
    above = bisect_left(measured, calls)
    low, high = measured[above - 1], measured[above]
    return table[low] + (table[high] - table[low]) * (calls - low) / (high - low)


def nominal(precision: str, hardware: Hardware) -> Table:
    """Of a model in this precision, in times what 16 bits write alone; unknown ones count so."""
    tables = _NOMINAL[hardware]
    return tables.get(_ALIKE.get(precision, precision), tables["16 bits"])


def _kin(catalog: Catalog, of: list[ModelCard]) -> list[ModelCard]:
    """The models with the same weights: the same files, or the same name on their servers."""

    def weights(card: ModelCard) -> tuple[str, ...]:
        return card.family, card.engine, card.weights or card.served, card.base

    found = {weights(card) for card in of if card.weights or card.served}
    cards = catalog.models.values()
    return [card for card in cards if weights(card) in found and card.embeds != "only"]
