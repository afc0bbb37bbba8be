"""What a policy is, options as fields and one method; and what all do of what none can divide."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict

from app.catalog import Catalog, Tariff
from app.errors import EngineError, FarthingError, Overloaded, Unaffordable
from app.profile import Way
from app.types import (
    Alternative,
    Call,
    Chunk,
    Decision,
    Decoding,
    Fidelity,
    MeteredEngine,
    Promise,
    Took,
    Usage,
)

_LIKELY = 256  # tokens of an answer whose request names no bound


def _listed(value: Any) -> Any:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


Models: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Names of models, as an option; a header says several in one text."""


Other: TypeAlias = "Callable[[FarthingError, Set[str], int | None], Awaitable[Planned]]"
"""Of a plan, as its `instead`."""


@dataclass(frozen=True)
class Planned:
    """Which policy answers a call, and what is told of that."""

    policy: Policy
    model: str  # `Call.model` for it: one that is named; empty where a preset stands for it
    promise: Promise | None = None
    decision: Decision | None = None
    considered: Callable[[], Sequence[Alternative]] = tuple  # asked once there is time
    other: Other | None = None  # what to ask for another way; None: there is none
    ended: Callable[[Took, int], None] | None = None
    """Who learns from `tell`."""

    async def instead(self, error: FarthingError, failed: Set[str], usd: int | None) -> Planned:
        """What answers now that this has failed with that error before its first word. `failed`:
        models that did, `usd`: what may be spent, 1e-12 USD; None: anything.

        Raises the error where nothing does.
        """
        if self.other is None:
            raise error
        return await self.other(error, failed, usd)

    def tell(self, outcome: str, took: Took, tokens: int) -> None:
        """Whoever planned it learns what the answer took; but of none that failed or was left."""
        if self.ended is not None and tokens and outcome in ("kept", "steered", "cut", "deadline"):
            self.ended(took, tokens)

    @property
    def first(self) -> str:
        """The model that is asked first."""
        return next(iter(self.policy.worst_case(self.model, 0, 0)))

    @property
    def best(self) -> str:
        """The best of those that may write."""
        return self.policy.best_first(self.model)[0]


class Policy(BaseModel, ABC):
    """Turns one call into engine calls. Its fields are its options; it keeps no other state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by_token: ClassVar[bool] = True  # whether it may ask for less than whole answers
    chooses: ClassVar[bool] = False  # whether `planned` says which of several ways it is

    @property
    @abstractmethod
    def fidelity(self) -> Fidelity:
        """Of its answers: `exact` where they are distributed as the named model's. Most policies
        say it once, as a ClassVar; where options decide, it is a property."""

    @property
    def one_of(self) -> bool:
        """Whether only one of the models of `worst_case` answers."""
        return False

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        """This policy with what the client left open filled in from the fleet.

        `model` is the model that the client named, None where a preset stands for it. Raises
        BadRequest or UnknownModel for options that this fleet cannot serve.
        """
        return self

    @abstractmethod
    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        """The most that each model may read and write for an answer of `completion` tokens.

        Its first key is the model that is asked first.
        """

    def best_first(self, model: str) -> Sequence[str]:
        """The models that may write, the best one first."""
        return tuple(self.worst_case(model, 0, 0))

    def most_calls(self, call: Call) -> int | None:
        """The most engine calls that one run makes, refused ones included; None: as many as the
        tokens of its answer allow. Where it makes whole answers its options bound it."""
        return None

    @property
    def seeds(self) -> int:
        """How many seeds, from the call's own on, one run draws with: the next choice of a request
        begins behind them."""
        return 1

    def serving(self, call: Call, engine: MeteredEngine, prices: Mapping[str, Tariff]) -> Policy:
        """This policy; or, where the call offers tools or wants a form of answer that not all of
        the models' token loops keep through a hand-over, a whole answer by one of them."""
        if not self.by_token or not call.structured:
            return self
        models = tuple(self.best_first(call.model))
        if all(engine.capabilities(model).structured for model in models):
            return self
        return Whole(models=models, prices={model: prices[model] for model in models})

    async def planned(
        self,
        call: Call,
        engine: MeteredEngine,
        prices: Mapping[str, Tariff],
        strict: bool = False,
        usd: int | None = None,
    ) -> Planned:
        """What answers this call; `strict`: nothing of it may be cut for want of money; `usd`: all
        that it may cost, 1e-12 USD, which allowances tell in whole tokens.

        Raises BudgetExceeded where `strict` cannot be kept to, and as the engine's `count`.
        """
        return Planned(self.serving(call, engine, prices), call.model)

    def narrowed(self, may: Callable[[Way], bool]) -> Self | None:
        """With those only, of the measured ways among which it chooses, that may be taken; None:
        there is none. Whoever does not choose is as it was."""
        return self

    def relays(self, call: Call, engine: MeteredEngine) -> bool:
        """Whether `run` would ask for one native answer: then the engine makes all of the call's
        choices. Else `run` is called for each choice, with an engine that knows no native answers.
        """
        return False

    @abstractmethod
    def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        """The answer. `call.model` is the model that the client named, where it named one.

        Raises Unaffordable before the first chunk where the budget does not pay for a token;
        later it ends with a chunk whose finish is `length` and reason `budget`.
        """


