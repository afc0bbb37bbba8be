"""Who may spend what, and what was spent: the Meter sits between every policy and every engine."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, Self

from app.bill import Line, Receipt
from app.catalog import PICO, GpuSeconds, Tariff
from app.errors import BudgetExceeded, FarthingError, Unaffordable, UnknownModel
from app.exposure import Run
from app.trail import CallRecord, Witness
from app.types import Call, Capabilities, Chunk, Engine, Load, Tokens, Usage

ENDED = "the server ends"
"""What a task is cancelled with when it is we who end an answer."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one request may need of its account."""

    id: str  # ours: a client's own id buys nothing
    policy: str
    model: str  # as the client named it
    most: int  # 1e-12 USD: its budget, or its worst case where that is less
    least: int  # 1e-12 USD: with less it need not begin
    tokens: int  # prompt and the most that it may write, where it says so


class Reservation(Protocol):
    """Money that is held for one request."""

    @property
    def amount(self) -> int:
        """1e-12 USD; perhaps less than was wanted, but not less than the least."""
        ...

    async def settle(self, receipt: Receipt) -> None:
        """Pay, and give the rest back. Once it has begun it is done, whoever stops waiting."""
        ...


RateKind = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True)
class Rate:
    """Where an account stands in the present minute."""

    kind: RateKind
    limit: int
    remaining: int
    reset: float  # seconds until the minute ends


class Account(Protocol):
    """Whose money a request spends, and on what it may spend it."""

    @property
    def id(self) -> str:
        """Ours: not the key itself."""
        ...

    @property
    def default(self) -> int | None:
        """Budget of a request that names none, 1e-12 USD; None: no limit."""
        ...

    @property
    def ceiling(self) -> int | None:
        """The most that one request may be given, 1e-12 USD; None: no limit."""
        ...

    @property
    def rates(self) -> Sequence[Rate]:
        """As of the request that was last admitted or refused."""
        ...

    def allows(self, name: str) -> bool:
        """Whether it may name this model or preset."""
        ...

    async def reserve(self, wanted: Wanted) -> Reservation:
        """Hold what the request wants, or what there is.

        Raises KeySpent or RateLimited naming the limit, and LedgerUnavailable.
        """
        ...

    def refused(self, receipt: Receipt) -> None:
        """Note, where there is room for it, an answer for which nothing was ever held."""


@dataclass
class Purse:
    """An account without limits that nobody keeps: it ends with the process."""

    spent: int = 0  # 1e-12 USD
    id: str = ""
    default: int | None = None
    ceiling: int | None = None
    rates: tuple[Rate, ...] = ()

    def allows(self, name: str) -> bool:
        return True

    async def reserve(self, wanted: Wanted) -> _FromPurse:
        return _FromPurse(self, wanted.most)

    def refused(self, receipt: Receipt) -> None:
        pass


@dataclass
class _FromPurse:
    purse: Purse
    amount: int

    async def settle(self, receipt: Receipt) -> None:
        self.purse.spent += receipt.bill.cost


