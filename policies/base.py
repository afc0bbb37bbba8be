"""What a policy is, options as fields and one method; and what all do of what none can divide."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict

from app.catalog import Catalog, Tariff
from app.errors import EngineError, Overloaded, Unaffordable
from app.types import (
    Alternative,
    Call,
    Chunk,
    Decision,
    Decoding,
    Fidelity,
    MeteredEngine,
    Usage,
)

_LIKELY = 256  # tokens of an answer whose request names no bound


class Policy(BaseModel, ABC):
    """Turns one call into engine calls. Its fields are its options; it keeps no other state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by_token: ClassVar[bool] = True  # whether it may ask for less than whole answers
    one_of: ClassVar[bool] = False  # whether only one of the models of `worst_case` answers

    @property
    @abstractmethod
    def fidelity(self) -> Fidelity:
        """Of its answers: `exact` where they are distributed as the named model's. Most policies
        say it once, as a ClassVar; where options decide, it is a property."""

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

    def serving(self, call: Call, engine: MeteredEngine, prices: Mapping[str, Tariff]) -> Policy:
        """This policy; or, where the call offers tools or wants a form of answer that not all of
        the models' token loops keep through a hand-over, a whole answer by one of them."""
        if not self.by_token or not call.structured:
            return self
        models = tuple(self.best_first(call.model))
        if all(engine.capabilities(model).structured for model in models):
            return self
        return Whole(models=models, prices={model: prices[model] for model in models})

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


class Whole(Policy):
    """One model writes all of the answer, in its server's own words where it has some: the best
    one of which the budget pays for as long an answer as may come, else that of which it pays for
    most. When one fails before its first word, the next one answers. A Decision says which did.
    """

    by_token: ClassVar[bool] = False
    one_of: ClassVar[bool] = True
    fidelity: ClassVar[Fidelity] = "exact"  # where the best one answers

    models: tuple[str, ...]  # best first
    prices: Mapping[str, Tariff]

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        return dict.fromkeys(self.models, Usage(prompt=prompt, completion=completion))

    def most_calls(self, call: Call) -> int:
        return len(self.models)

    def relays(self, call: Call, engine: MeteredEngine) -> bool:
        return all(engine.capabilities(model).native for model in self.models)

    async def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        buys = {
            model: await affordable(call.to(model), engine, self.prices[model])
            for model in self.models
        }
        wanted = (call.max_tokens or _LIKELY) * call.choices
        left, failed = self._ordered(buys, wanted), dict[str, str]()
        while left:
            model = left.pop(0)
            native = engine.capabilities(model).native
            asked = call.to(model).decoded(Decoding(native=native))
            decided: Decision | None = Decision(kind="whole", model=model, token=0)
            try:
                async with (
                    aclosing(engine.generate(asked)) as stream,
                    aclosing(spoken(stream)) as chunks,
                ):
                    async for chunk in chunks:
                        if decided is not None:
                            considered = _weighed(model, left, failed, buys, wanted)
                            chunk = replace(chunk, decision=decided, considered=considered)
                            decided = None
                        yield chunk
                return
            except (Unaffordable, Overloaded, EngineError) as error:
                if not left or decided is None:
                    raise
                failed[model] = type(error).__name__

    def _ordered(self, buys: Mapping[str, int], wanted: int) -> list[str]:
        """In which order they are asked."""
        rich = [model for model in self.models if buys[model] >= wanted]
        poor = [model for model in self.models if buys[model] < wanted]
        return rich + sorted(poor, key=lambda model: -buys[model])


async def affordable(call: Call, engine: MeteredEngine, price: Tariff) -> int:
    """How many tokens after this call's prompt the budget pays for, before anything was read;
    sys.maxsize: nothing limits it; 0: none, or nobody can say."""
    tokens = engine.allowance(call.model)
    if tokens == sys.maxsize:
        return tokens
    try:
        # Told in whole tokens: there may be almost one more.
        return price.buys((tokens + 1) * price.output - 1, await engine.count(call))
    except EngineError:
        return 0


def _weighed(
    chosen: str,
    after: Sequence[str],
    failed: Mapping[str, str],
    buys: Mapping[str, int],
    wanted: int,
) -> tuple[Alternative, ...]:
    """The models in the order in which they were, or would have been, asked."""
    told = {model: f"it failed before its first word ({error})" for model, error in failed.items()}
    enough = buys[chosen] >= wanted
    told[chosen] = (
        f"the best one that may write {wanted} tokens and did not fail"
        if enough
        else f"none may write {wanted} tokens that did not fail; it may write most"
    )
    told |= dict.fromkeys(after, f"{chosen} was asked first, and did not fail")
    return tuple(
        Alternative(
            kind="model",
            name=model,
            chosen=model == chosen,
            reason=reason,
            fits=None if buys[model] == sys.maxsize else buys[model] >= wanted,
            tokens=None if buys[model] == sys.maxsize else buys[model],
        )
        for model, reason in told.items()
    )


async def spoken(stream: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
    """The chunks, none of them before there is something to show: that a server has set to work
    does not mean that it will answer."""
    begun, early = False, list[Chunk]()
    async for chunk in stream:
        early.append(chunk)
        begun = begun or bool(chunk.raw or chunk.text or chunk.tokens or chunk.finish)
        while begun and early:
            yield early.pop(0)
