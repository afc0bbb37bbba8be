"""What a call may ask of an embedded model; all else is refused before it costs anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from app.errors import BadRequest, ContextOverflow, EngineUnsupported
from app.types import Call, Sampling


def _empty(value: Any) -> bool:
    return value is None or value is False or value == [] or value == {}


def _one(value: Any) -> bool:
    return value is None or value == 1


def _text_format(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and value.get("type") == "text")


def _text_only(value: Any) -> bool:
    return value is None or value == ["text"]


# Body fields that would change the answer, and when they would not. To ignore one of them would
# be to give another answer than was asked for; what is not named here is harmless.
_HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    "tools": _empty,
    "tool_choice": lambda value: value in (None, "none", "auto"),
    "functions": _empty,
    "function_call": lambda value: value in (None, "none", "auto"),
    "response_format": _text_format,
    "modalities": _text_only,
    "audio": _empty,
    "web_search_options": lambda value: value is None,
    "n": _one,
    "best_of": _one,
    "echo": _empty,
    "suffix": lambda value: value in (None, ""),
    "min_tokens": lambda value: value in (None, 0),
    "use_beam_search": _empty,
    "prompt_logprobs": lambda value: value is None,
    "structured_outputs": _empty,
    "guided_json": _empty,
    "guided_regex": _empty,
    "guided_choice": _empty,
    "guided_grammar": _empty,
    "bad_words": _empty,
    "chat_template": _empty,
    "chat_template_kwargs": _empty,
    "continue_final_message": _empty,
    "add_generation_prompt": lambda value: value in (None, True),
    "documents": _empty,
}


def check(call: Call, vocabulary: int) -> None:
    """Refuse what no prompt makes right; `vocabulary`: how many ids the model has.

    Raises EngineUnsupported or BadRequest, whose `param` names the field.
    """
    for field, harmless in _HARMLESS.items():
        if field in call.extra and not harmless(call.extra[field]):
            raise EngineUnsupported(f"this engine does not do {field}", param=field)
    if call.max_tokens is not None and call.max_tokens < 1:
        raise BadRequest("max_tokens must be at least 1", param="max_tokens")
    stop = call.decoding.stop
    if stop is not None and stop.window < 1:
        raise BadRequest("the entropy's window must be at least 1 token", param="policy")
    _check_sampling(call.sampling)
    _check_ids(call.sampling.logit_bias, vocabulary, "logit_bias")
    _check_ids(call.sampling.stop_token_ids, vocabulary, "stop_token_ids")
    _check_ids(call.written, vocabulary, "written")
    if isinstance(call.prompt, tuple):
        _check_ids(call.prompt, vocabulary, "prompt")


def room(call: Call, prompt: int, context: int) -> int:
    """How many tokens may be written after `prompt` tokens (`written` included).

    Raises ContextOverflow where the context (tokens, prompt and answer) does not hold both.
    """
    if prompt == 0:
        raise BadRequest("prompt must not be empty", param="prompt")
    if prompt >= context:
        raise ContextOverflow(
            f"the prompt has {prompt} tokens; this model's context is {context}, "
            "prompt and answer together",
            param="messages" if call.prompt is None else "prompt",
        )
    if call.max_tokens is None:
        return context - prompt
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


def _check_ids(ids: Any, vocabulary: int, field: str) -> None:
    for id in ids:
        if not 0 <= id < vocabulary:
            raise BadRequest(f"token id {id} is not in the vocabulary of {vocabulary}", param=field)
