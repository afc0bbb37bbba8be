"""Vectors over HTTP, in OpenAI's shape: what they are of, how they are encoded, what they cost."""

import base64
from array import array

import pytest

from app.engines.fake import Script

URL = "/v1/embeddings"
VECTOR = [0.6, -0.8, 0.0]


@pytest.fixture(autouse=True)
def embedding(fake):
    fake.scripts = {"large": Script(["a"], vector=VECTOR), "small": Script(["a"])}


async def ask(client, headers=None, **fields):
    body = {"model": "large", "input": "why is the sky blue", **fields}
    return await client.post(URL, json=body, headers=headers)


async def test_a_text_becomes_a_vector(client):
    answer = await ask(client)
    body = answer.json()
    assert answer.status_code == 200, body
    assert (body["object"], body["model"]) == ("list", "large")
    assert body["data"] == [{"object": "embedding", "index": 0, "embedding": pytest.approx(VECTOR)}]
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["total_tokens"]) == (5, 5)
    assert usage["cost"] == pytest.approx(50e-6)
    assert answer.headers["X-Farthing-Cost-Usd"] == "0.00005"
    assert body["farthing"]["models"] == {"large": 0}


async def test_base64_is_of_fp32_bytes(client):
    body = (await ask(client, encoding_format="base64")).json()
    told = array("f", base64.b64decode(body["data"][0]["embedding"]))
    assert told.tolist() == pytest.approx(VECTOR)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        (["a b", "c"], ["a b", "c"]),
        ([1, 2, 3], [(1, 2, 3)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
async def test_inputs_are_several_and_of_ids_too(client, fake, given, prompts):
    body = (await ask(client, input=given)).json()
    assert [each["index"] for each in body["data"]] == list(range(len(prompts)))
    assert [each.prompt for each in fake.calls[0].apart()] == prompts
    assert body["usage"]["prompt_tokens"] == 3


async def test_a_budget_pays_for_what_is_read_or_nothing_runs(client, fake):
    assert (await ask(client, {"X-Budget-Usd": "0.00005"})).status_code == 200
    refused = await ask(client, {"X-Budget-Usd": "0.000049"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (402, "X-Budget-Usd")
    assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "small"}, "model"),
        ({"model": "economy"}, "model"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": None}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 2}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_field(client, fields, param):
    answer = await ask(client, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_key_pays_and_may_not_use_every_model(serve):
    house = await serve()
    id, token = await house.key(models=["large"])
    _, other = await house.key(models=["small"])
    body = {"model": "large", "input": "a b"}
    for who, status in ((token, 200), (other, 403), (None, 401)):
        headers = {} if who is None else {"Authorization": f"Bearer {who}"}
        answer = await house.visitor.post(URL, json=body, headers=headers)
        assert answer.status_code == status, answer.text
    assert await house.spent(id) == 2 * 10 * 10**6
