"""Comments while an answer is silent, and what becomes of an error behind them."""

import asyncio
import json
from types import SimpleNamespace

import openai
import pytest

from app.engines.fake import Script
from app.errors import BudgetExceeded
from app.factory import create_app
from routers import keep_alive
from routers.keep_alive import COMMENT, KeepAlive
from tests.conftest import LARGE
from tests.routers.reading import QUESTION, asking, events, said
from tests.running import running

CHAT = "/v1/chat/completions"
SLOWLY = Script(LARGE.split()[:3], delay=0.15)


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"keep_alive_s": 0.04})


async def test_comments_come_before_the_first_token_and_between_tokens(client, fake):
    fake.scripts = {"large": SLOWLY}
    answer = await client.post(CHAT, json=asking(stream=True))
    assert answer.text.startswith(COMMENT) and '"role":"assistant"' in answer.text
    first, second = answer.text.index('"the '), answer.text.index('"sky ')
    assert COMMENT in answer.text[first:second]
    assert said(events(answer.text.replace(COMMENT, ""))) == "the sky is "
    for name in ("x-farthing-policy", "x-farthing-estimate-usd", "x-request-id"):
        assert answer.headers[name]
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in answer.headers and "content-length" not in answer.headers


async def test_an_error_after_a_comment_is_an_event(client, fake):
    fake.scripts = {"large": Script(["a"], delay=0.15, fails_after=0)}
    answer = await client.post(CHAT, json=asking(stream=True))
    assert answer.status_code == 200
    (error,) = events(answer.text.replace(COMMENT, ""))
    assert error["error"]["type"] == "engine_error"


async def test_what_is_not_admitted_yet_keeps_its_status(client, fake, monkeypatch):
    async def slow(call):
        await asyncio.sleep(0.15)
        raise BudgetExceeded("too dear")

    monkeypatch.setattr(fake, "count", slow)
    answer = await client.post(CHAT, json=asking(stream=True))
    assert answer.status_code == 402


async def test_without_an_interval_there_are_none(settings, catalog, fake, client, gateway_app):
    gateway_app.state.front.keep_alive_s = 0.0
    fake.scripts = {"large": SLOWLY}
    answer = await client.post(CHAT, json=asking(stream=True))
    assert COMMENT not in answer.text and events(answer.text)


def test_the_sdk_skips_them(settings, catalog, fake):
    fake.scripts = {"large": SLOWLY}
    app = create_app(settings, catalog=catalog, engine=fake)
    with (
        running(app, settings) as server,
        openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none") as sdk,
    ):
        stream = sdk.chat.completions.create(model="large", messages=QUESTION, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "the sky is "


async def test_a_stream_whose_start_the_client_does_not_take_starts_once(gateway_app):
    line, taken = asyncio.Lock(), []  # the server sends one after the other
    asked = [{"type": "http.request", "body": json.dumps(asking(stream=True)).encode()}]

    async def receive():
        if not asked:
            await asyncio.Event().wait()
        return asked.pop()

    async def send(message):
        async with line:
            await asyncio.sleep(0 if taken else 0.2)
            taken.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "client": None}
    await gateway_app(scope, receive, send)
    types = [message["type"].removeprefix("http.response.") for message in taken]
    assert types[0] == "start" and set(types[1:]) == {"body"}
    text = b"".join(message["body"] for message in taken[1:]).decode()
    assert said(events(text.replace(COMMENT, ""))) == f"{LARGE} "


async def test_whoever_sends_waits_for_a_comment_under_way():
    order, may_go = [], asyncio.Event()

    async def beat():
        order.append("begun")
        await may_go.wait()
        order.append("sent")

    async with KeepAlive(0.01, beat) as alive:
        while not order:
            await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.05, may_go.set)
        await alive.turn()
        order.append("mine")
    assert order == ["begun", "sent", "mine"]


async def test_after_its_end_nothing_more_is_sent():
    async def beat():
        raise AssertionError("too late")

    async with KeepAlive(0.01, beat) as alive:
        pass
    alive.now()
    await asyncio.sleep(0.05)
    assert alive._beating is None


async def test_a_turn_puts_the_next_comment_off(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(keep_alive, "time", SimpleNamespace(monotonic=lambda: clock.now))
    came = asyncio.Event()

    async def beat():
        came.set()

    async with KeepAlive(0.02, beat) as alive:
        for _ in range(5):
            clock.now += 0.019
            await alive.turn()
            await asyncio.sleep(0.03)  # the timer looks, and waits for what is left
        assert not came.is_set()
        clock.now += 0.021
        async with asyncio.timeout(10):
            await came.wait()