@dataclass
class Meter:
    """An engine that prices, caps, books and closes every call of one request. Its engine may be
    another one, which bounds the same calls in another unit.

    A call's `max_tokens` is lowered to what the rest of `limit` buys after its whole prompt is
    priced as uncached, so the engine itself stops in time: the cost can reach the limit but not
    pass it, whatever a policy does and however many calls run at once.
    """

    engine: Engine
    prices: Mapping[str, Tariff]  # all amounts are in 1e-12 of their unit, mostly USD
    limit: int | None = None  # None: unlimited
    scarce: bool = True  # whether the limit may fall short of what an answer costs
    native: bool = True  # whether policies may learn that an engine answers in its own words
    gpu: Mapping[str, GpuSeconds] = field(default_factory=dict)  # of the models that say them
    witness: Witness | None = None
    param: str = "X-Budget-Usd"  # what a refusal names
    waited: float = 0.0  # seconds spent waiting on the engine
    settled: dict[str, Usage] = field(default_factory=dict)
    _held: int = 0  # for tokens that closed streams may have produced unseen
    _runs: list[Run] = field(default_factory=list)
    _shares: list[Meter] = field(default_factory=list)
    _read: int = 0  # tokens of the prompt and the answer, as of the last call
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)
    _counted: tuple[Call, int] | None = None  # the last one: what was admitted runs next

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._open.aclose()

    def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        """The engine's chunks, paid for. Raises Unaffordable before the first chunk.

        A call that the budget cut ends with finish `length`, reason `budget`.
        """
        stream = self._metered(call)
        self._open.push_async_callback(stream.aclose)
        return stream

    async def count(self, call: Call) -> int:
        if self._counted is not None and _reads_the_same(call, self._counted[0]):
            return self._counted[1]
        started = time.perf_counter()
        try:
            count = await self.engine.count(call)
        finally:
            self.waited += time.perf_counter() - started
        self._counted = call, count
        return count

    async def tokenize(self, call: Call, names: bool) -> Tokens:
        return await self.engine.tokenize(call, names)

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        return await self.engine.detokenize(model, ids)

    def capabilities(self, model: str) -> Capabilities:
        able = self.engine.capabilities(model)
        return able if self.native else replace(able, native=False)

    def load(self, model: str) -> Load:
        return self.engine.load(model)

    def allowance(self, model: str) -> int:
        """Completion tokens of `model` that the rest still buys, its catch-up priced uncached."""
        beneath = sys.maxsize if self.beneath is None else self.beneath.allowance(model)
        if self.limit is None or not self.scarce:
            return beneath
        running = sum(run.cost + run.unseen for run in self._runs)
        read = max([self._read, *(run.prompt + run.usage.completion for run in self._runs)])
        rest = self.limit - self._spent() - self._held - running
        return min(beneath, self._price(model).buys(rest, read))

    @property
    def beneath(self) -> Meter | None:
        """What bounds the same calls in another unit."""
        return self.engine if isinstance(self.engine, Meter) else None

    @property
    def cost(self) -> int:
        """What was spent so far."""
        ours = self._spent() + sum(run.cost for run in self._runs)
        return ours + sum(share.cost for share in self._shares)

    @property
    def bound(self) -> int:
        """The most that may have been spent, and may yet be by what runs."""
        ours = self._spent() + self._held + sum(run.worst for run in self._runs)
        return ours + sum(share.bound for share in self._shares)

    @property
    def rest(self) -> int | None:
        """What can still be reserved; None: unlimited."""
        return None if self.limit is None else self.limit - self.bound

    def share(self) -> Meter:
        """A meter for one of several answers, whose spending is ours too; its limit is to be set.

        It knows of no native answers: those of several choices could not be put together.
        """
        engine = self.engine if self.beneath is None else self.beneath.share()
        share = Meter(engine, self.prices, scarce=self.scarce, native=False, param=self.param)
        share.witness = self.witness
        self._shares.append(share)
        self._open.push_async_exit(share)
        return share

    def lines(self) -> list[Line]:
        """What each model was paid for so far."""
        return [self._line(model, used) for model, used in self._usages().items()]

    def _line(self, model: str, used: Usage) -> Line:
        gpu = self.gpu.get(model)
        taken = None if gpu is None else gpu.microseconds(used)
        return Line(model, used, self._price(model).of(used), gpu_us=taken)

    def _usages(self) -> dict[str, Usage]:
        usages = dict(self.settled)
        told = [(run.model, run.usage) for run in self._runs]
        for model, used in (*told, *(pair for s in self._shares for pair in s._usages().items())):
            usages[model] = usages.get(model, Usage()) + used
        return usages

    async def _metered(self, call: Call) -> AsyncGenerator[Chunk]:
        prompts = [await self.count(each) for each in call.apart()]
        run, capped = self._admit(call, prompts)
        call = replace(call, max_tokens=call.max_tokens if call.max_tokens == 0 else run.cap)
        if self.beneath is not None:
            self.beneath._admit(call, prompts)  # what it refuses has not been a call either
        with self._recorded(run) as record:
            self._runs.append(run)
            self._read = run.prompt
            try:
                call = replace(call, watch=record if call.watch is None else call.watch)
                async with aclosing(self.engine.generate(call)) as stream:
                    while (chunk := await self._next(stream)) is not None:
                        chunk = run.booked(chunk, capped)
                        record.saw(chunk)
                        yield chunk
            except FarthingError:
                # Refused before its first chunk: nothing ran, so nothing is held back for it.
                run.finished = run.finished or run.blind or not run.spoke
                raise
            except asyncio.CancelledError as cancelled:
                # Who is sent away by us does not pay for what is not given.
                run.finished = run.finished or (run.blind and ENDED in cancelled.args)
                raise
            finally:
                self._settle(run)

    @contextmanager
    def _recorded(self, run: Run) -> Iterator[CallRecord]:
        record = CallRecord(run.model, run.prompt)
        if self.witness is not None:
            self.witness.calling(record)
        try:
            yield record
        except Exception as error:
            record.broke(error)
            raise
        finally:
            record.ended, record.usage, record.cost = time.monotonic(), run.usage, run.cost
            if self.witness is not None:
                self.witness.called(record)

    async def _next(self, stream: AsyncGenerator[Chunk]) -> Chunk | None:
        started = time.perf_counter()
        try:
            return await anext(stream, None)
        finally:
            self.waited += time.perf_counter() - started

    def _admit(self, call: Call, prompts: Sequence[int]) -> tuple[Run, bool]:
        """The run, and whether the budget lowered its max_tokens. No await may come between
        reading the rest and adding the run, or two calls would be promised the same money."""
        price, prompt = self._price(call.model), sum(prompts)
        abilities = self.engine.capabilities(call.model)
        guesses = call.decoding.speculation
        longest = 0 if guesses is None else guesses.longest
        cap, capped = call.max_tokens, False
        if cap == 0 and call.decoding.native and not call.embeds:
            cap = 1  # vLLM writes a token even where none is to be shown
        if self.rest is not None:
            affordable = price.buys(self.rest, prompt, longest) // call.choices
            # A call that writes nothing need only pay for what it reads.
            if prompt * price.input > self.rest if cap == 0 else affordable < 1:
                raise Unaffordable(
                    f"The budget of {price.unit} does not pay for a prompt of {prompt} tokens"
                    f" and {_tokens(call.choices)} of {call.model}",
                    param=self.param,
                )
            room = max(abilities.context - min(prompts), 1)
            wanted = room if cap is None else cap
            # What is more than the context holds is for the engine to refuse, not for us to hide.
            if self.scarce or wanted <= room:
                cap, capped = min(wanted, affordable), affordable < min(wanted, room)
        blind = call.decoding.native and call.whole
        overrun, choices = abilities.overrun, call.choices
        return Run(call.model, price, prompt, cap, overrun, choices, longest, blind), capped

    def _settle(self, run: Run) -> None:
        self._runs.remove(run)
        if run.blind and run.begun and not run.finished:
            # Who leaves an answer in one piece before its end pays for all that it may be: else
            # computing would be free for those who never wait for the end.
            most = (run.cap or 0) * run.choices
            run.usage = Usage(run.prompt, completion=most, drafted=run.longest * most)
            run.finished = True
        elif run.begun and not run.finished and not run.usage.prompt:
            run.usage += Usage(prompt=run.prompt)  # who says what it read only at its end has read
        self._read = run.prompt + run.usage.completion
        self._held += run.unseen
        self.settled[run.model] = self.settled.get(run.model, Usage()) + run.usage

    def _spent(self) -> int:
        return sum(self._price(model).of(used) for model, used in self.settled.items())

    def _price(self, model: str) -> Tariff:
        if model not in self.prices:
            raise UnknownModel(f"The model {model!r} has no price", param="model")
        return self.prices[model]


def check(most: int, limit: int | None, may: str, param: str) -> None:
    """Raises BudgetExceeded where an answer may need more than there is, in 1e-12 units."""
    if limit is not None and most > limit:
        raise BudgetExceeded(
            f"The answer may {may.format(most / PICO)}, the budget is {limit / PICO:.9f};"
            " lower max_tokens, raise the budget, or let X-Budget-Fallback be `cheapest`",
            param=param,
        )


def _tokens(number: int) -> str:
    return "one token" if number == 1 else f"{number} tokens"


def _reads_the_same(call: Call, other: Call) -> bool:
    """Whether two calls of one request read one prompt; by identity, to compare costs more."""
    return (
        call.model == other.model
        and call.messages is other.messages
        and call.prompt is other.prompt
        and call.written is other.written
        and call.said is other.said
        and call.extra is other.extra
    )
