"""Whatever a client sends gets a 4xx in OpenAI's shape naming what is wrong; the server goes on."""

import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engines.fake import Fake, Script
from app.errors import FarthingError
from app.telemetry.logs import Text
from tests.routers.reading import asking

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def refused(answer, status, param=None, code=None):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert (error["param"], error["code"]) == (param, code)
    return error


async def still_answers(client):
    answer = await client.post(CHAT, json=asking())
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 50_000, b'{"a":' * 10_000]
)
@pytest.mark.parametrize("url", [CHAT, TEXT])
async def test_a_body_that_is_no_json_object(client, url, body):
    refused(await client.post(url, content=body), 400, "body")
    await still_answers(client)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"n": 129}, "n"),
        ({"policy": {"name": "nope"}}, "policy"),
        ({"policy": {"name": "entropy_switch", "raise_at": "x"}}, "policy"),
        ({"policy": {"name": "entropy_switch", "__class__": 1}}, "policy"),
    ],
)
async def test_a_bad_field_is_400_streamed_or_not(client, fields, param, streamed):
    answer = await client.post(CHAT, json=asking(**fields, stream=streamed))
    assert refused(answer, 400, param)["type"] == "invalid_request_error"


async def test_a_missing_model(client):
    refused(await client.post(CHAT, json={"messages": []}), 400, "model")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["nope", "auto", "direct/nope", "nope/large", "../large", "\0"])
async def test_an_unknown_model_is_404(client, model, streamed):
    answer = await client.post(CHAT, json=asking(model, stream=streamed))
    refused(answer, 404, "model", "model_not_found")


async def test_a_model_s_name_has_an_end(client):
    refused(await client.post(CHAT, json=asking("m" * 10_000)), 400, "model")


BAD_HEADERS = [
    *(("X-Budget-Usd", value) for value in ("-1", "NaN", "inf", "1e400", "", "0x1", "1_0")),
    *(("X-Budget-Latency-Ms", value) for value in ("-1", "NaN", "inf", "1e400", "", "0")),
    ("X-Budget-Fallback", "maybe"),
    ("X-Policy", "no;such"),
    ("X-Policy", "nope"),
    ("X-Policy", "entropy_switch;raise_at=NaN"),
    ("X-Debug", "yes"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("name", "value"), BAD_HEADERS)
async def test_a_bad_header_is_400_by_its_name(client, name, value, streamed):
    answer = await client.post(CHAT, json=asking(stream=streamed), headers={name: value})
    refused(answer, 400, name)
    await still_answers(client)


async def test_a_budget_that_is_not_built_is_400(client):
    answer = await client.post(CHAT, json=asking(), headers={"X-Budget-Kindness": "1"})
    refused(answer, 400, "x-budget-kindness")


async def test_a_header_sent_twice_is_400(client):
    headers = [("X-Budget-Usd", "1"), ("X-Budget-Usd", "2")]
    refused(await client.post(CHAT, json=asking(), headers=headers), 400, "X-Budget-Usd")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_prompt_beyond_the_context_is_400(client, streamed):
    long = [{"role": "user", "content": "word " * 5000}]
    answer = await client.post(CHAT, json={"model": "large", "messages": long, "stream": streamed})
    refused(answer, 400, "messages", "context_length_exceeded")
    await still_answers(client)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("usd", ["0", "0.00000001", "1e-13"])
async def test_a_prompt_that_the_budget_cannot_pay_is_402(client, usd, streamed):
    answer = await client.post(CHAT, json=asking(stream=streamed), headers={"X-Budget-Usd": usd})
    refused(answer, 402, "X-Budget-Usd", "budget_exceeded")
    assert answer.headers["x-should-retry"] == "false"


async def test_strict_is_402_where_cheapest_answers(client):
    headers = {"X-Budget-Usd": "0.0002"}
    answer = await client.post(CHAT, json=asking(), headers=headers)
    assert answer.status_code == 200
    answer = await client.post(
        CHAT, json=asking(), headers={**headers, "X-Budget-Fallback": "strict"}
    )
    refused(answer, 402, "X-Budget-Usd", "budget_exceeded")


async def test_a_body_that_is_too_large_is_413(client):
    refused(await client.post(CHAT, content=b" " * 100_001), 413, "body", "request_too_large")
    await still_answers(client)


async def test_a_body_is_not_read_beyond_the_limit_though_no_length_was_announced(client):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 10_000

    refused(await client.post(CHAT, content=endless()), 413, "body", "request_too_large")
    assert sent <= 12


async def test_a_body_just_below_the_limit_is_read(client):
    body = json.dumps(asking()).encode()
    answer = await client.post(CHAT, content=body + b" " * (100_000 - len(body)))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"]
)
async def test_a_body_of_another_type_is_refused_json_or_not(client, kind):
    body = json.dumps(asking()).encode()
    answer = await client.post(CHAT, content=body, headers={"content-type": kind})
    refused(answer, 400, "Content-Type")


