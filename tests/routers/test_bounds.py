"""What is beyond a bound is refused by its name, and what is within is taken."""

import asyncio
import json
import threading
import tracemalloc

import pytest

from app.errors import BadRequest
from app.factory import create_app
from routers import body
from routers.body import MAX_NODES
from routers.bounds import Bounds
from tests.routers.reading import QUESTION, asking

CHAT = "/v1/chat/completions"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.fixture
def settings(settings):
    bounds = {"max_messages": 3, "max_tools": 2, "max_images": 2, "max_string": 2000}
    bounds |= {"max_headers": 20, "max_header_bytes": 3000, "request_timeout_s": 0.3}
    return settings.model_copy(update=bounds)


def refused(answer, status, param):
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param
    return answer.json()["error"]["message"]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
BEYOND = [
    ({"messages": QUESTION * 4}, "messages", "4 items, at most 3"),
    ({"tools": [TOOL] * 3}, "tools", "3 items, at most 2"),
    ({"functions": [TOOL] * 3}, "functions", "3 items, at most 2"),
    ({"messages": [{"role": "user", "content": [IMAGE] * 3}]}, "messages", "3 images, at most 2"),
    ({"input": [{"content": [{"type": "input_image"}]}] * 3}, "input", "3 images, at most 2"),
    (
        {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "image"}] * 3}]}]},
        "messages",
        "3 images",
    ),
    (
        {"messages": [{"role": "user", "content": "x" * 2001}]},
        "messages.0.content",
        "2001 characters, at most 2000",
    ),
    ({"x" * 2001: 1}, "body", "2001 characters"),
    ({"metadata": {"a": ["x" * 2001]}}, "metadata.a.0", "2001 characters"),
]


@pytest.mark.parametrize(("fields", "param", "message"), BEYOND)
async def test_what_is_beyond_a_bound_is_refused_by_its_name(client, fields, param, message):
    answer = await client.post(CHAT, json=asking(**fields) | fields)
    assert message in refused(answer, 400, param)


async def test_what_is_within_all_of_them_is_answered(client):
    content = [{"type": "text", "text": "x" * 1000}]
    messages = [{"role": "user", "content": content}] * 3
    answer = await client.post(CHAT, json=asking(messages=messages) | {"messages": messages})
    assert answer.status_code == 200, answer.text


MANY = {f"a{i}": 1 for i in range(65)}
CROWDED = [
    (CHAT, {"budget": MANY}, "budget"),
    (CHAT, {"policy": {"name": "direct", **MANY}}, "policy"),
    (CHAT, {"policy": "direct;" + ";".join(MANY)}, "policy"),
    ("/v1/responses", {"text": MANY}, "text"),
    ("/v1/responses", {"metadata": MANY}, "metadata"),
    ("/v1/messages", {"output_config": MANY}, None),
]


@pytest.mark.parametrize(("url", "fields", "param"), CROWDED)
async def test_of_very_many_wrong_members_none_is_looked_for(client, url, fields, param):
    body = asking(input="why", max_tokens=5, **fields)
    if url == "/v1/responses":
        del body["messages"]
    answer = await client.post(url, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "has more than 64" in error["message"] and error.get("param") == param


@pytest.mark.parametrize("headers", [{f"X-{i}": "a" for i in range(30)}, {"X-A": "a" * 3000}])
async def test_headers_beyond_their_bounds_are_431(client, headers):
    answer = await client.get("/health", headers=headers)
    refused(answer, 431, "headers")
    assert answer.headers["x-request-id"]


async def test_a_url_counts_as_a_header(client):
    refused(await client.get("/health?" + "a" * 3000), 431, "headers")


async def test_a_body_that_dawdles_is_408_and_its_connection_closes(client):
    async def dribble():
        for byte in json.dumps(asking()).encode():
            yield bytes([byte])
            await asyncio.sleep(0.02)

    answer = await client.post(CHAT, content=dribble())
    refused(answer, 408, "body")
    assert answer.headers["connection"] == "close"


async def test_a_body_that_is_large_has_longer(client, monkeypatch):
    monkeypatch.setattr(body, "_PACE", 1000)

    async def brings_much():
        document = json.dumps(asking()).encode()
        for _ in range(8):
            yield b" " * 1000
            await asyncio.sleep(0.06)
        yield document

    assert (await client.post(CHAT, content=brings_much())).status_code == 200


async def test_a_large_body_is_parsed_aside(client, gateway_app, monkeypatch):
    """Others go on: half of the time, as the parser itself holds the interpreter."""
    here, there = threading.get_ident(), []
    monkeypatch.setattr(body, "_LARGE", 5000)
    monkeypatch.setattr(body, "parse", lambda found: there.append(threading.get_ident()) or {})
    for size in (100, 6000):
        await client.post(CHAT, content=b"{}" + b" " * size)
    assert there[0] == here != there[1]


def test_a_body_of_very_many_arrays_is_refused_before_it_is_parsed():
    with pytest.raises(BadRequest, match=f"more than {MAX_NODES} arrays"):
        body.parse(b'{"a":[' + b"[]," * MAX_NODES + b"1]}")


def test_brackets_in_strings_are_text():
    document = {"a": '[{"' * MAX_NODES}
    assert body.parse(json.dumps(document).encode()) == document


def test_to_look_for_long_strings_takes_no_memory_for_where_they_are_not():
    document = {"a": [1] * 10_000}
    for _ in range(50):
        document = {"x" * 256: document}
    tracemalloc.start()
    try:
        Bounds(string=1000).check(document, 10**6)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_string_without_an_end_is_looked_through_once():
    """Else each quote in it would begin another, and the time would be the square of its size."""
    with pytest.raises(BadRequest, match="is not valid JSON: Unterminated string"):
        body.parse(b'{"a":"' + b'\\"' * 100 + b"[" * (MAX_NODES + 1))


def test_every_bound_has_its_setting(settings, catalog, fake):
    bounds = create_app(settings, catalog=catalog, engine=fake).state.front.bounds
    assert (bounds.messages, bounds.tools, bounds.images, bounds.string) == (3, 2, 2, 2000)
    assert (bounds.headers, bounds.header_bytes, bounds.body_bytes) == (20, 3000, 100_000)
