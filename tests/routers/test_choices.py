"""Several answers over HTTP: their indexes, their ends, their usage, whole and streamed."""

from collections import defaultdict

import pytest

from app.engines.fake import Script
from tests.conftest import LARGE
from tests.routers.reading import asking, events

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WORDS = len(LARGE.split())


async def ok(client, url, **body):
    answer = await client.post(url, json=body)
    assert answer.status_code == 200, answer.text
    return answer


async def chat(client, **fields):
    return await ok(client, CHAT, **asking(**fields))


def by_choice(chunks):
    found = defaultdict(list)
    for chunk in chunks:
        for choice in chunk["choices"]:
            found[choice["index"]].append(choice)
    return dict(sorted(found.items()))


async def test_a_whole_answer_holds_all_choices(client):
    body = (await chat(client, n=3)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in body["choices"]} == {LARGE + " "}
    assert {choice["finish_reason"] for choice in body["choices"]} == {"stop"}
    assert body["usage"]["prompt_tokens"] == 5
    assert body["usage"]["completion_tokens"] == 3 * WORDS
    assert body["usage"]["cost_details"]["models"]["large"]["prompt_tokens"] == 15
    assert body["farthing"]["models"] == {"large": 3 * WORDS}


async def test_a_stream_opens_and_ends_each_choice_once_and_tells_usage_last(client):
    answer = await chat(client, n=3, stream=True, stream_options={"include_usage": True})
    chunks = events(answer.text)
    choices = by_choice(chunks)
    assert list(choices) == [0, 1, 2]
    for found in choices.values():
        assert found[0]["delta"] == {"role": "assistant", "content": ""}
        assert not any("role" in choice["delta"] for choice in found[1:])
        assert "".join(choice["delta"].get("content", "") for choice in found) == LARGE + " "
        assert [choice["finish_reason"] for choice in found].count("stop") == 1
        assert found[-1]["finish_reason"] == "stop"
    assert [chunk["choices"] for chunk in chunks if chunk["usage"]] == [[]]
    assert chunks[-1]["usage"]["completion_tokens"] == 3 * WORDS
    assert [chunk["farthing"]["models"] for chunk in chunks if "farthing" in chunk] == [
        {"large": 3 * WORDS}
    ]


async def test_who_ends_first_says_so_before_the_others_have_ended(client, fake):
    """The prompts part in length, and so does the room for an answer."""
    fake.scripts = {"large": Script([f"w{i}" for i in range(30)], context=20, delay=0.001)}
    body = {"model": "large", "prompt": [[1] * 15, [1] * 2], "max_tokens": 50, "stream": True}
    choices = [c for e in events((await ok(client, TEXT, **body)).text) for c in e["choices"]]
    ends = [
        (c["index"], c["finish_reason"], i) for i, c in enumerate(choices) if c["finish_reason"]
    ]
    assert [end[:2] for end in ends] == [(0, "length"), (1, "length")]
    assert ends[0][2] < len(choices) - 8


async def test_every_choice_has_its_logprobs(client):
    fields = {"n": 2, "logprobs": True, "top_logprobs": 1, "max_tokens": 2}
    for choice in (await chat(client, **fields)).json()["choices"]:
        assert [each["token"] for each in choice["logprobs"]["content"]] == ["the ", "sky "]
    stream = by_choice(events((await chat(client, **fields, stream=True)).text))
    for choices in stream.values():
        scored = [choice["logprobs"]["content"] for choice in choices if choice["logprobs"]]
        assert [each["token"] for part in scored for each in part] == ["the ", "sky "]


@pytest.mark.parametrize("stream", [False, True])
async def test_offsets_of_a_choice_are_its_own(client, stream):
    body = {"model": "large", "prompt": ["a", "b"], "n": 2, "logprobs": 0, "max_tokens": 2}
    answer = await ok(client, TEXT, **body, stream=stream)
    choices = by_choice(events(answer.text) if stream else [answer.json()])
    assert list(choices) == [0, 1, 2, 3]
    for found in choices.values():
        columns = [choice["logprobs"]["text_offset"] for choice in found if choice["logprobs"]]
        assert [offset for column in columns for offset in column] == [0, 4]


async def test_several_prompts_are_answered_in_their_order(client, fake):
    body = {"model": "large", "prompt": ["one two", "three"], "n": 2, "max_tokens": 1}
    answer = (await ok(client, TEXT, **body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [each.prompt for each in fake.calls] == ["one two", "one two", "three", "three"]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 4


async def test_the_budget_ends_each_choice_and_says_so(client):
    headers = {"X-Budget-Usd": f"{(3 * 50 + 3 * 4 * 20) / 1e6:.6f}"}
    answer = await client.post(CHAT, json=asking(n=3), headers=headers)
    for choice in answer.json()["choices"]:
        assert (choice["finish_reason"], choice["finish_details"]) == (
            "length",
            {"reason": "budget"},
        )
        assert len(choice["message"]["content"].split()) == 4
    assert answer.json()["usage"]["cost"] <= float(headers["X-Budget-Usd"])


async def test_of_several_drawn_the_best_are_shown_and_all_are_paid_for(client):
    body = {"model": "large", "prompt": "a", "n": 2, "best_of": 4, "max_tokens": 3}
    answer = (await ok(client, TEXT, **body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["choices"][0]["logprobs"] is None
    used = answer["usage"]["cost_details"]["models"]["large"]
    assert (used["completion_tokens"], used["discarded_tokens"]) == (12, 6)
    assert answer["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"n": 129}, "n"),
        ({"n": 65, "prompt": ["a", "b"]}, "prompt"),
        ({"best_of": 65, "prompt": ["a", "b"]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
    ],
)
async def test_too_many_and_what_contradicts_itself_is_refused(client, fields, param):
    answer = await client.post(TEXT, json={"model": "large", "prompt": "a", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_debug_says_whose_switch_it_was(client):
    answer = await client.post(CHAT, json=asking("economy", n=2), headers={"X-Debug": "1"})
    switches = answer.json()["farthing"]["switches"]
    assert sorted(switch.get("choice", 0) for switch in switches) == [0, 1]
