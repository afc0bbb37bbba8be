"""A chat in the terminal that shows which model wrote which word, and what the answer cost."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

from app.errors import FarthingError
from app.palette import DECISIONS, WORDS, colour
from app.types import HAND_OVERS

_FEW = 4  # decisions that are told of an answer
_AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,18})?([eE]-?[0-9]{1,2})?")
_HELP = """\
/model NAME   ask this model or preset; alone: say which there are
/budget USD   most that one answer may cost; `off`: no limit
/policy SPEC  a policy with options, entropy_switch;raise_at=2.0; `off`: the model's own
/clear        forget the conversation
/quit         leave (or Ctrl-D); Ctrl-C stops a running answer"""


class ChatFailed(FarthingError):
    """The gateway is not there, or refused; the message says why."""


@dataclass
class Answer:
    """What is known of one answer when it ends, whole or not."""

    text: str = ""
    models: dict[str, int | None] = field(default_factory=dict)  # tokens by who wrote them
    switches: int = 0
    decided: list[str] = field(default_factory=list)  # beside them, in words
    cost: Decimal | None = None  # USD
    finish: str | None = None  # None: it was stopped, or broke off
    reason: str | None = None  # "budget" or "deadline", where one of them cut it

    def take(self, event: dict[str, Any]) -> tuple[str, str | None]:
        """Take one event of the stream in; gives its text, and the model that wrote it."""
        if "error" in event:
            raise ChatFailed(_message(event))
        ours = event.get("farthing") or {}
        model = ours.get("model")
        # An answer that is stopped ends without a summary: this much is known of it all the same.
        if model is not None:
            self.models.setdefault(model, None)
        decision = ours.get("switch") or {}
        if decision.get("kind") in HAND_OVERS:
            self.switches += 1
        elif decision.get("kind") in DECISIONS:
            said = DECISIONS[decision["kind"]].format(model=decision.get("model", ""))
            self.decided.append(": ".join(filter(None, (said, decision.get("detail")))))
        self.models = ours.get("models", self.models)
        cost = (event.get("usage") or {}).get("cost")
        self.cost = self.cost if cost is None else Decimal(cost)
        text = ""
        for choice in event.get("choices", ()):
            text += (choice.get("delta") or {}).get("content") or ""
            self.finish = choice.get("finish_reason") or self.finish
            self.reason = (choice.get("finish_details") or {}).get("reason", self.reason)
        self.text += text
        return text, model


@dataclass
class Chat:
    """One conversation. Answers go to `console`; all that is said about them goes to `notes`."""

    http: httpx.Client
    console: Console
    notes: Console
    read: Callable[[], str] = input  # the next line; EOFError ends the chat
    model: str | None = None
    budget: Decimal | None = None  # USD for each answer
    policy: str | None = None
    temperature: float = 0.2  # small models lose the thread at 1
    names: list[str] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    fleet: dict[str, int] = field(default_factory=dict)  # place of each model in it
    colours: dict[str, str] = field(default_factory=dict)  # of the models that wrote

    def run(self) -> None:
        """Talk until the reader leaves. Raises ChatFailed when no gateway answers at the start."""
        self._greet()
        while True:
            try:
                line = self.read().strip()
                if line == "/quit":
                    return
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self._ask(line)
            except EOFError:
                if self.notes.is_terminal:
                    self._say("")  # the shell's prompt begins a line of its own
                return
            except KeyboardInterrupt:
                self._say("\n/quit or Ctrl-D leaves", "dim")
            except ChatFailed as error:
                self._say(error.message, "red")

    def _greet(self) -> None:
        try:
            answer = self.http.get("models")
        except httpx.HTTPError as error:
            raise _unreachable(self.http, error) from error
        if answer.is_error:
            raise ChatFailed(_refusal(answer))
        try:
            listed = answer.json()["data"]
            self.names = [clean(entry["id"]) for entry in listed]
            models = [
                one["id"] for one in listed if (one.get("farthing") or {}).get("kind") == "model"
            ]
            self.fleet = {name: place for place, name in enumerate(models)}
        except (ValueError, KeyError, TypeError) as error:
            raise ChatFailed(f"what answers at {self.http.base_url} is not a gateway") from error
        if self.model is None:
            self.model = "economy" if "economy" in self.names else self.names[0]
        limit = self._limit()
        self._say(f"{self.model} at {self.http.base_url}, {limit}; /help says more", "dim")

    def _command(self, line: str) -> None:
        name, _, value = line.partition(" ")
        value = value.strip()
        if name == "/model":
            self._choose(value)
        elif name == "/budget":
            self.budget = None if value == "off" else amount(value)
            self._say(self._limit())
        elif name == "/policy":
            if not (value.isascii() and value.isprintable()):
                raise ChatFailed("a policy is written in plain ASCII")
            self.policy = None if value in ("", "off") else value
            self._say(f"policy: {self.policy}" if self.policy else WORDS["own_policy"])
        elif name == "/clear":
            self.messages.clear()
            self._say("the conversation is forgotten")
        else:
            if name != "/help":
                self._say(f"there is no {name}", "red")
            self._say(_HELP)
            self._legend()

    def _choose(self, name: str) -> None:
        if name and name not in self.names:
            raise ChatFailed(f"there is no {name}; there are: {', '.join(self.names)}")
        self.model = name or self.model
        self._say(f"asking {self.model}; there are: {', '.join(self.names)}")

    def _limit(self) -> str:
        if self.budget is None:
            return WORDS["no_budget"]
        return WORDS["an_answer"].format(usd=_usd(self.budget))

    def _legend(self) -> None:
        for model, style in self.colours.items():
            self._say(WORDS["written_by"].format(model=model), style)

    def _ask(self, line: str) -> None:
        answer, said = Answer(), {"role": "user", "content": line}
        try:
            with closing(self._stream([*self.messages, said])) as stream:
                for event in stream:
                    text, model = answer.take(event)
                    style = self._colour(model)
                    self.console.out(clean(text), style=style, end="", highlight=False)
        except KeyboardInterrupt:
            answer.reason = "you"  # the stream is closed by now, and so the engine stops
        finally:
            if answer.text:
                self.console.out("", highlight=False)
                # A half answer stays in the conversation: the reader has seen it.
                self.messages += [said, {"role": "assistant", "content": answer.text}]
        self._account(answer)

    def _stream(self, messages: list[dict[str, str]]) -> Generator[dict[str, Any]]:
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"X-Debug": "1"}
        if self.budget is not None:
            headers["X-Budget-Usd"] = f"{self.budget:f}"
        if self.policy is not None:
            headers["X-Policy"] = self.policy
        try:
            with self.http.stream("POST", "chat/completions", json=body, headers=headers) as answer:
                if answer.is_error:
                    answer.read()
                    raise ChatFailed(_refusal(answer))
                yield from events(answer.iter_lines())
        except httpx.HTTPError as error:
            raise _unreachable(self.http, error) from error

    def _account(self, answer: Answer) -> None:
        """One line on the answer: tokens by model in the model's colour, switches, cost."""
        line = Text()
        for model, tokens in answer.models.items():
            count = "" if tokens is None else f" {tokens}"
            line.append(f"■ {clean(model)}{count}  ", style=self._colour(model))
        handed = WORDS["switch" if answer.switches == 1 else "switches"]
        line.append(handed.format(count=answer.switches), "dim")
        if answer.cost is not None:
            cost = _usd(answer.cost)
            if self.budget:
                share, budget = f"{answer.cost / self.budget:.1%}", _usd(self.budget)
                cost = WORDS["of_budget"].format(cost=cost, budget=budget, share=share)
            line.append(f"  {cost}", "dim")
        if answer.reason is not None:
            stopped = WORDS["stopped_by"].format(reason=clean(answer.reason))
            line.append(f"  {stopped}", "bold")
        elif answer.finish is None:
            line.append(f"  {WORDS['broke_off']}", "bold")
        self.notes.print(line, soft_wrap=True)
        for decided in answer.decided[:_FEW]:
            self._say(decided, "dim")

    def _colour(self, model: str | None) -> str | None:
        if model is None:
            return None
        if model not in self.colours:
            self.fleet.setdefault(model, len(self.fleet))
            self.colours[model] = colour(model, self.fleet).terminal
        return self.colours[model]

    def _say(self, line: str, style: str | None = None) -> None:
        self.notes.out(clean(line), style=style, highlight=False)


