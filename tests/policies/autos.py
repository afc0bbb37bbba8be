"""A fleet that was measured, and requests to `auto` of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from app.catalog import Catalog, ModelCard, Preset
from app.engines.fake import Fake, Script
from app.gateway import Answer, Gateway, Order
from app.types import Goals, Load
from tests.policies.measured import measured
from tests.policies.scripts import ask, call, card, price, read

CODE = "```python\ndef f(x):\n    return x\n```"


@dataclass
class Loaded(Fake):
    """Says what it is told of its load."""

    loads: dict[str, Load] = field(default_factory=dict)

    def load(self, model: str) -> Load:
        return self.loads.get(model, Load())


def engine(loads: dict[str, Load] | None = None, **scripts: Any) -> Loaded:
    made = {}
    for name in dict.fromkeys(("small", "large", "server", *scripts)):
        words = [f"{name[0]}{i}" for i in range(40)]
        made[name] = Script(words, **scripts.get(name, {}))
    return Loaded(made, loads=loads or {})


def fleet() -> Catalog:
    """A token of the large one costs ten times what one of the small one costs."""
    models = {
        "small": card("small", price(1, 2)),
        "large": card("large", price(10, 20)),
        "server": ModelCard(
            name="server",
            engine="vllm",
            family="other",
            urls=("http://server:8000",),
            price=price(4, 8),
        ),
    }
    economy = Preset(name="economy", policy="entropy_switch", small="small", large="large")
    sturdy = Preset(name="sturdy", policy="cascade", models=["server", "large"])
    return Catalog(models, {"economy": economy, "sturdy": sturdy})


SURVEYED = measured(fleet(), large=1.0, economy=0.8, server=0.7, small=0.5)


def auto(catalog: Catalog = SURVEYED, fake: Fake | None = None, **more: Any) -> Answer:
    goals = {name: more.pop(name) for name in list(more) if name in Goals.__dataclass_fields__}
    account = more.pop("account", None)
    orders = {name: more.pop(name) for name in list(more) if name in Order.__dataclass_fields__}
    asked = replace(call("auto", max_tokens=40), goals=Goals(**goals), **more)
    gateway = Gateway(fake or engine(), catalog)
    if account is not None:
        return gateway.answer(Order(asked, **orders), account)
    return ask(gateway, Order(asked, **orders))


async def taken(catalog: Catalog = SURVEYED, fake: Fake | None = None, **more: Any) -> str:
    """The way that answered."""
    answer = auto(catalog, fake, **more)
    await read(answer)
    return way_of(answer)


def way_of(answer: Answer) -> str:
    assert answer.promise is not None
    return answer.promise.way


def soon(seconds: float) -> float:
    return time.monotonic() + seconds
