"""A text completion over HTTP, in OpenAI's older shape."""

import re
from collections import Counter

import pytest

from app.engines.fake import Script
from app.types import Candidate, Token
from routers.scribe import TextScribe
from tests.conftest import LARGE
from tests.routers.reading import events

URL = "/v1/completions"


async def ask(client, **fields):
    body = {"model": "large", "prompt": "why is the sky blue", "max_tokens": 99, **fields}
    answer = await client.post(URL, json=body)
    assert answer.status_code == 200, answer.text
    return answer


async def test_a_whole_completion_has_openai_s_shape(client):
    body = (await ask(client)).json()
    assert re.fullmatch("cmpl-[0-9a-f]{32}", body["id"])
    assert (body["object"], body["model"]) == ("text_completion", "large")
    assert body["choices"] == [
        {"index": 0, "text": LARGE + " ", "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"]["total_tokens"] == 5 + len(LARGE.split())
    assert body["farthing"]["models"] == {"large": len(LARGE.split())}


async def test_a_stream_says_the_same(client):
    chunks = events((await ask(client, stream=True)).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == LARGE + " "
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert chunks[0]["choices"][0] == {
        "index": 0,
        "text": "the ",
        "logprobs": None,
        "finish_reason": None,
    }
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_completion_is_of_sixteen_tokens_unless_asked(client, fake):
    fake.scripts = {"large": Script(["a"] * 40)}
    answer = await client.post(URL, json={"model": "large", "prompt": "why"})
    assert answer.json()["usage"]["completion_tokens"] == 16
    assert (await ask(client, max_tokens=None)).json()["usage"]["completion_tokens"] == 40


async def test_a_prompt_of_ids_reaches_the_engine_as_such(client, fake):
    await ask(client, prompt=[3, 1, 2])
    assert fake.calls[0].prompt == (3, 1, 2)


async def test_logprobs_come_in_columns(client):
    logprobs = (await ask(client, logprobs=1, max_tokens=3)).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["the ", "sky ", "is "],
        "token_logprobs": [-0.1] * 3,
        "top_logprobs": [{"the ": -0.1}, {"sky ": -0.1}, {"is ": -0.1}],
        "text_offset": [0, 4, 8],
    }


async def test_offsets_go_on_through_a_stream(client):
    body = (await ask(client, logprobs=0)).json()
    chunks = events((await ask(client, logprobs=0, stream=True)).text)
    scored = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    offsets = [offset for logprobs in scored if logprobs for offset in logprobs["text_offset"]]
    assert offsets == body["choices"][0]["logprobs"]["text_offset"]


@pytest.fixture
def scribe():
    made = TextScribe.__new__(TextScribe)
    made._characters = Counter()
    return made


def test_a_character_in_several_tokens_is_counted_once(scribe):
    first, rest = "é".encode()[:1], "é".encode()[1:]
    tokens = [Token(1, b"a"), Token(2, first), Token(3, rest), Token(4, "日b".encode())]
    columns = scribe._logprobs(tokens, 0)
    assert columns["text_offset"] == [0, 1, 1, 2]
    assert columns["tokens"] == ["a", "\ufffd", "\ufffd", "日b"]


def test_what_json_has_no_number_for_is_as_low_as_openai_goes(scribe):
    top = (Candidate(2, b"b", float("-inf")),)
    columns = scribe._logprobs([Token(1, b"a", None, top)], 0)
    assert columns["token_logprobs"] == [-9999.0]
    assert columns["top_logprobs"] == [{"a": -9999.0, "b": -9999.0}]