async def test_a_page_may_not_leave_the_type_out(client):
    """Bytes of no type a browser sends anyone unasked."""
    body = json.dumps(asking()).encode()
    answer = await client.post(CHAT, content=body, headers={"origin": "http://localhost"})
    refused(answer, 400, "Content-Type")


@pytest.mark.parametrize("kind", [None, "", "Application/JSON; charset=utf-8"])
async def test_a_body_of_no_type_is_json(client, kind):
    headers = {} if kind is None else {"content-type": kind}
    answer = await client.post(CHAT, content=json.dumps(asking()).encode(), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("url", ["/v1", "/v1/nope", "/v1/chat/completions/", "/\u00e9%00"])
async def test_an_unknown_url_is_404(client, url):
    refused(await client.get(url), 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_a_wrong_method_is_405(client, method):
    answer = await client.request(method, CHAT)
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"


async def test_a_bug_is_a_500_that_tells_nothing(client, fake, monkeypatch, caplog):
    async def bug(call):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(fake, "count", bug)
    monkeypatch.setattr(caplog.handler, "formatter", Text())
    for streamed in (False, True):
        answer = await client.post(CHAT, json=asking(stream=streamed))
        error = refused(answer, 500)
        assert "secret" not in answer.text
        assert error["type"] == "server_error"
        assert answer.headers["x-request-id"] in caplog.text


async def test_an_engine_s_failure_before_the_first_token_keeps_its_status(client, fake):
    fake.scripts = {**fake.scripts, "large": Script(["a"], fails_after=0)}
    for streamed in (False, True):
        answer = await client.post(CHAT, json=asking(stream=streamed))
        refused(answer, 502)


async def test_a_full_queue_says_when_to_come_back(client, fake, monkeypatch):
    class Full(FarthingError):
        status = 429

    async def full(call):
        raise Full("the queue is full", retry_after=1.2)

    monkeypatch.setattr(fake, "count", full)
    answer = await client.post(CHAT, json=asking())
    refused(answer, 429)
    assert answer.headers["retry-after"] == "2"
    assert "x-should-retry" not in answer.headers


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(
        ["X-Budget-Usd", "X-Budget-Latency-Ms", "X-Budget-Fallback", "X-Policy", "X-Debug"]
    ),
    value=st.text(st.characters(codec="latin-1"), max_size=40)
    | st.from_regex(r"[0-9.eE+_-]{1,12}", fullmatch=True)
    | st.from_regex(r"[a-z_]{1,14}(;[a-z_]{1,9}=[a-z0-9.,]{0,5}){0,3}", fullmatch=True),
)
async def test_random_headers_never_break_the_server(gateway_app, name, value):
    transport = httpx.ASGITransport(gateway_app)
    async with httpx.AsyncClient(transport=transport, base_url="http://farthing") as client:
        raw = [(name.encode(), value.encode("latin-1"))]
        answer = await client.post(CHAT, json=asking(), headers=raw)
    assert answer.status_code in (200, 400, 402, 404, 504)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


scalars = st.none() | st.booleans() | st.integers() | st.floats(-1e6, 1e6) | st.text(max_size=5)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = [
    *("model", "messages", "max_tokens", "temperature", "top_p", "top_k", "logit_bias", "seed"),
    *("stop", "stop_token_ids", "stream", "stream_options", "n", "logprobs", "top_logprobs"),
    *("budget", "policy", "tools", "prompt", "echo"),
]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    url=st.sampled_from([CHAT, TEXT]),
    fields=st.dictionaries(st.sampled_from(FIELDS), anything, max_size=4),
)
async def test_random_bodies_never_break_the_server(gateway_app, fake: Fake, url, fields):
    transport = httpx.ASGITransport(gateway_app)
    async with httpx.AsyncClient(transport=transport, base_url="http://farthing") as client:
        body = json.dumps({**asking(), "prompt": "a b", **fields}).encode(errors="surrogatepass")
        answer = await client.post(url, content=body)
    assert answer.status_code in (200, 400, 402, 404, 504), answer.text
    assert fake.open == 0
