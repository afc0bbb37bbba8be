"""What was said in a request, for traces that may hold it: bounded, and text alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.types import Call, Chunk

MOST = 16 * 1024
"""Characters of the prompt, and of the answer, that are kept."""
_MOST_RAW = 16 * MOST  # bytes of a server's own events, most of which is not text
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Heard:
    """An answer's text, as it comes."""

    def __init__(self) -> None:
        self._left = MOST
        self._texts: defaultdict[int, list[str]] = defaultdict(list)
        self._finishes: dict[int, str] = {}
        self._raw: list[bytes] = []
        self._raw_left = _MOST_RAW

    def note(self, chunk: Chunk) -> None:
        if chunk.raw is not None:
            if self._raw_left:
                self._raw.append(chunk.raw[: self._raw_left])
                self._raw_left -= len(self._raw[-1])
            return
        if chunk.text and self._left:
            self._add(chunk.index, chunk.text)
        if chunk.finish is not None:
            self._finishes[chunk.index] = chunk.finish

    def messages(self) -> str:
        """As `gen_ai.output.messages` has them, in JSON; of a choice that is cut here the start."""
        for choice in _choices(b"".join(self._raw)):
            self._relayed(choice)
        self._raw.clear()
        return _encode(
            [
                {
                    "role": "assistant",
                    "parts": [{"type": "text", "content": "".join(self._texts[index])}],
                    "finish_reason": self._finishes.get(index, ""),
                }
                for index in sorted(self._texts)
            ]
        )

    def _add(self, index: int, text: str) -> None:
        kept = text[: self._left]
        self._left -= len(kept)
        self._texts[index].append(kept)

    def _relayed(self, choice: Mapping[str, Any]) -> None:
        index = choice.get("index", 0)
        if not isinstance(index, int):
            return
        said = choice.get("delta") or choice.get("message") or choice
        text = said.get("content") or said.get("text") if isinstance(said, dict) else None
        if isinstance(text, str):
            self._add(index, text)
        if isinstance(finish := choice.get("finish_reason"), str):
            self._finishes[index] = finish


def asked(call: Call) -> str:
    """What the models are asked, as `gen_ai.input.messages` has it, in JSON; prompts of token ids
    are left out."""
    said = [*call.messages]
    said += [{"role": "user", "content": each} for each in (call.prompt, *call.beside)]
    left, found = MOST, []
    for message in said:
        text = _text(message.get("content"))[:left]
        left -= len(text)
        if text:
            part = {"type": "text", "content": text}
            found.append({"role": str(message.get("role", "user")), "parts": [part]})
    return _encode(found)


def _text(content: object) -> str:
    """Of a message's content its text: images and the like are left out."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, Mapping))
    return "".join(text for text in texts if isinstance(text, str))


def _choices(raw: bytes) -> Iterator[Mapping[str, Any]]:
    """Those of a server's events, or of its whole body; what was cut in two is left out."""
    events = [line[5:] for line in raw.split(b"\n") if line.startswith(b"data:")] or [raw]
    for event in events:
        try:
            document = json.loads(event)
        except (ValueError, RecursionError):
            continue
        choices = document.get("choices") if isinstance(document, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                yield choice
