"""Real gateways at debug level, through many failures: no log line, span or metric shows a secret,
a prompt or an answer."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.gateways import Gateway, Ledger
from tests.collector import Collector, collector
from tests.servers import free_port
from tests.upstreams.server import Upstream, wait_for

SECRETS = {
    "FARTHING_KEY_SECRET": "canary-key-secret",
    "FARTHING_API_KEY": "canary-of-the-terminal",
    "FARTHING_RATE_STORE": "redis://:canary-redis@127.0.0.1:1/0",
    "KEY_SMALL": "canary-small",
    "KEY_EVIL": "canary-evil",
    "KEY_DOWN": "canary-down",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20canary-collector",
}
QUESTION = "canary prompt, why is the sky blue"
MESSAGES = [{"role": "user", "content": QUESTION}]
PROGRAM = """
from app.cli import main
from app.gateway import Gateway

plan = Gateway.plan

def broken(self, order):
    if order.call.id and order.call.max_tokens == 13:
        raise RuntimeError("a bug")
    return plan(self, order)

Gateway.plan = broken
main(["serve"])
"""
FLEET = """
[models.small]
engine = "vllm"
family = "stand-in"
urls = ["{small}"]
api_key_env = "KEY_SMALL"
price = {{ input = 1, output = 2 }}

[models.evil]
engine = "openai"
family = "evil"
context = 1000
urls = ["{evil}"]
api_key_env = "KEY_EVIL"
price = {{ input = 1, output = 2 }}

