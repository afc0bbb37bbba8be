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


# Fields that would change the answer, and when they would not. To ignore one of them would be to
# give another answer than was asked for; what is not named here is harmless.
_HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    "tools": _empty,
    "tool_choice": lambda value: value in (None, "none", "auto"),
    "functions": _empty,
    "function_call": lambda value: value in (None, "none", "auto"),
    "response_format": _text_format,
    "modalities": _text_only,
    "audio": _empty,
    "web_search_options": lambda value: value is None,
    "best_of": _one,
    "echo": _empty,
    "suffix": lambda value: value in (None, ""),
    "min_tokens": lambda value: value in (None, 0),
    "use_beam_search": _empty,
    "truncate_prompt_tokens": lambda value: value is None,
    "skip_special_tokens": lambda value: value in (None, True),
    "include_stop_str_in_output": _empty,
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
    "dimensions": _empty,
}


_LIKELIEST = 20  # as OpenAI has it
_RENDERING = ("chat_template", "chat_template_kwargs", "documents")
_STRUCTURE = (
    *("tools", "tool_choice", "response_format", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)


def check(call: Call, *, renders: bool = False, structured: bool = False) -> None:
    """Refuse what only an engine's own chat endpoint can do. Raises EngineUnsupported naming it.

    `renders`: whether the engine takes the fields of the chat template; `structured`: those that
    say what form the answer is to have.
    """
    done = _RENDERING * renders + _STRUCTURE * structured
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
    for field, harmless in _HARMLESS.items():
        if field in done:
            continue
        if field in call.extra and not harmless(call.extra[field]):
            raise EngineUnsupported(
                f"{field}: is not done token by token here; name a model of a server instead",
                param=field,
            )
