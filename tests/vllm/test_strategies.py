"""Policies around whole answers, over two real vLLM servers."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.prompts import OWN
from tests.vllm.two_servers import LARGE, SMALL, ByHand, asked, until

pytestmark = [pytest.mark.vllm, pytest.mark.model]

QUESTION = OWN[0]
CONTEXT = " ".join(
    f"The store house number {n} on the long road by the river keeps item {n * n} of the"
    f" collection in the room that looks to the south."
    for n in range(24)
)


def content(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def own(server: ByHand, prompt: str, tokens: int = 48) -> str:
    """What the server says without us."""
    messages = [{"role": "user", "content": prompt}]
    body = {"messages": messages, "temperature": 0, "max_tokens": tokens}
    return str(server.post("/v1/chat/completions", body)["choices"][0]["message"]["content"])


def paid(answer: dict[str, Any], model: str) -> dict[str, Any]:
    """What this model was paid for."""
    details: dict[str, Any] = answer["usage"]["cost_details"]["models"].get(model, {})
    return details


@pytest.fixture(autouse=True)
def nothing_stays_open(small: ByHand, large: ByHand) -> Any:
    yield
    until(lambda: small.running() + large.running() == 0, 10)


@pytest.mark.smoke
@pytest.mark.parametrize(("threshold", "kind"), [(0.0, "keep"), (1.0, "escalate")])
def test_a_cascade_gives_the_answer_of_one_of_its_models(
    gateway: httpx.Client, small: ByHand, large: ByHand, threshold: float, kind: str
) -> None:
    policy = {"name": "cascade", "models": [SMALL, LARGE], "threshold": threshold}
    answer = asked(gateway, QUESTION, model=LARGE, policy=policy, headers={"X-Debug": "1"})
    writer = SMALL if kind == "keep" else LARGE
    assert content(answer) == own(small if kind == "keep" else large, QUESTION)
    told = answer["farthing"]
    assert {model: n > 0 for model, n in told["models"].items() if n} == {writer: True}
    assert kind in {each["kind"] for each in told["switches"]}
    assert told["fidelity"] == "approximate"
    assert paid(answer, SMALL)["completion_tokens"] > 0
    assert bool(paid(answer, LARGE)) == (kind == "escalate")


def test_the_best_of_several_is_one_of_them(gateway: httpx.Client) -> None:
    policy = {"name": "best_of_n", "n": 3, "choose": "logprob"}
    answer = asked(gateway, QUESTION, model=SMALL, policy=policy, seed=7)
    decided = answer["farthing"]["decided"]
    assert (decided["kind"], decided["answers"]) == ("select", 3)
    texts = {
        content(asked(gateway, QUESTION, model=SMALL, temperature=0.7, seed=7 + n))
        for n in range(3)
    }
    assert content(answer) in texts
    assert paid(answer, SMALL)["completion_tokens"] > answer["usage"]["completion_tokens"]


def test_a_refined_answer_is_paid_for_in_all_its_versions(gateway: httpx.Client) -> None:
    policy = {"name": "refine", "rounds": 1}
    answer = asked(gateway, QUESTION, model=SMALL, policy=policy)
    assert answer["farthing"]["decided"]["kind"] == "refine"
    assert content(answer)
    assert paid(answer, SMALL)["completion_tokens"] > answer["usage"]["completion_tokens"]


@pytest.mark.smoke
def test_a_long_prompt_is_shortened(gateway: httpx.Client) -> None:
    asked_of = f"{CONTEXT}\n\nWhich item does house number 7 keep?"
    policy = {"name": "compress", "target": LARGE, "scorer": SMALL, "ratio": 0.5, "least": 64}
    answer = asked(gateway, asked_of, model=LARGE, policy=policy, max_tokens=16)
    whole = asked(gateway, asked_of, model=LARGE, max_tokens=16)
    dropped = answer["farthing"]["decided"]["dropped_tokens"]
    read, all_of_it = paid(answer, LARGE)["prompt_tokens"], whole["usage"]["prompt_tokens"]
    assert dropped > 0 and read == all_of_it - dropped
    assert read == pytest.approx(0.5 * all_of_it, rel=0.1)
    assert paid(answer, SMALL)["completion_tokens"] == 0  # it only told what is likely


def test_a_precision_answers_in_its_own_words(gateway: httpx.Client, large: ByHand) -> None:
    policy = {"name": "precision", "models": [LARGE, SMALL]}
    answer = asked(gateway, QUESTION, model=LARGE, policy=policy)
    decided = answer["farthing"]["decided"]
    assert decided["kind"] == "precision"
    assert list(answer["usage"]["cost_details"]["models"]) == [decided["model"]]
    if decided["model"] == LARGE:
        assert content(answer) == own(large, QUESTION)


@pytest.mark.parametrize(
    "policy",
    [
        *({"name": name} for name in ("cascade", "best_of_n", "refine", "compress")),
        {"name": "precision", "models": [LARGE, SMALL]},
    ],
    ids=lambda policy: str(policy["name"]),
)
def test_who_leaves_leaves_nothing_running(gateway: httpx.Client, policy: dict[str, Any]) -> None:
    body = {
        "model": LARGE,
        "messages": [{"role": "user", "content": f"{CONTEXT}\n\nTell more of it."}],
        "max_tokens": 400,
        "ignore_eos": True,
        "stream": True,
        "policy": policy,
    }
    # Some stream at once, others have nothing to show for a while.
    with (
        suppress(httpx.ReadTimeout),
        gateway.stream("POST", "/v1/chat/completions", json=body, timeout=1.5) as answer,
    ):
        assert answer.status_code == 200
        next(answer.iter_lines())
