"""Entropy switching across two real vLLM servers: one answer, token for token what they write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.engines.remote.rendering import Renderings
from app.engines.vllm import VllmServer
from app.types import Call, Decoding, Sampling
from tests.prompts import OWN
from tests.vllm.two_servers import LARGE, SMALL, ByHand, asked, catalog, events
from tests.vllm_servers import VLLMServer

pytestmark = [pytest.mark.vllm, pytest.mark.model]

NEVER = {"name": "entropy_switch", "small": SMALL, "large": LARGE}
FOREIGN = "Repeat these words: καλημέρα 😀😃 naïve 日本語 — and go on with others like them."


def content(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize("prompt", [pytest.param(OWN[0], marks=pytest.mark.smoke), *OWN[1:3]])
def test_a_threshold_that_is_never_reached_leaves_the_answer_to_one_model(
    gateway: httpx.Client, small: ByHand, large: ByHand, prompt: str
) -> None:
    for server, options in (
        (small, {"raise_at": "inf"}),
        (large, {"start": "large", "lower_at": "-inf"}),
    ):
        answer = asked(gateway, prompt, model=LARGE, policy={**NEVER, **options})
        messages = [{"role": "user", "content": prompt}]
        own = server.post(
            "/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 48}
        )
        assert content(answer) == own["choices"][0]["message"]["content"]
        assert len(answer["farthing"]["models"]) == 1
        assert answer["usage"]["completion_tokens"] == own["usage"]["completion_tokens"]


@pytest.mark.smoke
def test_one_stream_comes_from_both(gateway: httpx.Client) -> None:
    writers: set[str] = set()
    for prompt in OWN[:6]:
        body = {
            "model": "economy",
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 64,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"X-Debug": "1"}
        with gateway.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            found = events(answer.iter_lines())
        finish, usage = found[-2], found[-1]["usage"]
        switched = [event["farthing"]["switch"] for event in found if _switch(event)]
        assert switched == finish["farthing"]["switches"]
        assert sum(finish["farthing"]["models"].values()) == usage["completion_tokens"]
        details = usage["cost_details"]["models"]
        assert usage["cost"] == pytest.approx(sum(model["cost"] for model in details.values()))
        for event in found:
            told = event.get("farthing", {})
            bits = told.get("entropy")
            assert bits is None or isinstance(bits, float) or told == finish["farthing"]
        assert finish["farthing"].get("entropy") == "exact"
        if switched:
            writers |= {event["farthing"].get("model") for event in found if "farthing" in event}
            # Each run of a model reads what the others wrote before it.
            assert details[LARGE]["prompt_tokens"] > usage["prompt_tokens"]
    assert {SMALL, LARGE} <= writers


def _switch(event: dict[str, Any]) -> bool:
    return "switch" in event.get("farthing", {})


@pytest.mark.parametrize("at", [(1,), (7,), (20,), (5, 11), (3, 4, 30)])
def test_a_forced_switch_is_the_concatenation_done_by_hand(
    gateway: httpx.Client, small: ByHand, large: ByHand, at: tuple[int, ...]
) -> None:
    for prompt in OWN[:4]:
        ids, written = small.prompt(prompt), list[int]()
        for number, (start, end) in enumerate(zip((0, *at), (*at, 40), strict=True)):
            writer = (small, large)[number % 2]
            written += writer.write(ids + written, end - start)
            if written[-1] == 2:  # the model's own end
                break
        answer = asked(
            gateway, prompt, max_tokens=40, policy={"name": "economy", "switch_at": list(at)}
        )
        assert content(answer) == small.text(written)
        assert answer["usage"]["completion_tokens"] == len(written)


def test_a_switch_amid_a_character_loses_and_doubles_nothing(
    gateway: httpx.Client, small: ByHand, large: ByHand
) -> None:
    ids = small.prompt(FOREIGN)
    for at in range(1, 24):
        written = small.write(ids, at)
        written += large.write(ids + written, 32 - at)
        policy = {"name": "economy", "switch_at": [at]}
        assert content(asked(gateway, FOREIGN, max_tokens=32, policy=policy)) == small.text(written)


def test_a_stop_string_may_span_a_switch(
    gateway: httpx.Client, small: ByHand, large: ByHand
) -> None:
    for prompt in OWN[:3]:
        ids = small.prompt(prompt)
        before = small.write(ids, 12)
        after = large.write(ids + before, 12)
        head, whole = small.text(before), small.text(before + after)
        stop = whole[len(head) - 4 : len(head) + 4]
        policy = {"name": "economy", "switch_at": [12]}
        answer = asked(gateway, prompt, max_tokens=24, policy=policy, stop=[stop])
        assert content(answer) == whole[: whole.index(stop)]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["choices"][0]["stop_reason"] == stop


def test_what_was_read_before_is_read_from_the_cache(gateway: httpx.Client) -> None:
    prompt = " ".join(f"Point {n} is about harbours and their lights." for n in range(40))
    policy = {"name": "economy", "switch_at": [10, 20, 30]}
    answer = asked(gateway, prompt + " Sum up.", max_tokens=40, policy=policy, ignore_eos=True)
    details = answer["usage"]["cost_details"]["models"]
    prompt_tokens = answer["usage"]["prompt_tokens"]
    for model in (SMALL, LARGE):
        assert details[model]["prompt_tokens"] > 2 * prompt_tokens
        assert details[model]["cached_tokens"] > prompt_tokens - 64


async def test_bounds_from_the_likeliest_hold_the_exact_entropy(small_server: VLLMServer) -> None:
    """At 1,000 positions, on one server: by the plugin, and by 20 logprobs."""
    card = catalog(small_server, small_server).models[SMALL]
    server = VllmServer(card, small_server.url, None, Renderings())
    positions = 0
    try:
        await server.probe()
        able = server.abilities
        assert able is not None and able.reports
        for prompt in OWN:
            messages = ({"role": "user", "content": prompt},)
            call = Call(
                SMALL,
                messages=messages,
                max_tokens=100,
                sampling=Sampling(temperature=0, ignore_eos=True),
            ).decoded(Decoding(entropy=True))
            server.abilities = able
            exact = await _entropies(server, call)
            server.abilities = replace(able, reports=False)
            bounds = await _entropies(server, call)
            assert len(exact) == len(bounds) == 100
            for (low, high), (bits, same) in zip(bounds, exact, strict=True):
                assert bits == same
                assert low - 1e-3 <= bits <= high + 1e-3
            positions += len(exact)
            if positions >= 1000:
                break
    finally:
        await server.aclose()
    assert positions >= 1000


async def _entropies(server: VllmServer, call: Call) -> list[tuple[float, float]]:
    found = []
    async for chunk in server.generate(call):
        found += [token.entropy for token in chunk.tokens]
    assert None not in found
    return [entropy for entropy in found if entropy is not None]
