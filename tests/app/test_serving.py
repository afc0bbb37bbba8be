"""The engines of a process: started, and exchanged for another file's while requests run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fastapi import FastAPI

from app.catalog import read
from app.errors import ConfigError
from app.factory import create_app
from app.sandbox import seccomp
from app.serving import Serving
from app.settings import Settings
from tests.routers.reading import asking, events, said

WORDS = ["one", "two", "three", "four"]


class Chat:
    """A llama.cpp-like server in this process: it says four words, at its own pace."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.keys: list[str | None] = []
        self.checked = asyncio.Event()
        self.ready = asyncio.Event()
        self.ready.set()

    async def start(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_get("/api/version", self.check)
        self._server = TestServer(app)
        await self._server.start_server()
        return f"http://127.0.0.1:{self._server.port}"

    async def stop(self) -> None:
        await self._server.close()

    async def check(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.keys.append(request.headers.get("Authorization"))
        if not (await request.json()).get("stream"):
            self.checked.set()
            await self.ready.wait()
            return web.json_response({"choices": [{"finish_reason": "stop"}]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for i, word in enumerate([*WORDS, None]):
            if i == 1:
                await self.go.wait()
            choice = {"index": 0, "delta": {"content": f"{word} "} if word else {}}
            choice["finish_reason"] = None if word else "stop"
            await self._say(response, {"id": "x", "choices": [choice]})
        usage = {"prompt_tokens": 5, "completion_tokens": len(WORDS)}
        await self._say(response, {"id": "x", "choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _say(self, response: web.StreamResponse, content: Any) -> None:
        await response.write(f"data: {json.dumps(content)}\n\n".encode())


@pytest.fixture
async def chat() -> AsyncIterator[Chat]:
    server = Chat()
    yield server
    server.go.set()
    server.ready.set()
    await server.stop()


def table(name: str, url: str, **keys: str) -> str:
    lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return (
        f'[models.{name}]\nengine = "openai"\nkind = "ollama"\nfamily = "f"\ncontext = 1000\n'
        f'urls = ["{url}"]\nprice = {{ input = 1, output = 2 }}\n{lines}'
    )


class House:
    """A gateway whose file may be written anew."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "fleet.toml"
        self.settings = Settings(config=self.file, ledger="off")

    def write(self, *tables: str) -> None:
        self.file.write_text("\n".join(tables))

    def app(self) -> FastAPI:
        return create_app(self.settings)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
async def running(house: House, chat: Chat) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    house.write(table("old", await chat.start()))
    app = house.app()
    async with app.router.lifespan_context(app):
        await app.state.loading
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://farthing") as client:
            yield app, client


async def asked(client: httpx.AsyncClient, model: str) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=asking(model, stream=True))


async def listed(client: httpx.AsyncClient) -> list[str]:
    return [entry["id"] for entry in (await client.get("/v1/models")).json()["data"]]


def url_of(house: House) -> str:
    return read(house.file).models["old"].urls[0]


async def test_what_is_new_appears_and_what_is_gone_is_404(house: House, running: Any) -> None:
    app, client = running
    url = url_of(house)
    house.write(table("new", url))
    assert (await asked(client, "new")).status_code == 404  # a file alone changes nothing
    await app.state.reload()
    assert await listed(client) == ["new"]
    answer = await asked(client, "new")
    assert said(events(answer.text)).split() == WORDS
    gone = await asked(client, "old")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    assert list((await client.get("/health")).json()["models"]) == ["new"]


async def test_new_prices_are_the_ones_that_are_paid(house: House, running: Any) -> None:
    app, client = running
    body = asking("old", stream=True, stream_options={"include_usage": True})

    async def cost() -> float:
        answer = await client.post("/v1/chat/completions", json=body)
        return float(events(answer.text)[-1]["usage"]["cost"])

    before = await cost()
    house.write(table("old", url_of(house)).replace("output = 2", "output = 20"))
    await app.state.reload()
    assert await cost() - before == pytest.approx(18e-6 * len(WORDS))


INVALID = [
    ("nonsense", "not valid TOML"),
    ("", "at least one model is needed"),
    ('[models.new]\nengine = "vllm"', "[models.new]"),
    ("TABLE" + '[presets.mine]\npolicy = "nope"', "[presets.mine]: policy"),
    ("TABLE" + 'api_key_env = "NO_SUCH_VARIABLE"', "NO_SUCH_VARIABLE"),
]


@pytest.mark.parametrize(("text", "words"), INVALID)
async def test_a_file_that_cannot_be_leaves_all_as_it_was(
    house: House, running: Any, text: str, words: str
) -> None:
    app, client = running
    house.write(text.replace("TABLE", table("new", url_of(house))))
    with pytest.raises(ConfigError) as raised:
        await app.state.reload()
    assert words in raised.value.message
    assert await listed(client) == ["old"]
    assert said(events((await asked(client, "old")).text)).split() == WORDS
    house.file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        await app.state.reload()


async def test_code_that_cannot_be_confined_is_not_allowed_by_a_new_file_either(
    house: House, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, client = running
    house.write(table("new", url_of(house)), "[sandbox]")
    with monkeypatch.context() as patched:
        patched.setattr(seccomp, "program", lambda: b"\0" * 8)  # no kernel takes that
        with pytest.raises(ConfigError, match=r"\[sandbox\].*cannot be confined"):
            await app.state.reload()
    assert await listed(client) == ["old"]
    await app.state.reload()
    assert await listed(client) == ["new"]


async def test_embedded_models_need_a_new_start(house: House, running: Any) -> None:
    app, client = running
    embedded = '[models.tiny]\nengine = "embedded"\nweights = "x.gguf"\nfamily = "t"\n'
    house.write(table("old", url_of(house)), embedded + "price = { input = 1, output = 2 }")
    with pytest.raises(ConfigError, match="embedded models have changed, which needs a new start"):
        await app.state.reload()
    assert await listed(client) == ["old"]


async def test_an_answer_under_way_survives_that_its_model_goes(
    house: House, running: Any, chat: Chat
) -> None:
    app, client = running
    chat.go.clear()
    answer = asyncio.ensure_future(asked(client, "old"))
    while len(chat.keys) < 2:  # the probe's, and this one's
        await asyncio.sleep(0.01)
    house.write(table("new", url_of(house)))
    await app.state.reload()
    assert await listed(client) == ["new"] and not answer.done()
    states = {(server.model, server.state) for server in app.state.front.servers()}
    assert ("old", "draining") in states
    chat.go.set()
    found = await answer
    assert said(events(found.text)).split() == WORDS


async def test_servers_that_stay_are_not_asked_again(
    house: House, running: Any, chat: Chat
) -> None:
    app, _ = running
    house.write(table("old", url_of(house), aliases='["older"]'))
    await app.state.reload()
    assert len(chat.keys) == 1


async def test_reloads_that_come_together_are_done_one_by_one(house: House, running: Any) -> None:
    app, client = running
    house.write(table("new", url_of(house)))
    await asyncio.gather(*(app.state.reload() for _ in range(5)))
    assert await listed(client) == ["new"]


async def test_a_reload_while_the_servers_are_asked_for_the_first_time_wins(
    house: House, chat: Chat
) -> None:
    chat.ready.clear()
    url = await chat.start()
    house.write(table("old", url))
    app = house.app()
    async with app.router.lifespan_context(app):
        await chat.checked.wait()
        house.write(table("new", "http://127.0.0.1:1"))  # which is refused much sooner
        reload = asyncio.ensure_future(app.state.reload())
        await asyncio.wait({reload}, timeout=0.3)
        chat.ready.set()
        await reload
        await app.state.loading
        assert list(app.state.front.catalog.models) == ["new"]
        assert app.state.front.gateway.catalog is app.state.front.catalog


async def test_an_app_that_was_made_with_its_engine_reads_no_file(gateway_app: FastAPI) -> None:
    with pytest.raises(ConfigError, match="reads no file"):
        await gateway_app.state.reload()


def test_a_credential_that_is_not_there_is_named_at_once(house: House) -> None:
    house.write(table("m", "http://127.0.0.1:1", api_key_env='"NO_SUCH_VARIABLE"'))
    with pytest.raises(ConfigError, match=r"\[models\.m\]: api_key_env: .*NO_SUCH_VARIABLE"):
        house.app()


@pytest.mark.parametrize("written", ["sk-secret", "sk-secret\n", " sk-secret\r\n"])
async def test_a_credential_goes_to_the_server_and_nowhere_else(
    house: House, chat: Chat, monkeypatch: Any, written: str
) -> None:
    """A line end at its end, as a file has it, would be refused in a header."""
    monkeypatch.setenv("THE_KEY", written)
    house.write(table("m", await chat.start(), api_key_env='"THE_KEY"'))
    serving = Serving(house.settings, read(house.file))
    try:
        fleet = await serving.start()
        assert chat.keys == ["Bearer sk-secret"]
        assert "sk-secret" not in repr(serving.servers()) + repr(fleet)
    finally:
        await serving.aclose()


async def test_a_server_that_is_down_does_not_keep_us_from_starting(house: House) -> None:
    house.write(table("m", "http://127.0.0.1:1"))
    serving = Serving(house.settings, read(house.file))
    assert serving.servers() == []
    try:
        fleet = await serving.start()
        assert not fleet.load("m").healthy
        (server,) = serving.servers()
        assert (server.model, server.state) == ("m", "probing") and "reached" in server.reason
    finally:
        await serving.aclose()