class OneOf(Policy):
    """One of several models writes all of an answer, in its server's own words where it has some.
    When one fails before its first word, the next one answers. A Decision says which did.
    """

    by_token: ClassVar[bool] = False
    one_of: ClassVar[bool] = True
    fidelity: ClassVar[Fidelity] = "exact"  # where the best one answers

    models: tuple[str, ...]  # best first

    @abstractmethod
    async def ranked(self, call: Call, engine: MeteredEngine) -> Ranking:
        """In which order the models are asked."""

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        return dict.fromkeys(self.models, Usage(prompt=prompt, completion=completion))

    def most_calls(self, call: Call) -> int:
        return len(self.models)

    def relays(self, call: Call, engine: MeteredEngine) -> bool:
        return all(engine.capabilities(model).native for model in self.models)

    async def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        ranking = await self.ranked(call, engine)
        left, failed = list(ranking.models), dict[str, str]()
        while left:
            model = left.pop(0)
            native = engine.capabilities(model).native
            asked, said = call.to(model).decoded(Decoding(native=native)), False
            try:
                async with (
                    aclosing(engine.generate(asked)) as stream,
                    aclosing(spoken(stream)) as chunks,
                ):
                    async for chunk in chunks:
                        if not said:
                            decided = ranking.decided(model)
                            considered = ranking.considered(model, failed)
                            chunk = replace(chunk, decision=decided, considered=considered)
                            said = True
                        yield chunk
                return
            except (Unaffordable, Overloaded, EngineError) as error:
                if not left or said:
                    raise
                failed[model] = type(error).__name__


@dataclass(frozen=True)
class Ranking:
    """The models in the order in which they are asked for one answer, and what is told of them."""

    models: Sequence[str]
    buys: Mapping[str, int]  # tokens of each that the budget pays for, as `affordable` says
    wanted: int  # tokens

    def decided(self, chosen: str) -> Decision:
        """That this one answers."""
        return Decision(kind="whole", model=chosen, token=0)

    def considered(self, chosen: str, failed: Mapping[str, str]) -> tuple[Alternative, ...]:
        """All of them; `failed`: those that did, and with what."""
        return tuple(
            Alternative(
                kind="model",
                name=model,
                chosen=model == chosen,
                reason=f"it failed before its first word ({failed[model]})"
                if model in failed
                else self.reason(model, chosen),
                fits=None if self.buys[model] == sys.maxsize else self.affords(model),
                tokens=None if self.buys[model] == sys.maxsize else self.buys[model],
                latency=self.latency(model),
            )
            for model in self.models
        )

    def affords(self, model: str) -> bool:
        """Whether the budget pays for as long an answer of it as may come."""
        return self.buys[model] >= self.wanted

    def reason(self, model: str, chosen: str) -> str:
        """Why it answers, or another one."""
        if model != chosen:
            return f"{chosen} was asked first, and did not fail"
        if self.affords(model):
            return f"the best one that may write {self.wanted} tokens and did not fail"
        return f"none may write {self.wanted} tokens that did not fail; it may write most"

    def latency(self, model: str) -> float | None:
        """Seconds that an answer of it is expected to take; None: nobody can say."""
        return None


class Whole(OneOf):
    """The best model of which the budget pays for as long an answer as may come, else that of
    which it pays for most."""

    prices: Mapping[str, Tariff]

    async def ranked(self, call: Call, engine: MeteredEngine) -> Ranking:
        buys, wanted = await afforded(call, engine, self.prices), most_likely(call)
        return Ranking(rich_first(self.models, buys, wanted), buys, wanted)


def most_likely(call: Call) -> int:
    """Tokens that all choices of its answer may have, or are likely to where nothing bounds it."""
    return (call.max_tokens or _LIKELY) * call.choices


def rich_first(models: Sequence[str], buys: Mapping[str, int], wanted: int) -> list[str]:
    """Those of which the budget buys what is wanted, in their order; then those of which it buys
    most."""
    rich = [model for model in models if buys[model] >= wanted]
    poor = [model for model in models if buys[model] < wanted]
    return rich + sorted(poor, key=lambda model: -buys[model])


async def afforded(
    call: Call, engine: MeteredEngine, prices: Mapping[str, Tariff]
) -> dict[str, int]:
    """What `affordable` says of each of these models."""
    return {model: await affordable(call.to(model), engine, p) for model, p in prices.items()}


async def affordable(call: Call, engine: MeteredEngine, price: Tariff) -> int:
    """How many tokens after this call's prompt the budget pays for, before anything was read;
    sys.maxsize: nothing limits it; 0: none, or nobody can say."""
    tokens = engine.allowance(call.model)
    # Of tokens that cost nothing something else than money bounds the number.
    if tokens == sys.maxsize or not price.output:
        return tokens
    try:
        # Told in whole tokens: there may be almost one more.
        return price.buys((tokens + 1) * price.output - 1, await engine.count(call))
    except EngineError:
        return 0


async def spoken(stream: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
    """The chunks, none of them before there is something to show: that a server has set to work
    does not mean that it will answer."""
    begun, early = False, list[Chunk]()
    async for chunk in stream:
        early.append(chunk)
        begun = begun or bool(chunk.raw or chunk.text or chunk.tokens or chunk.finish)
        while begun and early:
            yield early.pop(0)


def most_cost(
    policy: Policy,
    worst: Mapping[str, Usage],
    engine: MeteredEngine,
    prices: Mapping[str, Tariff],
) -> int:
    """The most that an answer of this worst case may cost, 1e-12 units: without guesses that the
    engine cannot make."""

    def possible(model: str, used: Usage) -> Usage:
        if not used.drafted:
            return used
        able = engine.capabilities(model).speculation
        longest = 0 if able is None else able.longest
        return replace(used, drafted=min(used.drafted, longest * used.completion))

    costs = [prices[model].of(possible(model, used)) for model, used in worst.items()]
    return max(costs) if policy.one_of else sum(costs)
