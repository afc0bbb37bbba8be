"""A model in two precisions, whose loads are what a test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.catalog import Catalog, ModelCard
from app.engines.fake import Fake, Script
from app.gateway import Answer, Gateway, Order
from app.types import Load
from tests.policies.scripts import LENGTH, ask, call, price, read

# Alone the first one is the quicker one, from four calls on the other one.
SOLO: dict[int, float] = {1: 100, 16: 400}
BUSY: dict[int, float] = {1: 60, 16: 800}


def card(name: str, precision: str, throughput: Any = None, **more: Any) -> ModelCard:
    given = {"engine": "embedded", "weights": "x.gguf", "family": "f", "price": price(1, 2)}
    made = {**given, "throughput": throughput or {}, **more}
    return ModelCard.model_validate({"name": name, "precision": "fp32", **made}).model_copy(
        update={"precision": precision}  # embedded models have not all of them
    )


def fleet(**cards: ModelCard) -> Catalog:
    return Catalog({card.name: card for card in cards.values()}, {})


def pair(solo: Any = SOLO, busy: Any = BUSY, **more: Any) -> Catalog:
    return fleet(a=card("w4", "w4a16", solo, **more), b=card("w8", "w8a8", busy, **more))


@dataclass
class Busy(Fake):
    """Says what it is told of its load."""

    loads: dict[str, Load] = field(default_factory=dict)

    def load(self, model: str) -> Load:
        return self.loads.get(model, Load())


def engine(native: bool = False, **running: int) -> Busy:
    words = [f"x{i}" for i in range(LENGTH)]
    scripts = {n: Script(words, native=native) for n in ("w4", "w8", "third")}
    return Busy(scripts, loads={name: Load(running=count) for name, count in running.items()})


def answer(fake: Fake, catalog: Catalog | None = None, **more: Any) -> Answer:
    named = {"options": more.pop("options", {}), "policy": "precision"}
    asked = call(more.pop("model", "w4"), max_tokens=LENGTH, **more.pop("call", {}))
    return ask(Gateway(fake, catalog or pair()), Order(asked, **named, **more))


async def decided(fake: Fake, catalog: Catalog | None = None, **options: Any) -> str:
    found = answer(fake, catalog, options=options)
    await read(found)
    (one,) = found.decisions
    assert [line.model for line in found.bill.lines] == [one.model]
    assert one.kind == "precision" and one.token == 0
    return one.model
