"""vLLM 0.32's requests and answers, as far as a gateway sees them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.vllm_plugins import asks
from tests.upstreams import script
from tests.upstreams.vocabulary import END, SIZE, decode, piece

FINGERPRINT = "vllm-0.32.0-0ef8a718"
Event = dict[str, Any]


class Refused(Exception):
    """vLLM's error answer; `late`: of a stream, it comes when status 200 has gone out."""

    def __init__(self, status: int, message: str, param: str | None = None, late: bool = False):
        self.status, self.late = status, late
        kind = {404: "NotFoundError"}.get(status, "BadRequestError")
        error = {"message": message, "type": kind, "param": param, "code": status}
        self.body = {"error": error}


@dataclass
class Generation:
    """One request for an answer."""

    model: str  # whose script: small or large
    body: dict[str, Any]
    prompt: list[int]
    chat: bool
    request_id: str = ""
    plugin: bool = False
    asked: Sequence[str] = ()  # of other plugins' arguments, those that this server hears
    cached: int = 0
    deltas: Sequence[Event] | None = None  # of a chat: what it says instead of the script
    further: Event = field(default_factory=dict)  # fields that only this server knows
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        name = self.request_id or uuid.uuid4().hex[:16]
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{name}"
        self.choices = int(self.body.get("n") or 1)
        self.whole = not self.body.get("stream")
        options = self.body.get("stream_options") or {}
        self.usage_last = bool(options.get("include_usage"))
        self.usage_always = self.usage_last and bool(options.get("continuous_usage_stats"))
        self._check()
        xargs = self.body.get("vllm_xargs") or {}
        ours = (*asks.SPECULATION, *asks.PREDICTION)
        heard = {name for name in xargs if name in self.asked or (self.plugin and name not in ours)}
        self.xargs = {name: xargs[name] for name in heard}
        limits = (self.body.get("max_completion_tokens"), self.body.get("max_tokens"))
        room = script.CONTEXT - len(self.prompt)
        self.limit = next((limit for limit in limits if limit is not None), room)
        if not self.chat and limits == (None, None):
            self.limit = 16
        if self.body.get("echo"):
            self.limit = max(self.limit, 1)  # it writes a token that nobody sees
        self.placed = self._placed()
        if self.limit > room:
            raise Refused(
                400,
                f"This model's maximum context length is {script.CONTEXT} tokens. However, you"
                f" requested {self.limit} output tokens and your prompt contains"
                f" {len(self.prompt)} input tokens.",
                "input_tokens",
            )
        self.done = script.position(self.prompt)

    def _check(self) -> None:
        for id in self.body.get("logit_bias") or {}:
            if int(id) >= SIZE:
                raise Refused(
                    400,
                    f"token_id(s) [{id}] in logit_bias contain out-of-vocab token ids."
                    f" Vocabulary size: {SIZE} (parameter=logit_bias, value=[{id}])",
                    "logit_bias",
                    late=True,
                )
        most = self.body.get("top_logprobs") if self.chat else self.body.get("logprobs")
        if (most or 0) > script.MOST_LOGPROBS:
            text = f"Requested sample logprobs of {most}, which is greater than max allowed: 20"
            raise Refused(400, text, "logprobs", late=True)
        if self.plugin and asks.HELLO in (self.body.get("vllm_xargs") or {}):
            raise Refused(400, f"{asks.MARKER} vllm=0.32.0", late=True)

    def _placed(self) -> asks.Placed | None:
        """Of a prompt that is predicted: how much, and how much is computed beside it."""
        if asks.KV not in self.xargs:
            return None
        computed = int(self.xargs.get(asks.KV_FIRST, 0))
        predicted = len(self.prompt) - int(self.xargs[asks.KV_LAST]) - computed
        placed = asks.Placed(max(predicted, 0), computed)
        self.cached = placed.predicted + placed.computed
        return placed

    def written(self) -> Iterator[tuple[int, str, str | None, Any]]:
        """Each token: its id, the text it completes, finish_reason and stop_reason."""
        stops = set(self.body.get("stop_token_ids") or ())
        ids = script.rest(self.done)
        if self.body.get("ignore_eos"):
            ids = ids[:-1] + [id for id in script.ANSWER for _ in range(self.limit)]
        shown = self._opening()
        for number, id in enumerate(ids[: self.limit]):
            stop_id = self._stop_id(number, id)
            id = id if stop_id is None else stop_id
            text = shown.push(id)
            if id in stops or (id == END and not self.body.get("ignore_eos")):
                yield id, "", "stop", id if id in stops else None
                return
            yield id, text, "length" if number + 1 == self.limit else None, None

    def _stop_id(self, number: int, id: int) -> int | None:
        """The reserved token, where our plugin would end the call here."""
        if asks.LEVEL not in self.xargs:
            return None
        window = int(self.xargs[asks.WINDOW])
        if number + 1 < max(window, int(self.xargs[asks.AFTER])):
            return None
        level, rising = float(self.xargs[asks.LEVEL]), int(self.xargs[asks.RISING])
        mean = self.mean(number, window)
        crosses = mean >= level if rising else mean <= level
        return int(self.xargs[asks.STOP_ID]) if crosses else None

    def mean(self, number: int, window: int) -> float:
        last = range(self.done + number + 1 - window, self.done + number + 1)
        return sum(script.entropy(self.model, index) for index in last) / window

    def _opening(self) -> _Shown:
        """vLLM repeats what stands before an unfinished character once that is whole."""
        tail = self.prompt[-6:]
        return _Shown(tail if decode(tail).endswith("\ufffd") else [])

    def counts(self, written: int, last: bool = False) -> Event:
        prompt = len(self.prompt)
        usage: Event = {
            "prompt_tokens": prompt,
            "total_tokens": prompt + written,
            "completion_tokens": written,
        }
        if last:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached}
        return usage

    def envelope(self, kind: str) -> Event:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class _Shown:
    """Text as whole characters of it come."""

    def __init__(self, before: Sequence[int]) -> None:
        self._data = b"".join(map(piece, before))

    def push(self, id: int) -> str:
        self._data += piece(id)
        text = self._data.decode(errors="replace")
        if text.endswith("\ufffd"):
            return ""
        self._data = b""
        return text


