"""The bodies and headers that routes read by themselves, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.accounts.keys import KeySpec
from routers.responses_wire import ResponsesRequest
from routers.terms import DEBUG, FALLBACK, LATENCY, POLICY, TTFT, USD
from routers.wire import ChatRequest, CompletionRequest

_REF = "#/components/schemas/{model}"
_HEADERS = {
    USD: "most this request may cost, in USD; everything it causes included",
    LATENCY: "milliseconds in which the whole answer must be there",
    TTFT: "milliseconds in which it should begin: a wish, for policies that can answer sooner",
    FALLBACK: "cheapest (default: do what the budget allows) or strict (402 if it may not suffice)",
    POLICY: "a policy or preset with options, as an Item of RFC 9651: entropy_switch;raise_at=2.0",
    DEBUG: "1: switches and per-chunk detail in the answer",
}


def has_body(shape: type[BaseModel]) -> dict[str, Any]:
    """A route's `openapi_extra`: its body has this shape."""
    schema = {"$ref": _REF.format(model=shape.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def takes(shape: type[BaseModel]) -> dict[str, Any]:
    """A route's `openapi_extra`: its body has this shape, and it reads our headers."""
    return {
        **has_body(shape),
        "parameters": [
            {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
            for name, text in _HEADERS.items()
        ],
    }


def install(app: FastAPI) -> None:
    """Describe the bodies that no route declares."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            shapes = models_json_schema(
                [
                    (shape, "validation")
                    for shape in (ChatRequest, CompletionRequest, ResponsesRequest, KeySpec)
                ],
                ref_template=_REF,
            )[1]
            made.setdefault("components", {}).setdefault("schemas", {}).update(shapes["$defs"])
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the way FastAPI documents
