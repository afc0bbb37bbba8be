"""Which of two models answers, told by the small one's first tokens, which are held back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace

from app.catalog import Tariff
from app.errors import (
    FarthingError,
    Unaffordable,
)
from app.types import Alternative, Call, Chunk, Decision, Decoding, MeteredEngine
from policies.answers.asking import PASSED_ON, Reply, time_left
from policies.base import most_likely, spoken


@dataclass(frozen=True, slots=True)
class Pair:
    """The two models, and what their tokens cost."""

    small: str
    large: str
    price_small: Tariff
    price_large: Tariff


@dataclass(frozen=True, slots=True)
class First:
    """By what it is told."""

    tokens: int  # of the small model's answer, from its beginning
    level: float  # bits: the large model answers where their mean entropy is this or more


class Routed:
    """One answer: the small model's from its beginning, or the large one's from scratch."""

    def __init__(self, pair: Pair, first: First, call: Call, engine: MeteredEngine) -> None:
        self._pair, self._first = pair, first
        self._call, self._engine = call, engine
        asked = call.to(pair.small).decoded(Decoding(entropy=True))
        self._held = Reply(asked)  # of the small model's answer
        self._mean: float | None = None  # bits, of its first tokens
        self._failed: dict[str, FarthingError] = {}  # by model
        self._poor = False  # the budget does not pay for the large model
        self._late = False  # the deadline came
        self._writer = ""  # whose answer is being shown

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """All of them. Raises what the large model raised, or the small one, if both failed."""
        for part in (self._small, self._large, self._resumed):
            async with aclosing(part()) as chunks:
                async for chunk in chunks:
                    yield chunk
            if self._writer:
                return

    async def _small(self) -> AsyncGenerator[Chunk]:
        """The small model's answer, where it stays: then its first tokens come all at once."""
        try:
            # For what is certain from the start nobody waits.
            self._poor = await self._too_dear(read=0)
            async with aclosing(self._engine.generate(self._held.call)) as stream:
                while not self._known() and (chunk := await self._next(stream)) is not None:
                    self._held.add(chunk)
                if await self._hard():
                    return
                for each in self._told():
                    yield each
                while self._held.finish is None and (chunk := await anext(stream, None)):
                    self._held.add(chunk)
                    yield chunk
        except TimeoutError:
            self._late = True
        except PASSED_ON as error:
            self._note(self._pair.small, error)

    async def _large(self) -> AsyncGenerator[Chunk]:
        """The large model's, in its server's own words where it has some."""
        if self._late:
            return
        model, engine = self._pair.large, self._engine
        try:
            native = engine.capabilities(model).native
            asked = self._call.to(model).decoded(Decoding(native=native))
            async with (
                aclosing(engine.generate(asked)) as stream,
                aclosing(spoken(stream)) as chunks,
            ):
                while (chunk := await self._next(chunks)) is not None:
                    yield chunk if self._writer else self._said(chunk, model)
        except TimeoutError:
            self._late = True
        except PASSED_ON as error:
            self._note(model, error)

    async def _resumed(self) -> AsyncGenerator[Chunk]:
        """What was held back, and its rest: the large model cannot be had, or not in time."""
        held = self._held
        held.finish = held.finish or self._end()
        if self._pair.small in self._failed and not self._late:
            errors = list(self._failed.values())[::-1]
            # That there is no money for the large one is not why the small one failed.
            raise next((e for e in errors if not isinstance(e, Unaffordable)), errors[0])
        if held.finish is not None:
            for each in self._told():
                yield each
            return
        ids = tuple(token.id for token in held.tokens)
        try:
            async with aclosing(self._engine.generate(held.call.after(ids))) as stream:
                while (chunk := await self._next(stream)) is not None:
                    for each in () if self._writer else self._told():
                        yield each
                    yield chunk
        except (Unaffordable, TimeoutError) as error:
            # Who was asked in between has left no money for it, or no time.
            if self._writer:
                raise
            self._late = isinstance(error, TimeoutError)
            end = Chunk(model=held.model, finish="length", reason="budget")
            held.finish = replace(end, reason="deadline") if self._late else end
            for each in self._told():
                yield each

    def _end(self) -> Chunk | None:
        """Of what was held back, where it cannot be gone on with; None: it can."""
        if self._late:
            return Chunk(model=self._held.model, finish="length", reason="deadline")
        whole = self._count == self._held.call.max_tokens
        return Chunk(model=self._held.model, finish="length") if whole else None

    def _known(self) -> bool:
        """Whether enough has come to tell; where nothing depends on it, to show."""
        enough = 1 if self._poor else self._first.tokens
        return self._held.finish is not None or self._count >= enough

    @property
    def _count(self) -> int:
        return len(self._held.tokens)

    async def _hard(self) -> bool:
        """Whether the large model is to answer, and can be paid for."""
        if self._poor:
            return False
        seen = self._held.tokens[: self._first.tokens]
        bits = [token.entropy[0] for token in seen if token.entropy is not None]
        self._mean = sum(bits) / len(bits) if bits else None
        if self._mean is not None and self._mean < self._first.level:
            return False
        used = [chunk.usage for chunk in self._held.chunks]
        read = sum(usage.prompt + usage.completion for usage in used)
        self._poor = await self._too_dear(read)
        return not self._poor

    async def _too_dear(self, read: int) -> bool:
        """Whether the rest of the budget does not pay for as long an answer of the large model as
        may come. `read`: tokens of prompt and answer so far, which its allowance counts."""
        price = self._pair.price_large
        tokens = self._engine.allowance(self._pair.large)
        if tokens == sys.maxsize or not price.output:
            return tokens < 1
        amount = (tokens + 1) * price.output - 1 + read * price.input
        try:
            prompt = await self._engine.count(self._call.to(self._pair.large))
        except PASSED_ON:
            return False  # it will say so itself when it is asked
        return tokens < 1 or price.buys(amount, prompt) < most_likely(self._call)

    async def _next(self, stream: AsyncGenerator[Chunk]) -> Chunk | None:
        """Raises TimeoutError where the deadline comes and there is something held to show."""
        waits = bool(self._writer) or not self._count
        async with asyncio.timeout(None if waits else time_left(self._call)):
            return await anext(stream, None)

    def _note(self, model: str, error: FarthingError) -> None:
        """That this model has failed. Raises the error where its answer is being shown."""
        if self._writer:
            raise error
        self._failed[model] = error

    def _told(self) -> Iterator[Chunk]:
        """What there is of the small model's answer, now that it stays."""
        self._writer = self._pair.small
        made = [*self._held.chunks, *([] if self._held.finish is None else [self._held.finish])]
        for number, chunk in enumerate(made):
            yield chunk if number else self._said(chunk, self._writer)

    def _said(self, first: Chunk, writer: str) -> Chunk:
        """The first chunk that is shown, with what was decided."""
        self._writer = writer
        return replace(first, decision=self._decision(), considered=tuple(self._considered()))

    def _decision(self) -> Decision:
        small = self._writer == self._pair.small
        other = self._pair.large if small else self._pair.small
        why = self._why()
        if other in self._failed:
            why = f"{other} failed ({type(self._failed[other]).__name__}); {why}"
        elif self._late:
            why = f"the deadline came; {why}"
        elif self._poor and small:
            why = f"the budget does not pay for {other}; {why}"
        return Decision(
            kind="route",
            model=self._writer,
            token=0,
            entropy=self._mean,
            threshold=self._first.level,
            detail=why.removesuffix("; "),
            steered=small and (self._poor or isinstance(self._failed.get(other), Unaffordable)),
        )

    def _why(self) -> str:
        """What the small model's first tokens say."""
        if self._mean is None:
            return ""
        seen = min(self._count, self._first.tokens)
        side = "at least" if self._mean >= self._first.level else "below"
        return f"mean entropy of its first {seen} tokens {side} {self._first.level:.3f} bits"

    def _considered(self) -> Iterator[Alternative]:
        """Both, and what became of each."""
        why = self._why() or "nothing was seen of the small model's answer"
        for model in (self._pair.small, self._pair.large):
            reason, fits = why, None
            if model in self._failed:
                reason = f"it failed ({type(self._failed[model]).__name__})"
            elif model == self._pair.large and self._poor:
                reason, fits = f"the budget does not pay for it; {why}", False
            elif model != self._writer:
                reason = f"{self._writer} answers: {why}"
            yield Alternative("model", model, model == self._writer, reason, fits=fits)
