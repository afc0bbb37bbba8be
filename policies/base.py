"""What a policy is: options as fields, and one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict

from app.catalog import Catalog
from app.types import Call, Chunk, Fidelity, MeteredEngine, Usage


class Policy(BaseModel, ABC):
    """Turns one call into engine calls. Its fields are its options; it keeps no other state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
