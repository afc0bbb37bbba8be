"""What a call may ask of an embedded model; all else is refused before it costs anything."""

from __future__ import annotations

import math
from typing import Any

from app.engines import fields
from app.errors import BadRequest, ContextOverflow
from app.types import Call, Sampling


def check(call: Call, vocabulary: int) -> None:
    """Refuse what no prompt makes right; `vocabulary`: how many ids the model has.

    Raises EngineUnsupported or BadRequest, whose `param` names the field.
    """
    fields.check(call, structured=True)
    reads = call.embeds or call.decoding.scores
    if call.max_tokens is not None and call.max_tokens < 1 and not reads:
        raise BadRequest("max_tokens must be at least 1", param="max_tokens")
    stop = call.decoding.stop
    if stop is not None and stop.window < 1:
        raise BadRequest("the entropy's window must be at least 1 token", param="policy")
    _check_sampling(call.sampling)
    check_ids(call.sampling.logit_bias, vocabulary, "logit_bias")
    check_ids(call.sampling.stop_token_ids, vocabulary, "stop_token_ids")
    check_ids(call.written, vocabulary, "written")
    for prompt in (call.prompt, *call.beside):
        if isinstance(prompt, tuple):
            check_ids(prompt, vocabulary, "input" if call.embeds else "prompt")


def room(call: Call, prompt: int, context: int) -> int:
    """How many tokens may be written after `prompt` tokens (`written` included).

    Raises ContextOverflow where the context (tokens, prompt and answer) does not hold both.
    """
    field = "input" if call.embeds else "messages" if call.prompt is None else "prompt"
    if prompt == 0:
        raise BadRequest(f"{field} must not be empty", param=field)
    if prompt >= context:
        raise ContextOverflow(
            f"the prompt has {prompt} tokens; this model's context is {context}, "
            "prompt and answer together",
            param=field,
        )
    if call.max_tokens is None:
        return context - prompt
    if call.written or call.said:
        return min(call.max_tokens, context - prompt)  # it began where there was more room
    if prompt + call.max_tokens > context:
        raise ContextOverflow(
            f"the prompt has {prompt} tokens and max_tokens asks for {call.max_tokens} more; this "
            f"model's context is {context}: ask for at most {context - prompt}",
            param="max_tokens",
        )
    return call.max_tokens


def _check_sampling(sampling: Sampling) -> None:
    ranges = {
        "temperature": (0.0, math.inf),
        "top_p": (0.0, 1.0),
        "top_k": (-1.0, math.inf),  # vLLM's clients write -1 for all
        "min_p": (0.0, 1.0),
        "presence_penalty": (-2.0, 2.0),
        "frequency_penalty": (-2.0, 2.0),
        "repetition_penalty": (0.01, 100.0),
    }
    for field, (low, high) in ranges.items():
        value = getattr(sampling, field)
        if not (math.isfinite(value) and low <= value <= high):
            raise BadRequest(f"{field} must be from {low:g} to {high:g}", param=field)
    if not all(-100 <= bias <= 100 for bias in sampling.logit_bias.values()):
        raise BadRequest("logit_bias values must be from -100 to 100", param="logit_bias")


def check_ids(ids: Any, vocabulary: int, field: str) -> None:
    for id in ids:
        if not 0 <= id < vocabulary:
            raise BadRequest(f"token id {id} is not in the vocabulary of {vocabulary}", param=field)
