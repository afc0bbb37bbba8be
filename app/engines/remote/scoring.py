"""How likely a vLLM server's model finds each token of a prompt, of which it writes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from app.engines.remote.origin import Origin
from app.engines.remote.tokens import Names
from app.errors import EngineError
from app.types import Call, Candidate, Chunk, Token, Usage


def request(served: str, ids: Sequence[int], top: int) -> dict[str, Any]:
    """The body that asks for it; `top`: how many of the likeliest to tell. vLLM writes a token all
    the same, which nobody sees."""
    return {
        "model": served,
        "prompt": list(ids),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": top,
        "stream": False,
    }


async def scores(
    origin: Origin, body: Mapping[str, Any], call: Call, names: Names
) -> AsyncGenerator[Chunk]:
    """The prompt's tokens with their log-probabilities, all but the first, then the finish chunk.

    Its first chunk says only that the server has been asked. Raises as Origin.stream, and
    EngineError for an answer that does not tell them.
    """
    yield Chunk(model=call.model)
    patience = origin.patience.whole
    async with origin.stream("/v1/completions", body, call.trace, patience) as response:
        async with asyncio.timeout(patience):
            raw = await response.read()
    ids = body["prompt"]
    try:
        told = json.loads(raw)["choices"][0]["prompt_logprobs"]
        found = [_token(id, one) for id, one in zip(ids, told, strict=True)]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise EngineError(f"The engine of {call.model} told no log-probabilities") from error
    top = call.sampling.logprobs or 0
    pieces = await names({*ids, *(other.id for token in found for other in token.top)})
    tokens = tuple(
        Token(
            token.id,
            pieces[token.id],
            token.logprob,
            tuple(Candidate(one.id, pieces[one.id], one.logprob) for one in token.top[:top]),
        )
        for token in found
    )
    yield Chunk(tokens=tokens, model=call.model, usage=Usage(prompt=len(ids)))
    yield Chunk(model=call.model, finish="length")


def _token(id: int, told: Any) -> Token:
    """One token of the prompt; of the first one nothing is told."""
    if told is None:
        return Token(id)
    likely = [Candidate(int(other), b"", float(one["logprob"])) for other, one in told.items()]
    likely.sort(key=lambda one: -one.logprob)
    return Token(id, b"", float(told[str(id)]["logprob"]), tuple(likely))