[models.down]
engine = "vllm"
family = "down"
urls = ["{down}"]
api_key_env = "KEY_DOWN"
price = {{ input = 1, output = 2 }}
"""


class Evil:
    """An OpenAI-compatible server that says back all that it was told."""

    def __init__(self) -> None:
        self.status = 200
        self.stream = b""

    def reply(self, request: BaseHTTPRequestHandler) -> None:
        size = int(request.headers.get("Content-Length", "0"))
        said = f"{request.headers.get('Authorization')} {request.rfile.read(size).decode()}"
        if request.command == "GET":
            self._send(request, 200, b'{"object": "list", "data": [{"id": "evil"}]}')
        elif "canary" not in said.partition(" {")[2]:  # a probe, or a good request
            self._send(request, 200, GOOD)
        elif self.stream:
            request.wfile.write(self.stream.replace(b"SAID", json.dumps(said)[1:-1].encode()))
            request.close_connection = True
        else:
            body = json.dumps({"error": {"message": said, "type": said, "param": said}})
            self._send(request, self.status, body.encode())

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


SAYS = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
USED = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
GOOD = json.dumps(
    {"id": "1", "object": "chat.completion", "model": "evil", "choices": [SAYS], "usage": USED}
).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"error": {"message": "SAID", "code": 500}}\n\n'
STREAMS = [
    HEAD + b"\r\n" + EVENT,
    HEAD + b"SAID\x00: SAID\r\n\r\n",
    CHUNKED + b"SAID\r\n",
    b"SAID\r\n\r\n",
]


@contextmanager
def evil() -> Iterator[tuple[Evil, str]]:
    found = Evil()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.reply(self)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass  # it is not what is tested

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield found, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fleet(
    folder: Path, small: str = "http://127.0.0.1:1", evil: str = "http://127.0.0.1:1"
) -> None:
    down = f"http://127.0.0.1:{free_port()}"
    (folder / "farthing.toml").write_text(FLEET.format(small=small, evil=evil, down=down))


def environment(folder: Path, otlp: Collector, **more: str) -> dict[str, str]:
    return {
        **SECRETS,
        "FARTHING_CONFIG": str(folder / "farthing.toml"),
        "FARTHING_ACCESS_LOG": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
        **more,
    }


def failures(url: str, token: str, evil: Evil) -> list[int]:
    """Whatever can go wrong; the statuses that came of it."""
    found: list[int] = []
    with httpx.Client(base_url=url, timeout=30) as http:

        def ask(key: str | None = token, path: str = "/v1/chat/completions", **fields: Any) -> None:
            body = {"model": "small", "messages": MESSAGES, "max_tokens": 5, **fields}
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            found.append(http.post(path, json=body, headers=headers).status_code)

        ask()
        ask(stream=True)
        ask(None)
        ask("canary-wrong-key")
        ask(token[:-1] + ("a" if token[-1] != "a" else "b"))
        ask("two words canary-words")
        ask(model="canary-model")
        ask(model="down")
        ask(max_tokens=13)  # a bug of ours
        ask(temperature="canary-temperature")
        ask(messages=[{"role": "canary-role", "content": QUESTION}])
        ask(path=f"/v1/canary/{token}?api_key={token}")
        ask(path=f"/v1/chat/completions?api_key={token}")

        def ask_evil(**fields: Any) -> None:
            ask(model="evil", messages=[{"role": "user", "content": "Hi"}])  # it is well
            assert found.pop() == 200
            ask(model="evil", **fields)

        for status in (400, 401, 403, 404, 422, 429, 500, 503):
            evil.status = status
            ask_evil()
        for stream in STREAMS:
            evil.stream = stream
            ask_evil(stream=True)
            ask_evil()
        evil.stream = b""
        mine = {"X-Api-Key": token, "Content-Type": "application/json"}
        for body in (b'{"model": "canary', b'{"canary": NaN}', b"\xff canary", b"[" * 100_000):
            found.append(http.post("/v1/messages", content=body, headers=mine).status_code)
        with httpx.stream("POST", f"{url}/v1/chat/completions", headers=mine, json={
            "model": "small", "messages": MESSAGES, "stream": True, "max_tokens": 60,
        }) as left:  # fmt: skip
            found.append(left.status_code)
            next(left.iter_raw())
    for head in (b"canary %s\r\n\r\n", b"GET /canary\xff%s HTTP/1.1\r\nAuthorization %s\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)) as raw:
            raw.sendall(head.replace(b"%s", token.encode()))
            raw.recv(1000)
    return found


def shown(text: str, token: str) -> list[str]:
    """Whatever is in it that should not be, a part of the key included."""
    secret = token.rpartition("-")[2] if token.count("-") == 3 else token[25:]
    words = ["canary", secret[:8], secret[-8:], token]
    return [line for line in text.splitlines() if any(word in line for word in words)]


@pytest.mark.parametrize(
    ("level", "format"), [("debug", "text"), ("debug", "json"), ("info", "text")]
)
def test_nothing_that_is_secret_is_shown_whatever_fails(
    tmp_path: Path, level: str, format: str
) -> None:
    small = Upstream("small", key=SECRETS["KEY_SMALL"])
    small.start()
    with evil() as (bad, bad_url), collector() as otlp:
        fleet(tmp_path, small=small.url, evil=bad_url)
        more = {"FARTHING_LOG_LEVEL": level, "FARTHING_LOG_FORMAT": format}
        ledger = Ledger(f"sqlite:///{tmp_path}/l.db", tmp_path, environment(tmp_path, otlp, **more))
        _, token = ledger.new_key(requests_per_minute=10_000)
        gateway = Gateway(ledger, PROGRAM).ready()
        try:
            statuses = failures(gateway.url, token, bad)
            metrics = httpx.get(f"{gateway.url}/metrics").text
            wait_for(lambda: "POST /v1/messages" in {span.name for span in otlp.spans})
            gateway.stop()
            out = gateway.process.stdout
            said = gateway.said() + (out.read() if out else "")
        finally:
            gateway.kill()
            small.stop()
    assert {200, 400, 401, 404, 429, 500, 502, 503} <= {*statuses}
    # It did say what went wrong, in as many lines as there were requests, and each in its form.
    assert "RuntimeError: a bug" in said and "rates are counted in this process only" in said
    assert said.count("farthing.access") >= len(statuses)
    if format == "json":
        lines = [json.loads(line) for line in gateway.said().splitlines()]
        access = [line for line in lines if line["logger"] == "farthing.access"]
        assert {line["status"] for line in access} >= {*statuses}
        assert all(line["request_id"] and line["trace_id"] for line in access)
    quoted = " says: "  # a server's words may quote the prompt, and only who debugs sees them
    assert (quoted in said) == (level == "debug")
    ours = "\n".join(line for line in said.splitlines() if quoted not in line)
    assert shown(ours, token) == []
    keys = [secret for secret in SECRETS.values() if secret in said]
    assert keys == [] and token not in said
    assert shown(metrics, token) == []
    assert otlp.spans and not [body for body in otlp.raw if b"canary" in body.replace(
        b"canary-model", b"")]  # fmt: skip  # as the client named it


def test_a_ledger_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    with collector() as otlp:
        url = "postgresql://farthing:canary%2Fledger@127.0.0.1:1/db"
        ledger = Ledger(url, tmp_path, environment(tmp_path, otlp, FARTHING_LOG_LEVEL="debug"))
        fleet(tmp_path)
        gateway = Gateway(ledger, PROGRAM)
        out, _ = gateway.process.communicate(timeout=60)
        said = out + gateway.said()
        gateway.kill()
    assert "the ledger postgresql+asyncpg://" in said or "the ledger postgresql://" in said
    assert "canary" not in said


@pytest.mark.postgres
@pytest.mark.parametrize("format", ["text", "json"])
def test_a_ledger_that_goes_away_is_not_quoted(tmp_path: Path, postgres: Any, format: str) -> None:
    small = Upstream("small", key=SECRETS["KEY_SMALL"])
    small.start()
    url = postgres.new_database().replace("farthing@", "farthing:canary-ledger@")
    with collector() as otlp:
        fleet(tmp_path, small=small.url)
        more = {"FARTHING_LOG_LEVEL": "debug", "FARTHING_LOG_FORMAT": format}
        ledger = Ledger(url, tmp_path, environment(tmp_path, otlp, **more))
        _, token = ledger.new_key()
        gateway = Gateway(ledger, PROGRAM).ready()
        body = {"model": "small", "messages": MESSAGES, "max_tokens": 5}
        headers = {"Authorization": f"Bearer {token}"}

        def ask() -> int:
            url = f"{gateway.url}/v1/chat/completions"
            return httpx.post(url, json=body, headers=headers, timeout=60).status_code

        try:
            assert ask() == 200
            postgres.stop("immediate")
            assert 503 in [ask() for _ in range(3)]
            gateway.stop()
            said = gateway.said()
        finally:
            gateway.kill()
            postgres.restore()
            small.stop()
    assert "the ledger" in said
    assert shown(said, token) == []


@pytest.mark.parametrize("variable", ["FARTHING_LEDGER", "FARTHING_RATE_STORE", "URL"])
def test_a_setting_that_cannot_be_is_not_quoted_where_it_may_hold_a_password(
    tmp_path: Path, variable: str
) -> None:
    with collector() as otlp:
        more = {variable: "mysql://me:canary-password@host/db"}
        ledger = Ledger(f"sqlite:///{tmp_path}/l.db", tmp_path, environment(tmp_path, otlp, **more))
        where = "http://me:canary-url@a" if variable == "URL" else "http://a"
        fleet(tmp_path, small=where)
        gateway = Gateway(ledger, PROGRAM)
        out, _ = gateway.process.communicate(timeout=60)
        said = out + gateway.said()
        gateway.kill()
    assert gateway.process.returncode == 1 and "farthing: " in said
    assert "canary" not in said


def test_workers_log_in_one_form_and_have_ids_of_their_own(tmp_path: Path) -> None:
    small = Upstream("small", key=SECRETS["KEY_SMALL"])
    small.start()
    with collector() as otlp:
        fleet(tmp_path, small=small.url)
        more = {"FARTHING_LOG_FORMAT": "json", "FARTHING_WORKERS": "2"}
        more |= {"FARTHING_LOG_LEVEL": "info"}
        ledger = Ledger(f"sqlite:///{tmp_path}/l.db", tmp_path, environment(tmp_path, otlp, **more))
        gateway = Gateway(ledger, PROGRAM).ready()

        async def ask() -> None:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
                await asyncio.gather(*(http.get("/health") for _ in range(4)))

        def instances() -> set[str]:
            asyncio.run(ask())
            return {span.resource["service.instance.id"] for span in otlp.spans}

        try:
            wait_for(lambda: len(instances()) == 2)
            os.kill(gateway.process.pid, 15)
            assert gateway.process.wait(30) == 0
            said = gateway.said()
        finally:
            gateway.kill()
            small.stop()
    lines = [json.loads(line) for line in said.splitlines()]
    assert {line["logger"] for line in lines} >= {"farthing.access"}
