"""The OpenAPI document: what routes take and answer, in the words of what they really do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from routers.doors import KEY
from routers.shapes import ANSWERS, EXAMPLES, one_of
from routers.terms import DEBUG, FALLBACK, GPU, LATENCY, POLICY, QUALITY, TTFT, USD
from routers.wordings import anthropic, wording

EVENTS = "text/event-stream"
_REF = "#/components/schemas/{model}"
_TEXT = {"schema": {"type": "string"}}
_AMOUNT = {"type": "string", "pattern": r"^[0-9]{1,8}(\.[0-9]{1,12})?$"}
_WAIT = {"type": "string", "pattern": r"^[1-9][0-9]{0,8}(\.[0-9]{1,6})?$"}
_NAMED = {"type": "string", "pattern": r"^[A-Za-z][A-Za-z0-9._:-]{0,99}"}
_HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    USD: ("most this request may cost, in USD; everything it causes included", _AMOUNT),
    GPU: ("most it may take of accelerators, in idealized seconds; of models that say it", _AMOUNT),
    LATENCY: ("milliseconds in which the whole answer must be there", _WAIT),
    TTFT: (
        "milliseconds in which it should begin: a wish, for policies that can answer sooner",
        _WAIT,
    ),
    QUALITY: (
        "for `auto`: least measured quality, 0 to 1 relative to the best way's",
        {"type": "number", "minimum": 0, "maximum": 1},
    ),
    FALLBACK: (
        "cheapest (default: do what the budget allows) or strict (402 if it may not suffice)",
        one_of("cheapest", "strict"),
    ),
    POLICY: (
        "a policy or preset with options, as an Item of RFC 9651: entropy_switch;raise_at=2.0",
        _NAMED,
    ),
    DEBUG: ("1: switches and per-chunk detail in the answer", one_of("0", "1")),
}
_TOLD = {
    "X-Farthing-Policy": "who answered",
    "X-Farthing-Preset": "of `auto`: the preset or model that answered",
    "X-Farthing-Fidelity": "exact: as the named model's; else approximate",
    "X-Farthing-Estimate-Usd": "the worst case",
    "X-Farthing-Budget-Usd": "the budget that was admitted",
    "X-Farthing-Cost-Usd": "what it cost; not in a stream, whose last chunk says it",
    "X-Farthing-Overhead-Ms": "our own time; not in a stream",
}
_REFUSALS = {
    400: "a value that cannot be, or what the engine cannot do; `param` names it",
    401: "no API key, or one that opens nothing",
    402: "the budget, or the key's limit, does not pay for it",
    403: "the key may not do this",
    404: "it does not exist",
    408: "the request took too long to arrive",
    413: "the body is too large",
    429: "a rate or a queue is full",
    431: "the headers are too large",
    500: "a bug of ours",
    502: "an engine failed",
    503: "not now",
    504: "the deadline passed before the first token",
}
_ALWAYS = (400, 431, 500)
_BODY = (408, 413)
_REFUSES = {  # by a route's tag
    "generation": (401, 402, 403, 404, 429, 502, 503, 504),
    "fleet": (401, 403, 404, 503),
    "reading": (401, 403, 404, 429, 502, 503),
    "accounts": (401, 403, 503),
    "decisions": (401, 403, 404, 503),
    "administration": (401, 403, 404, 503),
    "operation": (),
}
_DOORS: dict[str, list[dict[str, list[str]]]] = {
    "administration": [{"bearer": []}, {"key": []}],
    "operation": [],
}
_CHANGES = "Changes"
_shapes: dict[str, type[BaseModel]] = {}
_changed: set[str] = set()  # of these, where some members will do


def has_body(shape: type[BaseModel]) -> dict[str, Any]:
    """A route's `openapi_extra`: its body has this shape."""
    _shapes[shape.__name__] = shape
    return _body(shape.__name__)


