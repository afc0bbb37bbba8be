"""Fleets, requests and clients drawn at random, for what must hold of every policy."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from app.budget import Purse
from app.catalog import Catalog, GpuSeconds, ModelCard, Preset, Price
from app.engines.fake import Fake, Script
from app.errors import EngineError, FarthingError, Overloaded
from app.gateway import Answer, Gateway, Order
from app.types import Call, Candidate, Chunk, Goals, Sampling, Token
from tests.policies.cascades import calibration
from tests.policies.measured import measured
from tests.policies.profiles import profile

MODELS = ("small", "judge", "large")  # of two families: the judge has its own
WORDS = ("A", "B", "yes", "no", "NO CHANGE", "7", "42", "so", "it", "is", "not", "\n", "1.", "2.")
_ERRORS = {"busy": Overloaded("busy", retry_after=1.0), "down": EngineError("down")}


@dataclass
class Moody(Fake):
    """Each call of a model plays its next script, and some are refused."""

    plays: dict[str, list[Script]] = field(default_factory=dict)
    moods: Sequence[str] = ()  # of each call: "", or which error it gets
    begun: list[str] = field(default_factory=list)

    async def generate(self, call: Call) -> Any:
        mood = self.moods[len(self.begun)] if len(self.begun) < len(self.moods) else ""
        self.begun.append(call.model)
        if mood:
            raise _ERRORS[mood]
        async with aclosing(super().generate(call)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _script(self, model: str) -> Script:
        plays = self.plays[model]
        return plays[self.begun.count(model) % len(plays)]

    def _token(self, call: Call, script: Script, position: int) -> Token:
        """Letters are likely or not, and the others are there beside them."""
        token = super()._token(call, script, position)
        if not call.sampling.logprobs:
            return token
        beside = tuple(Candidate(n, b"AB"[n : n + 1], -1.0 - n) for n in (position % 2,))
        return replace(token, top=(*token.top, *beside))


@dataclass(frozen=True)
class World:
    """A fleet, and a request to it."""

    catalog: Catalog
    plays: dict[str, list[Script]]
    moods: tuple[str, ...]
    call: Call
    usd: float | None  # of the worst case
    gpu: float | None
    latency: float | None  # seconds
    strict: bool = False

    def engine(self) -> Moody:
        return Moody({}, plays=self.plays, moods=self.moods)

    def order(self, policy: str, options: dict[str, Any]) -> Order:
        """The request; its budgets are of what the policy says it may take."""
        order = Order(self.call, policy=policy, options=options, strict=self.strict)
        chosen = Gateway(self.engine(), self.catalog).plan(order).policy
        prompt = 2 * len(_said(self.call).split()) + 1
        worst = chosen.worst_case(self.call.model, prompt, self.call.max_tokens or 200)
        if self.usd is not None:
            prices = self.catalog.prices()
            most = sum(prices[model].of(used) for model, used in worst.items())
            order = replace(order, usd=int(most * self.usd))
        if self.gpu is not None:
            taken = self.catalog.gpu_seconds()
            most = sum(taken[model].of(used) for model, used in worst.items())
            order = replace(order, gpu=int(most * self.gpu))
        if self.latency is not None:
            goals = Goals(deadline=time.monotonic() + self.latency)
            order = replace(order, call=replace(self.call, goals=goals))
        return order


def _said(call: Call) -> str:
    return str(call.prompt or " ".join(str(message["content"]) for message in call.messages))


amounts = st.decimals(min_value=0, max_value=50, places=6)


@st.composite
def cards(draw: st.DrawFn) -> dict[str, ModelCard]:
    """The large model's tokens are the dearest, the small one's the cheapest; something may be
    said of their answers after some tokens."""
    reads, writes, seconds = (st.lists(amounts, min_size=3, max_size=3) for _ in range(3))
    prices = zip(sorted(draw(reads)), sorted(draw(writes)), draw(seconds), strict=True)
    points = draw(st.sampled_from([(), (1,), (2, 5), (1, 2, 3, 4, 5, 6)]))
    return {
        name: ModelCard(
            name=name,
            engine="embedded",
            weights="x.gguf",
            family="other" if name == "judge" else "fake",
            price=Price(input=read, output=write),
            gpu_seconds=GpuSeconds(input=taken, output=2 * taken),
            confidence=calibration(*points, model=name) if points else None,
        )
        for name, (read, write, taken) in zip(MODELS, prices, strict=True)
    }


@st.composite
def scripts(draw: st.DrawFn, name: str, context: int, fails: bool, slow: bool) -> list[Script]:
    """What a model says, one time after the other."""
    said = st.lists(st.sampled_from(WORDS), max_size=12)
    logprobs = draw(st.lists(st.floats(-6, 0), max_size=12))
    breaks = st.none() | st.integers(0, 8) if fails else st.none()
    return [
        Script(
            words,
            entropies=[-2 * each for each in logprobs],
            logprobs=logprobs,
            family="other" if name == "judge" else "fake",
            context=context,
            delay=0.001 if slow else 0.0,
            fails_after=draw(breaks),
        )
        for words in draw(st.lists(said, min_size=1, max_size=4))
    ]


@st.composite
def calls(draw: st.DrawFn, model: str) -> Call:
    words = draw(st.integers(1, 12)) if draw(st.booleans()) else draw(st.integers(20, 90))
    text = " ".join(WORDS[number % len(WORDS)] for number in range(words))
    chat = draw(st.booleans())
    return Call(
        model,
        ({"role": "user", "content": text},) if chat else (),
        prompt=None if chat else text,
        max_tokens=draw(st.none() | st.integers(1, 12)),
        sampling=Sampling(
            temperature=draw(st.sampled_from([0.0, 0.7, 1.0])),
            seed=draw(st.none() | st.integers(0, 9)),
            logprobs=draw(st.none() | st.integers(0, 2)),
        ),
        choices=draw(st.sampled_from([1, 1, 1, 2, 3])),
    )


@st.composite
def worlds(
    draw: st.DrawFn, *, fails: bool = False, bounded: bool = False, slow: bool = False
) -> World:
    """`fails`: whether models may; `bounded`: whether there are budgets; `slow`: and time."""
    fails = fails and draw(st.booleans())
    context = draw(st.sampled_from([100, 400, 4000, 4000]))
    share = st.none() | st.floats(0, 1.2) | st.floats(0.02, 0.4)
    moods = st.lists(st.sampled_from(["", "", "busy", "down"]), max_size=8)
    return World(
        catalog=Catalog(
            draw(cards()), {}, profile=profile("small", "judge", weights={"length": 0.2})
        ),
        plays={name: draw(scripts(name, context, fails, slow)) for name in MODELS},
        moods=tuple(draw(moods)) if fails else (),
        call=draw(calls("large")),
        usd=draw(share) if bounded else None,
        gpu=draw(share) if bounded else None,
        latency=draw(st.floats(0, 0.08)) if slow else None,
        strict=bounded and draw(st.sampled_from([False, False, True])),
    )


def surveyed(world: World) -> World:
    """The same, with presets whose answers were measured, as those of the models."""
    presets = [
        Preset(name="careful", policy="cascade", models=["small", "large"]),
        Preset(name="vote", policy="best_of_n", model="large", n=3),
        Preset(name="polished", policy="refine", model="small", critic="judge", rounds=1),
    ]
    catalog = replace(world.catalog, presets={preset.name: preset for preset in presets})
    qualities = {"vote": 0.9, "large": 0.8, "careful": 0.7, "polished": 0.5, "small": 0.4}
    return replace(world, catalog=measured(catalog, **qualities))


# What each policy may be told; one that is not named here has no options.
_some_models = st.sampled_from(["small, large", "judge, large", "small, judge, large"])
# Patterns and schemas are held against texts in processes, and within a time.
_passes = st.just({"kind": "judge", "judge": "judge"})
_checked = st.sampled_from([{}, {"check": "logprob"}]) | _passes.map(
    lambda verifier: {"check": "verify", "verifier": verifier}
)
_chosen = st.sampled_from([{}, {"choose": "logprob"}]) | _passes.map(
    lambda verifier: {"choose": "verify", "verifier": verifier}
)
_OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "precision": {
        "models": st.just(("small", "large")),
        "margin": st.floats(0, 1),
        "shared": st.booleans(),
        "hardware": st.sampled_from(["mid", "high"]),
    },
    "cascade": {
        "threshold": st.floats(0, 1),
        "early": st.booleans(),
        "self_check": st.booleans(),
    },
    "best_of_n": {
        "n": st.none() | st.integers(1, 6),
        "most": st.integers(1, 6),
        "together": st.integers(1, 4),
        "sure": st.sampled_from([0.6, 0.95, 1.0]),
        "sample_costs": st.sampled_from([0.0, 0.02]),
        "diverse": st.sampled_from(["no", "each", "one_call"]),
    },
    "refine": {
        "critic": st.sampled_from(["small", "large", "judge"]),
        "rounds": st.integers(1, 4),
    },
    "route": {
        "small": st.sampled_from(["small", "judge"]),
        "share": st.floats(0, 1),
        "by": st.sampled_from(["features", "entropy"]),
        "threshold": st.none() | st.floats(0, 1) | st.floats(0, 12),
        "tokens": st.integers(1, 8),
    },
    "planner": {
        "ways": st.just(()) | st.just(("large", "careful")),
        "quality": st.none() | st.floats(0, 1),
        "cautious": st.booleans(),
        "exact": st.booleans(),
        "explore": st.sampled_from([0.0, 0.2]),
    },
    "compress": {
        "scorer": st.sampled_from(["small", "judge"]),
        "ratio": st.floats(0.1, 0.9),
        "mode": st.sampled_from(["drop", "summary"]),
        "least": st.sampled_from([1, 16, 64]),
        "by": st.sampled_from(["surprisal", "random", "end"]),
    },
}  # fmt: skip
_ALWAYS = {
    "refine": _checked,
    "best_of_n": _chosen,
    "cascade": _some_models.map(lambda models: {"models": models}),
}


def options(policy: str) -> st.SearchStrategy[dict[str, Any]]:
    some = st.fixed_dictionaries({}, optional=_OPTIONS.get(policy, {}))
    more = _ALWAYS.get(policy, st.just({}))
    return st.builds(lambda one, other: {**one, **other}, some, more)


@dataclass
class Seen:
    """What a client saw of an answer."""

    answer: Answer
    chunks: list[Chunk] = field(default_factory=list)
    error: FarthingError | None = None
    over: bool = False

    def ended_well(self) -> bool:
        """Each choice ends with one finish chunk, after which nothing of it comes."""
        finishes = Counter(chunk.index for chunk in self.chunks if chunk.finish is not None)
        last = {chunk.index: chunk for chunk in self.chunks}
        wanted = range(self.answer.order.call.choices)
        return finishes == Counter(wanted) and all(last[n].finish for n in wanted)


async def watch(seen: Seen, leaves_after: int | None = None) -> None:
    """Read an answer to its end, or so many chunks of it."""
    try:
        async with aclosing(seen.answer) as answer:
            async for chunk in answer:
                seen.chunks.append(chunk)
                if leaves_after is not None and len(seen.chunks) > leaves_after:
                    return
            seen.over = True
    except FarthingError as error:
        seen.error = error


async def cancelled(seen: Seen, steps: int) -> None:
    """A client whose connection is lost after so many turns of the loop."""
    reading = asyncio.create_task(watch(seen))
    for _ in range(steps):
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])


def answer(world: World, engine: Fake, order: Order, account: Purse | None = None) -> Answer:
    return Gateway(engine, world.catalog).answer(order, account or Purse())


@contextmanager
def nothing_left(engine: Fake) -> Iterator[None]:
    """Everything that is begun meanwhile has ended by then: calls, tasks and generators."""
    begun: list[Any] = []
    hooks = sys.get_asyncgen_hooks()

    def begins(generator: Any) -> None:
        begun.append(generator)
        if hooks.firstiter is not None:
            hooks.firstiter(generator)

    sys.set_asyncgen_hooks(firstiter=begins)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(firstiter=hooks.firstiter)
    assert engine.open == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [one.__qualname__ for one in begun if one.ag_frame is not None] == []
