"""How much a request may bring, and how slowly; what is beyond is refused by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from app.errors import BadRequest, HeadersTooLarge

_IMAGES = ("image_url", "input_image", "image")  # types of parts: chat, responses, Anthropic's
_TURNS = ("messages", "input")
# In a document: the place that it is in, and its name there. A path for each of very many places
# would take far more memory than the body.
_Place: TypeAlias = tuple["_Place", str | int] | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one request."""

    headers: int = 128
    header_bytes: int = 64 * 1024  # names, values and the URL
    body_bytes: int = 8 * 2**20
    body_s: float = 30.0  # for its body, and a further second for each 16 KiB
    messages: int = 4096
    tools: int = 512
    images: int = 64
    string: int = 4 * 2**20  # characters; an image's data URL is one too

    def check_headers(self, scope: Mapping[str, Any]) -> None:
        """Raises HeadersTooLarge."""
        headers = scope["headers"]
        if len(headers) > self.headers:
            raise HeadersTooLarge(
                f"The request has more than {self.headers} headers", param="headers"
            )
        size = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
        if size + sum(len(name) + len(value) for name, value in headers) > self.header_bytes:
            raise HeadersTooLarge(
                f"The request's headers are larger than {self.header_bytes} bytes", param="headers"
            )

    def check(self, document: Mapping[str, Any], size: int) -> None:
        """Raises BadRequest naming the field. `size`: bytes of the body."""
        for name in _TURNS:
            turns = document.get(name)
            if isinstance(turns, list):
                _at_most(self.messages, len(turns), "items", name)
                _at_most(self.images, sum(map(_images, turns)), "images", name)
        for name in ("tools", "functions"):
            tools = document.get(name)
            if isinstance(tools, list):
                _at_most(self.tools, len(tools), "items", name)
        if size > self.string:
            for where, text in _strings(document):
                if len(text) > self.string:
                    _at_most(self.string, len(text), "characters", _path(where))


def _at_most(limit: int, count: int, what: str, param: str) -> None:
    if count > limit:
        raise BadRequest(f"{param}: has {count} {what}, at most {limit} are taken", param=param)


def _images(turn: Any) -> int:
    """In a message, also where one part holds others."""
    content = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(content, list):
        return 0
    return sum(
        1 if part.get("type") in _IMAGES else _images(part)
        for part in content
        if isinstance(part, dict)
    )


def _strings(document: Mapping[str, Any]) -> Iterator[tuple[_Place, str]]:
    """Every string of a document, and where it is: names of members too."""
    waiting: list[tuple[_Place, Any]] = [(None, document)]
    while waiting:
        place, node = waiting.pop()
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(name, str):
                yield place, name
            if isinstance(child, str):
                yield (place, name), child
            elif isinstance(child, dict | list):
                waiting.append(((place, name), child))


def _path(place: _Place) -> str:
    names = []
    while place is not None:
        place, name = place
        names.append(str(name)[:256])
    return ".".join(reversed(names)) or "body"
