"""Text to token ids and back, in vLLM's shapes."""

import pytest

from tests.routers.reading import QUESTION


async def post(client, path, **body):
    answer = await client.post(path, json={"model": "large", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_prompt_is_told_as_the_model_reads_it(client):
    told = await post(client, "/tokenize", prompt="why is the sky blue")
    assert told == {
        "count": 5,
        "max_model_len": 4096,
        "tokens": told["tokens"],
        "token_strs": None,
    }
    text = await post(client, "/detokenize", tokens=told["tokens"])
    assert text == {"prompt": "why is the sky blue"}


async def test_names_are_told_where_asked_for(client):
    told = await post(client, "/tokenize", prompt="why is", return_token_strs=True)
    assert told["token_strs"] == ["why", "is"]


async def test_a_chat_counts_as_it_is_billed(client):
    told = await post(client, "/tokenize", messages=QUESTION)
    assert told["count"] == 5


@pytest.mark.parametrize("model", ["economy", "entropy_switch/large", "small"])
async def test_of_a_preset_its_first_model_reads(client, model):
    assert (await post(client, "/tokenize", model=model, prompt="a b"))["count"] == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": QUESTION}, 400, "prompt"),
        ("/tokenize", {"prompt": 3}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, 400, "messages.0.content"),
        ("/tokenize", {"model": "none", "prompt": "a"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens.0"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens.0"),
        ("/detokenize", {"tokens": [10**6]}, 400, "tokens"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_field(client, path, body, status, param):
    answer = await client.post(path, json={"model": "large", **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_a_key_is_needed_and_must_allow_the_model(serve):
    house = await serve()
    token = await house.token(models=["small"])
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": []})):
        for who, status in ((token, 403), (None, 401)):
            headers = {} if who is None else {"Authorization": f"Bearer {who}"}
            answer = await house.visitor.post(
                path, json={"model": "large", **body}, headers=headers
            )
            assert answer.status_code == status
