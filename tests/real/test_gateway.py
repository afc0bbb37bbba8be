"""The default fleet behind a real server: real models, the official client, real money sums."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import anthropic
import httpx
import openai
import pytest
from pydantic import BaseModel

from app.catalog import PICO, read
from app.settings import DEFAULT_CONFIG
from app.types import Usage
from tests.prompts import OWN
from tests.real.real import LARGE, QUESTION, SMALL, Real, until

pytestmark = pytest.mark.model


def test_economy_tells_for_each_prompt_who_wrote_what_and_what_it_cost(real: Real) -> None:
    switches = 0
    for prompt in OWN[::4]:
        answer = real.ask(prompt, headers={"X-Debug": 1})
        details = answer.usage.cost_details["models"]
        assert answer.farthing["fidelity"] == "approximate"
        assert sum(answer.farthing["models"].values()) == answer.usage.completion_tokens <= 48
        assert answer.usage.cost == pytest.approx(sum(m["cost"] for m in details.values()))
        for name, tokens in answer.farthing["models"].items():
            used = details[name]
            assert used["completion_tokens"] - used["discarded_tokens"] == tokens
        at = [switch["token"] for switch in answer.farthing["switches"]]
        assert all(b - a >= 10 for a, b in zip([0, *at], at, strict=False))
        switches += len(at)
    assert switches > 0


@pytest.mark.parametrize("step", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_a_budget_below_the_large_models_price_is_kept(real: Real, step: int) -> None:
    """A part of what the large model alone costs is the budget: with it `economy` answers, and
    the large model answers as far as it goes, or is refused if it does not pay for the prompt."""
    price = read(DEFAULT_CONFIG).models[LARGE].price
    for number, prompt in enumerate(OWN[::step]):
        used = real.ask(prompt, model=LARGE).usage
        whole = price.of(Usage(prompt=used.prompt_tokens, completion=used.completion_tokens))
        budget = f"{whole / PICO * (0.3 + 0.03 * step * number):.12f}"
        answer = real.ask(prompt, headers={"X-Budget-Usd": budget})
        assert 0 < answer.usage.cost <= float(budget)
        assert answer.choices[0].message.content
        try:
            answer = real.ask(prompt, model=LARGE, headers={"X-Budget-Usd": budget})
        except openai.APIStatusError as refusal:
            assert refusal.status_code == 402
            assert float(budget) * PICO < (used.prompt_tokens) * price.input + price.output
        else:
            assert 0 < answer.usage.cost <= float(budget)
            assert answer.choices[0].finish_reason in ("stop", "length")


def test_random_budgets_are_never_overshot_and_nothing_leaks(real: Real) -> None:
    """Random budgets, prompts, lengths, temperatures and stop points, eight clients at once."""
    rng = random.Random(7)

    def one(case: tuple[str, str, float, int, float, int | None]) -> None:
        prompt, model, budget, most, temperature, stop_after = case
        headers = {"X-Budget-Usd": f"{budget:.12f}", "X-Debug": "1"}
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": most,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with httpx.stream(
            "POST", f"{real.url}/v1/chat/completions", json=body, headers=headers, timeout=300
        ) as response:
            if response.status_code == 402:
                return
            assert response.status_code == 200
            for number, line in enumerate(response.iter_lines()):
                if stop_after is not None and number >= stop_after:
                    return
                if '"cost":' in line:
                    cost = float(line.split('"cost":')[1].split(",")[0])
                    assert cost <= float(headers["X-Budget-Usd"])

    cases = [
        (
            " ".join(rng.sample(OWN, rng.randint(1, 3))),
            rng.choice(["economy", SMALL, LARGE, f"entropy_switch/{LARGE}"]),
            10 ** rng.uniform(-7, -4),
            rng.randint(1, 60),
            rng.choice([0.0, 1.0]),
            rng.choice([None, rng.randint(0, 60)]),
        )
        for _ in range(48)
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, cases))
    until(lambda: real.gauge("farthing_engine_running") == 0, 30)


def test_an_answer_is_handed_over_by_token_ids(real: Real) -> None:
    """Forced switches: each model writes its part, the text is that of the tokens, and what was
    written before the first switch is what the model writes alone."""
    policy = {"name": "entropy_switch", "switch_at": [7, 9, 20], "start": "large"}
    answer = real.ask(OWN[0], model=LARGE, extra_body={"policy": policy}, logprobs=True)
    assert answer.farthing["models"] == {LARGE: 7 + 11, SMALL: 2 + 28}
    pieces = [bytes(token.bytes) for token in answer.choices[0].logprobs.content]
    assert b"".join(pieces).decode() == answer.choices[0].message.content
    plain = real.ask(OWN[0], model=LARGE, logprobs=True)
    first = [token.token for token in plain.choices[0].logprobs.content[:7]]
    assert [token.token for token in answer.choices[0].logprobs.content[:7]] == first


def test_fifty_streams_half_of_them_dropped(real: Real) -> None:
    done = []

    def one(number: int) -> None:
        stream = real.ask(
            OWN[number % len(OWN)],
            model=("economy", LARGE, SMALL)[number % 3],
            max_tokens=24,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for seen, chunk in enumerate(stream):
            if number % 2 and seen == 5 + number % 7:
                stream.close()
                return
            if chunk.choices and chunk.choices[0].finish_reason:
                assert sum(chunk.farthing["models"].values()) == 24
                done.append(number)

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(one, range(50)))
    assert sorted(done) == list(range(0, 50, 2))
    until(lambda: real.gauge("farthing_engine_running") == 0, 30)
    assert real.gauge("farthing_engine_waiting") == 0
    assert real.gauge("farthing_engine_kv_bytes") == 0


def test_a_stream_is_kept_alive_while_a_long_prompt_is_read(real: Real) -> None:
    body = {"model": LARGE, "max_tokens": 4, "stream": True}
    body["messages"] = [{"role": "user", "content": "Sum up: " + "so it went on " * 150}]
    events = real.http.post("/v1/chat/completions", json=body).text.split("\n\n")
    assert events[0] == ": keep-alive"
    assert events[-2] == "data: [DONE]" and '"finish_reason":"length"' in events[-3]


def test_a_client_that_does_not_read_stops_the_model(real: Real) -> None:
    body = {"model": SMALL, "max_tokens": 2000, "ignore_eos": True, "stream": True}
    body |= {"logprobs": True, "top_logprobs": 20}  # 3 KB a token: what lies between is soon full
    content = real.http.build_request("POST", "/", json={**body, "messages": QUESTION}).content
    host, _, port = real.url.removeprefix("http://").partition(":")
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        line.connect((host, int(port)))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}"
        line.sendall(f"{head}\r\n\r\n".encode() + content)
        until(lambda: line.recv(1), 30)
        before = -1.0
        while before != (before := real.gauge("farthing_inter_token_latency_seconds_count")):
            time.sleep(0.5)
        assert real.gauge("farthing_engine_kv_bytes") > 0  # it waits, and others go on
        assert real.ask("Hi", model=SMALL, max_tokens=2).usage.completion_tokens == 2
        written = real.gauge("farthing_tokens_total")
    until(lambda: real.gauge("farthing_engine_kv_bytes") == 0, 30)
    assert real.gauge("farthing_tokens_total") - written < 1000


def test_a_deadline_ends_a_long_answer(real: Real) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        real.ask("Write a very long story.", max_tokens=4000, headers={"X-Budget-Latency-Ms": 1500})
    assert caught.value.status_code == 504
    until(lambda: real.gauge("farthing_engine_running") == 0, 30)


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "no-such-model"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, 400, "messages"),
        ({"max_tokens": 9000}, 400, "max_tokens"),
        ({"tools": [{"type": "function", "function": {}}]}, 400, "tools.0.function.name"),
        ({"messages": [{"role": "nobody", "content": "?"}]}, 400, "messages.0.role"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(
    real: Real, change: dict[str, Any], status: int, param: str
) -> None:
    body = {"model": LARGE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    response = real.http.post("/v1/chat/completions", json={**body, **change})
    assert response.status_code == status
    assert response.json()["error"]["param"] == param
    assert real.ask("Hi", max_tokens=4).usage.completion_tokens > 0


def test_predicted_prompts_begin_an_answer_and_leave_nothing_for_others(real: Real) -> None:
    model = "smollm2-135m-int8"
    text = " ".join(OWN) + " " + " ".join(f"Note {n}: item {n * n} is stored." for n in range(60))
    for n, predictor in enumerate(("layers-18", "layers-8", "layers-4")):
        asked = f"{n}. Here is a text. {text}\n\nWhat is stored under note 7?"
        policy = {"X-Policy": f"kv_prediction;predictor={predictor}"}
        found = real.ask(asked, model=model, headers=policy, max_tokens=8)
        line = found.usage.cost_details["models"][model]
        # A fifth is read exactly all the same, and what stands at both ends, and the question.
        assert 0.6 < line["predicted_tokens"] / line["prompt_tokens"] < 0.85
        assert found.model_extra["farthing"]["fidelity"] == "approximate"
        assert found.choices[0].message.content
        exact = real.ask(asked, model=model, max_tokens=8)
        assert exact.usage.prompt_tokens_details.cached_tokens < 64  # nothing of what was predicted
        assert "predicted_tokens" not in exact.usage.cost_details["models"][model]
    assert real.gauge("farthing_tokens_total", 'kind="predicted"') > 1000


def test_a_conversation_of_responses_says_what_the_same_chat_says(real: Real) -> None:
    limits: dict[str, Any] = {"model": SMALL, "max_output_tokens": 24, "temperature": 0}
    first = real.sdk.responses.create(input=OWN[0], **limits)
    asked = {"input": "And why is that?", "previous_response_id": first.id, **limits}
    second = real.sdk.responses.create(**asked)
    with real.sdk.responses.stream(**asked) as stream:
        events = list(stream)
    turns: list[Any] = [
        {"role": "user", "content": OWN[0]},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And why is that?"},
    ]
    chat = real.sdk.chat.completions.create(
        model=SMALL, messages=turns, max_tokens=24, temperature=0
    )
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == second.output_text == chat.choices[0].message.content != ""
    assert second.usage is not None and chat.usage is not None
    assert second.usage.input_tokens == chat.usage.prompt_tokens
    assert real.sdk.responses.retrieve(second.id).output_text == said


def test_a_response_that_is_cancelled_frees_its_model_and_is_kept(real: Real) -> None:
    stream = real.sdk.responses.create(
        model=LARGE, input=OWN[1], stream=True, extra_body={"ignore_eos": True}
    )
    seen = 0
    for event in stream:
        if event.type == "response.created":
            id = event.response.id
        seen += event.type == "response.output_text.delta"
        if seen == 3:
            cancelled = real.sdk.responses.cancel(id)
            break
    *_, last = stream
    assert last.type == "response.incomplete" and last.response.status == "cancelled"
    assert cancelled.status == "cancelled" and cancelled.output_text == last.response.output_text
    assert cancelled.usage is not None and 3 <= cancelled.usage.output_tokens < 200
    until(lambda: real.gauge("farthing_engine_running") == 0, 10)


class Colour(BaseModel):
    """What a model of 135M can be held to."""

    name: Literal["red", "green", "blue"]
    sure: bool


def test_a_response_is_parsed_as_its_schema_says(real: Real) -> None:
    found = real.sdk.responses.parse(
        model="economy", input="Which colour is the sky?", text_format=Colour, temperature=0
    )
    assert isinstance(found.output_parsed, Colour) and found.status == "completed"


TOOL = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}


def test_tools_are_called_in_both_newer_shapes(real: Real, claude: anthropic.Anthropic) -> None:
    question, name = "What is the weather in Oslo?", "weather"
    tool: Any = {"type": "function", "name": name, "parameters": TOOL, "strict": True}
    asked: dict[str, Any] = {
        "model": SMALL,
        "input": question,
        "tools": [tool],
        "temperature": 0,
        "tool_choice": {"type": "function", "name": name},
        "max_output_tokens": 64,
    }
    (call,) = real.sdk.responses.create(**asked).output
    assert call.type == "function_call" and call.name == name
    arguments = json.loads(call.arguments)
    assert arguments in ({"city": "Rome"}, {"city": "Oslo"})
    with real.sdk.responses.stream(**asked) as stream:
        last = stream.get_final_response()
    assert last.output[0].type == "function_call"
    assert last.output[0].arguments == call.arguments
    with claude.messages.stream(
        model=SMALL,
        max_tokens=64,
        extra_body={"temperature": 0},
        messages=[{"role": "user", "content": question}],
        tools=[{"name": name, "input_schema": TOOL}],
        tool_choice={"type": "tool", "name": name},
    ) as blocks:
        (block,) = blocks.get_final_message().content
    assert block.type == "tool_use" and (block.name, block.input) == (name, arguments)


@pytest.fixture
def claude(real: Real) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=real.url, api_key="none", max_retries=0) as client:
        yield client


def test_anthropics_client_reads_messages(real: Real, claude: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {
        "model": SMALL,
        "max_tokens": 24,
        "extra_body": {"temperature": 0},
        "system": "Be brief.",
        "messages": [{"role": "user", "content": OWN[0]}],
    }
    whole = claude.messages.create(**asked)
    chat = real.ask(
        OWN[0],
        model=SMALL,
        max_tokens=24,
        messages=[{"role": "system", "content": "Be brief."}, *asked["messages"]],
    )
    with claude.messages.stream(**asked) as stream:
        said = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert whole.content[0].text == said == last.content[0].text == chat.choices[0].message.content
    usage = whole.usage
    counted = claude.messages.count_tokens(**{k: asked[k] for k in ("model", "system", "messages")})
    assert counted.input_tokens == chat.usage.prompt_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
    word = said.split()[3]
    stopped = claude.messages.create(**asked, stop_sequences=[word])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)


def test_anthropics_client_knows_our_refusals(claude: anthropic.Anthropic) -> None:
    asked: Any = {"max_tokens": 8, "messages": [{"role": "user", "content": OWN[0]}]}
    with pytest.raises(anthropic.NotFoundError, match="nope"):
        claude.messages.create(model="nope", **asked)
    with pytest.raises(anthropic.APIStatusError) as refusal:
        claude.messages.create(model=LARGE, **asked, extra_headers={"X-Budget-Usd": "0"})
    assert refusal.value.status_code == 402
