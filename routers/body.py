"""A request's body: read within a limit, parsed strictly, and refused by the field at fault."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from app.errors import BadRequest, BodyTooLarge, TooSlow
from routers.bounds import Bounds

MAX_DEPTH = 64  # nested arrays and objects; what recurses over a body later must not overflow
MAX_NODES = 200_000  # arrays and objects: each takes some thirty times its bytes in memory
_LARGE = 512 * 1024  # bytes, of a body that would hold others up for too long
_PACE = 16 * 1024  # bytes a second, of a body that takes longer than it may
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# One without an end goes to the end: to look for others inside of it would take for ever.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.S)
_OPENING = re.compile(r"[\[{]")
_EXPECTS = "Input should be "
_SAID = {  # where pydantic's words are about Python
    "extra_forbidden": "is not supported",
    "model_type": _EXPECTS + "an object",
    "dict_type": _EXPECTS + "an object",
    "list_type": _EXPECTS + "an array",
}
FEW = 64  # members of an object that is refused for each that it should not have
T = TypeVar("T", bound=BaseModel)


def few(value: Any) -> Any:
    """For a validator before others: to find a fault in each of very many members takes long."""
    if isinstance(value, dict) and len(value) > FEW:
        raise ValueError(f"has more than {FEW} members")
    return value


class Closed(BaseModel):
    """An object that has no other members than its own."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    _few = model_validator(mode="before")(few)


async def read(request: Request, bounds: Bounds) -> dict[str, Any]:
    """The JSON object in the body, within these bounds whatever its headers promise.

    Raises BodyTooLarge, TooSlow, and BadRequest for anything but one JSON object.
    """
    # A page in a browser may send anyone a body of another kind, or bytes of none; and of this one
    # nothing unasked.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and (kind or "origin" in request.headers):
        raise BadRequest("Content-Type: must be application/json", param="Content-Type")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > bounds.body_bytes:
        raise _too_large(bounds.body_bytes)
    body = bytearray()
    end = asyncio.get_running_loop().time() + bounds.body_s
    try:
        async with asyncio.timeout_at(end) as patience:
            async for part in request.stream():
                body += part
                if len(body) > bounds.body_bytes:
                    raise _too_large(bounds.body_bytes)
                if len(body) > _PACE:
                    patience.reschedule(end + len(body) / _PACE)
    except TimeoutError:
        raise TooSlow("The body took too long to arrive", param="body") from None
    if len(body) < _LARGE:
        return _within(bounds, bytes(body))
    return await asyncio.to_thread(_within, bounds, bytes(body))


def _within(bounds: Bounds, body: bytes) -> dict[str, Any]:
    document = parse(body)
    bounds.check(document, len(body))
    return document


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in these bytes. Raises BadRequest; numbers must be finite."""
    try:
        text = body.decode("utf-8-sig")
        openings = text.count("[") + text.count("{")
        if openings > MAX_NODES and len(_OPENING.findall(_STRING.sub("", text))) > MAX_NODES:
            raise BadRequest(f"The body has more than {MAX_NODES} arrays and objects", param="body")
        document = _decode(text)
        if _SURROGATE.search(text):
            # Half of a surrogate pair is no character: no tokenizer can take it.
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeError:
        raise BadRequest("The body is not valid UTF-8", param="body") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise BadRequest(f"The body is not valid JSON: {error}", param="body") from None
    if not isinstance(document, dict):
        raise BadRequest("The body must be a JSON object", param="body")
    if openings > MAX_DEPTH:
        _check_depth(document)
    return document


def check(shape: type[T], document: Mapping[str, Any]) -> T:
    """The document in this shape. Raises BadRequest naming the field, like messages.0.content."""
    try:
        return shape.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    # Where one field may have several shapes, those that came furthest tell the most.
    rivals = [(_path(document, e), e) for e in found if e["loc"][:1] == found[0]["loc"][:1]]
    path = max((path for path, _ in rivals), key=len)
    said = [_SAID.get(e["type"], e["msg"]) for at, e in rivals if at == path]
    said = [message.removeprefix("Value error, ") for message in dict.fromkeys(said)]
    rest = [f" or {message.removeprefix(_EXPECTS)}" for message in said[1:]]
    param = ".".join(path)
    raise BadRequest(f"{param}: {said[0]}{''.join(rest)}", param=param)


def string(document: Mapping[str, Any], key: str, param: str) -> str:
    """This member of the object that stands at `param`. Raises BadRequest naming it."""
    value = document.get(key)
    if not isinstance(value, str):
        raise BadRequest(f"{param}.{key}: must be a string", param=f"{param}.{key}")
    return value


def objects(value: Any) -> list[Mapping[str, Any]]:
    """Those in this array, if it is one."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _path(document: Any, error: ErrorDetails) -> list[str]:
    """Where the error is in the document; pydantic's location names the shapes it tried too."""
    path: list[str] = []
    loc = error["loc"]
    for part in loc:
        in_list = isinstance(document, list) and isinstance(part, int) and part < len(document)
        if in_list or (isinstance(document, dict) and part in document):
            document = document[part]
        elif error["type"] != "missing" or part != loc[-1]:
            continue
        path.append(str(part))
    return path


def _check_depth(document: dict[str, Any]) -> None:
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            children = node.values() if isinstance(node, dict) else node
            below += [child for child in children if isinstance(child, dict | list)]
        if not below:
            return
        level = below
    raise _too_deep()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


_decode = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite).decode


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {limit} bytes", param="body")


def _too_deep() -> BadRequest:
    return BadRequest(f"The body is nested deeper than {MAX_DEPTH} levels", param="body")
