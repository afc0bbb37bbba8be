"""ASGI middleware for vLLM's API server: what may be asked of our engine parts, and what not.

Named to vLLM by `--middleware app.vllm_plugins.door.SpeculationDoor`, beside the worker of
`draft_proposer.py`, or by `...PredictionDoor`, beside the connector of `kv_connector.py`. Those
run in another process, and leave word in a file. vLLM runs no logits processors when it
speculates, and a connector cannot refuse, so asks cannot be validated there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.vllm_plugins import asks, predictions
from app.vllm_plugins.drafts import Ask
from app.vllm_plugins.report import App, Message, Receive, Scope, Send, remove_folder

# What may spell a name otherwise: the one escape of JSON that can, and what UTF-16 and UTF-32 have
# between letters.
_ESCAPES = b"\\u", b"\0"


class _Door:
    """Answers one path, refuses what is asked wrongly, and passes on everything else."""

    path: str  # GET: what can be asked for
    variable: str  # of the environment, with the path of the file that says it
    hints: tuple[bytes, ...]  # a body without any of these asks for nothing
    nothing: str  # the error where nothing can be asked for

    def __init__(self, app: App, path: str | None = None) -> None:
        """`path` of the file; default: the environment's."""
        self._app = app
        self._path = path or os.environ.get(self.variable)

    def said(self, content: Any) -> str | None:
        """The answer, of what stands in the file; None: nothing can be asked for."""
        raise NotImplementedError

    def problem(self, xargs: Mapping[str, Any] | None, content: Mapping[str, Any]) -> str | None:
        """Why the asks in these arguments of a request cannot be; None: they can.

        Raises ValueError for malformed ones.
        """
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._at_lifespan(send))
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (scope["method"], scope["path"]) == ("GET", self.path):
            await self._say(send)
        elif scope["method"] == "POST" and _is_json(scope):
            await self._checked(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _say(self, send: Send) -> None:
        said = self.said(self._content())
        if said is None:
            await _answer(send, 404, _error(self.nothing, 404))
        else:
            await _answer(send, 200, said)

    def _content(self) -> Any:
        if not self._path:
            return None
        try:
            return json.loads(Path(self._path).read_text("utf-8"))
        except (OSError, ValueError):  # the engine is vLLM's own
            return None

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, and pass it on unless it asks for what cannot be."""
        messages, body = list[Message](), b""
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            body += messages[-1].get("body", b"")
        hinted = any(hint in body for hint in (*self.hints, *_ESCAPES))
        problem = self._problem(body) if hinted else None
        if problem is not None:
            await _answer(send, 400, _error(problem, 400))
            return
        await self._app(scope, _again(messages, receive), send)

    def _problem(self, body: bytes) -> str | None:
        """What is wrong with the asks of this request; None: nothing, or vLLM will say."""
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
                problem = self.problem(given if isinstance(given, Mapping) else None, content)
            except ValueError as error:
                return str(error)
            if problem is not None:
                return problem
        return None

    def _at_lifespan(self, send: Send) -> Send:
        async def watched(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown") and self._path:
                with suppress(OSError):
                    os.unlink(self._path)
                remove_folder(self._path)
            await send(message)

        return watched


class SpeculationDoor(_Door):
    """Says what can be asked of drafts, and refuses malformed asks."""

    path, variable, hints = asks.SPECULATES_PATH, asks.STATE_VARIABLE, (b"spec_",)
    nothing = "no drafts by request here"

    def said(self, content: Any) -> str | None:
        state = asks.Speculating.read(content)
        return None if state is None else state.to_json()

    def problem(self, xargs: Mapping[str, Any] | None, content: Mapping[str, Any]) -> str | None:
        Ask.read(xargs)
        return None


class PredictionDoor(_Door):
    """Says by which predictors a prompt can be read, and refuses asks that are malformed, of
    others, or without a salt of their own: the connector would compute the prompt instead."""

    path, variable, hints = asks.PREDICTS_PATH, asks.PREDICTION_VARIABLE, (b"farthing_kv",)
    nothing = "no KV prediction here"

    def said(self, content: Any) -> str | None:
        state = asks.Predicting.read(content)
        return None if state is None else state.to_json()

    def problem(self, xargs: Mapping[str, Any] | None, content: Mapping[str, Any]) -> str | None:
        ask = predictions.Ask.read(xargs)
        if ask is None:
            return None
        able = asks.Predicting.read(self._content())
        return self.nothing if able is None else ask.problem(able, content.get("cache_salt"))


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
