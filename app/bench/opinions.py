"""Answers that no reference grades: by a judge, or by how much they are as the best way's."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from app.bench.grading import Line, Messages, Question
from app.bench.scoring import rouge_l
from app.confidence import VERDICTS, approval
from app.types import Candidate, Token

_PATH = "/v1/chat/completions"
_VERDICT = 4  # tokens: the first ones may be a space or a mark
_UNTOLD = 0.5  # of a judge that says neither yes nor no
_PUT = """Here is a request, and an answer to it.

[request]
{request}
[end of the request]

[answer]
{answer}
[end of the answer]
{known}
Is it a good answer: does it do what was asked, and is what it says right? Say Yes or No, and \
nothing else."""


@dataclass(frozen=True)
class Verdict:
    """What a model said in a few tokens."""

    text: str
    tokens: tuple[Token, ...] = ()  # with the likeliest of their places; empty: not told
    cost: float = 0.0  # USD


Ask = Callable[[str, Messages], Awaitable[Verdict]]
"""A model's name and what it is asked -> its first tokens, greedily."""


def judging(question: Question, text: str) -> Messages:
    """What a judge is asked of this answer."""
    asked = "\n\n".join(message["content"] for message in question.messages)
    said = _PUT.format(request=asked, answer=text, known=_known(question.line))
    return ({"role": "user", "content": said},)


def _known(line: Line) -> str:
    reference = line.get("reference")
    return f"\nA right answer is: {reference}\n" if isinstance(reference, str) else ""


def chance(verdict: Verdict) -> float:
    """That the judge says yes, in 0..1: P(yes) by P(yes) + P(no) of its first word, where it tells
    log-probabilities; else 1 or 0 by that word; 0.5 where it is neither."""
    for token in verdict.tokens:
        found = approval(token)
        if found is not None:
            return found
        if token.piece.strip():
            break  # it says something else
    first = verdict.text.strip(" \n\t*_`\"'#").lower()
    return 1.0 if first.startswith("yes") else 0.0 if first.startswith("no") else _UNTOLD


async def worth(
    question: Question,
    text: str,
    *,
    best: str | None = None,
    judge: str | None = None,
    ask: Ask | None = None,
) -> float:
    """An answer's worth, 0 to 1, whatever grades it.

    `best`: the best way's greedy answer to the same question, where `question.task.needs` it: then
    ROUGE-L beside that. `judge`: the model that `ask` asks, where it needs one. An empty answer is
    worth 0. Raises ValueError where what it needs is not given; what `ask` raises.
    """
    needs = question.task.needs
    if needs == "best":
        if best is None:
            raise ValueError(f"{question.task.name}/{question.number}: needs the best way's answer")
        return rouge_l(text, best)
    if needs == "judge":
        if judge is None or ask is None:
            raise ValueError(f"{question.task.name}/{question.number}: needs a judge")
        if not text.strip():
            return 0.0
        return chance(await ask(judge, judging(question, text)))
    return await question.grade(text)


def asker(http: httpx.AsyncClient, headers: Mapping[str, str] | None = None) -> Ask:
    """Asks the gateway behind this client, with these headers too. A model that refuses
    log-probabilities is asked without. The questions raise httpx.HTTPError: of a refusal
    HTTPStatusError, which tells it."""

    async def ask(model: str, messages: Messages) -> Verdict:
        body: dict[str, Any] = {"model": model, "messages": list(messages), "temperature": 0.0}
        body |= {"max_tokens": _VERDICT, "logprobs": True, "top_logprobs": VERDICTS}
        answer = await http.post(_PATH, json=body, headers=headers)
        if answer.status_code == httpx.codes.BAD_REQUEST:
            del body["logprobs"], body["top_logprobs"]
            answer = await http.post(_PATH, json=body, headers=headers)
        if answer.is_error:
            told = f"the judge {model}: {answer.status_code}: {answer.text[:300]}"
            raise httpx.HTTPStatusError(told, request=answer.request, response=answer)
        return _verdict(answer.json())

    return ask


def _verdict(body: dict[str, Any]) -> Verdict:
    choice = body["choices"][0]
    told = (choice.get("logprobs") or {}).get("content") or ()
    cost = float(body.get("usage", {}).get("cost") or 0.0)
    return Verdict(choice["message"]["content"] or "", tuple(map(_token, told)), cost)


def _token(told: dict[str, Any]) -> Token:
    top = tuple(
        Candidate(0, one["token"].encode(), float(one["logprob"]))
        for one in told.get("top_logprobs") or ()
        if math.isfinite(float(one["logprob"]))
    )
    return Token(0, told["token"].encode(), float(told["logprob"]), top)
