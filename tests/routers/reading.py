"""How tests ask, and read the events of a stream."""

from __future__ import annotations

import json
from typing import Any

QUESTION = [{"role": "user", "content": "why is the sky blue"}]  # five tokens


def asking(model: str = "large", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": QUESTION, **fields}


def events(text: str) -> list[dict[str, Any]]:
    """What the stream said, [DONE] checked and left out."""
    blocks = text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def said(chunks: list[dict[str, Any]]) -> str:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content", "") for delta in deltas)