def has_changes(shape: type[BaseModel]) -> dict[str, Any]:
    """A route's `openapi_extra`: its body has some members of this shape."""
    _shapes[shape.__name__] = shape
    _changed.add(shape.__name__)
    return _body(shape.__name__ + _CHANGES)


def takes(shape: type[BaseModel], answer: str | None = None) -> dict[str, Any]:
    """A route's `openapi_extra`: its body has this shape, and it reads our headers.

    `answer`: a name in `shapes`; None: an object. It may be streamed.
    """
    return {
        **has_body(shape),
        **gives(answer, EVENTS),
        "parameters": [
            {"name": name, "in": "header", "description": text, "schema": schema}
            for name, (text, schema) in _HEADERS.items()
        ],
    }


def gives(answer: str | None, *others: str, status: int = 200) -> dict[str, Any]:
    """A route's `openapi_extra`: it answers this in JSON, or text of these types."""
    content = {kind: _ref("Event") if kind == EVENTS else _TEXT for kind in others}
    if answer is not None:
        content["application/json"] = _ref(answer)
    return {"responses": {str(status): {"content": content}}}


def queries(**parameters: dict[str, Any]) -> dict[str, Any]:
    """A route's `openapi_extra`: what it reads of the URL's query by itself."""
    listed = [{"name": n, "in": "query", "schema": schema} for n, schema in parameters.items()]
    return {"parameters": listed}


def unready(answer: str) -> dict[str, Any]:
    """As `gives`, with status 503 where it is not ready."""
    found = gives(answer)
    found["responses"]["503"] = {"description": "not ready", **found["responses"]["200"]}
    return found


def install(app: FastAPI) -> None:
    """Describe what no route declares to FastAPI."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _complete(made)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the way FastAPI documents


def _complete(document: dict[str, Any]) -> None:
    bodies = models_json_schema(
        [(shape, "validation") for shape in _shapes.values()], ref_template=_REF
    )[1]
    for name in _changed:
        whole = bodies["$defs"][name]
        bodies["$defs"][name + _CHANGES] = {k: v for k, v in whole.items() if k != "required"}
    document["components"] = {
        "schemas": {**bodies["$defs"], **ANSWERS},
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": KEY},
        },
    }
    for path, operations in document["paths"].items():
        error = "MessagesError" if wording(path) is anthropic else "Error"
        for operation in operations.values():
            tag = operation["tags"][0]
            # Where no key has been made none is needed.
            operation["security"] = _DOORS.get(tag, [{"bearer": []}, {"key": []}, {}])
            # FastAPI's own word for a parameter that cannot be; ours is 400.
            operation["responses"].pop("422", None)
            for status in _statuses(operation, tag):
                operation["responses"][str(status)] = _refusal(status, error)
            for status, response in operation["responses"].items():
                response["headers"] = dict(_told(int(status), tag))


def _statuses(operation: dict[str, Any], tag: str) -> list[int]:
    body = _BODY if "requestBody" in operation else ()
    found = {*_ALWAYS, *body, *_REFUSES[tag]}
    return sorted(found - {int(status) for status in operation["responses"]})


def _refusal(status: int, error: str) -> dict[str, Any]:
    return {"description": _REFUSALS[status], "content": {"application/json": _ref(error)}}


def _told(status: int, tag: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The headers of an answer."""
    yield "X-Request-Id", {**_header("the client's, or ours"), "required": True}
    if status in (429, 503):
        yield "Retry-After", _header("seconds")
    if tag == "generation":
        if status == 200:
            yield from ((name, _header(text)) for name, text in _TOLD.items())
        for kind in ("requests", "tokens"):
            for what in ("limit", "remaining", "reset"):
                yield f"x-ratelimit-{what}-{kind}", _header("of the key, a minute")
        if status >= 400:
            yield "x-should-retry", _header("false where a retry cannot succeed")


def _header(text: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": "string"}}


def _body(name: str) -> dict[str, Any]:
    content = _ref(name)
    if name in EXAMPLES:
        content["example"] = EXAMPLES[name]
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _ref(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=name)}}
