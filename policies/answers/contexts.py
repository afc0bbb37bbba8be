"""The texts of a call that may be shortened, each by itself, and the call with shorter ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.types import Call, Message, Prompt
from policies.answers.spans import prose

Change = Callable[[str], str]


def texts(call: Call) -> list[str]:
    """Of a chat what users said, and what tools gave back where it is plain text; of a bare
    completion its prompts, but for those of token ids."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    changed(call, note)
    return found


def changed(call: Call, change: Change) -> Call:
    """The call with each of its `texts` changed, in its own fields and in its body; itself where
    none is. In one piece they say the same, so that an engine may go by either."""
    if call.prompt is not None:
        return _completion(call, change)
    messages = tuple(_message(message, change) for message in call.messages)
    if all(new is old for new, old in zip(messages, call.messages, strict=True)):
        return call
    body = call.body
    if "messages" in body:
        pairs = zip(messages, call.messages, body["messages"], strict=True)
        said = [
            old if new is now else {**old, "content": new["content"]} for new, now, old in pairs
        ]
        body = {**body, "messages": said}
    return replace(call, messages=messages, body=body)


def _completion(call: Call, change: Change) -> Call:
    every = [prompt for prompt in (call.prompt, *call.beside) if prompt is not None]
    first, *beside = prompts = [_prompt(prompt, change) for prompt in every]
    if prompts == every:
        return call
    body = call.body
    if "prompt" in body:
        several = isinstance(body["prompt"], list)
        body = {**body, "prompt": prompts if several else first}
    return replace(call, prompt=first, beside=tuple(beside), body=body)


def _prompt(prompt: Prompt, change: Change) -> Prompt:
    # Who sends ids means these.
    return change(prompt) if isinstance(prompt, str) else prompt


def _message(message: Message, change: Change) -> Message:
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "tool", "function") or not content:
        return message
    if role != "user":
        change = _of_prose(change)
    if isinstance(content, str):
        new = change(content)
        return message if new == content else {**message, "content": new}
    parts = [_part(part, change) for part in content] if isinstance(content, Sequence) else content
    return message if parts == content else {**message, "content": parts}


def _part(part: Any, change: Change) -> Any:
    text = part.get("text") if isinstance(part, Mapping) else None
    if part is None or not isinstance(text, str) or part.get("type") not in ("text", None):
        return part
    new = change(text)
    return part if new == text else {**part, "text": new}


def _of_prose(change: Change) -> Change:
    return lambda text: change(text) if prose(text) else text


@dataclass(frozen=True, slots=True)
class Replaced:
    """The same texts, in their order, in place of what they were."""

    texts: Iterator[str]

    def __call__(self, text: str) -> str:
        return next(self.texts)


def with_texts(call: Call, new: Sequence[str]) -> Call:
    """The call with these in place of its `texts`, one for each."""
    return changed(call, Replaced(iter(new)))
