"""Which of two answers a model prefers when it is asked, and how likely it finds each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from app.types import Call, Chunk, Decoding, Engine, Message, Sampling, Token, Usage
from policies.answers.asking import Reply, as_read, asked, at_most, read

_LIKELIEST = 20  # tokens that are looked among: as many as servers tell by default
_SURE = 30.0  # log-odds beyond which nothing is told apart
_ASKS = (
    "Here are two answers to the request above.\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\n"
    "Which of them is better, that is right, complete and to the point? Say A or B only."
)


async def preference(
    said: Sequence[Message], first: str, second: str, call: Call, engine: Engine
) -> float:
    """How probable the model of `call` finds it that `second` is the better answer to the
    conversation `said`: 0 to 1, 0.5: it cannot say.

    It is asked twice, each of them being A once, and the log-odds are averaged: a liking for a
    letter or a place cancels out (Zheng et al. 2023, arXiv 2306.05685, §3.4, ask twice too).
    Raises as the engine.
    """
    for_b = await _log_odds(said, first, second, call, engine)
    for_a = await _log_odds(said, second, first, call, engine)
    return 1 / (1 + math.exp((for_a - for_b) / 2))


async def likelihood(reply: Reply, asked: Call, engine: Engine) -> float | None:
    """The mean log-probability (natural) of this answer's tokens after the prompt of another call.

    Raises EngineUnsupported where the engine does not tell those of a prompt's tokens.
    """
    prompt = (await engine.tokenize(asked, False)).ids
    answer = tuple(token.id for token in reply.tokens)
    scoring = Call(
        asked.model,
        prompt=(*prompt, *answer),
        max_tokens=0,
        sampling=Sampling(logprobs=0),
        decoding=Decoding(scores=True),
        goals=asked.goals,
        account=asked.account,
        id=asked.id,
    )
    scored = (await read(scoring, engine)).tokens[-len(answer) :]
    return Reply(asked, [Chunk(tokens=tuple(scored))]).mean_logprob


def worst(model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
    """What one preference may take, of answers of so many tokens to a prompt of so many."""
    read = as_read(prompt) + 2 * as_read(completion) + at_most(_ASKS)
    return {model: Usage(prompt=2 * read, completion=2)}


def beside(said: Sequence[Message], text: str) -> tuple[Message, ...]:
    """A conversation that ends with these words of its user: in one message with what it ended
    with, as not every chat template takes two of one speaker."""
    *before, last = said
    content = last.get("content")
    if last.get("role") != "user" or not isinstance(content, str):
        return (*said, {"role": "user", "content": text})
    return (*before, {**last, "content": f"{content}\n\n{text}"})


async def _log_odds(said: Sequence[Message], a: str, b: str, call: Call, engine: Engine) -> float:
    """Of B against A."""
    question = asked(call, beside(said, _ASKS.format(a=a, b=b)), max_tokens=1)
    question = replace(question, sampling=replace(question.sampling, logprobs=_LIKELIEST))
    reply = await read(question, engine)
    return log_odds(reply.tokens[0], "B", "A") if reply.tokens else 0.0


def log_odds(token: Token, one: str, other: str) -> float:
    """Natural, of a text that begins with this token being `one` rather than `other`; 0: neither
    is among the likeliest. Of a word that is not, the least likely of them is the bound."""
    likeliest = token.top or (token,)
    told = [(each.piece.decode(errors="replace").strip(), each.logprob) for each in likeliest]
    found = dict[str, float]()
    for word, logprob in told:
        if logprob is not None:
            found[word] = max(found.get(word, logprob), logprob)
    if one not in found and other not in found:
        return 0.0
    least = min(found.values())
    odds = found.get(one, least) - found.get(other, least)
    return min(max(odds, -_SURE), _SURE)
