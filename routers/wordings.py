"""How an error is put in the body of an answer: as OpenAI does or as Anthropic, by the URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from app.errors import FarthingError

Wording: TypeAlias = Callable[[FarthingError], dict[str, Any]]
MESSAGES = "/v1/messages"  # and below it
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def openai(error: FarthingError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def anthropic(error: FarthingError) -> dict[str, Any]:
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = _TYPES.get(error.status, other)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def wording(path: str) -> Wording:
    """Of the clients that ask at this path."""
    return anthropic if MESSAGES in path else openai
