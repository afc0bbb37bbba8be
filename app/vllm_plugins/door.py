"""ASGI middleware for vLLM's API server: what may be asked of speculation, and what is malformed.

Named to vLLM by `--middleware app.vllm_plugins.door.SpeculationDoor`, beside the worker of
`draft_proposer.py`, which runs in another process and leaves word in a file. vLLM runs no logits
processors when it speculates, so asks cannot be validated by one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.vllm_plugins import asks
from app.vllm_plugins.drafts import Ask
from app.vllm_plugins.report import App, Message, Receive, Scope, Send, remove_folder

# A body without any of these asks for nothing of ours: the names, the one escape of JSON that can
# spell them otherwise, and what UTF-16 and UTF-32 have between letters.
_HINTS = b"spec_", b"\\u", b"\0"


class SpeculationDoor:
    """Answers `asks.SPECULATES_PATH`, refuses malformed asks, and passes on everything else."""

    def __init__(self, app: App, path: str | None = None) -> None:
        """`path` of the worker's file; default: the environment's."""
        self._app = app
        self._path = path or os.environ.get(asks.STATE_VARIABLE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._at_lifespan(send))
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (scope["method"], scope["path"]) == ("GET", asks.SPECULATES_PATH):
            await self._say(send)
        elif scope["method"] == "POST" and _is_json(scope):
            await self._checked(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _say(self, send: Send) -> None:
        state = self._state()
        if state is None:
            await _answer(send, 404, _error("no drafts by request here", 404))
        else:
            await _answer(send, 200, state.to_json())

    def _state(self) -> asks.Speculating | None:
        if not self._path:
            return None
        try:
            return asks.Speculating.read(json.loads(Path(self._path).read_text("utf-8")))
        except (OSError, ValueError):  # the worker is vLLM's own
            return None

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, and pass it on unless it asks for what cannot be."""
        messages, body = list[Message](), b""
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            body += messages[-1].get("body", b"")
        problem = _problem(body) if any(hint in body for hint in _HINTS) else None
        if problem is not None:
            await _answer(send, 400, _error(problem, 400))
            return
        await self._app(scope, _again(messages, receive), send)

    def _at_lifespan(self, send: Send) -> Send:
        async def watched(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown") and self._path:
                with suppress(OSError):
                    os.unlink(self._path)
                remove_folder(self._path)
            await send(message)

        return watched


def _problem(body: bytes) -> str | None:
    """What is malformed in the asks of this request; None: nothing, or it is for vLLM to say."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, Mapping):
        return None
    sampling = content.get("sampling_params")
    own = sampling.get("extra_args") if isinstance(sampling, Mapping) else None
    for given in (content.get("vllm_xargs"), own):
        try:
            Ask.read(given if isinstance(given, Mapping) else None)
        except ValueError as error:
            return str(error)
    return None


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Receives these messages first."""
    waiting = iter(messages)

    async def again() -> Message:
        message = next(waiting, None)
        return await receive() if message is None else message

    return again


def _is_json(scope: Scope) -> bool:
    kinds = [bytes(value) for name, value in scope["headers"] if name.lower() == b"content-type"]
    return all(b"json" in kind.lower() for kind in kinds)


def _error(message: str, code: int) -> str:
    """An error as vLLM has it."""
    kind = "BadRequestError" if code == 400 else "NotFoundError"
    error: dict[str, Any] = {"message": message, "type": kind, "param": "vllm_xargs", "code": code}
    return json.dumps({"error": error})


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
