"""Mixed requests: every shape of answer, every policy, all kinds of budgets, some break off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.upstreams import script

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES, VECTORS = "/v1/responses", "/v1/messages", "/v1/embeddings"
WORDS = tuple(word for word in script.TEXT.split() if word.isascii())
_ASKED = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

AMPLE = "0.05"  # USD
SHORT, SHORTER, SHORTEST = "0.0008", "0.0006", "0.0004"  # less than a dear model's answer costs
TOO_LITTLE = "0.00005"  # less than a dear model's prompt costs


@dataclass(frozen=True)
class Wish:
    """One request, and how its client behaves."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    leaves: int | None = None  # after so many events; 0: as soon as a server works on it

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def budget(self) -> str | None:
        """USD, as it was sent."""
        return self.headers.get("X-Budget-Usd")


def mixed(count: int, seed: int = 1) -> list[Wish]:
    """So many, in an order of their own."""
    random = Random(seed)
    kinds = list(_kinds())
    found = [_wish(random, *kinds[number % len(kinds)]) for number in range(count)]
    random.shuffle(found)
    return found


def _kinds() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, model, and what is special: fields of the body; `_` before those of a Wish."""
    for model in ("small", "large", "economy", "swift", "foresight", "sturdy", "hosted"):
        for path in (CHAT, TEXT, RESPONSES, MESSAGES):
            yield path, model, {}
            yield path, model, {"stream": True}
    for model in ("large", "economy", "swift", "foresight"):
        for stream in (False, True):
            yield CHAT, model, {"stream": stream, "n": 2}
            yield TEXT, model, {"stream": stream, "_prompts": 3}
            for usd in (SHORT, SHORTER, SHORTEST):
                yield CHAT, model, {"stream": stream, "_usd": usd}
            yield CHAT, model, {"stream": stream, "_usd": TOO_LITTLE}
            yield CHAT, model, {"stream": stream, "_usd": SHORT, "_fallback": "strict"}
    for stream in (False, True):
        for taken in ("0.004", "0.00001"):  # of an answer's 0.016 s, and of its prompt's
            yield CHAT, "large", {"stream": stream, "_gpu": taken}
    yield from _policies()
    yield from _around()
    yield from _ends()
    yield TEXT, "large", {"echo": True}
    yield TEXT, "large", {"echo": True, "max_tokens": 0, "logprobs": 1}
    yield TEXT, "economy", {"echo": True}
    yield TEXT, "economy", {"best_of": 3, "n": 1}
    yield VECTORS, "vectors", {}
    yield VECTORS, "vectors", {"_prompts": 4, "_usd": AMPLE}
    yield VECTORS, "large", {}  # which embeds nothing
    yield CHAT, "nobody", {}
    yield CHAT, "small", {"temperature": 9}


def _policies() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Named beside a model, or by a header."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    yield CHAT, "entropy_switch/large", {"stream": True}
    yield CHAT, "large", {"_policy": "entropy_switch;raise_at=2.0;switch_at=(5 20)"}
    yield CHAT, "large", {"_policy": "economy", "stream": True}
    yield CHAT, "economy", {"_policy": "entropy_switch;raise_at=9.0;window=2"}
    yield CHAT, "guessed", {"_policy": "speculative;longest=2", "stream": True}
    yield CHAT, "large", {"_policy": "speculative"}  # which guesses nothing
    yield CHAT, "small", {"_policy": "kv_prediction", "stream": True}
    for stream in (True, False):
        mended = "kv_prediction;repair=?1;least=16;last=4"
        yield CHAT, "foreseen", {"_policy": mended, "stream": stream}
    yield CHAT, "economy", {"tools": tools}
    yield CHAT, "small", {"_policy": "nonsense"}


def _around() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Policies that decide around whole answers."""
    for model in ("ladder", "several", "polished", "brisk", "brief", "auto"):
        yield CHAT, model, {"stream": True}
        yield TEXT, model, {}
        yield CHAT, model, {"n": 2, "_usd": AMPLE}
        yield CHAT, model, {"stream": True, "_usd": SHORT}
        yield CHAT, model, {"stream": True, "_usd": AMPLE, "_leaves": 3}
    yield CHAT, "ladder", {"_policy": "ladder;threshold=0.999"}
    yield CHAT, "brief", {"_long": True}
    yield CHAT, "auto", {"_quality": "0.4", "stream": True}
    yield CHAT, "large", {"_policy": "route;share=1"}


def _ends() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Answers that break off, or of which the client does not learn the price."""
    for path in (CHAT, TEXT, RESPONSES, MESSAGES):
        yield path, "slow", {"stream": True, "_leaves": 5, "_usd": AMPLE}
        yield path, "frail", {"stream": True, "_usd": AMPLE}
    for policy in ("direct", "entropy_switch;small=slow;large=large"):
        yield CHAT, "slow", {"_leaves": 0, "_usd": AMPLE, "_policy": policy}
    for stream in (False, True):
        yield CHAT, "slow", {"stream": stream, "_latency": "200", "_usd": AMPLE}
        yield CHAT, "frail", {"stream": stream, "_usd": AMPLE}
    yield CHAT, "large", {"stream": True, "stream_options": None}
    yield CHAT, "economy", {"stream": True, "stream_options": None}
    yield CHAT, "hosted", {"stream": True, "_leaves": 2, "_usd": AMPLE}


def _wish(random: Random, path: str, model: str, special: dict[str, Any]) -> Wish:
    fields = dict(special)
    ours = {name: fields.pop(name) for name in special if name.startswith("_")}
    names = {"_usd": "X-Budget-Usd", "_fallback": "X-Budget-Fallback", "_policy": "X-Policy"}
    names["_gpu"] = "X-Budget-Gpu-Seconds"
    names["_quality"] = "X-Budget-Quality"
    names["_latency"] = "X-Budget-Latency-Ms"
    headers = {names[name]: value for name, value in ours.items() if name in names}
    text = " ".join(random.choices(WORDS, k=random.randint(12, 40)))
    if "_long" in ours:  # what is asked about stands in a paragraph of its own
        text = f"{' '.join(random.choices(WORDS, k=60))}.\n\n{text}"
    body: dict[str, Any] = {"model": model, "temperature": 0, **_asked(path, text, ours)}
    length = "max_output_tokens" if path == RESPONSES else "max_tokens"
    if ours.get("_leaves") == 0:
        body["seed"] = random.randrange(2**40)
    if path != VECTORS:
        body[length] = random.choice((20, 40, 60))
    if fields.get("stream") and path in (CHAT, TEXT):
        body["stream_options"] = {"include_usage": True}
    return Wish(path, body | fields, headers, ours.get("_leaves"))


def _asked(path: str, text: str, ours: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    if path in (CHAT, MESSAGES):
        return {"messages": messages}
    if path == RESPONSES:
        return {"input": text}
    many = ours.get("_prompts")
    if path == VECTORS:
        return {"input": text if many is None else [text] * many}
    asked = _ASKED.format(text)
    return {"prompt": asked if many is None else [asked] * many}
