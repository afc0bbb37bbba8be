"""Scripted models for tests of cascades, and how sure they are."""

import math
from contextlib import aclosing

from app.catalog import Catalog, Preset
from app.confidence import SELF_CHECK, Calibration, Score
from app.engines.fake import Fake, Script
from app.errors import EngineError
from app.gateway import Gateway, Order
from app.types import Candidate, Chunk, Token, Usage
from tests.policies.scripts import LENGTH, ask, call, card, price, text

SURE, FAIR, POOR = -0.2, -1.0, -1.9  # log-probabilities that stand for chances
CHANCE = {SURE: 0.9, FAIR: 0.5, POOR: 0.05}
PROMPT = 5  # tokens
PRICES = {"tiny": price(1, 2), "small": price(2, 4), "large": price(10, 20)}


def score(**changes) -> Score:
    """The mean log-probability of an answer tells the chance: 1 at 0, and 0 at -2."""
    fields = {
        "features": ("mean_logprob",),
        "means": (0.0,),
        "scales": (1.0,),
        "weights": (1.0,),
        "bias": 0.0,
        "seen": (-2.0, 0.0),
        "steps": ((-2.0, 0.0), (0.0, 1.0)),
        "answers": 100,
        "right": 50,
    }
    return Score(**(fields | changes))


def calibration(*checkpoints: int, **changes) -> Calibration:
    fields = {
        "model": "small",
        "tasks": ("squad",),
        "prompts_sha256": "0" * 64,
        "seed": 0,
        "max_tokens": 64,
        "whole": score(),
        "at": dict.fromkeys(checkpoints, score()),
    }
    return Calibration(**(fields | changes))


def fleet(known: Calibration | None = None, **changes) -> Catalog:
    """Three models, all but the last with this calibration."""
    models = {name: card(name, each) for name, each in PRICES.items()}
    for name in ("tiny", "small"):
        models[name] = models[name].model_copy(update={"confidence": known})
    for name, fields in changes.items():
        models[name] = models[name].model_copy(update=fields)
    two = Preset(name="two", policy="cascade", models=["small", "large"])
    three = Preset(name="three", policy="cascade", models=["tiny", "small", "large"])
    return Catalog(models, {"two": two, "three": three})


def script(name: str, sure: float = SURE, length: int = LENGTH, **more) -> Script:
    """Its words begin with the model's first letter; each is as likely as this."""
    return Script([f"{name[0]}{i}" for i in range(length)], logprobs=[sure] * length, **more)


def engine(small: float = SURE, tiny: float = SURE, **changes) -> Fake:
    """`changes`: of a model's script."""
    sure = {"tiny": tiny, "small": small, "large": SURE}
    return Fake(
        {name: script(name, **{"sure": sure[name]} | changes.get(name, {})) for name in sure}
    )


def asked(fake: Fake, known: Calibration | None = None, model: str = "two", **more):
    catalog = more.pop("catalog", None) or fleet(known)
    of_order = {k: more.pop(k) for k in ("usd", "options", "strict") if k in more}
    return ask(Gateway(fake, catalog), Order(call(model, **more), **of_order))


def said(chunks) -> set[str]:
    """The first letters of the words."""
    return {word[0] for word in text(chunks).split()}


def decided(answer) -> list[tuple[str, str, int]]:
    return [(each.kind, each.model, each.token) for each in answer.decisions]


def models(fake: Fake) -> list[str]:
    return [each.model for each in fake.calls]


FOREIGN = {"engine": "openai", "weights": "", "urls": ("http://there",), "context": 4096}


class Checked(Fake):
    """Asked about its answer it says yes with this chance; below 0 it fails."""

    yes: float = 0.5

    async def generate(self, call):
        if not call.messages or call.messages[-1]["content"] != SELF_CHECK:
            async with aclosing(super().generate(call)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        self.calls.append(call)
        if self.yes < 0:
            raise EngineError("no verdict")
        said = {b"Yes": self.yes, b"No": 1 - self.yes}
        top = tuple(Candidate(n, word, math.log(p)) for n, (word, p) in enumerate(said.items()))
        yield Chunk(tokens=(Token(0, b"Yes", top=top),), model=call.model, usage=Usage(50, 0, 1))
        yield Chunk(model=call.model, finish="length")


def checked(yes: float, **more) -> Checked:
    fake = Checked(engine(**more).scripts)
    fake.yes = yes
    return fake
