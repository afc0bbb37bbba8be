"""Words of long texts that a small model expected are left out of the prompt, to a share of it."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from pydantic import Field, PrivateAttr

from app.catalog import Catalog, ModelCard, Tariff
from app.errors import BadRequest, EngineError, Overloaded, Unaffordable
from app.reasons import Shortened
from app.types import (
    Alternative,
    Call,
    Chunk,
    Decision,
    Decoding,
    Fidelity,
    MeteredEngine,
    Usage,
)
from policies.answers import contexts, summaries, surprisal
from policies.answers.asking import time_left
from policies.answers.cutting import Words, cut
from policies.answers.spans import KEEP
from policies.base import Policy

MOST_READINGS = 256  # calls of the scorer for one prompt
_SLACK = 64  # tokens that reading a text takes beyond twice those of the prompt
_EDGE = 4  # tokens by which a text alone may differ from the same text in its prompt
_NAME = 3.0  # nats by which a name is worth more: once it was told it is expected again
_Way = Literal["surprisal", "random", "end"]


class _Plain(Exception):
    """The prompt stays as it is, for this reason."""


@dataclass(slots=True)
class _Text:
    """A long text of the prompt; tokens are the target's."""

    words: Words
    tokens: int
    goal: int
    reach: int = 0  # tokens that it has at least when it is cut
    order: Sequence[int] = ()  # of its words: which go first
    reading: tuple[surprisal.Window, ...] = ()
    asking: tuple[Call, ...] = ()  # for its summary


@dataclass(slots=True)
class _Made:
    """What is asked of the target, and why."""

    call: Call
    decision: Decision
    considered: tuple[Alternative, ...]
    shortened: Shortened | None = None


