"""A real server and real clients: the official SDK, and sockets that hang up."""

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import openai
import pytest

from app.engines.fake import Script
from tests.conftest import LARGE
from tests.routers.reading import QUESTION, asking, events
from tests.running import running, wait_for

CHAT = "/v1/chat/completions"


@pytest.fixture
def server(gateway_app, settings):
    with running(gateway_app, settings) as server:
        yield server


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture
def sdk(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def request(body, **headers):
    """The bytes of a POST."""
    content = json.dumps(body).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "Host: farthing", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def test_the_sdk_reads_a_whole_chat(sdk):
    answer = sdk.chat.completions.create(model="economy", messages=QUESTION)
    assert answer.choices[0].message.content.startswith("the sky is blue as it is ")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.cost > 0
    assert answer.farthing["policy"] == "economy"


def test_the_sdk_reads_a_streamed_chat(sdk):
    stream = sdk.chat.completions.create(
        model="large", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == LARGE + " "
    assert chunks[-1].usage.completion_tokens == len(LARGE.split())
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_the_sdk_reads_logprobs(sdk):
    answer = sdk.chat.completions.create(
        model="large", messages=QUESTION, logprobs=True, top_logprobs=1
    )
    assert answer.choices[0].logprobs.content[0].token == "the "
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].logprob == -0.1


def test_the_sdk_reads_completions(sdk):
    answer = sdk.completions.create(model="large", prompt="why", max_tokens=3, logprobs=1)
    assert answer.choices[0].text == "the sky is "
    assert answer.choices[0].logprobs.text_offset == [0, 4, 8]
    stream = sdk.completions.create(model="large", prompt="why", max_tokens=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "the sky is "


async def test_the_sdk_reads_it_asynchronously(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as sdk:
        whole = await sdk.chat.completions.create(model="large", messages=QUESTION)
        assert whole.choices[0].message.content == LARGE + " "
        stream = await sdk.chat.completions.create(model="large", messages=QUESTION, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(parts) == LARGE + " "


def test_the_sdk_lists_models(sdk):
    assert [model.id for model in sdk.models.list()] == ["small", "large", "economy"]
    assert sdk.models.retrieve("economy").id == "economy"


@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_does_not_retry_what_the_budget_refuses(url, fake, stream, gateway_app):
    broke = {"X-Budget-Usd": "0"}
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=3) as sdk,
        pytest.raises(openai.APIStatusError) as refusal,
    ):
        sdk.chat.completions.create(
            model="large", messages=QUESTION, stream=stream, extra_headers=broke
        )
    assert refusal.value.status_code == 402
    assert refusal.value.body["code"] == "budget_exceeded"
    metrics = gateway_app.state.front.telemetry.scrape().decode()
    assert 'status="402"} 1.0' in metrics


def test_the_sdk_raises_what_fails_in_mid_stream(sdk, fake):
    fake.scripts = {"large": Script(LARGE.split(), fails_after=2)}
    text = ""
    with pytest.raises(openai.APIError, match="the script says"):
        for chunk in sdk.chat.completions.create(model="large", messages=QUESTION, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert text == "the sky "


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_engine(server, fake, stream, reset):
    fake.scripts = {"large": Script(["word"] * 100_000, delay=0.01)}
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(request(asking(stream=stream)))
        wait_for(lambda: fake.produced.get("large", 0) >= 3)
        assert fake.open == 1
        if reset:
            linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    wait_for(lambda: fake.open == 0)
    produced = fake.produced["large"]
    time.sleep(0.05)
    assert fake.produced["large"] == produced


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_token_stops_the_engine(server, fake, stream):
    fake.scripts = {"large": Script(["word"], delay=60)}
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(request(asking(stream=stream)))
        wait_for(lambda: fake.open == 1)
    wait_for(lambda: fake.open == 0)


def test_a_client_that_stops_reading_and_leaves_stops_the_engine(server, fake):
    fake.scripts = {"large": Script(["word" * 1000] * 100_000)}
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request(asking(stream=True)))
        wait_for(lambda: fake.produced.get("large", 0) >= 10)
        time.sleep(0.2)
        # The engine waits for its reader.
        stuck = fake.produced["large"]
        time.sleep(0.1)
        assert fake.produced["large"] == stuck < 20_000
    wait_for(lambda: fake.open == 0)


def test_an_answer_that_nobody_waited_for_is_counted(server, fake, gateway_app):
    fake.scripts = {"large": Script(["word"] * 1000, delay=0.01)}
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(request(asking(), **{"X-Budget-Usd": "1"}))
        wait_for(lambda: fake.produced.get("large", 0) >= 3)
    telemetry = gateway_app.state.front.telemetry
    wait_for(lambda: 'status="499"} 1.0' in telemetry.scrape().decode())
    text = telemetry.scrape().decode()
    assert 'outcome="closed",policy="direct",preset="none"} 1.0' in text
    assert "farthing_requests_in_flight 0.0" in text


def test_a_client_that_leaves_in_mid_request_leaves_nothing(server, gateway_app, caplog):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(request(asking())[:-10])
        time.sleep(0.1)
    telemetry = gateway_app.state.front.telemetry
    wait_for(lambda: 'status="499"} 1.0' in telemetry.scrape().decode())
    assert not caplog.records


def test_a_connection_serves_one_request_after_another(url):
    with httpx.Client(base_url=url) as client:
        for status, fields in ((200, {}), (400, {"n": 0}), (200, {"stream": True}), (200, {})):
            assert client.post(CHAT, json=asking(**fields)).status_code == status


def test_ten_megabytes_are_refused_and_the_server_goes_on(url):
    with httpx.Client(base_url=url, timeout=30) as client:
        for content in (b"x" * 10_000_000, (b"x" * 100_000 for _ in range(100))):
            answer = client.post(CHAT, content=content)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "request_too_large"
        assert client.post(CHAT, json=asking()).status_code == 200


def test_the_first_token_does_not_wait_for_the_last(url, fake):
    fake.scripts = {"large": Script(["word"] * 20, delay=0.5)}
    with httpx.stream("POST", url + CHAT, json=asking(stream=True)) as answer:
        assert answer.status_code == 200
        assert next(line for line in answer.iter_lines() if "word" in line)
        assert fake.open == 1  # and there are nine seconds to go
    wait_for(lambda: fake.open == 0)


async def test_of_many_streams_the_dropped_leave_nothing_and_the_rest_end_well(url, fake):
    fake.scripts = {"large": Script(LARGE.split(), delay=0.01)}

    async def one(client, dropped):
        async with client.stream("POST", CHAT, json=asking(stream=True)) as answer:
            lines = answer.aiter_lines()
            if dropped:
                async for line in lines:
                    if "blue" in line:
                        return ""
            return "\n".join([line async for line in lines]) + "\n"

    async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=50)) as client:
        texts = await asyncio.gather(*(one(client, i % 2) for i in range(50)))
    for text in texts[::2]:
        assert events(text)[-1]["choices"][0]["finish_reason"] == "stop"
    await asyncio.to_thread(wait_for, lambda: fake.open == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_shutdown_lets_a_short_answer_end(gateway_app, settings, fake, stream):
    fake.scripts = {"large": Script(LARGE.split(), delay=0.02)}
    with running(gateway_app, settings) as server, asked(server, fake, stream) as pending:
        server.should_exit = True
    answer = pending.result()
    assert answer.status_code == 200
    if stream:
        assert events(answer.text)[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_shutdown_ends_a_long_answer_in_words(gateway_app, settings, fake, stream):
    fake.scripts = {"large": Script(["word"] * 100_000, delay=0.01)}
    brief = settings.model_copy(update={"shutdown_grace_s": 0.3})
    began = time.monotonic()
    with running(gateway_app, brief) as server, asked(server, fake, stream) as pending:
        server.should_exit = True
    assert time.monotonic() - began < 4
    answer = pending.result()
    if stream:
        assert answer.status_code == 200
        assert events(answer.text)[-1]["error"]["code"] == "engine_unavailable"
    else:
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
    assert fake.open == 0


@contextmanager
def asked(server, fake, stream):
    """An answer that will be whole some time; entered when the engine writes."""
    url = f"http://127.0.0.1:{server.port}{CHAT}"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, url, json=asking(stream=stream), timeout=30)
        wait_for(lambda: fake.produced.get("large", 0) >= 2)
        yield answer