def stream(asked: Generation) -> list[Event | bytes]:
    """A stream's events; bytes are the plugin's comments."""
    return list(_chat_events(asked) if asked.chat else _text_events(asked))


def _chat_events(asked: Generation) -> Iterator[Event]:
    head = asked.envelope("chat.completion.chunk")
    opening = {"role": "assistant", "content": ""}
    for index in range(asked.choices):
        choice = {"index": index, "delta": opening, "logprobs": None, "finish_reason": None}
        yield _with_usage({**head, "choices": [choice], "prompt_token_ids": None}, asked, 0)
    said = list(_deltas(asked))
    for number, (delta, logprobs, finish, stopped) in enumerate(said, 1):
        for index in range(asked.choices):
            choice = {
                "index": index,
                "delta": delta,
                "logprobs": logprobs,
                "finish_reason": finish,
                **({} if finish is None else {"stop_reason": stopped}),
                "token_ids": None,
            }
            event = {**head, "choices": [choice], **asked.further}
            if finish is not None and not asked.usage_last:
                event["system_fingerprint"] = FINGERPRINT
            yield _with_usage(event, asked, number)
    if asked.usage_last:
        yield _last(asked, head, len(said))


def _deltas(asked: Generation) -> Iterator[tuple[Event, Any, str | None, Any]]:
    if asked.deltas is not None:
        for number, delta in enumerate(asked.deltas, 1):
            reason = "tool_calls" if "tool_calls" in delta else "stop"
            yield delta, None, reason if number == len(asked.deltas) else None, None
        return
    for number, (id, text, finish, stopped) in enumerate(asked.written()):
        yield {"content": text}, chat_logprobs(asked, number, id), finish, stopped


