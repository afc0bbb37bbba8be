"""Under a prefix, asked by pages of other hosts, and by any name of a model."""

import httpx
import pytest

from app.engines.fake import Script
from app.factory import create_app
from tests.routers.reading import asking

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example"


@pytest.fixture
def open_house(settings, catalog, fake):
    """Clients of a gateway with these settings."""

    def opened(**update):
        app = create_app(settings.model_copy(update=update), catalog=catalog, engine=fake)
        transport = httpx.ASGITransport(app)
        return httpx.AsyncClient(transport=transport, base_url="http://farthing")

    return opened


@pytest.mark.parametrize("prefix", ["/llm", "/a/b"])
async def test_a_prefix_may_come_or_be_taken_away(open_house, prefix):
    async with open_house(root_path=prefix) as client:
        for path in (CHAT, prefix + CHAT):
            assert (await client.post(path, json=asking())).status_code == 200
        for path in ("/openapi.json", prefix + "/openapi.json"):
            document = (await client.get(path)).json()
            assert document["servers"] == [{"url": prefix}]
            assert CHAT in document["paths"]
        assert (await client.post(prefix + "x" + CHAT, json=asking())).status_code == 404
        metrics = (await client.get("/metrics")).text
    assert f'endpoint="{CHAT}"' in metrics and prefix not in metrics


async def test_without_a_prefix_there_is_none(client):
    assert (await client.post("/llm" + CHAT, json=asking())).status_code == 404
    assert "servers" not in (await client.get("/openapi.json")).json()


@pytest.mark.parametrize("origins", [PAGE, f"http://other, {PAGE}", "*"])
async def test_a_page_that_is_named_may_ask_and_read_our_headers(open_house, origins):
    async with open_house(cors_origins=origins) as client:
        wish = {"Access-Control-Request-Method": "POST", "Origin": PAGE}
        wish["Access-Control-Request-Headers"] = "authorization,x-budget-usd,x-stainless-os"
        before = await client.options(CHAT, headers=wish)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] in (PAGE, "*")
        assert "x-budget-usd" in before.headers["access-control-allow-headers"]
        for body, status in ((asking(), 200), (asking(stream=True), 200), (asking("no"), 404)):
            answer = await client.post(CHAT, json=body, headers={"Origin": PAGE})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] in (PAGE, "*")
            assert answer.headers["access-control-expose-headers"] == "*"


async def test_a_page_reads_what_a_bug_of_ours_says(open_house, fake, monkeypatch):
    async def bug(call):
        raise ZeroDivisionError

    monkeypatch.setattr(fake, "count", bug)
    async with open_house(cors_origins=PAGE) as client:
        answer = await client.post(CHAT, json=asking(), headers={"Origin": PAGE})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, PAGE)


@pytest.mark.parametrize("origins", ["", "http://other"])
async def test_a_page_that_is_not_named_may_not(open_house, origins):
    async with open_house(cors_origins=origins) as client:
        answer = await client.post(CHAT, json=asking(), headers={"Origin": PAGE})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def requests(model):
    """A request to everything that names a model."""
    yield "POST", CHAT, asking(model)
    yield "POST", CHAT, asking(model, stream=True)
    yield "POST", CHAT, asking(f"direct/{model}")
    yield "POST", "/v1/completions", {"model": model, "prompt": "why", "max_tokens": 3}
    yield "POST", "/v1/responses", {"model": model, "input": "why"}
    yield "POST", "/v1/messages", {**asking(model), "max_tokens": 3}
    yield "POST", "/v1/messages/count_tokens", asking(model)
    yield "POST", "/v1/embeddings", {"model": model, "input": "why"}
    yield "POST", "/tokenize", {"model": model, "prompt": "why"}
    yield "POST", "/detokenize", {"model": model, "tokens": [0]}
    yield "GET", f"/v1/models/{model}", None


@pytest.mark.parametrize("name", ["large", "big"])
async def test_every_endpoint_takes_an_alias(client, fake, name):
    fake.scripts = {"large": Script(["the", "sky"], vector=(0.6, -0.8))}
    for method, path, body in requests(name):
        answer = await client.request(method, path, json=body)
        assert answer.status_code == 200, (path, answer.text)
    assert {call.model for call in fake.calls} == {"large"}
