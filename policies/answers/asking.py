"""Whole answers as a policy asks for them, one or several at once, and as it shows one of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from app.errors import (
    BadRequest,
    EngineError,
    FarthingError,
    Overloaded,
    Unaffordable,
    UnknownModel,
)
from app.types import (
    Alternative,
    Call,
    Chunk,
    Decision,
    Engine,
    Message,
    Sampling,
    Token,
)

PASSED_ON = (EngineError, Overloaded, Unaffordable, UnknownModel, BadRequest)
"""What one model raises and another one may not."""
_FRAME = 64  # tokens that a chat template may add of itself, a default system prompt included
_MARGIN_S = 0.05  # before the deadline, to show what there is


@dataclass(slots=True)
class Reply:
    """What one call was answered, as far as it was read."""

    call: Call
    chunks: list[Chunk] = field(default_factory=list)  # all but the finish chunk
    finish: Chunk | None = None  # None: it was left before its end

    @property
    def model(self) -> str:
        return self.call.model

    @property
    def text(self) -> str:
        """All that may be shown of it."""
        last = "" if self.finish is None else self.finish.text
        return "".join(chunk.text for chunk in self.chunks) + last

    @property
    def tokens(self) -> list[Token]:
        return [token for chunk in self.chunks for token in chunk.tokens]

    @property
    def whole(self) -> bool:
        """Whether its model ended it, and no bound."""
        return self.finish is not None and self.finish.finish == "stop"

    @property
    def cut(self) -> bool:
        """Whether the budget ended it."""
        return self.finish is not None and self.finish.reason == "budget"

    @property
    def mean_logprob(self) -> float | None:
        """Natural, of its tokens; None: it has none, or nobody asked for them."""
        found = [token.logprob for token in self.tokens if token.logprob is not None]
        return sum(found) / len(found) if found else None

    def add(self, chunk: Chunk) -> None:
        if chunk.finish is None:
            self.chunks.append(chunk)
        else:
            self.finish = chunk


async def read(call: Call, engine: Engine) -> Reply:
    """The answer to this call, read to its end. Raises as the engine."""
    reply = Reply(call)
    async with aclosing(engine.generate(call)) as stream:
        async for chunk in stream:
            reply.add(chunk)
    return reply


Enough = Callable[[Sequence[Reply]], bool | Awaitable[bool]]


async def replies(
    calls: Sequence[Call],
    engine: Engine,
    *,
    together: int,
    enough: Enough = lambda found: False,
    ahead: bool = False,
    unfinished: bool = False,
) -> list[Reply]:
    """Answers to these calls, at most `together` of them under way, in the order of the calls.

    Once what has ended is `enough` (asked after each end), or the deadline of the first call has
    come, the others are closed, and what has ended is all that is returned. For want of money no
    further one is begun. Raises what the first call that failed raised where none has succeeded.

    `ahead`: the others begin once the first one has spoken, to find its prompt in the cache.
    `unfinished`: where none has ended at the deadline, those that have begun to speak are returned.
    """
    asking = _Asking(list(calls), engine, ahead, unfinished)
    try:
        while asking.begin(together):
            if not await asking.wait() or await _is(enough(asking.found)):
                break
    finally:
        await asking.stop()
    if not asking.found and asking.failed:
        raise asking.failed[0]
    return asking.found or asking.begun


async def _is(answer: bool | Awaitable[bool]) -> bool:
    return answer if isinstance(answer, bool) else await answer


class _Asking:
    """Calls under way, each read by a task of its own."""

    def __init__(
        self, calls: Sequence[Call], engine: Engine, ahead: bool, unfinished: bool
    ) -> None:
        self._replies = [Reply(call) for call in calls]
        self._engine = engine
        self._unfinished = unfinished
        self._spoke = asyncio.Event()  # the first one has; or nobody waits for it
        if not ahead:
            self._spoke.set()
        self._next = 0
        self._tasks: dict[asyncio.Task[None], int] = {}
        self._found: dict[int, Reply] = {}
        self.failed: list[FarthingError] = []

    @property
    def found(self) -> list[Reply]:
        """Those that have ended."""
        return [self._found[at] for at in sorted(self._found)]

    @property
    def begun(self) -> list[Reply]:
        """Those that have begun to speak, where they are wanted."""
        return [reply for reply in self._replies if self._unfinished and reply.text]

    def begin(self, together: int) -> bool:
        """Begin as many as may be under way; whether any is."""
        poor = any(isinstance(error, Unaffordable) for error in self.failed)
        while not poor and self._next < len(self._replies) and len(self._tasks) < together:
            self._tasks[asyncio.create_task(self._read(self._next))] = self._next
            self._next += 1
        return bool(self._tasks)

    async def _read(self, at: int) -> None:
        reply = self._replies[at]
        if at:
            await self._spoke.wait()
        try:
            async with aclosing(self._engine.generate(reply.call)) as stream:
                async for chunk in stream:
                    reply.add(chunk)
                    if chunk.text or chunk.tokens:
                        self._spoke.set()
        finally:
            self._spoke.set()

    async def wait(self) -> bool:
        """Until one has ended; False: the deadline came, and there is one to show."""
        done = await self._ended(time_left(self._replies[0].call))
        if not done and not self._found and not self.begun:
            done = await self._ended(None)
        for task in done:
            at = self._tasks.pop(task)
            try:
                task.result()
                self._found[at] = self._replies[at]
            except (EngineError, Overloaded, Unaffordable) as error:
                self.failed.append(error)
        return bool(done)

    async def _ended(self, timeout: float | None) -> set[asyncio.Task[None]]:
        first = asyncio.FIRST_COMPLETED
        done, _ = await asyncio.wait(self._tasks, timeout=timeout, return_when=first)
        return done

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def shown(
    reply: Reply, decision: Decision | None = None, considered: tuple[Alternative, ...] = ()
) -> Iterator[Chunk]:
    """A reply as a policy yields it: what was decided comes with the first chunk."""
    end = reply.finish or Chunk(model=reply.model, finish="length")
    for number, chunk in enumerate((*reply.chunks, end)):
        if number == 0 and (decision is not None or considered):
            chunk = replace(chunk, decision=decision or chunk.decision, considered=considered)
        yield chunk


def asked(
    call: Call,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Call:
    """A call of our own beside the client's, of which nothing but whose it is stays: no tools or
    form of its answer, no stop strings."""
    return Call(
        model=call.model,
        messages=tuple(messages),
        max_tokens=max_tokens,
        sampling=Sampling(temperature=temperature, seed=seed),
        goals=call.goals,
        account=call.account,
        id=call.id,
    )


async def conversation(call: Call, engine: Engine) -> tuple[Message, ...]:
    """The client's messages; of a bare completion one with its text.

    Raises EngineUnsupported where token ids cannot be told as text.
    """
    if call.prompt is None:
        return call.messages
    text = call.prompt
    if not isinstance(text, str):
        text = await engine.detokenize(call.model, text)
    return ({"role": "user", "content": text},)


async def room_for(call: Call, engine: Engine) -> int:
    """Tokens that its model's context holds after its prompt; below 1: it is too long."""
    return engine.capabilities(call.model).context - await engine.count(call)


def time_left(call: Call) -> float | None:
    """Seconds in which what there is must be shown, not below 0; None: there is no deadline."""
    if call.goals.deadline is None:
        return None
    return max(call.goals.deadline - _MARGIN_S - time.monotonic(), 0.0)


def at_most(text: str) -> int:
    """Tokens that a message of ours can be at most, with its frame: none is less than a byte."""
    return len(text.encode()) + _FRAME


def as_read(completion: int) -> int:
    """Tokens that an answer of so many takes at most, read again as text with its frame.

    Tokens that are made are not always those as which a text is read; the difference is small.
    """
    return completion * 5 // 4 + _FRAME
