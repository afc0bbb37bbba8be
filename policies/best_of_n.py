"""Several answers are sampled; a vote, a verifier or their likelihood says which one is given."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from app.catalog import Catalog, Tariff
from app.errors import (
    BadRequest,
    ContextOverflow,
    EngineError,
    EngineUnsupported,
    Overloaded,
    Unaffordable,
)
from app.types import Alternative, Call, Chunk, Decision, Fidelity, MeteredEngine, Usage
from policies.answers import approaches, selecting
from policies.answers.asking import Enough, Reply, conversation, replies, room_for, shown, time_left
from policies.answers.extracting import How, extract
from policies.answers.sampling import MOST, Odds, affordable, sample, tries, unset, voters
from policies.answers.selecting import Selected
from policies.answers.verifying import Verifier, ready
from policies.answers.voting import decided
from policies.base import Policy

_LIKELY = 256  # tokens of an answer whose request names no bound
_FAILS = (EngineError, Overloaded, Unaffordable)
_CANNOT = (*_FAILS, ContextOverflow, EngineUnsupported)  # of what we ask, not the client


def _never(found: Sequence[Reply]) -> bool:
    return False


class BestOfN(Policy):
    """Repeated sampling (Wang et al. 2022, self-consistency; Brown et al. 2024, "Large Language
    Monkeys"), with n of each request from what is known of its samples (Stroebl et al. 2024), a
    vote that stops once it is decided (Aggarwal et al. 2023), and approaches that the model
    proposes itself (Naik et al. 2023, DIV-SE and IDIV-SE).

    As many are sampled as the budget pays for whole, with a single one the answer streams as it
    comes. An answer that some bound cut has no say where another one is whole. When the deadline
    comes, the best one so far is given.
    """

    fidelity: ClassVar[Fidelity] = "approximate"

    model: str = Field("", description="model that answers where the client names none")
    n: int | None = Field(
        None, ge=1, le=MOST, description="answers to sample; default: as many as are worth it"
    )
    most: int = Field(8, ge=1, le=MOST, description="and of these so many at most")
    choose: Literal["vote", "verify", "logprob"] = Field(
        "vote", description="what chooses: a vote, `verifier`, or the mean log-probability"
    )
    extract: How = Field("auto", description="how the answer is found in the text that votes")
    verifier: Verifier | None = Field(None, description="of `choose=verify`")
    together: int = Field(4, ge=1, le=MOST, description="answers that are written side by side")
    temperature: float = Field(
        0.7, gt=0, le=2, description="of the samples, where the client's is 0 or unset"
    )
    sure: float = Field(
        0.95,
        gt=0.5,
        le=1,
        description="a vote stops once it is decided with this probability (1: once it cannot"
        " change any more), a verifier once it passes an answer with it",
    )
    right: float = Field(
        0.5, ge=0.001, le=0.999, description="estimated chance that a sample is right, in the mean"
    )
    spread: float = Field(
        0.3,
        ge=0,
        le=0.99,
        description="of that chance between questions: 0, all are alike; near 1, each sample of one"
        " is as good as the last",
    )
    false_pass: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of the wrong samples that pass the verifier; in a vote, that agree",
    )
    wrong_costs: float = Field(
        1.0, ge=0, le=1000, description="what a wrong answer costs, in right answers"
    )
    sample_costs: float = Field(
        0.02, ge=0, le=1, description="what a sample costs, in right answers"
    )
    diverse: Literal["no", "each", "one_call"] = Field(
        "no",
        description="each: the model proposes approaches, and answers by each; one_call: it does"
        " all of this in one completion",
    )

    _prices: Mapping[str, Tariff] = PrivateAttr(default_factory=dict)  # of the fleet it was fit to

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if (self.choose == "verify") != (self.verifier is not None):
            raise ValueError("choose=verify needs a `verifier`, and only that has one")
        return self

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        name = model or self.model
        if not name:
            raise BadRequest("policy best_of_n: `model` is missing", param="policy")
        card = catalog.model(name)
        if card.engine == "openai":
            raise BadRequest(
                f"policy best_of_n: model: {card.name} is another server's, whose answers cannot be"
                " compared",
                param="policy",
            )
        verifier = self.verifier and self.verifier.fit(catalog, "best_of_n")
        fitted = self.model_copy(update={"model": card.name, "verifier": verifier})
        fitted._prices = catalog.prices()
        return fitted

    @property
    def wanted(self) -> int:
        """How many answers are worth sampling, whatever the budget."""
        if self.n is not None:
            return self.n
        odds = Odds(
            right=self.right,
            spread=self.spread,
            false_pass=self.false_pass,
            wrong_costs=self.wrong_costs,
            sample_costs=self.sample_costs,
        )
        # Of likelihoods nothing is known; they choose among as many as a vote would.
        return (tries if self.choose == "verify" else voters)(odds, self.most)

    @property
    def seeds(self) -> int:
        return self.wanted

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        name, n = self.model or model, self.wanted
        used = Usage(n * prompt, completion=n * completion)
        if self.diverse != "no" and n > 1:
            diverse = approaches.worst(prompt, completion, n, self.diverse == "each")
            used = Usage(max(used.prompt, diverse.prompt), completion=diverse.completion)
        worst = {name: used}
        for judge, once in self.verifying(prompt, completion).items():
            worst[judge] = sum([once] * n, worst.get(judge, Usage()))
        return worst

    def best_first(self, model: str) -> Sequence[str]:
        return (self.model or model,)

    def most_calls(self, call: Call) -> int:
        judged = self.verifier is not None and self.verifier.kind == "judge"
        return self.wanted * (2 if judged else 1) + (self.diverse != "no" and self.wanted > 1)

    async def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        call = call.to(self.model)
        sampling = _Sampling(self, call, engine, self._prices)
        n = min(self.wanted, await sampling.affords())
        if n < 2:
            async with aclosing(_single(call, engine, self.wanted > 1)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        await ready(self.verifier)
        selected = await sampling.best(n)
        decision = Decision(
            kind="select",
            model=self.model,
            token=0,
            confidence=selected.confidence,
            answers=len(sampling.made),
            detail=selected.detail,
        )
        for chunk in shown(selected.reply, decision, selected.considered):
            yield chunk

    def verifying(self, prompt: int, completion: int) -> Mapping[str, Usage]:
        """What it takes at most to verify one answer."""
        return {} if self.verifier is None else self.verifier.worst(prompt, completion)


async def _single(call: Call, engine: MeteredEngine, poor: bool) -> AsyncGenerator[Chunk]:
    """One answer as it comes; `poor`: as the budget pays for no second one."""
    why = "the budget pays for one answer only" if poor else "one answer is worth its price"
    decision: Decision | None = Decision("select", call.model, 0, answers=1, detail=why)
    async with aclosing(engine.generate(call)) as stream:
        async for chunk in stream:
            if decision is not None:
                way = Alternative(kind="answer", name="answer 1", chosen=True, reason=why)
                chunk = replace(chunk, decision=decision, considered=(way,))
                decision = None
            yield chunk


@dataclass
class _Sampling:
    """The samples of one answer."""

    policy: BestOfN
    call: Call
    engine: MeteredEngine
    prices: Mapping[str, Tariff]
    prompt: int = 0  # tokens, where the budget makes them matter
    made: list[Reply] = field(default_factory=list)
    shared: bool = False  # whether each has a share of the budget for a bound
    answers: dict[int, str | None] = field(default_factory=dict)  # by the id of the reply
    scores: dict[int, float | None] = field(default_factory=dict)  # likewise

    async def affords(self) -> int:
        """How many whole answers the budget pays for."""
        if self.engine.allowance(self.call.model) == sys.maxsize:
            return MOST
        try:
            self.prompt = await self.engine.count(self.call)
        except EngineError:
            return 1  # whatever is wrong, a single call will tell
        return self._affords()

    async def best(self, n: int) -> Selected:
        """The one that is given, of `n` at first, or of as many as prove to be affordable."""
        policy = self.policy
        if policy.diverse == "one_call" and not self.call.structured:
            await self._in_one(n)
        calls = await self._diverse(n) if policy.diverse == "each" else ()
        if not self.made:
            await self._each(calls or self._plain())
        selected = await self._selected()
        reply = selected.reply
        if reply.finish is None:
            reply.finish = Chunk(model=reply.model, finish="length", reason="deadline")
        elif self.shared and reply.finish.finish == "length":
            reply.finish = replace(reply.finish, reason="budget")
        return selected

    def _affords(self) -> int:
        tokens, price = self.engine.allowance(self.call.model), self.prices[self.call.model]
        if tokens == sys.maxsize:
            return MOST
        first, each = self._asking(self.call.max_tokens or _LIKELY)
        length = self.call.max_tokens or _LIKELY
        # Told in whole tokens: there may be almost one more. One that misses it is not given.
        rest = (tokens + 1) * (price.output or 1) - 1
        return affordable(rest - first, each, length * (price.output or 1))

    def _asking(self, length: int) -> tuple[int, int]:
        """What is paid beside the answers' own tokens, at most: at first, and with each answer."""
        price, each = self.prices[self.call.model], self.policy.diverse == "each"
        if not price.output:  # what bounds them is of another unit, and only told in tokens
            return 0, 0
        if self.policy.diverse == "no":
            first, more = 0, price.of(Usage(self.prompt))
        else:
            first = price.of(approaches.worst(self.prompt, 0, 0, each))
            more = price.of(approaches.worst(self.prompt, 0, 1, each)) - first
        judged = self.policy.verifying(self.prompt, length).items()
        return first, more + sum(self.prices[judge].of(once) for judge, once in judged)

    def _plain(self) -> list[Call]:
        asked = self.call.sampling.temperature
        hot = self.policy.temperature if unset(self.call) or asked == 0 else asked
        return [sample(self.call, number, hot) for number in range(self.policy.wanted)]

    def _calm(self, number: int) -> Call:
        """For answers that differ by what is asked: at temperature 0, as the paper has it, or at
        the client's own."""
        asked = self.call.sampling.temperature
        return sample(self.call, number, 0.0 if unset(self.call) else asked)

    async def _diverse(self, n: int) -> list[Call]:
        """A call for each approach that the model proposes; none where it does not, or where there
        is no room for it."""
        try:
            said = await conversation(self.call, self.engine)
            plan = await self._replies([approaches.proposing(self.call, said, n)])
            found = approaches.proposed(plan[0].text, n)
            calls = [
                approaches.following(self._calm(number), said, approach)
                for number, approach in enumerate(found)
            ]
            longest = max(calls, key=lambda call: len(str(call.messages)), default=None)
            fits = longest is not None and await room_for(longest, self.engine) > 0
        except _CANNOT:
            return []
        return calls if len(calls) > 1 and fits else []

    async def _in_one(self, n: int) -> None:
        """All of them; none where there is no room for it."""
        try:
            said = await conversation(self.call, self.engine)
            call = approaches.together(self._calm(0), said, n)
            left = await room_for(call, self.engine)
        except _CANNOT:
            return
        if left < 1:
            return
        if call.max_tokens is not None:
            call = replace(call, max_tokens=min(call.max_tokens, left))
        (reply,) = await self._replies([call])
        self.made = approaches.parts(reply, self.call, n)

    async def _each(self, calls: Sequence[Call]) -> None:
        """Answers to these, as long as they are affordable and nothing is decided."""
        asked, over = 0, False
        while asked < len(calls) and not over:
            now = min(len(calls) - asked, max(self._affords(), 0 if self.made else 1))
            if not now:
                break
            batch = self._bounded(calls[asked : asked + now])
            before, asked = list(self.made), asked + now

            async def enough(found: Sequence[Reply], before: list[Reply] = before) -> bool:
                return await self._enough([*before, *found], len(calls))

            try:
                self.made += await self._replies(batch, enough)
            except _FAILS:
                if not self.made:
                    raise
                break
            over = self._late() or await self._enough(self.made, len(calls))

    async def _replies(self, calls: Sequence[Call], enough: Enough = _never) -> list[Reply]:
        return await replies(
            calls,
            self.engine,
            together=self.policy.together,
            enough=enough,
            ahead=not self.made,
            unfinished=not self.made,
        )

    def _bounded(self, calls: Sequence[Call]) -> Sequence[Call]:
        """Where nothing else bounds them, each has its share of the budget."""
        model = self.call.model
        tokens, price = self.engine.allowance(model), self.prices[model]
        if self.call.max_tokens is not None or tokens == sys.maxsize or len(calls) == 1:
            return calls
        room = self.engine.capabilities(model).context - self.prompt
        one = price.output or 1
        most = (tokens * one // len(calls) - self._asking(_LIKELY)[1]) // one
        if most >= room:
            return calls
        self.shared = True
        return [replace(call, max_tokens=most) for call in calls]

    def _late(self) -> bool:
        return time_left(self.call) == 0

    async def _enough(self, found: Sequence[Reply], n: int) -> bool:
        """Whether the others of `n` need not be waited for."""
        policy = self.policy
        whole = [reply for reply in found if reply.whole]
        if policy.choose == "vote":
            votes = [group.votes for group in selecting.voted(whole, self._answer)]
            return decided(votes, n - len(found), policy.sure)
        if policy.choose == "logprob":
            return False
        scores = await self._verified(whole)
        return any(score is not None and score >= policy.sure for score in scores)

    def _answer(self, reply: Reply) -> str | None:
        if id(reply) not in self.answers:
            self.answers[id(reply)] = extract(reply.text, self.policy.extract)
        return self.answers[id(reply)]

    async def _verified(self, found: Sequence[Reply]) -> list[float | None]:
        """The verifier's scores; None: it did not say."""
        for reply in found:
            if id(reply) not in self.scores:
                self.scores[id(reply)] = await self._score(reply)
        return [self.scores[id(reply)] for reply in found]

    async def _score(self, reply: Reply) -> float | None:
        verifier = self.policy.verifier
        if verifier is None:
            return None
        try:
            async with asyncio.timeout(time_left(self.call)):
                return await verifier.passes(reply.text, self.call, self.engine)
        except (TimeoutError, *_CANNOT):
            return None

    async def _selected(self) -> Selected:
        policy = self.policy
        if policy.choose == "verify":
            scores = await self._verified(self.made)
            return selecting.by_scores(self.made, scores, self._answer, policy.sure)
        if policy.choose == "logprob":
            return selecting.by_likelihood(self.made)
        return selecting.by_vote(self.made, self._answer)