class Compress(Policy):
    """Selective Context (Li et al. 2023, arXiv 2310.06201): the words of a long text go, those
    first that a small model expected most, as they tell least; until it has `ratio` of its
    tokens. That words of little weight can go is TCRA-LLM's idea too (Liu et al. 2023, arXiv
    2310.15556), which picks them otherwise.

    Each text is cut by itself, from what it says alone, so that earlier turns of a conversation
    are cut as they were in the last turn, and are found in prefix caches. Only what users said, and
    plain text that tools gave back, is cut, and of it never what `spans` says.
    """

    by_token: ClassVar[bool] = False
    fidelity: ClassVar[Fidelity] = "approximate"

    target: str = Field("", description="model that answers where the client names none")
    scorer: str = Field(
        "",
        description="model that reads the texts, or sums them up; default: the cheapest of the"
        " family that can, else of the fleet",
    )
    ratio: float = Field(0.8, gt=0, lt=1, description="of each long text's tokens that are left")
    mode: Literal["drop", "summary"] = Field(
        "drop", description="`drop` words, or ask the scorer for a `summary` of each part"
    )
    least: int = Field(256, ge=1, description="tokens: shorter texts are left as they are")
    by: _Way = Field(
        "surprisal",
        description="which words go: by `surprisal`; to compare, at `random` or from the `end`",
    )
    seed: int = Field(0, description="of what goes at random")

    _prices: Mapping[str, Tariff] = PrivateAttr(default_factory=dict)
    _seconds: Mapping[str, Tariff] = PrivateAttr(default_factory=dict)  # of the models that say it

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        target = model or self.target
        if not target:
            raise BadRequest("policy compress: `target` is missing", param="policy")
        target = catalog.model(target).name
        found = {"target": target, "scorer": self._chosen(catalog, target)}
        fitted = self.model_copy(update=found)
        fitted._prices, fitted._seconds = catalog.prices(), catalog.gpu_seconds()
        return fitted

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        # The target first: the prompt is counted in its tokens.
        answer = Usage(prompt=prompt, completion=completion)
        if not self._asks or 0 < prompt < self.least:
            return {self.target: answer}
        read = Usage(_bound(prompt), completion=prompt if self.mode == "summary" else 0)
        if self.scorer == self.target:
            return {self.target: answer + read}
        return {self.target: answer, self.scorer: read}

    def best_first(self, model: str) -> Sequence[str]:
        return (self.target,)

    def most_calls(self, call: Call) -> int:
        return 1 + MOST_READINGS * self._asks

    def relays(self, call: Call, engine: MeteredEngine) -> bool:
        return engine.capabilities(self.target).native

    async def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        call, told = call.to(self.target), False
        made = await self._made(call, engine)
        native = engine.capabilities(self.target).native
        answer = engine.generate(made.call.decoded(Decoding(native=native)))
        async with aclosing(answer) as stream:
            async for chunk in stream:
                if not told:
                    told, why = True, made.considered
                    chunk = replace(chunk, decision=made.decision, considered=why)
                    chunk = replace(chunk, shortened=made.shortened)
                yield chunk

    @property
    def _asks(self) -> bool:
        """Whether the scorer is asked anything."""
        return self.mode == "summary" or self.by == "surprisal"

    def _chosen(self, catalog: Catalog, target: str) -> str:
        """The scorer. Raises BadRequest where there is none that can."""
        if self.scorer:
            card = catalog.model(self.scorer)
            if self._asks and not self._can(card):
                raise BadRequest(
                    f"policy compress: scorer: {card.name} does not tell how likely the words of a"
                    " text are; name a vllm or embedded model",
                    param="policy",
                )
            return card.name
        kin = catalog.family(target)
        others = sorted(catalog.models.values(), key=lambda card: card.price.output)
        able = [card.name for card in (*kin, *others) if self._can(card)]
        if able or not self._asks:
            return able[0] if able else target
        raise BadRequest(
            "policy compress: scorer: no model of this fleet tells how likely the words of a text"
            " are; that takes a vllm or embedded one",
            param="policy",
        )

    def _can(self, card: ModelCard) -> bool:
        writes = card.embeds != "only"
        return writes and (self.mode == "summary" or card.engine != "openai")

    async def _made(self, call: Call, engine: MeteredEngine) -> _Made:
        before = await engine.count(call) if not call.beside else 0
        for other in call.apart() if call.beside else ():
            before += await engine.count(other)
        try:
            return await self._shorter(call, engine, before)
        except _Plain as plain:
            cost = before * self._prices[self.target].input
            reason = str(plain)
            ways = (_way("whole", reason, cost, chosen=True),)
            # Marks are taken out all the same, so that a text is read alike whatever is decided.
            shown = contexts.changed(call, _unmarked)
            return _Made(shown, Decision("plain", self.target, 0, detail=reason), ways)

    async def _shorter(self, call: Call, engine: MeteredEngine, before: int) -> _Made:
        """The call with its long texts cut. Raises _Plain."""
        if call.body.get("echo"):
            raise _Plain("the prompt is shown to the client")
        every = contexts.texts(call)
        found = await self._long(call, engine, every)
        room = engine.capabilities(self.target).context
        cost = await self._check(call, engine, found, before, must=before >= room)
        try:
            left = time_left(call)
            async with asyncio.timeout(None if left is None else left / 2):
                new = await self._cut(call, engine, found)
        except TimeoutError:
            raise _Plain(f"{self.scorer} did not read it in half of the time there is") from None
        except (EngineError, BadRequest, Overloaded, Unaffordable) as error:
            raise _Plain(f"{self.scorer} did not read it ({type(error).__name__})") from error
        texts = [new.get(number) or _unmarked(text) for number, text in enumerate(every)]
        asked = contexts.with_texts(call, texts)
        after = 0
        for each in asked.apart():
            after += await engine.count(each)
        if after >= before:
            raise _Plain("there was nothing to leave out")
        return self._told(asked, before, after, cost, found)

    async def _long(
        self, call: Call, engine: MeteredEngine, every: Sequence[str]
    ) -> dict[int, _Text]:
        """The texts that are cut, by their number. Raises _Plain where there is none."""
        found = dict[int, _Text]()
        for number, text in enumerate(every):
            if len(text.encode(errors="replace")) < self.least:
                continue  # no token is less than a byte
            words = await asyncio.to_thread(Words, text)
            tokens = await self._count(call, engine, words.text)
            if tokens >= self.least and words.free:
                found[number] = _Text(words, tokens, int(self.ratio * tokens))
        if not found:
            raise _Plain(f"no text of {self.least} tokens may be cut")
        return found

    async def _count(self, call: Call, engine: MeteredEngine, text: str) -> int:
        """The target's tokens of a text."""
        return await engine.count(Call(self.target, prompt=text, account=call.account, id=call.id))

    async def _check(
        self,
        call: Call,
        engine: MeteredEngine,
        found: Mapping[int, _Text],
        before: int,
        must: bool,
    ) -> int:
        """What it costs to find out what goes, 1e-12 USD. Raises _Plain where that is more than it
        saves (unless it must be shorter), or there is no money or time for it."""
        saved = sum(text.tokens - text.goal for text in found.values())
        if not self._asks:
            return 0
        price, target = self._prices[self.scorer], self._prices[self.target]
        used = Usage()
        for text in found.values():
            used += await self._prepared(call, engine, text)
        calls = sum(len(text.reading) + len(text.asking) for text in found.values())
        if calls > MOST_READINGS or used.prompt > _bound(before) or used.completion > before:
            raise _Plain(f"it is too much for {self.scorer} to read")
        cost = price.of(used)
        if cost > saved * target.input and not must:
            raise _Plain(f"to have {self.scorer} read it costs more than it saves")
        for text in found.values():
            least = text.words.without(self._most(text.words.free))
            text.reach = max(text.goal, await self._count(call, engine, least))
            if self.mode == "summary":
                text.reach = text.goal
        reach = before - sum(text.tokens - text.reach - _EDGE for text in found.values())
        if not self._pays(used, Usage(reach, completion=call.choices), engine):
            raise _Plain(f"the budget does not surely pay for {self.scorer} and an answer")
        seconds, left = used.prompt * engine.load(self.scorer).reading, time_left(call)
        if left is not None and seconds > left / 2:
            raise _Plain(f"{self.scorer} would read it for {seconds:.1f} s of {left:.1f} s")
        return cost

    def _pays(self, reading: Usage, answer: Usage, engine: MeteredEngine) -> bool:
        """Whether the budget surely does, in money and in accelerator-seconds: what is left of it
        is told in tokens of the target, of whichever there are fewer."""
        rest = engine.allowance(self.target)
        for takes in (self._prices, self._seconds):
            if self.target in takes and self.scorer in takes and rest != sys.maxsize:
                target = takes[self.target]
                needed = takes[self.scorer].of(reading) + target.of(answer)
                if needed > rest * target.output:
                    return False
        return True

    async def _prepared(self, call: Call, engine: MeteredEngine, text: _Text) -> Usage:
        """The most that the scorer reads and writes for this text."""
        if self.mode == "summary":
            asking = summaries.calls(call.to(self.scorer), text.words, self.ratio)
            text.asking = tuple(asking)
            read = [await engine.count(asked) for asked in asking]
            return Usage(sum(read), completion=sum(asked.max_tokens or 0 for asked in asking))
        said = text.words.text
        asked = Call(self.scorer, prompt=said, body={"prompt": said}, account=call.account)
        ids = (await engine.tokenize(asked, names=False)).ids
        text.reading = tuple(surprisal.windows(ids, engine.capabilities(self.scorer).context))
        return Usage(sum(len(window.ids) for window in text.reading))

    def _most(self, free: Sequence[int]) -> Sequence[int]:
        """Of the words that may go those that go at most: something is to be left of a text that
        is mostly made of what stays."""
        return free[: round(len(free) * (1 - self.ratio / 2))]

    async def _cut(
        self, call: Call, engine: MeteredEngine, found: Mapping[int, _Text]
    ) -> dict[int, str]:
        """The shorter texts. Raises as the engine."""
        new = dict[int, str]()

        async def count(text: str) -> int:
            return await self._count(call, engine, text)

        for number, text in found.items():
            if self.mode == "summary":
                new[number] = await summaries.summed_up(text.words, text.asking, engine)
                continue
            text.order = self._most(await self._order(call, engine, text))
            new[number] = (await cut(text.words, text.order, text.goal, count)).text
        return new

    async def _order(self, call: Call, engine: MeteredEngine, text: _Text) -> list[int]:
        """The words that may go, first those that go first."""
        words = text.words
        if self.by == "end":
            return words.free[::-1]
        if self.by == "random":
            return random.Random(self.seed).sample(words.free, len(words.free))
        tokens = await surprisal.scored(call.to(self.scorer), text.reading, engine)
        cores = [(words[number].start, words[number].end) for number in words.free]
        found = await asyncio.to_thread(surprisal.surprisals, words.text, tokens, cores)
        names = (words[number].name for number in words.free)
        found = [one + _NAME * name for one, name in zip(found, names, strict=True)]
        ranked = sorted(
            zip(found, words.free, strict=True), key=lambda one: (round(one[0], 3), one[1])
        )
        return [number for _, number in ranked]

    def _told(
        self, call: Call, before: int, after: int, cost: int, found: Mapping[int, _Text]
    ) -> _Made:
        price = self._prices[self.target].input
        how = "summed up" if self.mode == "summary" else f"by {self.by}"
        many = "a long text" if len(found) == 1 else f"{len(found)} long texts"
        detail = f"{after} of {before} tokens: {many} to {self.ratio:g}, {how}"
        ways = (
            _way("compress", detail, cost + after * price, chosen=True),
            _way("whole", "a shorter one was asked for", before * price),
        )
        prompts = () if call.prompt is None else (call.prompt, *call.beside)
        shortened = Shortened(before, after, call.messages, prompts)
        decision = Decision("compress", self.target, 0, dropped=before - after, detail=detail)
        return _Made(call, decision, ways, shortened)


def _unmarked(text: str) -> str:
    """As it is shown where nothing is left out."""
    return Words(text).text if KEEP in text else text


def _bound(prompt: int) -> int:
    """Tokens that the scorer reads at most for a prompt of so many of the target's."""
    return 2 * prompt + _SLACK


def _way(name: str, reason: str, cost: int, *, chosen: bool = False) -> Alternative:
    """A way to read the prompt, and what that costs, 1e-12 USD."""
    return Alternative("reading", name, chosen, reason, cost=cost)
