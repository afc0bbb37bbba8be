"""Whether a text fits a client's JSON schema or regular expression, at a bounded cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs

from app.sandbox.process import command, converse

_MATCHER = command(Path(__file__).with_name("matcher.py"))
_PACKAGES = str(Path(jsonschema_rs.__file__).parent.parent)
_SECONDS = 2.0  # what takes longer does not fit
_AT_ONCE = 2  # of one gateway process; others wait
_MEMORY = 512 * 2**20  # bytes
_PATTERN = 2**18  # bytes of a compiled pattern
_NESTED = 64  # levels of a schema
_LONGEST = 2**16  # bytes of a schema
_DRAFTS = ("https://json-schema.org/draft/", "http://json-schema.org/draft-")


def schema_of(value: object) -> Mapping[str, Any]:
    """This JSON schema, plain and bounded. Raises ValueError for what is none.

    What it costs to compile is not bounded, and so what refers to nothing is found by `fits`.
    """
    if not isinstance(value, Mapping):
        raise ValueError("must be a JSON schema, an object")
    _check_depth(value)
    try:
        text = json.dumps(value, default=float, allow_nan=False)  # TOML's numbers are Decimals
    except (TypeError, OverflowError) as error:
        raise ValueError("must be a JSON schema, of JSON's values only") from error
    if len(text) > _LONGEST:
        raise ValueError(f"must be at most {_LONGEST} bytes of JSON")
    schema: dict[str, Any] = json.loads(text)
    draft = schema.get("$schema", _DRAFTS[0])
    if not isinstance(draft, str) or not draft.startswith(_DRAFTS):
        raise ValueError("$schema: must be a draft of json-schema.org")
    try:
        jsonschema_rs.meta.validate(schema)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        raise ValueError(f"is no JSON schema: {str(error).partition(chr(10))[0]}") from error
    return schema


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(_NESTED):
        inner = [
            each.values() if isinstance(each, Mapping) else each
            for each in level
            if isinstance(each, Mapping | list | tuple)
        ]
        level = [one for each in inner for one in each]
        if not level:
            return
    raise ValueError(f"must be nested at most {_NESTED} levels deep")


def pattern_of(text: str) -> str:
    """This regular expression. Raises ValueError where it is none, or needs more than linear time:
    look-around and back-references there are not."""
    try:
        jsonschema_rs.validator_for(
            _of_pattern(text),
            pattern_options=jsonschema_rs.RegexOptions(size_limit=_PATTERN),
            offline=True,
        )
    except ValueError as error:
        raise ValueError(
            "must be a regular expression as in JSON Schema, without look-around and"
            " back-references, and not too large"
        ) from error
    return text


def _of_pattern(text: str) -> dict[str, Any]:
    return {"type": "string", "pattern": text}


async def matches(pattern: str, text: str) -> bool:
    """Whether it is found in this text, anywhere. Raises SandboxUnavailable where no process can
    be started."""
    return await _fits(_of_pattern(pattern), text, parsed=False)


async def fits(schema: Mapping[str, Any], text: str) -> bool:
    """Whether this text is JSON, and as the schema says; no where it takes longer than 2 s.

    Raises ValueError for a schema that cannot be compiled, and as `matches`.
    """
    return await _fits(schema, text, parsed=True)


async def _fits(schema: Mapping[str, Any], text: str, *, parsed: bool) -> bool:
    request = {
        "schema": schema,
        "text": text,
        "parsed": parsed,
        "packages": _PACKAGES,
        "pattern": _PATTERN,
        "memory": _MEMORY,
        "seconds": math.ceil(_SECONDS) + 2,  # of a processor, the start included
    }
    spoken = await converse(_MATCHER, json.dumps(request).encode(), _SECONDS, _AT_ONCE)
    if spoken.result.startswith(b"!"):
        raise ValueError(spoken.result[1:].decode(errors="replace"))
    return spoken.result == b"1"
