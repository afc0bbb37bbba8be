"""What schemathesis asks, brought nearer to what a client would: half of it should be answered."""

from __future__ import annotations

import os
import re
import zlib
from typing import Any

import schemathesis

MODELS = ("small", "large", "economy")
QUESTION = "why is the sky blue"
SAID: dict[str, Any] = {
    "messages": [{"role": "user", "content": QUESTION}],
    "prompt": QUESTION,
    "input": QUESTION,
}
OPTIONAL = ("X-Policy", "X-Budget-Latency-Ms", "X-Budget-Usd")
DEADLINE = re.compile(r"[0-9.eE+]+")
KNOWN = "schemathesis"  # the X-Request-Id of an answer that there is
KEPT = os.environ.get("RESPONSE_ID", "")  # of a response that there is
OURS = os.environ.get("KEY_ID", "")  # the key that it comes with must go on to open doors


def number(seed: object) -> int:
    """As good as random, but the same for the same input, so that failures can be shrunk."""
    return zlib.crc32(repr(seed).encode())


def chance(seed: object, one_in: int) -> bool:
    return number(seed) % one_in == 0


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Three of four have a model that there is, something to answer, and a few fields beside."""
    if not isinstance(body, dict) or "model" not in body or chance(body, 4):
        return body
    document = context.operation.schema.raw_schema
    content = context.operation.definition.raw["requestBody"]["content"]["application/json"]
    shape = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    beside = sorted(body.keys() & shape["properties"].keys(), key=lambda n: number((n, body)))[:2]
    kept = {name: whole(body[name]) for name in {*beside, *(body.keys() & shape["required"])}}
    if "stream" in shape["properties"] and chance((body, "stream"), 3):
        kept["stream"] = True
    kept["model"] = MODELS[number(body) % len(MODELS)]
    return kept | {name: said for name, said in SAID.items() if name in kept}


def whole(value: Any) -> Any:
    """JSON Schema takes 3.0 for an integer; we, and OpenAI, do not."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schemathesis.hook
def map_headers(context: Any, headers: Any) -> Any:
    if headers is not None:
        for name in OPTIONAL:
            if name in headers and not chance((headers, name), 4):
                del headers[name]
    return headers


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """A deadline that is kept: 504 is the right answer to one of a millisecond."""
    name = "X-Budget-Latency-Ms"
    if case.headers and DEADLINE.fullmatch(case.headers.get(name, "")):
        case.headers[name] = "600000"
    budget = case.body.get("budget") if isinstance(case.body, dict) else None
    if isinstance(budget, dict) and isinstance(budget.get("latency_ms"), int | float):
        case.body["budget"] = {**budget, "latency_ms": max(budget["latency_ms"], 600_000)}


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    if path_parameters and path_parameters.get("id") == OURS:
        path_parameters["id"] = "0" * 12
    known = known_id(context.operation)
    if path_parameters and known and not chance(path_parameters, 3):
        path_parameters["id"] = known
    return path_parameters


def known_id(operation: Any) -> str:
    """What may be named in this one's path, and is there as long as nobody deletes it."""
    if operation.path.startswith("/v1/decisions/"):
        return KNOWN
    kept = operation.path.startswith("/v1/responses/") and operation.method.lower() != "delete"
    return KEPT if kept else ""
