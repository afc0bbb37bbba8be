"""The ways to answer that are compared, and what one of them answered over HTTP."""

from __future__ import annotations

import json
import string
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from app.bench.grading import Question
from app.errors import ConfigError

EXAMPLES = "{examples}"  # in an option: the examples that the question itself gives
FIRST_TOKENS = 8  # of an answer, whose entropies are kept: as many as the policy `route` looks at
_NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Way:
    """A model or preset, or a policy with options over it; `n` answers to each request."""

    name: str
    model: str
    policy: Mapping[str, Any] = field(default_factory=dict)  # as the body has it; empty: none
    n: int = 1

    @property
    def by_example(self) -> bool:
        """Whether it is only for questions that give examples."""
        return EXAMPLES in json.dumps(self.policy)


def parse(text: str) -> Way:
    """`NAME=MODEL` or `NAME=MODEL;POLICY;option=value;...`: values are JSON, or else text. `n=5`
    right behind the model asks for that many answers at once. Raises ConfigError."""
    name, equals, rest = text.partition("=")
    model, *parts = rest.split(";")
    if not (name and equals and model):
        raise ConfigError(f"--way: must look like NAME=MODEL;POLICY;option=value, not {text!r}")
    n, policy = 1, dict[str, Any]()
    if parts and parts[0].startswith("n="):
        n = value_of(parts.pop(0)[2:])
        if not isinstance(n, int) or n < 1:
            raise ConfigError(f"--way {name}: n: must be a whole number from 1")
    if parts:
        policy["name"] = parts[0]
        for part in parts[1:]:
            option, equals, value = part.partition("=")
            if not (option and equals):
                raise ConfigError(f"--way {name}: {part!r} must look like option=value")
            policy[option] = value_of(value)
    return Way(name, model, policy, n)


def named(text: str) -> Way:
    """The same, or the name of a model or preset alone. Raises ConfigError."""
    name = text.partition(";")[0]
    return parse(text if "=" in name else f"{name}={text}")


