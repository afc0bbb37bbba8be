"""Several answers, vectors and tokens of real models, asked for with the official client."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest

from tests.real.real import LARGE, QUESTION, Real

pytestmark = pytest.mark.model


@pytest.fixture
def sdk(real: Real) -> openai.OpenAI:
    return real.sdk


def chat(sdk: openai.OpenAI, **fields: Any) -> Any:
    given = {"model": LARGE, "messages": QUESTION, "max_tokens": 12, "seed": 7}
    return sdk.chat.completions.create(**{**given, **fields})


def test_each_choice_is_what_its_seed_gives_alone_and_the_prompt_is_read_once(
    sdk: openai.OpenAI,
) -> None:
    several = chat(sdk, n=3)
    texts = [choice.message.content for choice in several.choices]
    assert len(set(texts)) == 3
    assert texts[1] == chat(sdk, seed=8).choices[0].message.content
    used = several.usage.cost_details["models"][LARGE]
    prompt = several.usage.prompt_tokens
    assert used["prompt_tokens"] == 3 * prompt
    assert used["cached_tokens"] >= 2 * (prompt - 1)
    assert several.usage.completion_tokens == used["completion_tokens"] <= 36


def test_choices_of_a_policy_stream_side_by_side(sdk: openai.OpenAI) -> None:
    whole = chat(sdk, model="economy", n=2, temperature=0)
    texts, order = {0: "", 1: ""}, []
    options = {"include_usage": True}
    for event in chat(
        sdk, model="economy", n=2, temperature=0, stream=True, stream_options=options
    ):
        for choice in event.choices:
            texts[choice.index] += choice.delta.content or ""
            order.append(choice.index)
        usage = event.usage
    assert list(texts.values()) == [choice.message.content for choice in whole.choices]
    assert order != sorted(order)
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_a_budget_is_kept_and_divided(sdk: openai.OpenAI) -> None:
    full = chat(sdk, n=3, max_tokens=32)
    budget = full.usage.cost * 1.2  # of which each choice is to hold its prompt uncached
    answer = chat(sdk, n=3, max_tokens=64, extra_headers={"X-Budget-Usd": f"{budget:.12f}"})
    assert 0 < answer.usage.cost <= budget
    assert all(choice.message.content for choice in answer.choices)


def test_several_prompts_the_best_of_several_and_a_score(sdk: openai.OpenAI) -> None:
    prompts = ["The capital of France is", "Two and two is"]
    given = {"model": LARGE, "prompt": prompts, "max_tokens": 5, "logprobs": 1, "seed": 3}
    drawn = sdk.completions.create(**given, n=3)
    assert [choice.index for choice in drawn.choices] == list(range(6))
    best = sdk.completions.create(**given, n=1, best_of=3)

    def mean(choice: Any) -> float:
        logprobs: list[float] = choice.logprobs.token_logprobs
        return math.fsum(logprobs) / len(logprobs)

    for at in (0, 1):
        likeliest = max(drawn.choices[3 * at : 3 * at + 3], key=mean)
        assert best.choices[at].text == likeliest.text
    greedy = {**given, "temperature": 0}
    answered = sdk.completions.create(**greedy)
    texts = [prompt + one.text for prompt, one in zip(prompts, answered.choices, strict=True)]
    scored = sdk.completions.create(**{**greedy, "prompt": texts, "max_tokens": 0}, echo=True)
    for before, after in zip(answered.choices, scored.choices, strict=True):
        assert after.text.endswith(before.text)
        told = after.logprobs.token_logprobs[-5:]
        assert told == pytest.approx(before.logprobs.token_logprobs, abs=1e-3)


def test_texts_that_say_the_same_lie_close(sdk: openai.OpenAI) -> None:
    texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Interest rates rose again."]
    one, like, other = sdk.embeddings.create(model=LARGE, input=texts).data
    assert math.sqrt(math.fsum(x * x for x in one.embedding)) == pytest.approx(1, abs=1e-5)

    def cosine(a: Any, b: Any) -> float:
        return math.fsum(x * y for x, y in zip(a.embedding, b.embedding, strict=True))

    assert cosine(one, like) > cosine(one, other) + 0.02
    plain = sdk.embeddings.create(model=LARGE, input=texts[0], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(one.embedding, abs=1e-6)


def test_a_chat_is_told_token_by_token(real: Real, sdk: openai.OpenAI) -> None:
    asked = {"model": "economy", "messages": QUESTION}
    told = real.http.post("/tokenize", json=asked).json()
    assert told["count"] == chat(sdk).usage.prompt_tokens == len(told["tokens"])
    body = {"model": LARGE, "tokens": told["tokens"]}
    text = real.http.post("/detokenize", json=body).json()["prompt"]
    assert QUESTION[0]["content"] in text and text.startswith("<|im_start|>")
    assert sdk.models.retrieve("economy").id == "economy"
