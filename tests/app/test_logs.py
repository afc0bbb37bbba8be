"""Log lines: text and JSON, whose request each is about, and what none of them shows."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from typing import Any

import pytest

from app.settings import Settings
from app.telemetry import logs

SECRET = 'a"very\\secret+thing'


def line(formatter: logging.Formatter, message: str, *args: object, **more: Any) -> str:
    record = logging.LogRecord("app.x", logging.WARNING, __file__, 1, message, args, None)
    record.__dict__ |= more
    return formatter.format(record)


def failure() -> Any:
    try:
        raise ValueError(f"it was {SECRET}")
    except ValueError:
        return sys.exc_info()


@pytest.fixture(autouse=True)
def _forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_hidden", set())
    monkeypatch.setattr(logs, "_known", None)


def test_text_says_whose_request_it_is_about() -> None:
    assert line(logs.Text(), "it %s", "failed").endswith(" WARNING app.x it failed")
    with logs.inside(logs.Inside("req-1")):
        assert line(logs.Text(), "it failed").endswith(" WARNING app.x [req-1] it failed")


def test_json_is_one_object_with_what_is_known() -> None:
    with logs.inside(logs.Inside("req-1", "ab" * 16, "cd" * 8)):
        told = json.loads(line(logs.Json(), "it %s", "fäiled", exc_info=failure(), key="k1"))
    assert told.pop("timestamp").endswith("+00:00")
    assert told.pop("exception").endswith(f"ValueError: it was {SECRET}")
    assert told == {
        "level": "warning",
        "logger": "app.x",
        "message": "it fäiled",
        "request_id": "req-1",
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
        "key": "k1",
    }
    told = json.loads(line(logs.Json(), "nothing"))
    assert set(told) == {"timestamp", "level", "logger", "message"}


def test_somebody_else_s_text_never_looks_like_a_line_of_ours() -> None:
    text = line(logs.Text(), "said: %s", "a\nERROR app.x forged\x1b[2J\r")
    first, second = text.split("\n")
    assert first.endswith("said: a") and second == "  | ERROR app.x forged\\x1b[2J\\x0d"
    assert "\n" not in line(logs.Json(), "said: %s", "a\nb")


@pytest.mark.parametrize("formatter", [logs.Text(), logs.Json()])
def test_what_is_hidden_is_nowhere(formatter: logging.Formatter) -> None:
    logs.hide([SECRET, "ab"])
    text = line(formatter, "it %s ab", SECRET, exc_info=failure(), field=SECRET)
    assert SECRET not in text and json.dumps(SECRET)[1:-1] not in text
    assert text.count(logs.MASK) == (2 if isinstance(formatter, logs.Text) else 3)
    assert " ab" in text  # too short to be looked for


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key sk-farthing-0123456789ab-Ab_-9 came", "key *** came"),
        ("postgresql://farthing:pa%40ss@host/db", "postgresql://***@host/db"),
        ("authorization: bearer abc.def", "authorization: bearer ***"),
        ("http://127.0.0.1:8000/v1?a=b@c", "http://127.0.0.1:8000/v1?a=b@c"),
    ],
)
def test_what_looks_like_a_credential_is_hidden_unasked(text: str, shown: str) -> None:
    assert logs.masked(text) == shown


async def test_requests_at_once_do_not_mix() -> None:
    async def one(name: str) -> list[str]:
        found = []
        with logs.inside(logs.Inside(name)):
            for _ in range(5):
                await asyncio.sleep(0)
                found.append(line(logs.Text(), "now"))
                found.append(await asyncio.to_thread(line, logs.Text(), "in a thread"))
                found.append(await asyncio.create_task(later()))
        return found

    async def later() -> str:
        await asyncio.sleep(0)
        return line(logs.Text(), "later")

    names = [f"req-{n}" for n in range(8)]
    for name, lines in zip(names, await asyncio.gather(*map(one, names)), strict=True):
        assert all(f"[{name}]" in each for each in lines)
    assert "[" not in line(logs.Text(), "after")


def test_a_thread_of_many_requests_is_nobody_s() -> None:
    found: list[str] = []
    with logs.inside(logs.Inside("req-1")):
        worker = threading.Thread(target=lambda: found.append(line(logs.Text(), "a step")))
        worker.start()
        worker.join()
    assert "req-1" not in found[0]


def test_settings_know_their_secrets_and_show_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARTHING_LEDGER", "postgresql://farthing:led%2Fger@host/db")
    monkeypatch.setenv("FARTHING_RATE_STORE", "redis://:redispass@host/0")
    monkeypatch.setenv("FARTHING_KEY_SECRET", "keysecretkeysecret")
    monkeypatch.setenv("FARTHING_API_KEY", "sk-farthing-abc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20otlptoken,x=otherone")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "noequalsign")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:collector@host:4318")
    settings = Settings()
    wanted = {
        *("led%2Fger", "led/ger", "redispass", "keysecretkeysecret", "sk-farthing-abc"),
        *("otlptoken", "otherone", "noequalsign", "collector"),
    }
    assert wanted <= set(settings.secrets())
    assert not [secret for secret in wanted if secret in f"{settings!r} {settings}"]
