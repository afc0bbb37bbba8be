"""One server over HTTP: its connections, its credentials, and its failures in our words."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from app.errors import (
    BadRequest,
    ContextOverflow,
    EngineError,
    EngineLost,
    EngineUnavailable,
    EngineUnsupported,
    FarthingError,
    Overloaded,
)

UNTOLD = 2**31  # tokens of a prompt, by a server that does not tell: the Meter knows how many
_KEEPALIVE_S = 4.0  # below vLLM's 5: a connection that the server is about to drop is not reused
_LAST_S = 0.2  # for a server to end a response whose last word it has said
_MOST_ERROR = 64 * 1024  # bytes of an error's body that are read
_CONTEXT_WORDS = ("context length", "context_length", "maximum model length", "max_model_len")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server may take, in seconds."""

    connect: float = 5.0
    small: float = 30.0  # for a whole small request: a count, a health check
    silence: float = 300.0  # between two pieces of an answer, the first one included
    whole: float = 3600.0  # for an answer in one piece


@dataclass
class Origin:
    """One server. Its URL goes to the log only: errors name the model."""

    url: str
    model: str
    key: str | None = None
    patience: Patience = field(default_factory=Patience)
    _session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def text(self, path: str) -> str:
        """The body of a GET. Raises EngineError."""
        async with self._small("GET", path, None) as response:
            return await response.text()

    async def json(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to a small request: GET without a body. Raises as `stream` does."""
        async with self._small("GET" if body is None else "POST", path, body) as response:
            return _decoded(await response.read(), self.model)

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        silence: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to a POST, its status 200; closed at once where it is not read to its end.

        `silence`: seconds until its head has come. How long to wait for the rest is for whoever
        reads it to say: see Arrivals.

        Raises BadRequest, Overloaded, EngineUnavailable where the server did nothing, EngineLost
        where it may have worked before it broke off, and EngineError afterwards.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.patience.connect)
        limit = self.patience.silence if silence is None else silence
        async with self._opened("POST", path, body, headers, timeout, limit) as response:
            yield response

    @asynccontextmanager
    async def _small(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(
            total=self.patience.small, sock_connect=self.patience.connect
        )
        async with self._opened(method, path, body, None, timeout) as response:
            yield response

    @asynccontextmanager
    async def _opened(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        timeout: aiohttp.ClientTimeout,
        silence: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """`silence`: seconds until the response's head has come."""
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(silence):
                response = await self._connections().request(
                    method,
                    self.url + path,
                    data=None if body is None else _encoded(body),
                    headers={**_headers(self.key, body is not None), **(headers or {})},
                    timeout=timeout,
                    allow_redirects=False,
                )
                if response.status != 200:
                    raise await self._refusal(response)
            yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # vLLM sends its headers before it has begun: they say nothing of an answer.
            begun = response is not None and response.content.total_bytes > 0
            raise self._fault(error, begun=begun) from error
        finally:
            if response is not None:
                # Read to its end it has given its connection back already. Else this is how the
                # server learns that nobody listens any more.
                response.close()

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            # How many calls run at once is for the fleet's queue to decide. aiohttp sets
            # TCP_NODELAY by itself.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def _fault(self, error: Exception, *, begun: bool) -> FarthingError:
        log.warning("model %s at %s: %s", self.model, self.url, said(error))
        if begun:
            slow = isinstance(error, TimeoutError)
            why = f"sent nothing for {self.patience.silence:g} s" if slow else "broke off"
            return EngineError(f"The engine of {self.model} {why} in mid-answer")
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return EngineUnavailable(
                f"The engine of {self.model} cannot be reached", retry_after=2.0
            )
        if isinstance(error, TimeoutError):
            return EngineLost(f"The engine of {self.model} does not answer")
        return EngineLost(f"The engine of {self.model} broke off before it answered")

    async def _refusal(self, response: aiohttp.ClientResponse) -> FarthingError:
        """What a status other than 200 means to whoever asked us."""
        body = await response.content.read(_MOST_ERROR)
        message, param, _ = error_of(body)
        status = response.status
        log.info("model %s at %s: status %s", self.model, self.url, status)
        _quoted(self.model, message)
        return refusal(self.model, status, message, param, _retry_after(response))


class Arrivals:
    """What comes of a response, while `async with` lasts.

    aiohttp's own limit ends with a connection whose framing is broken, and nobody is told. Here
    one timer watches all of a response: a timer for each piece takes longer than the piece.
    """

    def __init__(self, response: aiohttp.ClientResponse, limit: float) -> None:
        """`limit`: seconds of silence."""
        self._content = response.content
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._since = math.inf  # when it was asked, while nothing has come

    async def __aenter__(self) -> Self:
        self._timer = self._loop.call_later(self._limit, self._look)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._timer.cancel()

    async def next(self) -> bytes:
        """All that has come since it was last asked; empty at the end.

        Raises TimeoutError after a silence, and ClientError.
        """
        self._since = self._loop.time()
        try:
            return await self._content.readany()
        except RuntimeError as error:  # it was closed for such a reason before it was read
            raise aiohttp.ClientPayloadError(str(error)) from error
        finally:
            self._since = math.inf

    def _look(self) -> None:
        left = self._since + self._limit - self._loop.time()
        if left <= 0:
            self._content.set_exception(TimeoutError())
        else:
            self._timer = self._loop.call_later(min(left, self._limit), self._look)


def refusal(
    model: str, status: int, message: str, param: str | None, retry_after: float = 1.0
) -> FarthingError:
    """What a server's refusal means to whoever asked us. Its words go on only with a 4xx."""
    if status == 429:
        return Overloaded(f"The engine of {model} is busy", retry_after=retry_after)
    if status == 503:
        return EngineUnavailable(f"The engine of {model} is not available", retry_after=retry_after)
    if status in (400, 413, 415, 422):
        too_long = any(words in message for words in _CONTEXT_WORDS)
        return (ContextOverflow if too_long else BadRequest)(message, param=param)
    if status in (401, 403):
        return EngineUnavailable(f"The engine of {model} refuses our credentials")
    if status == 404 and param == "model":  # vLLM's, started anew with another one
        return EngineUnavailable(f"The engine of {model} has another model now")
    if status in (404, 405, 501):
        return EngineUnsupported(f"The engine of {model} does not serve this", param="model")
    return EngineLost(f"The engine of {model} failed (status {status})")


def refusal_in_stream(model: str, data: bytes, *, begun: bool) -> FarthingError:
    """An event that is an error: vLLM checks some fields when status 200 has gone out already."""
    message, param, code = error_of(data)
    if begun or code not in (400, 422):
        log.warning("model %s: an error in the stream", model)
        _quoted(model, message)
        return EngineError(f"The engine of {model} failed in mid-answer")
    return refusal(model, code, message, param)


async def drained(response: aiohttp.ClientResponse) -> None:
    """Read what follows an answer's last word, so that its connection can be used again."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(_LAST_S):
            while await response.content.readany():
                pass


def _encoded(body: Mapping[str, Any]) -> bytes:
    return _encode(body).encode()


def _decoded(body: bytes, model: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"The engine of {model} answered in no JSON") from error


def _headers(key: str | None, has_body: bool) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}  # a packed stream may wait until it is worth packing
    if has_body:
        headers["Content-Type"] = "application/json"
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return headers


def error_of(body: bytes) -> tuple[str, str | None, int | None]:
    """What an error's JSON says, of which field, and its status."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace"), None, None
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return str(error), None, None
    message = error.get("message") or error.get("detail") or error
    param, code = error.get("param"), error.get("code")
    return (
        str(message),
        param if isinstance(param, str) else None,
        code if isinstance(code, int) else None,
    )


def _retry_after(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), 600.0) if text.isdecimal() else 1.0


def _quoted(model: str, message: str) -> None:
    """What a server says may quote what it was asked: nobody's prompt is logged by default."""
    log.debug("model %s says: %s", model, message[:500])


def said(error: BaseException) -> str:
    """An error of the connection, for the log. What the HTTP parser objects to is not shown: it may
    be a piece of an answer."""
    quotes = isinstance(error, aiohttp.ClientError) and not isinstance(error, OSError)
    told = "" if quotes else str(error)
    return f"{type(error).__name__}: {told}" if told else type(error).__name__
