"""The entropy plugin in a real vLLM: exact entropies, and stops exactly where they say."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.engines.embedded.sequence import EntropyWatch
from app.types import EntropyStop
from app.vllm_plugins import asks
from tests.prompts import OWN
from tests.vllm_servers import VLLMServer

pytestmark = [pytest.mark.vllm, pytest.mark.model]

STOP_ID = 17  # <reponame> or such: reserved in SmolLM2, and no answer holds it
LENGTH = 150  # tokens
_ids = itertools.count()


@dataclass
class Answer:
    """What came of one streamed completion."""

    tokens: list[int] = field(default_factory=list)
    bits: dict[int, float] = field(default_factory=dict)  # by the token's index
    mean: float | None = None
    stopped: tuple[str, int | None] | None = None
    lines: list[bytes] = field(default_factory=list)

    @property
    def entropies(self) -> list[float]:
        assert sorted(self.bits) == list(range(len(self.tokens)))
        return [self.bits[index] for index in range(len(self.tokens))]

    def read(self, line: bytes) -> None:
        self.lines.append(line)
        report = asks.parse_report(line)
        if report is not None:
            for index, bits in enumerate(report.bits, report.first):
                assert index not in self.bits
                assert index >= len(self.tokens)  # it comes before its token's chunk
                self.bits[index] = bits
            self.mean = report.mean if self.mean is None else self.mean
        elif line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                self.tokens += choice["token_ids"] or []
                if choice["finish_reason"]:
                    self.stopped = (choice["finish_reason"], choice["stop_reason"])


class Client:
    """A client of one server."""

    def __init__(self, server: VLLMServer) -> None:
        self.model = server.name
        self.http = httpx.Client(base_url=server.url, timeout=300)
        self.tokenizer = Tokenizer.from_file(str(server.folder / "tokenizer.json"))

    def prompt(self, text: str) -> list[int]:
        chat = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        return list(self.tokenizer.encode(chat, add_special_tokens=False).ids)

    def body(self, prompt: list[int], xargs: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": LENGTH,
            "temperature": 0,
            "stream": True,
            "return_token_ids": True,
            "ignore_eos": True,
            "vllm_xargs": xargs,
            **more,
        }

    def ask(
        self, prompt: list[int], rule: EntropyStop | None = None, call: str = "", **more: Any
    ) -> Answer:
        """Streams a completion, with entropies."""
        call = call or f"call-{next(_ids)}"
        given: dict[str, Any] = {asks.CALL: call}
        if rule is not None:
            given |= {asks.LEVEL: rule.level, asks.RISING: int(rule.rising)}
            given |= {asks.WINDOW: rule.window, asks.AFTER: rule.after, asks.STOP_ID: STOP_ID}
            more["stop_token_ids"] = [STOP_ID]
        return self.stream(self.body(prompt, given, **more), {asks.CALL_HEADER: call})

    def stream(self, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        answer = Answer()
        with self.http.stream("POST", "/v1/completions", json=body, headers=headers) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                answer.read(line.encode())
        assert answer.lines[-2:] == [b"data: [DONE]", b""]
        return answer

    def running(self) -> float:
        """Requests that the engine works on."""
        metrics = self.http.get("/metrics").text
        (line,) = re.findall(r"^vllm:num_requests_running{.*} (.+)$", metrics, re.MULTILINE)
        return float(line)

    def refused(self, xargs: dict[str, Any], **more: Any) -> str:
        more = {"stop_token_ids": [STOP_ID], "stream": False, **more}
        body = self.body([1, 2, 3], xargs, **more)
        response = self.http.post("/v1/completions", json=body)
        assert response.status_code == 400, response.text
        return str(response.json()["error"]["message"])


@pytest.fixture(scope="module")
def client(large_server: VLLMServer) -> Iterator[Client]:
    client = Client(large_server)
    yield client
    client.http.close()


@pytest.fixture(scope="module")
def reference(large_server: VLLMServer) -> PreTrainedModel:
    """transformers on the same folder."""
    model = AutoModelForCausalLM.from_pretrained(large_server.folder, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def plain(client: Client) -> dict[str, Answer]:
    """Answers to eight prompts at once, with their entropies and no stop."""
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda text: client.ask(client.prompt(text)), OWN[:8])
        return dict(zip(OWN, answers, strict=False))


@torch.inference_mode()
def logits(reference: PreTrainedModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """What each of these tokens of the answer is drawn from: [tokens, vocabulary], float64."""
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    rows: torch.Tensor = reference(ids).logits[0, len(prompt) - 1 :].double()
    return rows


def exact(rows: torch.Tensor) -> list[float]:
    logs = torch.log_softmax(rows, -1)
    bits: list[float] = (-(logs.exp() * logs).sum(-1) / math.log(2)).tolist()
    return bits


@pytest.mark.smoke
def test_a_hello_finds_the_plugin(client: Client) -> None:
    assert client.refused({asks.HELLO: 1}).startswith(f"{asks.MARKER} vllm=0.32.")


def test_to_a_stream_a_refusal_is_its_first_event(client: Client) -> None:
    body = client.body([1, 2, 3], {asks.HELLO: 1})
    response = client.http.post("/v1/completions", json=body)
    assert response.status_code == 200
    event, done, rest = response.text.split("\n\n")
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == 400
    assert (done, rest) == ("data: [DONE]", "")


GOOD = {asks.CALL: "x", asks.LEVEL: 2.0, asks.RISING: 1, asks.WINDOW: 5, asks.STOP_ID: STOP_ID}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (GOOD | {asks.CALL: 7}, asks.CALL),
        (GOOD | {asks.LEVEL: "2.0"}, asks.LEVEL),
        (GOOD | {asks.WINDOW: 0}, asks.WINDOW),
        (GOOD | {asks.RISING: 2}, asks.RISING),
        (GOOD | {asks.AFTER: -1}, asks.AFTER),
        (GOOD | {asks.STOP_ID: STOP_ID + 1}, "stop_token_ids"),
        ({asks.LEVEL: 2.0}, "needs"),
        ({asks.WINDOW: 2}, "needs"),
    ],
)
def test_malformed_asks_are_refused(client: Client, wrong: dict[str, Any], named: str) -> None:
    assert named in client.refused(wrong)


def test_a_stop_that_could_not_be_written_is_refused(client: Client) -> None:
    assert "structured outputs" in client.refused(GOOD, structured_outputs={"regex": "[a-z]+"})
    assert "n = 1" in client.refused({asks.CALL: "x"}, n=2, temperature=1)


def test_entropies_are_exact(
    client: Client,
    plain: dict[str, Answer],
    reference: PreTrainedModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worst, positions = 0.0, 0
    for text, answer in plain.items():
        assert answer.stopped == ("length", None)
        expected = exact(logits(reference, client.prompt(text), answer.tokens))
        positions += len(expected)
        differences = map(float.__sub__, answer.entropies, expected)
        worst = max(worst, *map(abs, differences))
    with capsys.disabled():
        sys.stdout.write(f"\n{positions} entropies, the worst off by {worst:.2g} bits\n")
    assert positions >= 1000
    assert worst < 1e-3


@pytest.mark.smoke
def test_entropies_are_those_of_the_server_s_own_logprobs(client: Client) -> None:
    prompt = client.prompt(OWN[0])
    asked = client.ask(prompt, max_tokens=3)
    sampling = {"temperature": 0, "max_tokens": 3, "logprobs": -1}
    body = {"model": client.model, "token_ids": prompt, "sampling_params": sampling}
    (choice,) = client.http.post("/inference/v1/generate", json=body).json()["choices"]
    assert choice["token_ids"] == asked.tokens
    for bits, position in zip(asked.entropies, choice["logprobs"]["content"], strict=True):
        every = {entry["token_id"]: entry["logprob"] for entry in position["top_logprobs"]}
        assert len(every) == client.tokenizer.get_vocab_size()
        expected = -sum(math.exp(log) * log for log in every.values()) / math.log(2)
        assert bits == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "rule",
    [
        EntropyStop(level=2.0, rising=True),
        EntropyStop(level=0.5, rising=False),
        EntropyStop(level=3.0, rising=True, window=1),
        EntropyStop(level=1.5, rising=True, window=3, after=40),
        EntropyStop(level=30.0, rising=True),
    ],
    ids=str,
)
def test_it_stops_exactly_where_the_rule_says(
    client: Client, plain: dict[str, Answer], rule: EntropyStop
) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(lambda text: client.ask(client.prompt(text), rule), plain)
        for whole, stopped in zip(plain.values(), asked, strict=True):
            watch = EntropyWatch(rule)
            crossings = (n for n, bits in enumerate(whole.entropies) if watch.crossed(bits))
            at = next(crossings, None)
            if at is None:
                assert (stopped.tokens, stopped.mean) == (whole.tokens, None)
                continue
            assert stopped.tokens == [*whole.tokens[:at], STOP_ID]
            assert stopped.stopped == ("stop", STOP_ID)
            window = whole.entropies[at + 1 - rule.window : at + 1]
            assert stopped.mean == pytest.approx(sum(window) / rule.window, abs=1e-3)
            assert stopped.entropies == pytest.approx(whole.entropies[: at + 1], abs=1e-3)


def test_some_of_these_rules_stop_and_some_do_not(plain: dict[str, Answer]) -> None:
    """Or the test above would show little."""
    for level, share in ((2.0, range(1, 9)), (30.0, range(1))):
        watches = [(EntropyWatch(EntropyStop(level, True)), answer) for answer in plain.values()]
        crossed = sum(any(map(watch.crossed, answer.entropies)) for watch, answer in watches)
        assert crossed in share


def test_a_prompt_that_is_read_in_pieces(client: Client, reference: PreTrainedModel) -> None:
    prompt = client.prompt("\n".join(OWN) * 2)
    assert len(prompt) > 600  # pieces of 256
    answer = client.ask(prompt, max_tokens=8)
    expected = exact(logits(reference, prompt, answer.tokens))
    assert answer.entropies == pytest.approx(expected, abs=1e-3)
    # Every piece's end would cross this level; only a token that is written may.
    at_once = EntropyStop(level=0.0, rising=True, window=1)
    stopped = client.ask(client.prompt("\n".join(reversed(OWN)) * 2), at_once)
    assert (stopped.tokens, stopped.stopped) == ([STOP_ID], ("stop", STOP_ID))
    assert list(stopped.bits) == [0]
    later = EntropyStop(level=0.0, rising=True, window=2)
    stopped = client.ask(client.prompt("\n".join(sorted(OWN)) * 2), later)
    assert (len(stopped.tokens), stopped.tokens[-1]) == (2, STOP_ID)


@pytest.mark.smoke
def test_seeded_prompts_that_are_read_in_pieces(client: Client) -> None:
    """vLLM's own runner ends the server there; ours draws as if each had been read at once."""
    prompts = [client.prompt(f"{n}. " + "\n".join(OWN[n:])) for n in range(3)]
    assert min(map(len, prompts)) > 256

    def ask(seed: int) -> tuple[list[int], int]:
        body = client.body(prompts[seed], {}, temperature=1.0, seed=seed, stream=False)
        answer = client.http.post("/v1/completions", json=body | {"max_tokens": 16})
        assert answer.status_code == 200, answer.text
        told = answer.json()
        cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
        return told["choices"][0]["token_ids"], cached

    with ThreadPoolExecutor(3) as pool:
        pieces = [*pool.map(ask, range(3))]
    for seed, (tokens, cached) in enumerate(pieces):
        again, found = ask(seed)  # most is in the cache by now: the rest is one piece
        assert len(prompts[seed]) - found <= 256 < len(prompts[seed]) - cached
        assert again == tokens
    assert client.ask(prompts[0], max_tokens=2).stopped == ("length", None)  # it lives


