"""Ask the model that was named, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import ClassVar, Self

from app.catalog import Catalog
from app.errors import BadRequest
from app.types import Call, Chunk, Decoding, Fidelity, MeteredEngine, Usage
from policies.base import Policy


class Direct(Policy):
    by_token: ClassVar[bool] = False
    fidelity: ClassVar[Fidelity] = "exact"

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        if model is None:
            raise BadRequest("policy direct: `model` must name a model", param="model")
        return self

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        return {model: Usage(prompt=prompt, completion=completion)}

    def most_calls(self, call: Call) -> int:
        return 1

    def relays(self, call: Call, engine: MeteredEngine) -> bool:
        # An engine that embeds takes all prompts at once.
        return call.embeds or engine.capabilities(call.model).native

    def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        return engine.generate(
            call.decoded(Decoding(native=engine.capabilities(call.model).native))
        )