def connect(
    url: str, transport: httpx.BaseTransport | None = None, *, key: str | None = None
) -> httpx.Client:
    """A client for the gateway at this address, with or without /v1. Raises ChatFailed."""
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ChatFailed("an API key is written in plain ASCII")
    base = url if "://" in url else f"http://{url}"
    base = base.rstrip("/").removesuffix("/v1")
    # No limit on reading: a first token may wait in a queue, and Ctrl-C ends the wait.
    timeout = httpx.Timeout(None, connect=5.0)
    try:
        headers = None if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(
            base_url=f"{base}/v1/", headers=headers, timeout=timeout, transport=transport
        )
    except httpx.InvalidURL as error:
        raise ChatFailed(f"{url!r} is not an address: {error}") from error


def look_up(http: httpx.Client, path: str) -> Any:
    """The JSON at this path of the gateway. Raises ChatFailed where it gives none."""
    try:
        answer = http.get(path)
        if answer.is_error:
            raise ChatFailed(_refusal(answer))
        return answer.json()
    except httpx.HTTPError as error:
        raise _unreachable(http, error) from error
    except ValueError as error:
        raise ChatFailed(f"what answers at {http.base_url} is not a gateway") from error


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, up to [DONE]."""
    for line in lines:
        name, _, data = line.partition(":")
        if name != "data":
            continue
        if data.strip() == "[DONE]":
            return
        try:
            event = json.loads(data, parse_float=Decimal)
        except ValueError as error:
            raise ChatFailed("the stream holds something that is not JSON") from error
        if not isinstance(event, dict):
            raise ChatFailed("the stream holds something that is not an object")
        yield event


def amount(text: str) -> Decimal:
    """A budget in USD. Raises ChatFailed."""
    if _AMOUNT.fullmatch(text) is None:
        raise ChatFailed(f"a budget is an amount of USD, like 0.0001, not {text!r}")
    return Decimal(text)


def clean(text: str) -> str:
    """The text without what steers a terminal: escapes, other controls, changes of direction."""
    return "".join(
        char
        for char in text
        if char in "\n\t" or (unicodedata.category(char) not in _STEERS and char not in _DIRECTION)
    )


_STEERS = ("Cc", "Cs")  # controls; and half characters, which no terminal can be sent
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _usd(usd: Decimal) -> str:
    return f"${usd.normalize():f}"


def _refusal(answer: httpx.Response) -> str:
    try:
        return _message(answer.json())
    except ValueError:
        return f"the gateway answered {answer.status_code} {answer.reason_phrase}"


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return f"{error['message']}"
    return "the gateway refused, and did not say why"


def _unreachable(http: httpx.Client, error: httpx.HTTPError) -> ChatFailed:
    if isinstance(error, httpx.ConnectError):
        return ChatFailed(
            f"no gateway answers at {http.base_url}; start one with `farthing serve`,"
            " or name another with --url"
        )
    return ChatFailed(
        f"the gateway at {http.base_url} broke off: {str(error) or type(error).__name__}"
    )