def test_the_stop_token_is_never_written_otherwise(client: Client) -> None:
    prompt = client.prompt(OWN[1])
    never = EntropyStop(level=99.0, rising=True)
    tempted = client.ask(prompt, never, max_tokens=6, logit_bias={STOP_ID: 100})
    assert STOP_ID not in tempted.tokens
    assert len(tempted.tokens) == 6
    body = client.body(prompt, {}, max_tokens=6, logit_bias={STOP_ID: 100})
    assert client.stream(body, {}).tokens == [STOP_ID] * 6


def test_drawn_tokens_are_the_same_with_and_without_asks(client: Client) -> None:
    keys: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": 7, "max_tokens": 40}
    prompt = client.prompt(OWN[2])
    without = client.stream(client.body(prompt, {}, **keys), {})
    never = EntropyStop(level=99.0, rising=True)
    assert client.ask(prompt, never, **keys).tokens == without.tokens


def test_a_request_without_asks_is_as_ever(client: Client, plain: dict[str, Answer]) -> None:
    prompt = client.prompt(OWN[0])
    for headers in ({}, {asks.CALL_HEADER: "nothing-asked"}):
        answer = client.stream(client.body(prompt, {}), headers)
        assert answer.tokens == plain[OWN[0]].tokens
        assert not any(line.startswith(b":") for line in answer.lines)
    # Asked for, but not by this header: told to nobody.
    answer = client.stream(client.body(prompt, {asks.CALL: "unheard"}), {})
    assert answer.tokens == plain[OWN[0]].tokens
    assert not answer.bits
    whole = client.http.post(
        "/v1/completions",
        json=client.body(prompt, {asks.CALL: "whole"}, stream=False),
        headers={asks.CALL_HEADER: "whole"},
    ).json()
    assert whole["choices"][0]["token_ids"] == plain[OWN[0]].tokens


def test_a_chat_is_reported_too(client: Client) -> None:
    call = "chat"
    body = client.body([], {asks.CALL: call}, max_tokens=5)
    body["messages"] = [{"role": "user", "content": OWN[0]}]
    del body["prompt"]
    answer = Answer()
    headers = {asks.CALL_HEADER: call}
    with client.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as stream:
        for line in stream.iter_lines():
            report = asks.parse_report(line.encode())
            if report is not None:
                answer.bits.update(enumerate(report.bits, report.first))
    assert sorted(answer.bits) == [0, 1, 2, 3, 4]


@pytest.mark.smoke
def test_a_call_whose_client_has_gone_is_forgotten(client: Client) -> None:
    prompt = client.prompt(OWN[3])
    body = client.body(prompt, {asks.CALL: "gone"}, max_tokens=1000)
    headers = {asks.CALL_HEADER: "gone"}
    with client.http.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        reports = filter(None, (asks.parse_report(line.encode()) for line in response.iter_lines()))
        assert next(reports).first == 0
    while client.running():
        time.sleep(0.05)
    # Its id is free: whoever takes it is told of tokens of its own, from the first on.
    again = client.ask(prompt, call="gone", max_tokens=5)
    assert len(again.entropies) == 5
