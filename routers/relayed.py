"""The last word on an answer that an engine wrote in its own bytes: what it cost is put in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from app.types import Chunk


def documents(raw: bytes, id: str) -> list[dict[str, Any]]:
    """The events of a finish chunk as JSON: the last choice's end, and the usage."""
    events = (line.removeprefix(b"data:") for line in raw.split(b"\n") if line.startswith(b"data:"))
    return [document(event, id) for event in events]


def document(raw: bytes, id: str) -> dict[str, Any]:
    """A body or an event as JSON, under our id."""
    content: dict[str, Any] = json.loads(raw)
    return {**content, "id": id}


def complete(
    found: list[dict[str, Any]],
    finish: Chunk,
    summary: Mapping[str, Any],
    cost: Mapping[str, Any],
    include_usage: bool,
) -> None:
    """Put in, in place: `farthing` beside the choices, the cost into the usage.

    The event with the usage goes where the client did not ask for it.
    """
    for content in list(found):
        choices = content.get("choices") or []
        if choices or len(found) == 1:
            content["farthing"] = dict(summary)
        for choice in choices:
            if finish.reason is not None and choice.get("finish_reason") == "length":
                choice["finish_details"] = {"reason": finish.reason}
        if isinstance(content.get("usage"), dict):
            content["usage"] |= cost
        if not choices and not include_usage and len(found) > 1:
            found.remove(content)
            # An engine that is not asked for usage names its fingerprint with the last choice.
            for key in content.keys() - found[0].keys():
                if key == "system_fingerprint":
                    found[0][key] = content[key]
