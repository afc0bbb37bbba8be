"""An upstream that costs next to nothing: it answers as a vLLM server does, without a model."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import httptools
import uvloop

BURST, PACED = "burst", "paced"
"""What it serves: one writes all of a stream at once, the other a token every INTERVAL_S."""
INTERVAL_S = 0.01
CONTEXT = 8192  # tokens
PROMPT = 16  # tokens that every prompt is said to have
VOCABULARY = 1024
_TEXT = "word "
_ID = "0" * 32  # stands in what is made once where each answer has its own, which is as long
_MODELS = {"data": [{"id": name, "max_model_len": CONTEXT} for name in (BURST, PACED)]}
_TOO_MANY = {"message": f"out-of-vocab token ids. Vocabulary size: {VOCABULARY}", "code": 400}
_IDS = {"count": PROMPT, "tokens": list(range(PROMPT)), "token_ids": list(range(PROMPT))}
_COUNTS = Counter[str]()  # requests, by path
_SMALL: Mapping[str, Any] = {  # what is asked beside answers; anything else is a 404
    "/version": {"version": "mock"},
    "/metrics": "vllm:num_requests_running 0.0\nvllm:num_requests_waiting 0.0\n",
    "/v1/models": _MODELS,
    "/v1/chat/completions/render": _IDS,
    "/tokenize": _IDS,
    "/detokenize": {"prompt": _TEXT},
    "/counts": _COUNTS,
    # A collector of OpenTelemetry takes what it is sent, and has nothing to say.
    "/v1/traces": " ",
    "/v1/metrics": " ",
}
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Shape:
    """What the bytes of an answer depend on, but for its id."""

    chat: bool
    tokens: int
    stream: bool
    usage: bool = False  # a last event tells it
    always: bool = False  # and so does every other
    logprobs: bool = False
    ids: bool = False  # each choice names its tokens' ids


class Connection(asyncio.Protocol):
    """One client's connection, kept alive; answers in the order of the requests."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._path = ""
        self._request_id = ""
        self._body = b""
        self._streaming: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def connection_lost(self, error: Exception | None) -> None:
        if self._streaming is not None:
            self._streaming.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._path, self._request_id, self._body = "", "", b""

    def on_url(self, url: bytes) -> None:
        self._path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._request_id = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        _COUNTS[self._path] += 1
        if self._path not in ("/v1/chat/completions", "/v1/completions"):
            found = _SMALL.get(self._path)
            text = found if isinstance(found, str) else _encode(found)
            self._transport.write(_document(200 if found else 404, text))
            return
        asked = json.loads(self._body)
        if asked.get("logit_bias"):
            self._transport.write(_document(400, _encode({"error": _TOO_MANY})))
            return
        shape = _shape(asked, self._path)
        id = self._request_id[: len(_ID)].ljust(len(_ID), "0")
        if not shape.stream:
            self._transport.write(_document(200, _whole(shape).replace(_ID, id)))
            return
        head, *events = _stream(shape)
        if asked["model"] == BURST:
            self._transport.write(head + b"".join(events).replace(_ID.encode(), id.encode()))
        else:
            self._transport.write(head)
            self._write(events, 0, id.encode())

    def _write(self, events: list[bytes], number: int, id: bytes) -> None:
        """This event, and the next one in its time."""
        self._transport.write(events[number].replace(_ID.encode(), id))
        if number + 1 < len(events):
            loop = asyncio.get_running_loop()
            self._streaming = loop.call_later(INTERVAL_S, self._write, events, number + 1, id)


def _shape(asked: Mapping[str, Any], path: str) -> Shape:
    options = asked.get("stream_options") or {}
    usage = bool(options.get("include_usage"))
    return Shape(
        chat=path == "/v1/chat/completions",
        tokens=asked.get("max_completion_tokens") or asked.get("max_tokens") or 16,
        stream=bool(asked.get("stream")),
        usage=usage,
        always=usage and bool(options.get("continuous_usage_stats")),
        logprobs=asked.get("logprobs") is not None,
        ids=bool(asked.get("return_token_ids")),
    )


def _document(status: int, text: str) -> bytes:
    head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(text)}"
    return f"{head}\r\n\r\n{text}".encode()


@lru_cache
def _whole(shape: Shape) -> str:
    text = _TEXT * shape.tokens
    said = {"message": {"role": "assistant", "content": text}} if shape.chat else {"text": text}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": "length"}
    kind = "chat.completion" if shape.chat else "text_completion"
    return _encode({**_envelope(shape, kind), "choices": [choice], "usage": _usage(shape.tokens)})


@lru_cache
def _stream(shape: Shape) -> tuple[bytes, ...]:
    """The response's head, an event for each token, and the last words with the last of them."""
    kind = "chat.completion.chunk" if shape.chat else "text_completion"
    events = []
    for number in range(1, shape.tokens + 1):
        delta = {"role": "assistant", "content": _TEXT} if number == 1 else {"content": _TEXT}
        choice: dict[str, Any] = {
            "index": 0,
            **({"delta": delta} if shape.chat else {"text": _TEXT}),
            "logprobs": _certain(number) if shape.logprobs else None,
            "finish_reason": "length" if number == shape.tokens else None,
            **({"token_ids": [number]} if shape.ids else {}),
        }
        told = {"usage": _usage(number)} if shape.always else {}
        events.append(_event({**_envelope(shape, kind), "choices": [choice], **told}))
    last = {**_envelope(shape, kind), "choices": [], "usage": _usage(shape.tokens)}
    end = (_event(last) if shape.usage else b"") + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked"
    return head + b"\r\n\r\n", *events[:-1], events[-1] + end


def _certain(id: int) -> dict[str, Any]:
    """Log-probabilities of a token that could be no other."""
    top = [{f"token_id:{id}": 0.0}]
    return {"tokens": [_TEXT], "token_logprobs": [0.0], "top_logprobs": top}


def _event(content: object) -> bytes:
    return _chunk(f"data: {_encode(content)}\n\n".encode())


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _envelope(shape: Shape, kind: str) -> dict[str, Any]:
    name = "chatcmpl" if shape.chat else "cmpl"
    return {"id": f"{name}-{_ID}", "object": kind, "created": 1_800_000_000, "model": "mock"}


def _usage(written: int) -> dict[str, int]:
    total = PROMPT + written
    return {"prompt_tokens": PROMPT, "total_tokens": total, "completion_tokens": written}


async def serve() -> None:
    """Serve on a free port of this machine, say its URL on stdout, and go on until killed."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
