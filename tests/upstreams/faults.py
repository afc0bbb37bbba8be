"""The ways in which an upstream's answer goes wrong, by name. Each works on streams and bodies."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Callable
from typing import Any

from tests.upstreams.server import Fault
from tests.upstreams.steps import Do, Head, Pause, Raw, Step, document, event, events

Shape = Callable[[list[Any]], list[Any]]
HTML = "<html><body><h1>Bad Gateway</h1>secret-host-17</body></html>"
_EARLY = 6  # steps: the head and five events
FAULTS: dict[str, Fault] = {}


def _fault(name: str, **how: Any) -> None:
    FAULTS[name] = Fault(name, **how)


def _half(steps: list[Step]) -> list[Step]:
    """The first writes, few enough that no policy has closed the stream by then; of a body in one
    piece, its first half."""
    if len(steps) > 3:
        return steps[:_EARLY]
    head, body, _ = steps
    assert isinstance(body, bytes)
    return [head, body[: len(body) // 2]]


def _bytes(steps: list[Step]) -> bytes:
    return b"".join(step for step in steps if isinstance(step, bytes))


def _written(change: Callable[[bytes], list[bytes]]) -> Callable[[list[Step]], list[Step]]:
    """All writes taken together, changed, and written as these pieces."""

    def steps(steps: list[Step]) -> list[Step]:
        pieces = change(_bytes(steps))
        head = steps[0]
        assert isinstance(head, Head)
        length = None if head.length is None else sum(map(len, pieces))
        return [Head(head.status, head.headers, length), *pieces, Do.END]

    return steps


def _amid(*more: bytes) -> Callable[[list[Step]], list[Step]]:
    """These bytes stand between two events; a body in one piece begins with them."""

    def steps(steps: list[Step]) -> list[Step]:
        if len(steps) > 3:
            return [*_half(steps), *more, *steps[_EARLY:]]
        return _written(lambda body: [*more, body])(steps)

    return steps


def _spoilt(change: Callable[[bytes], bytes]) -> Callable[[list[Step]], list[Step]]:
    """One early event, or the body, changed."""

    def steps(steps: list[Step]) -> list[Step]:
        if len(steps) == 3:
            return _written(lambda body: [change(body)])(steps)
        last = steps[_EARLY - 1]
        assert isinstance(last, bytes)
        return [*steps[: _EARLY - 1], change(last), *steps[_EARLY:]]

    return steps


def _each(change: Callable[[dict[str, Any]], None]) -> Shape:
    """Every event, or the body, changed in place."""

    def shape(contents: list[Any]) -> list[Any]:
        found = copy.deepcopy(contents)
        for content in found:
            if isinstance(content, dict):
                change(content)
        return found

    return shape


def _choices(change: Callable[[dict[str, Any]], None]) -> Shape:
    def each(content: dict[str, Any]) -> None:
        for choice in content.get("choices") or ():
            change(choice)

    return _each(each)


def _usages(change: Callable[[dict[str, Any]], Any]) -> Shape:
    def each(content: dict[str, Any]) -> None:
        if "usage" in content:
            content["usage"] = change(content["usage"])

    return _each(each)


def _instead(*steps: Step) -> Callable[[list[Step]], list[Step]]:
    return lambda _: list(steps)


def _error(status: int, message: str = "it is broken") -> dict[str, Any]:
    return {"error": {"message": message, "type": "X", "param": "logit_bias", "code": status}}


def _refuses(name: str, status: int, **headers: str) -> None:
    _fault(name, steps=_instead(*document(_error(status), status, **headers)))


# Connections
_fault("slow headers", steps=lambda steps: [Pause(0.1), *steps])
_fault("stall before headers", steps=_instead(Do.STALL))
_fault("stall before first byte", steps=lambda steps: [steps[0], Do.STALL])
_fault("stall in mid-answer", steps=lambda steps: [*_half(steps), Do.STALL])
_fault("reset before headers", steps=_instead(Do.RESET))
_fault("reset after headers", steps=lambda steps: [steps[0], Do.RESET])
_fault("reset in mid-answer", steps=lambda steps: [*_half(steps), Do.RESET])
_fault(
    "reset in mid-chunk",
    steps=lambda steps: [*_half(steps), Raw(b'400\r\ndata: {"id'), Do.RESET],
)
_fault("closed before headers", steps=_instead(Do.CLOSE))
_fault("closed in mid-answer", steps=lambda steps: [*_half(steps), Do.CLOSE])
_fault("connection dropped when reused", steps=_instead(Do.RESET), reused=True)
_fault("half a status line", steps=_instead(Raw(b"HTTP/1.1 2"), Do.CLOSE))
_fault("no HTTP", steps=_instead(Raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), Do.CLOSE))
_fault(
    "bad chunk size",
    steps=lambda steps: [*_half(steps), Raw(b"\r\nzz\r\nhello\r\n"), Do.CLOSE],
)


# The end
def _ends(*more: Step) -> Callable[[list[Step]], list[Step]]:
    """Over after the first events; a body is shorter, and says so."""

    def steps(steps: list[Step]) -> list[Step]:
        if len(steps) > 3:
            return [*_half(steps), *more, Do.END]
        return _written(lambda body: [body[: len(body) // 2]])(steps)

    return steps


_fault("ends in order amid the answer", steps=_ends())
_fault("done too early", steps=_ends(b"data: [DONE]\n\n"))
_fault("no [DONE]", steps=lambda steps: [s for s in steps if s != b"data: [DONE]\n\n"])
_fault("an empty body", steps=_written(lambda _: [b""]))
_fault("closed after the last byte", steps=lambda steps: [*steps[:-1], Do.CLOSE])

# Framing of events
_fault("CRLF", steps=_written(lambda data: [data.replace(b"\n", b"\r\n")]))
_fault(
    "CRLF byte by byte",
    steps=_written(lambda data: [bytes([b]) for b in data.replace(b"\n", b"\r\n")]),
)
_fault("byte by byte", steps=_written(lambda data: [bytes([byte]) for byte in data]))
_fault("all in one write", steps=_written(lambda data: [data]))
_fault(
    "in odd pieces",
    steps=_written(lambda data: [data[i : i + 61] for i in range(0, len(data), 61)]),
)
_fault("comments", steps=_amid(b": ping\n\n", b":\n\n", b": a\n: b\n\n"))
_fault("a line without a field", steps=_amid(b"garbage\n\n"))
_fault(
    "other fields",
    steps=_written(lambda data: [data.replace(b"data: {", b"event: m\nid: 1\ndata: {")]),
)
_fault("no space after data:", steps=_written(lambda data: [data.replace(b"data: ", b"data:")]))
_fault(
    "several data lines",
    steps=_written(lambda data: [data.replace(b',"choices":', b',\ndata: "choices":')]),
)

# What events say
_fault("truncated JSON", steps=_amid(b'data: {"id":"x","choices":[{"ind\n\n'))
_fault("data without JSON", steps=_amid(b"data: nonsense\n\n"))
_fault("data that is a number", steps=_amid(b"data: 42\n\n"))
_fault("data that is null", steps=_amid(b"data: null\n\n"))
_fault("an event without choices", steps=_amid(b'data: {"id":"x"}\n\n'))
_fault(
    "half a character", steps=_spoilt(lambda data: data.replace(b'"model":"', b'"model":"\xf0\x9f'))
)
_fault("invalid UTF-8", steps=_spoilt(lambda data: data.replace(b'"model":"', b'"model":"\xff')))
_fault(
    "an event that never ends", steps=lambda steps: [*_half(steps), *[b"x" * 65536] * 40, Do.END]
)
_fault("choices null", shape=_each(lambda content: content.update(choices=None)))
_fault("a choice that is null", shape=_each(lambda content: content.update(choices=[None])))

# Refusals
for _status in (400, 401, 404, 500, 503):
    _refuses(f"status {_status}", _status)
_refuses("status 429", 429)
_refuses("status 429 with Retry-After", 429, retry_after="7")
_refuses("status 307", 307, location="http://127.0.0.1:9/v1/models")
_fault("status 502 in HTML", steps=_instead(*document(HTML, 502, content_type="text/html")))
_fault("status 200 in HTML", steps=_instead(*document(HTML, 200, content_type="text/html")))
_fault("status 400 for the context's length", steps=_instead(*document(
    _error(400, "This model's maximum context length is 4096 tokens"), 400
)))  # fmt: skip
_fault("an error of the client's first", steps=_instead(*events([_error(400)])))
_fault("an error first", steps=_instead(*events([_error(500)])))
_fault("an error in mid-answer", steps=_amid(event(_error(500))))
_fault("an error of the client's in mid-answer", steps=_amid(event(_error(400))))

# Usage
_fault("no usage", shape=_each(lambda content: content.pop("usage", None)))
_fault("usage null", shape=_usages(lambda usage: None))
_fault("usage zero", shape=_usages(lambda usage: dict.fromkeys(usage, 0)))
_fault("usage negative", shape=_usages(lambda usage: dict.fromkeys(usage, -5)))
_fault("usage huge", shape=_usages(lambda usage: dict.fromkeys(usage, 10**9)))
_fault("usage beyond integers", shape=_usages(lambda usage: dict.fromkeys(usage, 10**30)))
_fault("usage in strings", shape=_usages(lambda usage: dict.fromkeys(usage, "7")))
_fault("usage a list", shape=_usages(lambda usage: [1]))
_fault(
    "usage above max_tokens",
    shape=_usages(lambda usage: {**usage, "completion_tokens": usage["completion_tokens"] + 9000}),
)
_fault(
    "usage that falls",
    shape=_usages(lambda usage: {**usage, "completion_tokens": 60 - usage["completion_tokens"]}),
)
_fault(
    "all cached, and more",
    shape=_usages(lambda usage: {**usage, "prompt_tokens_details": {"cached_tokens": 10**9}}),
)


# The answer
_fault(
    "an unknown finish_reason",
    shape=_choices(lambda c: c.update(finish_reason=c["finish_reason"] and "banana")),
)
_fault("no finish_reason", shape=_choices(lambda choice: choice.update(finish_reason=None)))
_fault(
    "finish_reason a number",
    shape=_choices(lambda c: c.update(finish_reason=c["finish_reason"] and 42)),
)
_fault(
    "finish_reason abort",
    shape=_choices(lambda c: c.update(finish_reason=c["finish_reason"] and "abort")),
)
_fault("no token_ids", shape=_choices(lambda choice: choice.pop("token_ids", None)))
_fault("token_ids null", shape=_choices(lambda choice: choice.update(token_ids=None)))
_fault("token_ids of text", shape=_choices(lambda choice: choice.update(token_ids=["a"])))
_fault("no logprobs", shape=_choices(lambda choice: choice.update(logprobs=None)))
_fault("no text", shape=_choices(lambda c: [c.pop(k, None) for k in ("text", "delta", "message")]))


# The body's form
def _zipped(steps: list[Step], data: bytes) -> list[Step]:
    head = steps[0]
    assert isinstance(head, Head)
    length = None if head.length is None else len(data)
    return [Head(200, {**head.headers, "content-encoding": "gzip"}, length), data, Do.END]


_fault("gzip", steps=lambda steps: _zipped(steps, gzip.compress(_bytes(steps))))
_fault("gzip, broken", steps=lambda steps: _zipped(steps, gzip.compress(_bytes(steps))[:50]))
_fault("gzip that is none", steps=lambda steps: _zipped(steps, _bytes(steps)))
_fault("JSON for a stream", steps=_instead(*document({"choices": []})))
_fault("deeply nested", steps=_amid(b'data: {"choices":' + b"[" * 5000 + b"]" * 5000 + b"}\n\n"))
