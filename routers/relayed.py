"""The last word on an answer that an engine wrote in its own bytes: what it cost is put in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from app.errors import EngineError
from app.types import Chunk


def documents(raw: bytes, id: str) -> list[dict[str, Any]]:
    """The events of a finish chunk as JSON: each choice's end, and the usage."""
    events = (line.removeprefix(b"data:") for line in raw.split(b"\n") if line.startswith(b"data:"))
    return [document(event, id) for event in events]


def document(raw: bytes, id: str) -> dict[str, Any]:
    """A body or an event as JSON, under our id. Raises EngineError."""
    try:
        content: dict[str, Any] = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise EngineError("The engine's last words are no JSON") from error
    return {**content, "id": id}


def complete(
    found: list[dict[str, Any]],
    finish: Chunk,
    summary: Mapping[str, Any],
    cost: Mapping[str, Any],
    include_usage: bool,
) -> None:
    """Put in, in place: `farthing` beside the last choice, the cost into the usage.

    The event with the usage goes where the client did not ask for it; an engine that tells none
    is billed for the most that it may have used, and the client is told that.
    """
    if include_usage and not any(isinstance(content.get("usage"), dict) for content in found):
        found[-1]["usage"] = _billed(cost)
    ends = [content for content in found if content.get("choices")] or found
    ends[-1]["farthing"] = dict(summary)
    for choice in (choice for content in ends for choice in content.get("choices") or ()):
        if finish.reason is not None and choice.get("finish_reason") == "length":
            choice["finish_details"] = {"reason": finish.reason}
    for content in list(found):
        if isinstance(content.get("usage"), dict):
            content["usage"] |= cost
        if content not in ends and not include_usage:
            found.remove(content)
            # An engine that is not asked for usage names its fingerprint with each choice's end.
            for end in ends:
                if "system_fingerprint" in content:
                    end.setdefault("system_fingerprint", content["system_fingerprint"])


def _billed(cost: Mapping[str, Any]) -> dict[str, int]:
    used = cost["cost_details"]["models"].values()
    prompt = sum(each["prompt_tokens"] for each in used)
    completion = sum(each["completion_tokens"] for each in used)
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
