"""Several answers to one request: a policy run once for each, side by side, on one budget."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace

from app.budget import Meter
from app.errors import EngineError, Unaffordable
from app.types import Call, Chunk, Decoding, Token, Usage
from policies.base import Planned, Policy, most_cost

_SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class Part:
    """One run of the policy: for one choice, or for all where the engine makes them itself."""

    call: Call
    prompt: int  # tokens
    completion: int  # most that it may write, of all its choices
    native: bool  # whether the engine makes all choices in its own words
    scoring: int  # 1e-12 units: reading the prompt once more, for its log-probabilities
    least: int  # prompt and a token of each choice, by the cheapest of its models
    worst: int  # the most that it may cost
    beneath: Part | None = None  # the same in the unit of the meter beneath

    @property
    def most(self) -> int:
        """The most that it may cost, its scoring too."""
        return self.worst + self.scoring


async def parts(
    call: Call, planned: Planned, meter: Meter, drawn: int, echo: bool = False
) -> list[Part]:
    """What is to be run for this call, as it was planned; `drawn`: choices that are made of each
    prompt; `echo`: whether the prompts are shown too. Raises as the engine's `count`.
    """
    policy, model = planned.policy, planned.model
    calls = call.to(model).apart()
    asked = calls[0].choices
    counts = await _counted(calls, policy, model, meter)
    models = policy.worst_case(model, 0, 0)
    context = max(meter.capabilities(each).context for each in models)
    # At least one token: a prompt that is too long is for the engine to refuse.
    rooms = [max(context - prompt, 1) for prompt in counts]
    limit, single = call.max_tokens, (drawn, len(calls)) == (1, 1)
    # Most calls are for one answer, and need not know.
    matters = drawn == asked and (not single or echo)
    native = matters and policy.relays(call.to(model), meter)
    if limit == 0 and native and not call.embeds:
        limit = 1  # vLLM writes a token even where none is to be shown
    most = [room if limit is None else min(limit, room) for room in rooms]
    price = _Prices(policy, model, meter, native)
    scoring = echo and not native and call.sampling.logprobs is not None
    if native or single:
        return [price.part(call.to(model), sum(counts), sum(most) * drawn, scoring)]
    return [
        price.part(_choice(each, number, policy.seeds), prompt, completion, scoring and number == 0)
        for each, prompt, completion in zip(calls, counts, most, strict=True)
        for number in range(drawn)
    ]


def least(found: Sequence[Part], models: Iterable[str], meter: Meter) -> int:
    """Prompt and a token of each choice of all parts, by the cheapest of these models: 1e-12
    units."""
    return sum(
        min(
            meter.prices[model].of(
                Usage(part.prompt, completion=min(part.call.choices, part.completion))
            )
            for model in models
        )
        for part in found
    )


def written(
    call: Call, planned: Planned, found: Sequence[Part], meter: Meter, drawn: int, echo: bool
) -> AsyncGenerator[Chunk]:
    """The chunks of this call's answers, as it was planned. `drawn`, `echo`: as `parts` has them.

    Raises as the policy.
    """
    policy, prompts = planned.policy, 1 + len(call.beside)
    echo = echo and not found[0].native
    if echo and call.max_tokens == 0:
        return echoed(call, planned.first, meter, None)
    if len(found) == 1:
        stream = policy.run(found[0].call, meter)
    else:
        stream = run(policy, found, meter)
        if len(found) != call.choices:
            stream = best(stream, prompts, drawn, call.choices // prompts)
    return echoed(call, planned.first, meter, stream) if echo else stream


async def run(policy: Policy, found: Sequence[Part], meter: Meter) -> AsyncGenerator[Chunk]:
    """The chunks of all parts as they come, each under the index of its part.

    Raises as the policy, for any of the parts; what the others do ends with that. But where the
    budget pays for some of them alone, the others end with finish `length`, reason `budget`.
    """
    writing = _Writing(policy, found, meter)
    try:
        while writing.left:
            chunk = await writing.next()
            if chunk is not None:
                yield chunk
        if len(writing.unpaid) == len(found):
            raise writing.unpaid[0]
        for index in sorted(writing.silent):
            yield Chunk(index=index, finish="length", reason="budget")
    finally:
        await writing.stop()


async def best(
    stream: AsyncGenerator[Chunk], prompts: int, drawn: int, shown: int
) -> AsyncGenerator[Chunk]:
    """Of each prompt's choices those `shown` whose tokens were likeliest in the mean, best first.

    They come whole, when all of a prompt's have been drawn. Tokens must have log-probabilities.
    """
    made: list[list[Chunk]] = [[] for _ in range(prompts * drawn)]
    async with aclosing(stream) as chunks:
        async for chunk in chunks:
            made[chunk.index].append(chunk)
            start = chunk.index - chunk.index % drawn
            of_prompt = made[start : start + drawn]
            if not all(each and each[-1].finish for each in of_prompt):
                continue
            ranked = sorted(of_prompt, key=_likelihood, reverse=True)[:shown]
            for rank, each in enumerate(ranked):
                for one in each:
                    yield replace(one, index=start // drawn * shown + rank)


async def echoed(
    asked: Call, model: str, meter: Meter, answers: AsyncGenerator[Chunk] | None
) -> AsyncGenerator[Chunk]:
    """Each choice behind its prompt; `answers`: what follows, None: nothing is to be written.

    `model` reads the prompts for their tokens' log-probabilities, where they are asked for.
    """
    echoes: list[Chunk] = []
    for number, call in enumerate(asked.to(model).apart()):
        echo = await _echo(call, meter)
        for index in range(number * call.choices, (number + 1) * call.choices):
            echoes.append(replace(echo, index=index))
            if answers is None:
                echoes.append(Chunk(model=model, index=index, finish="length"))
            echo = replace(echo, usage=Usage())
    if answers is not None:
        async with aclosing(answers) as chunks:
            async for chunk in chunks:
                # Not before: what follows may yet be refused.
                while echoes:
                    yield echoes.pop(0)
                yield chunk
    for echo in echoes:
        yield echo


async def _echo(call: Call, meter: Meter) -> Chunk:
    prompt, told, usage = call.prompt, list[Token](), Usage()
    if isinstance(prompt, tuple):
        text = await meter.detokenize(call.model, prompt)
    else:
        text = prompt or ""
    if call.sampling.logprobs is not None:
        scoring = replace(call, max_tokens=0, choices=1, decoding=Decoding(scores=True))
        async with aclosing(meter.generate(scoring)) as chunks:
            async for chunk in chunks:
                told += chunk.tokens
                usage += chunk.usage
    return Chunk(text, tuple(told), call.model, usage=usage, echo=True)


class _Writing:
    """The tasks that write one part each."""

    def __init__(self, policy: Policy, found: Sequence[Part], meter: Meter) -> None:
        self.left = len(found)  # tasks under way
        self.silent = set(range(len(found)))  # parts without a finish chunk
        self.unpaid: list[Unaffordable] = []
        self._policy = policy
        self._parts = found
        self._meter = meter
        self._shares = _Shares(meter, [meter.share() for _ in found], found)
        self._news: asyncio.Queue[Chunk | asyncio.Task[None]] = asyncio.Queue()
        self._room = asyncio.Semaphore(len(found))  # who is not read from does not write on
        self._tasks = [asyncio.create_task(self._write(index)) for index in range(len(found))]
        for task in self._tasks:
            task.add_done_callback(self._news.put_nowait)

    async def next(self) -> Chunk | None:
        """The next chunk of any part; None: a part has ended. Raises what one has raised."""
        news = await self._heard()
        if isinstance(news, Chunk):
            self._room.release()
            if news.finish is not None:
                self.silent.discard(news.index)
            return news
        self.left -= 1
        error = news.exception()
        if isinstance(error, Unaffordable):
            self.unpaid.append(error)
        elif error is not None:
            raise error
        return None

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self, index: int) -> None:
        finish: Chunk | None = None
        try:
            share = self._shares.meters[index]
            async with aclosing(self._policy.run(self._parts[index].call, share)) as stream:
                async for chunk in stream:
                    if chunk.finish is None:
                        await self._tell(index, chunk)
                    finish = chunk if chunk.finish is not None else finish
        finally:
            self._shares.ended(index)
        if finish is None:
            raise EngineError("The answer broke off")
        await self._tell(index, finish)

    async def _tell(self, index: int, chunk: Chunk) -> None:
        await self._room.acquire()
        self._news.put_nowait(replace(chunk, index=index))

    async def _heard(self) -> Chunk | asyncio.Task[None]:
        started = time.perf_counter()
        try:
            return await self._news.get()
        finally:
            self._meter.waited += time.perf_counter() - started


class _Shares:
    """What each of several answers may spend.

    Each has what its prompt and a token cost, and of what is then left a share in proportion to
    what it may cost beyond that: none can starve another. What one that has ended did not need is
    the others'. A share never falls, so no answer has spent more than its own, and all together
    spend no more than there is.
    """

    def __init__(self, meter: Meter, meters: list[Meter], found: Sequence[Part]) -> None:
        """Raises Unaffordable where there is not a token for each."""
        self.meters = meters
        self._limit = None if meter.limit is None else meter.limit - meter.bound
        self._parts = found
        self._writing = set(range(len(found)))
        if self._limit is not None and self._limit < sum(part.least for part in found):
            raise Unaffordable(
                f"The budget does not pay for {len(found)} prompts and a token after each",
                param=meter.param,
            )
        self._divide()
        below = [each.beneath for each in meters if each.beneath is not None]
        parts = [part.beneath for part in found if part.beneath is not None]
        self._beneath = None if meter.beneath is None else _Shares(meter.beneath, below, parts)

    def ended(self, index: int) -> None:
        self._writing.discard(index)
        self._divide()
        if self._beneath is not None:
            self._beneath.ended(index)

    def _divide(self) -> None:
        if self._limit is None:
            return
        spent = sum(m.bound for i, m in enumerate(self.meters) if i not in self._writing)
        writing = [self._parts[index] for index in self._writing]
        beyond = self._limit - spent - sum(part.least for part in writing)
        wanted = sum(part.worst - part.least for part in writing)
        for index in self._writing:
            part = self._parts[index]
            share = beyond * (part.worst - part.least) // wanted if wanted else 0
            self.meters[index].limit = part.least + share


@dataclass(frozen=True, slots=True)
class _Prices:
    policy: Policy
    model: str
    meter: Meter
    native: bool

    def part(self, call: Call, prompt: int, completion: int, scoring: bool) -> Part:
        prices = self.meter.prices
        worst = self.policy.worst_case(self.model, prompt, completion)
        first = next(iter(worst))
        again = prices[first].of(Usage(prompt=prompt)) if scoring else 0
        below = None
        if self.meter.beneath is not None:
            below = replace(self, meter=self.meter.beneath).part(call, prompt, completion, scoring)
        if completion == 0 and not call.embeds:
            return Part(call, prompt, 0, self.native, again, 0, 0, below)
        shortest = Usage(prompt=prompt, completion=min(call.choices, completion))
        return Part(
            call=call,
            prompt=prompt,
            completion=completion,
            native=self.native,
            scoring=again,
            least=min(prices[name].of(shortest) for name in worst),
            worst=most_cost(self.policy, worst, self.meter, prices),
            beneath=below,
        )


async def _counted(calls: Sequence[Call], policy: Policy, model: str, meter: Meter) -> list[int]:
    """The tokens of the prompts, as the first model reads them that can be asked."""
    first, *others = policy.worst_case(model, 0, 0)
    try:
        return [await meter.count(each.to(first)) for each in calls]
    except EngineError:
        for other in others:  # the policy will find the same, and may go on without the first
            with suppress(EngineError):
                return [await meter.count(each.to(other)) for each in calls]
        raise


def _choice(call: Call, number: int, seeds: int) -> Call:
    """This choice of a prompt alone. Seeds as vLLM has them: the next choice has the next one,
    where each takes but one."""
    seed = call.sampling.seed
    if seed is not None:
        seed = (seed + number * seeds + _SEEDS // 2) % _SEEDS - _SEEDS // 2
    return replace(call, choices=1, sampling=replace(call.sampling, seed=seed))


def _likelihood(chunks: Sequence[Chunk]) -> float:
    """The mean log-probability of its tokens."""
    found = [t.logprob for chunk in chunks for t in chunk.tokens if t.logprob is not None]
    return sum(found) / len(found) if found else -math.inf
