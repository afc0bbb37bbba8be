"""A model answers, reviews its answer and writes it anew, and the best of these answers is kept."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from app.catalog import Catalog
from app.errors import BadRequest, EngineError, EngineUnsupported, FarthingError, Unaffordable
from app.tariffs import Tariff
from app.types import (
    Alternative,
    Call,
    Chunk,
    Decision,
    Fidelity,
    Message,
    MeteredEngine,
    Usage,
)
from policies.answers import comparing
from policies.answers.asking import (
    Reply,
    as_read,
    asked,
    at_most,
    conversation,
    read,
    room_for,
    time_left,
)
from policies.answers.verifying import Verifier, ready
from policies.answers.versions import Version, Versions, lacks, read_by
from policies.base import Policy, Whole

_REVIEW = 256  # tokens of a review, at most
_LEAST = 16  # tokens: with less of a review, or of room for an answer, there is no use in it
_NOTHING = "NO CHANGE"
_REVIEWS = (
    "Review the answer above. Say briefly what is wrong in it, missing or unclear, and how to put"
    f" it right. If nothing should change, say only: {_NOTHING}"
)
_REWRITES = (
    "Now answer the request again, put right by this review. Give the answer alone, all of it,"
    " and do not mention the review."
)
_POOR = "the budget does not pay for a review and another answer"
_LATE = "the deadline leaves no time for a review and another answer"


class Refine(Policy):
    """Self-refinement by prompts that know of no domain (Democratizing LLMs, Sharma et al. 2023,
    arXiv 2310.07611): answer, review, answer again.

    Each new answer is checked against the first one, and the one that the check likes best is
    given, the first where none is better. Reviews end when one finds nothing to change, when the
    rest of the budget or the time does not suffice for a review and another answer as long as the
    last, and after `rounds`. The answer comes whole when that is known; where no refinement can
    follow the first answer any more, it goes out as it is written.
    """

    fidelity: ClassVar[Fidelity] = "approximate"

    model: str = Field("", description="model that answers where the client names none")
    critic: str = Field("", description="model that reviews; default: the one that answers")
    rounds: int = Field(2, ge=1, le=4, description="most reviews, 1 to 4, each with another answer")
    check: Literal["vote", "verify", "logprob"] = Field(
        "vote",
        description="what tells that it helped: a `vote` of the model between two answers, the"
        " `verifier` (`verify`), or their likelihood after the request (`logprob`)",
    )
    verifier: Verifier | None = Field(
        None, description="of `check=verify`: [running code](#running-code)"
    )

    _prices: Mapping[str, Tariff] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _can_verify(self) -> Self:
        if (self.check == "verify") != (self.verifier is not None):
            raise ValueError("verifier: is of the check `verify`, which needs it")
        return self

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        named = model or self.model
        if not named:
            raise BadRequest("policy refine: `model` is missing", param="policy")
        target = catalog.model(named)
        critic = catalog.model(self.critic or target.name)
        if critic.engine == "openai":
            raise BadRequest(
                f"policy refine: critic: {critic.name} is another server's, which cannot be asked"
                " token by token",
                param="policy",
            )
        verifier = None if self.verifier is None else self.verifier.fit(catalog, "refine")
        chosen = {"model": target.name, "critic": critic.name, "verifier": verifier}
        fitted = self.model_copy(update=chosen)
        asked = fitted.worst_case(target.name, 0, 0)
        fitted._prices = {name: catalog.model(name).price for name in asked}
        return fitted

    def serving(self, call: Call, engine: MeteredEngine, prices: Mapping[str, Tariff]) -> Policy:
        """A call of a tool is no text that could be reviewed: then the model answers alone."""
        if call.offers:
            return Whole(models=(self.model,), prices={self.model: prices[self.model]})
        return super().serving(call, engine, prices)

    def best_first(self, model: str) -> Sequence[str]:
        return (self.model,)

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        total = {self.model: Usage(prompt=prompt, completion=completion)}
        if self.verifier is not None:
            total = _sum(total, self.verifier.worst(prompt, completion))
        for _ in range(self.rounds):
            total = _sum(total, self._round(prompt, completion, _REVIEW))
        return total

    def most_calls(self, call: Call) -> int:
        judged = self.verifier is not None and self.verifier.kind == "judge"
        checks = {"vote": 2, "logprob": 1, "verify": int(judged)}[self.check]
        return 1 + judged + self.rounds * (2 + checks)

    def _round(self, prompt: int, completion: int, review: int) -> dict[str, Usage]:
        """What a round may take, of a prompt and answers of so many tokens."""
        reads = as_read(prompt) + as_read(completion) + at_most(_REVIEWS)
        total = {self.critic: Usage(prompt=reads, completion=review)}
        reads += as_read(review) + at_most(_REWRITES)
        total = _sum(total, {self.model: Usage(prompt=reads, completion=completion)})
        if self.verifier is not None:
            return _sum(total, self.verifier.worst(prompt, completion))
        if self.check == "vote":
            return _sum(total, comparing.worst(self.model, prompt, completion))
        return _sum(total, {self.model: Usage(prompt=prompt + completion)})

    async def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        call = call.to(self.model)
        await ready(self.verifier)
        if self.check == "logprob":
            logprobs = call.sampling.logprobs or 0
            call = replace(call, sampling=replace(call.sampling, logprobs=logprobs))
        first, started = Reply(call), time.monotonic()
        async with aclosing(self._first(first, engine)) as stream:
            async for chunk in stream:
                yield chunk
        found = Versions([Version(first)], time.monotonic() - started)
        if first.finish is None:
            return  # it has been shown as it came
        try:
            async with asyncio.timeout(time_left(call)):
                await self._improve(found, call, engine)
        except TimeoutError:
            found.ended = "the deadline"
        except Unaffordable:
            found.ended = "the budget"
        except FarthingError as error:
            if isinstance(error, BadRequest) and error.param == "policy":
                raise  # the check cannot be made, so all of this was for nothing
            found.ended = f"{type(error).__name__} of a further step"
        for chunk in found.shown(self._confidence(found)):
            yield chunk

    async def _first(self, reply: Reply, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        """Reads the first answer; its chunks are shown only once no refinement can follow it.
        Then `reply` has no finish."""
        started, prompt, written = time.monotonic(), 0, 0
        async with aclosing(engine.generate(reply.call)) as stream:
            why = ""
            while not why:
                # The gateway ends the answer at the deadline: before, what there is must be shown.
                left = time_left(reply.call) if written else None
                try:
                    async with asyncio.timeout(left):
                        chunk = await anext(stream, None)
                except TimeoutError:
                    chunk = Chunk(model=self.model, finish="length", reason="deadline")
                if chunk is None:
                    raise EngineError("The answer broke off")
                reply.add(chunk)
                if reply.finish is not None:
                    return
                prompt, written = prompt + chunk.usage.prompt, written + len(chunk.tokens)
                why = self._hopeless(reply.call, started, prompt, written, engine)
            told = Decision("refine", self.model, 0, answers=1, detail=f"first answer: {why}")
            ways = (Alternative("answer", "first answer", chosen=True, reason=why),)
            for number, chunk in enumerate(reply.chunks):
                yield chunk if number else replace(chunk, decision=told, considered=ways)
            async for chunk in stream:
                yield chunk

    def _hopeless(
        self, call: Call, started: float, prompt: int, written: int, engine: MeteredEngine
    ) -> str:
        """Why the first answer, so far of so many tokens, cannot be refined; empty: it can."""
        if _late(call, time.monotonic() - started):
            return _LATE
        if self._review(prompt, written, prompt + written, engine) < _LEAST:
            return _POOR
        return ""

    def _review(self, prompt: int, answer: int, again: int, engine: MeteredEngine) -> int:
        """Tokens that a review may have, so that the budget pays for another answer as long as
        this one too, and for its check. `again`: tokens of the last call, which the engine's
        allowance takes as to be read once more."""
        tokens = engine.allowance(self.model)
        if tokens == sys.maxsize or not tokens:
            return _REVIEW if tokens else 0
        own, critic = self._prices[self.model], self._prices[self.critic]
        needed = self._round(prompt, answer, _LEAST)
        rest = tokens * own.output + again * own.input
        rest -= sum(self._prices[name].of(used) for name, used in needed.items())
        if rest < 0:
            return 0
        each = critic.output + own.input  # it is written, and read
        return min(_LEAST + rest // each, _REVIEW) if each else _REVIEW

    async def _improve(self, found: Versions, call: Call, engine: MeteredEngine) -> None:
        first = found.first
        if first.reply.finish is not None and first.reply.finish.reason is not None:
            found.ended = f"the {first.reply.finish.reason}"
            return
        found.said = await conversation(call, engine)
        first.score = await self._score(found, first.reply, engine)
        for _ in range(self.rounds):
            if self.check == "verify" and found.best.score == 1:
                found.ended = "it passes"
                return
            why = _LATE if _late(call, found.seconds) else await self._again(found, call, engine)
            if why:
                found.ended = why
                return

    async def _again(self, found: Versions, call: Call, engine: MeteredEngine) -> str:
        """One round. Why there need be no further one, or empty."""
        answered: Message = {"role": "assistant", "content": found.best.reply.text}
        so_far = (*found.said, answered, {"role": "user", "content": _REVIEWS})
        prompt = read_by(found.first.reply).prompt
        paid = self._review(prompt, len(found.best.reply.tokens), prompt, engine)
        reviews = asked(call.to(self.critic), so_far, max_tokens=_REVIEW)
        most = min(paid, await room_for(reviews, engine))
        if most < _LEAST:
            return _POOR if paid < _LEAST else "the context has no room for a review"
        review = (await read(replace(reviews, max_tokens=most), engine)).text.strip()
        if _finds_nothing(review):
            return "a review found nothing to change"
        said: Message = {"role": "assistant", "content": review}
        rewrites: Message = {"role": "user", "content": _REWRITES}
        rewritten = replace(call, messages=(*so_far, said, rewrites), prompt=None)
        room = await room_for(rewritten, engine)
        if room < _LEAST:
            return "the context has no room for another answer"
        if call.max_tokens is not None:
            rewritten = replace(rewritten, max_tokens=min(call.max_tokens, room))
        reply = await read(rewritten, engine)
        if reply.text == found.best.reply.text:
            return "a review changed nothing"
        if reply.cut:
            return "the budget"
        worse = lacks(reply, found.best.reply)
        score = None if worse else await self._score(found, reply, engine)
        found.add(Version(reply, score, worse))
        return ""

    async def _score(self, found: Versions, reply: Reply, engine: MeteredEngine) -> float:
        """0 to 1: of the first answer and each other one, so that they can be compared."""
        first = found.first.reply
        if self.verifier is not None:
            return await self.verifier.passes(reply.text, first.call, engine)
        if self.check == "vote":
            if reply is first:
                return 0.5  # neither better nor worse than itself
            texts = first.text, reply.text
            return await comparing.preference(found.said, *texts, first.call, engine)
        if not reply.tokens:
            return 0.0  # a model may end an answer before its first word
        mean = reply.mean_logprob
        if reply is not first:
            # It was written after another prompt; the first one was written after this one.
            try:
                mean = await comparing.likelihood(reply, first.call, engine)
            except EngineUnsupported:
                found.hint = ", likelihoods as where they were written: the engine rereads none"
        if mean is None:
            raise EngineUnsupported("check: the engine tells no log-probabilities", param="policy")
        return math.exp(min(mean, 0.0))

    def _confidence(self, found: Versions) -> float | None:
        """That the best is the best: of a vote, over those that it was compared with."""
        if self.check != "vote" or found.kept:
            return found.best.score
        others = [one.score for one in found.all[1:] if one.score is not None]
        return 1 - max(others) if others else None


def _sum(one: Mapping[str, Usage], other: Mapping[str, Usage]) -> dict[str, Usage]:
    names = dict.fromkeys((*one, *other))
    return {name: one.get(name, Usage()) + other.get(name, Usage()) for name in names}


def _late(call: Call, seconds: float) -> bool:
    """Whether another answer that takes so long comes too late."""
    left = time_left(call)
    return left is not None and left < seconds


def _finds_nothing(review: str) -> bool:
    words = review.upper().strip(" \n*_\"'`.#")
    return not words or words.startswith(_NOTHING)