def _text_events(asked: Generation) -> Iterator[Event | bytes]:
    head = asked.envelope("text_completion")
    totals = 0
    if asked.placed is not None:
        yield asks.format_placed(asked.placed)
    for index in range(asked.choices):
        for number, (id, text, finish, stopped) in enumerate(asked.written()):
            if index == 0 and asks.CALL in asked.xargs:
                yield _report(asked, number, stopped)
            totals += 1
            choice = {
                "index": index,
                "text": _echo(asked) + text if number == 0 else text,
                "logprobs": text_logprobs(asked, number, id),
                "finish_reason": finish,
                "stop_reason": stopped,
                "prompt_token_ids": None,
                "token_ids": [id] if asked.body.get("return_token_ids") else None,
            }
            event = {**head, "choices": [choice], **asked.further}
            if finish is not None and not asked.usage_last:
                event["system_fingerprint"] = FINGERPRINT
            yield _with_usage(event, asked, number + 1)
    if asked.usage_last:
        yield _last(asked, head, totals // asked.choices)


def _report(asked: Generation, number: int, stopped: Any) -> bytes:
    bits = script.entropy(asked.model, asked.done + number)
    ended = stopped is not None and stopped == asked.xargs.get(asks.STOP_ID)
    mean = asked.mean(number, int(asked.xargs[asks.WINDOW])) if ended else None
    return asks.format_report(asks.Report(number, (bits,), mean))


def _with_usage(event: Event, asked: Generation, written: int) -> Event:
    return {**event, "usage": asked.counts(written)} if asked.usage_always else event


def _last(asked: Generation, head: Event, written: int) -> Event:
    usage = asked.counts(written * asked.choices, last=True)
    metrics = {"time_to_first_token_ms": 1.5, "generation_time_ms": 2.5, **_guesses(asked, written)}
    found = {**head, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}
    return {**found, "metrics": metrics} if asked.choices == 1 else found


def _guesses(asked: Generation, written: int) -> Event:
    """Of an answer that is guessed ahead: every pass keeps two guesses, if it may make so many."""
    longest = int(asked.xargs.get(asks.SPEC_K, 0))
    if not longest:
        return {}
    kept = min(longest, 2)
    passes = -(-written // (kept + 1))
    told = {"num_draft_tokens": passes * longest, "num_accepted_draft_tokens": passes * kept}
    return {"speculative_decoding": {**told, "num_spec_steps": passes}}


def _echo(asked: Generation) -> str:
    return decode(asked.prompt) if asked.body.get("echo") else ""


def stream_together(asked: Sequence[Generation]) -> list[Event | bytes]:
    """The events of answers to several prompts, and of one as `stream` has them."""
    if len(asked) == 1:
        return stream(asked[0])
    events: list[Event | bytes] = []
    for number, one in enumerate(asked):
        for event in stream(one):
            assert isinstance(event, dict)
            if event["choices"]:
                events.append(_shifted(event, number * one.choices))
    if asked[0].usage_last:
        usages = [whole(one)["usage"] for one in asked]
        last = {**asked[0].envelope("text_completion"), "choices": [], "usage": _added(usages)}
        events.append(last)
    return events


def whole_together(asked: Sequence[Generation]) -> Event:
    """The same in one piece."""
    if len(asked) == 1:
        return whole(asked[0])
    bodies = [_shifted(whole(one), number * one.choices) for number, one in enumerate(asked)]
    choices = [choice for body in bodies for choice in body["choices"]]
    usage = _added([body["usage"] for body in bodies])
    return {**bodies[0], "choices": choices, "usage": usage}


def _shifted(event: Event, by: int) -> Event:
    choices = [{**choice, "index": choice["index"] + by} for choice in event["choices"]]
    return {**event, "choices": choices}


def _added(usages: Sequence[Event]) -> Event:
    names = ("prompt_tokens", "total_tokens", "completion_tokens")
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    sums: Event = {name: sum(usage[name] for usage in usages) for name in names}
    return {**sums, "prompt_tokens_details": {"cached_tokens": cached}}


def whole(asked: Generation) -> Event:
    """The body of an answer in one piece."""
    written = list(asked.written())
    count = len(written) if asked.deltas is None else len(asked.deltas)
    kind = "chat.completion" if asked.chat else "text_completion"
    ended: Event = {"finish_reason": written[-1][2], "stop_reason": written[-1][3]}
    text = _echo(asked) + "".join(text for _, text, _, _ in written)
    choices: list[Event] = []
    for index in range(asked.choices):
        said: Event = {"text": text}
        if asked.chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        if asked.deltas is not None:
            said = {"message": {"role": "assistant", **_joined(asked.deltas)}}
            ended = {"finish_reason": "stop", "stop_reason": None}
        choices.append({"index": index, **said, "logprobs": None, **ended, **_scored(asked)})
    return {
        **asked.envelope(kind),
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": asked.counts(count * asked.choices, last=True),
        "kv_transfer_params": None,
        **asked.further,
    }


def _scored(asked: Generation) -> Event:
    """How likely each token of the prompt is, where that is wanted: of the first one nobody can
    say."""
    if asked.body.get("prompt_logprobs") is None:
        return {}
    told = [{str(id): {"logprob": -0.5 - id % 7, "rank": 1}} for id in asked.prompt[1:]]
    return {"prompt_logprobs": [None, *told]}


def _joined(deltas: Sequence[Event]) -> Event:
    found: Event = {"content": None}
    for delta in deltas:
        for key, value in delta.items():
            found[key] = (found.get(key) or "") + value if isinstance(value, str) else value
    return found


def text_logprobs(asked: Generation, number: int, id: int) -> Event | None:
    wanted = asked.body.get("logprobs")
    if wanted is None:
        return None
    tops = script.likeliest(id, script.entropy(asked.model, asked.done + number), int(wanted))
    by_id = asked.body.get("return_tokens_as_token_ids")
    names = {other: f"token_id:{other}" if by_id else decode([other]) for other in {id, *tops}}
    return {
        "text_offset": [number],
        "token_logprobs": [tops[id]],
        "tokens": [names[id]],
        "top_logprobs": [{names[other]: logprob for other, logprob in tops.items()}],
    }


def chat_logprobs(asked: Generation, number: int, id: int) -> Event | None:
    if not asked.body.get("logprobs"):
        return None
    wanted = int(asked.body.get("top_logprobs") or 0)
    tops = script.likeliest(id, script.entropy(asked.model, asked.done + number), wanted)
    scored = [
        {"token": decode([other]), "logprob": logprob, "bytes": list(piece(other))}
        for other, logprob in tops.items()
    ]
    return {"content": [{**scored[0], "top_logprobs": scored[:wanted]}]}
