"""Models that say something else each time they are asked, and answers that `best_of_n` chose."""

from app.engines.fake import Fake, Script
from app.gateway import Answer, Gateway, Order
from app.types import Decision
from tests.policies.scripts import ask, call, fleet, read, text


def fake(*texts: str, **more: object) -> Fake:
    """A fleet whose small model says these in turn."""
    variants = tuple(Script(one.split(" "), **more) for one in texts)
    small = Script(variants[0].words, variants=variants, **more)
    return Fake({"small": small, "large": Script(["large"])})


def answer(engine: Fake, *, n: int | None = 5, order: object = (), **options: object) -> Answer:
    """One that `best_of_n` with these options gives: by the number, decided for certain."""
    asked = options.pop("asked", None) or call("small", max_tokens=options.pop("max_tokens", 8))
    options = {"n": n, "extract": "number", "sure": 1.0, **options}
    gateway = Gateway(engine, fleet())
    return ask(gateway, Order(asked, policy="best_of_n", options=options, **dict(order)))


async def said(some: Answer) -> str:
    return text(await read(some)).strip()


def decision(some: Answer) -> Decision:
    (one,) = some.decisions
    return one


def ways(some: Answer) -> list[tuple[str, bool, str]]:
    return [(way.name, way.chosen, way.reason) for way in some.notes.considered[0]]