def value_of(text: str) -> Any:
    """An option's value: JSON, or else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class Sampled:
    """How all of them are asked."""

    temperature: float = 0.0
    spread: float = 0.7  # the temperature where several answers are asked for at once


@dataclass
class Answered:
    """What came of one question put in one way."""

    task: str
    question: int
    seed: int
    way: str
    asked: str  # what the way is, as JSON: a way that has changed since is not the same
    put: int  # a checksum of how the question was put
    texts: list[str] = field(default_factory=list)
    finishes: list[str] = field(default_factory=list)
    cost: float | None = None  # USD
    gpu_seconds: float | None = None  # idealized, of all accelerators
    prompt: int = 0  # tokens that the client sees
    completion: int = 0
    written: int = 0  # tokens of all that was written for it, seen or not
    entropies: list[float] = field(default_factory=list)  # bits of its first tokens, where told;
    # of bounds the lower ones
    scarce: bool = False  # it is what it is for want of money
    cut: str = ""  # why it is not whole: budget, deadline
    first_s: float | None = None  # to the first text
    seconds: float | None = None  # to the end
    farthing: dict[str, Any] = field(default_factory=dict)
    failed: str = ""  # why there is no answer

    @property
    def key(self) -> tuple[str, int, int, str]:
        return self.task, self.question, self.seed, self.way

    @property
    def choices(self) -> int:
        """How many texts were asked for."""
        return int(json.loads(self.asked)[2])

    def as_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def tag(question: Question, seed: int, way: str) -> str:
    """Letters ahead of a question that are another in each way and for each seed, so that no way
    finds more of its prompt in a cache than another. Digits might be taken for part of a sum."""
    told = f"{question.task.name}/{question.number}/{seed}/{way}"
    number, letters = zlib.crc32(told.encode()), ""
    for _ in range(4):
        number, at = divmod(number, 26)
        letters += string.ascii_uppercase[at]
    return letters


def described(way: Way, sampled: Sampled) -> str:
    """What an answer is bound to, beside its question and seed."""
    return json.dumps([way.model, way.policy, way.n, asdict(sampled)], sort_keys=True)


def checksum(question: Question) -> int:
    """Of all that is asked of every way alike."""
    task = question.task
    return zlib.crc32(json.dumps([question.messages, task.max_tokens, task.stop]).encode())


def body(question: Question, way: Way, seed: int, sampled: Sampled) -> dict[str, Any]:
    """The request, without the tools of streaming."""
    first, *others = question.messages
    marked = {**first, "content": f"({tag(question, seed, way.name)}) {first['content']}"}
    asked: dict[str, Any] = {
        "model": way.model,
        "messages": [marked, *others],
        "temperature": sampled.temperature if way.n == 1 else sampled.spread,
        "max_tokens": question.task.max_tokens,
        "seed": seed,
    }
    if question.task.stop:
        asked["stop"] = list(question.task.stop)
    if way.n > 1:
        asked["n"] = way.n
    if way.policy:
        asked["policy"] = _filled(way.policy, question.examples)
    return asked


def _filled(value: Any, examples: str) -> Any:
    if isinstance(value, str):
        return value.replace(EXAMPLES, examples)
    if isinstance(value, Mapping):
        return {name: _filled(inner, examples) for name, inner in value.items()}
    return [_filled(inner, examples) for inner in value] if isinstance(value, list) else value


async def ask(
    http: httpx.AsyncClient,
    question: Question,
    way: Way,
    seed: int,
    sampled: Sampled,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> Answered:
    """One request, streamed, with these headers too. What the gateway refuses or breaks off is a
    failure that is told in the answer. Raises httpx.ConnectError where there is no gateway."""
    task, number = question.task.name, question.number
    found = Answered(task, number, seed, way.name, described(way, sampled), checksum(question))
    asked = body(question, way, seed, sampled)
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    began = time.perf_counter()
    try:
        async with http.stream(
            "POST", "/v1/chat/completions", json=asked, headers={"X-Debug": "1", **headers}
        ) as answer:
            if answer.is_error:
                await answer.aread()
                found.failed = f"{answer.status_code}: {answer.text[:300]}"
                found.scarce = answer.status_code == httpx.codes.PAYMENT_REQUIRED
                return found
            texts, ends = [""] * way.n, [""] * way.n
            async for event in _events(answer):
                if "error" in event:
                    found.failed = json.dumps(event["error"])[:300]
                    return found
                _take(found, event, texts, ends, began)
    except httpx.ConnectError:
        raise
    except httpx.HTTPError as error:
        found.failed = f"{type(error).__name__}: {error}"
        return found
    found.seconds = time.perf_counter() - began
    found.texts, found.finishes = texts, ends
    if not all(ends):
        found.failed = "the stream ended before the answer did"
    return found


async def _events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        name, _, data = line.partition(":")
        if name == "data" and data.strip() != "[DONE]":
            yield json.loads(data)


def _take(
    found: Answered, event: Mapping[str, Any], texts: list[str], ends: list[str], began: float
) -> None:
    for choice in event.get("choices", ()):
        at, text = choice["index"], (choice.get("delta") or {}).get("content") or ""
        if text and found.first_s is None:
            found.first_s = time.perf_counter() - began
        texts[at] += text
        ends[at] = choice.get("finish_reason") or ends[at]
        found.cut = (choice.get("finish_details") or {}).get("reason") or found.cut
        found.scarce = found.scarce or found.cut == "budget"
    ours = event.get("farthing") or {}
    if "policy" in ours:  # the summary, with the finish
        found.farthing = ours
        switches = ours.get("switches", ())
        steered = any(each["kind"] == "steer" or each.get("steered") for each in switches)
        found.scarce = found.scarce or steered
    elif (bits := ours.get("entropy")) is not None and len(found.entropies) < FIRST_TOKENS:
        found.entropies.append(bits if isinstance(bits, int | float) else bits[0])
    if usage := event.get("usage"):
        found.cost = float(usage["cost"])
        found.gpu_seconds = usage["cost_details"].get("gpu_seconds")
        found.prompt, found.completion = usage["prompt_tokens"], usage["completion_tokens"]
        found.written = sum(
            each["completion_tokens"] for each in usage["cost_details"]["models"].values()
        )
