"""The fields of a request that a token loop cannot honour, and when they change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from app.errors import EngineUnsupported
from app.types import Call


def _empty(value: Any) -> bool:
    return value is None or value is False or value == [] or value == {}


def _one(value: Any) -> bool:
    return value is None or value == 1


def _text_format(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and value.get("type") == "text")


def _text_only(value: Any) -> bool:
    return value is None or value == ["text"]


def _any(value: Any) -> bool:
    return True


def _nothing(value: Any) -> bool:
    return value is None


# Every field of OpenAI's and of vLLM's that is not the Call's own, and when it changes nothing. To
# ignore one that would is to give another answer than was asked for. Names that nobody knows are
# ignored, as vLLM does.
FIELDS: Mapping[str, Callable[[Any], bool]] = {
    # of whoever asks, and of OpenAI's own caches
    "user": _any,
    "metadata": _any,
    "safety_identifier": _any,
    "prompt_cache_key": _any,
    "prompt_cache_options": _any,
    "prompt_cache_retention": _any,
    # hints, and wishes that go to the template of a model which knows them, and to no other
    "prediction": _any,
    "verbosity": _any,
    "reasoning_effort": _any,
    "include_reasoning": _any,
    "thinking_token_budget": _any,
    # services beside the model
    "store": _empty,
    "service_tier": lambda value: value in (None, "auto", "default"),
    "moderation": _empty,
    "modalities": _text_only,
    "audio": _empty,
    "web_search_options": _nothing,
    # the form of the answer
    "tools": _empty,
    "tool_choice": lambda value: value in (None, "none", "auto"),
    "parallel_tool_calls": _any,  # of none, where there are no tools
    "functions": _empty,
    "function_call": lambda value: value in (None, "none", "auto"),
    "response_format": _text_format,
    "structured_outputs": _empty,
    "guided_json": _empty,
    "guided_regex": _empty,
    "guided_choice": _empty,
    "guided_grammar": _empty,
    # how it is drawn
    "min_tokens": lambda value: value in (None, 0),
    "bad_words": _empty,
    "allowed_token_ids": _nothing,
    "use_beam_search": _empty,
    "length_penalty": _any,  # of a beam search
    "repetition_detection": _nothing,
    "watermarking": _empty,
    # what is told of it
    "prompt_logprobs": _nothing,
    "logprob_token_ids": _nothing,
    "return_token_ids": _empty,
    "return_tokens_as_token_ids": _empty,
    "skip_special_tokens": lambda value: value in (None, True),
    "spaces_between_special_tokens": _any,  # of answers that show them
    "include_stop_str_in_output": _empty,
    "stream_interval": _any,
    # the prompt
    "best_of": _one,
    "echo": _empty,
    "suffix": lambda value: value in (None, ""),
    "truncate_prompt_tokens": _nothing,
    "truncation_side": _any,  # where it is truncated
    "add_special_tokens": _any,  # the engines see to it
    "add_generation_prompt": lambda value: value in (None, True),
    "continue_final_message": _empty,
    "chat_template": _empty,
    "chat_template_kwargs": _empty,
    "documents": _empty,
    "media_io_kwargs": _any,  # of what is no text, which is refused
    "mm_processor_kwargs": _any,
    "dimensions": _empty,
    # how it is served
    "priority": lambda value: value in (None, 0),
    "cache_salt": _nothing,
}


_LIKELIEST = 20  # as OpenAI has it
# What goes along to a server with the ids, or into its template.
_SERVERS = (
    *("chat_template", "chat_template_kwargs", "documents", "allowed_token_ids"),
    *("repetition_detection", "watermarking", "priority", "cache_salt"),
)
_STRUCTURE = (
    *("tools", "tool_choice", "response_format", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)


def check(call: Call, *, renders: bool = False, structured: bool = False) -> None:
    """Refuse what only an engine's own chat endpoint can do. Raises EngineUnsupported naming it.

    `renders`: whether the engine is a server that renders chats itself; `structured`: those that
    say what form the answer is to have.
    """
    done = _SERVERS * renders + _STRUCTURE * structured
    if call.choices != 1 and not call.embeds:
        raise EngineUnsupported("n: only one choice can be written token by token", param="n")
    if call.sampling.logprobs is not None and not 0 <= call.sampling.logprobs <= _LIKELIEST:
        field = "top_logprobs" if call.prompt is None else "logprobs"
        raise EngineUnsupported(
            f"{field}: 0 to {_LIKELIEST} of the likeliest are told token by token", param=field
        )
    for index, message in enumerate(call.messages):
        content = message.get("content")
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping) and part.get("type") not in ("text", None):
                raise EngineUnsupported(
                    f"messages.{index}.content: only text can be read token by token",
                    param=f"messages.{index}.content",
                )
    for field, value in call.extra.items():
        if field in FIELDS and field not in done and not FIELDS[field](value):
            raise EngineUnsupported(
                f"{field}: is not done token by token here; name a model of a server instead",
                param=field,
            )
