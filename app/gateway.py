"""The one use case: answer a call through a policy, on an account's money."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, Protocol, TypeAlias

from app import choices
from app.bill import Bill, Line, Receipt, version
from app.budget import Account, Meter, Rate, Reservation, Wanted, check
from app.catalog import PICO, Catalog, GpuSeconds, Price
from app.choices import Part
from app.errors import BadRequest, DeadlineExceeded, FarthingError
from app.explaining import Notes, explained
from app.orders import GPU_BUDGET, Order, Plan, bound, check_allowed, gpu_bound, planned, ranked
from app.trail import CallRecord
from app.types import Chunk, Decision, Engine, Fidelity

__all__ = ["Answer", "Gateway", "Observer", "Order", "Outcome", "Plan"]

MOST_CALLS = 512  # of one answer, that are remembered
Outcome: TypeAlias = Literal["kept", "cut", "steered", "deadline", "refused", "failed", "closed"]
"""How an answer ended: `cut` and `steered` by its budget, `closed` by its client."""


class Observer(Protocol):
    """Who is told of every answer at its end, of its calls at their beginnings and ends, and of
    what is decided in it."""

    def calling(self, answer: Answer, record: CallRecord) -> None: ...
    def called(self, answer: Answer, record: CallRecord) -> None: ...
    def decided(self, answer: Answer, decision: Decision) -> None: ...
    def answered(self, answer: Answer, outcome: Outcome) -> None: ...


@dataclass(frozen=True)
class Gateway:
    """Holds the fleet; keeps nothing of a request."""

    engine: Engine
    catalog: Catalog
    observer: Observer | None = None

    @cached_property
    def prices(self) -> tuple[Mapping[str, Price], str]:
        """The price table, and its version, which is that of `gpu` too."""
        table = self.catalog.prices()
        return table, version(table, self.gpu)

    @cached_property
    def gpu(self) -> Mapping[str, GpuSeconds]:
        """What tokens take of accelerators, of the models that say it."""
        return self.catalog.gpu_seconds()

    def answer(self, order: Order, account: Account) -> Answer:
        """Refuse at once what can be refused; else return the stream.

        Raises UnknownModel, Forbidden for what the account may not name, and BadRequest for a
        policy or options that cannot be. A plain function: raised inside the stream, a refusal
        might come after status 200 has gone out.
        """
        plan = self.planned(order, account)
        prices, prices_version = self.prices
        if order.call.embeds and plan.name != "direct":
            raise BadRequest("model: a vector is one model's; name a model", param="model")
        engine = self.engine
        if order.gpu is not None:
            taken = gpu_bound(order.gpu, plan, self.gpu)
            engine = Meter(engine, self.gpu, taken, param=GPU_BUDGET)
        meter = Meter(engine, prices, gpu=self.gpu)
        call = replace(order.call, account=account.id)
        order = replace(order, call=call, usd=bound(order, account))
        if order.best_of is not None:
            order = ranked(order, plan, self.catalog)
        return Answer(order, plan, meter, prices_version, account, self.observer)

    def plan(self, order: Order) -> Plan:
        """Which policy answers, with which options."""
        return planned(order, self.catalog)

    def planned(self, order: Order, account: Account) -> Plan:
        """The plan, refused as `answer` says."""
        plan = self.plan(order)
        check_allowed(order, plan, account, self.catalog)
        return plan


class Answer:
    """The chunks of one answer, and what is known of it so far.

    The first chunk admits: before it come BudgetExceeded, DeadlineExceeded, and what the engine
    refuses. Each choice ends with a chunk that has `finish` and no tokens, as `Chunk` says; the
    last of them ends the answer. `aclose` stops every engine and settles.
    """

    def __init__(
        self,
        order: Order,
        plan: Plan,
        meter: Meter,
        prices: str,
        account: Account,
        observer: Observer | None,
    ) -> None:
        self.order = order
        self.model = order.call.model
        self.policy = plan.name
        self.preset, self.policy_name = plan.preset, plan.policy_name
        self.target = plan.target  # the model that was asked for, of a preset its best one
        self.fidelity: Fidelity = plan.policy.fidelity
        self.budget = order.usd
        self.estimate = 0  # worst case, 1e-12 USD
        self.decisions: list[Decision] = []
        self.calls: list[CallRecord] = []  # that have ended, but for those beyond MOST_CALLS
        self.entropy: Literal["exact", "bounds"] | None = None  # what the policy went by, if any
        self._drawn = order.best_of or order.call.choices // (1 + len(order.call.beside))
        self._plan = plan
        self._policy = plan.policy  # or what it says serves this call
        self._meter = meter
        self.notes = Notes(plan, meter, plan.policy, self._drawn)
        meter.witness = self
        self._account = account
        self._reservation: Reservation | None = None
        self._observer = observer
        self._prompt = 0
        self._cached = 0
        self._calls = Counter[int]()  # of each choice, that have said what they read
        self._writing = set(range(order.call.choices))  # choices that have not ended
        self._reasons = set[str | None]()  # why choices ended, beyond their finish
        self._visible: dict[str, int] = {}
        self._prices = prices
        self._busy = 0.0
        self._deadline = order.call.goals.deadline
        self._cut: Literal["deadline", "cancelled"] = "deadline"  # why, if it comes to that
        self._step: asyncio.Timeout | None = None
        self.outcome: Outcome | Literal[""] = ""  # how it ended, once it has
        self.finishes: list[str] = []  # of its choices
        self.ended = False  # settled, or soon to be: there is nothing left to stop
        self._stream = self._answer()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Chunk:
        started = time.perf_counter()
        try:
            return await anext(self._stream)
        finally:
            self._busy += time.perf_counter() - started

    async def aclose(self) -> None:
        await self._stream.aclose()

    def stop(self) -> None:
        """Let it end with what it has: its next chunk is the last, for the reason `cancelled`."""
        self._deadline, self._cut = 0.0, "cancelled"
        if self._step is not None:
            with suppress(RuntimeError):  # it is over: the next one will see the deadline
                self._step.reschedule(0.0)

    @property
    def admitted(self) -> bool:
        """Whether its money is held: what goes wrong from here on is no refusal of the request."""
        return self._reservation is not None

    @property
    def rates(self) -> Sequence[Rate]:
        """Where the account stands since this answer was admitted."""
        return self._account.rates

    @property
    def spent(self) -> int:
        """1e-12 USD."""
        return self._meter.cost

    @property
    def bill(self) -> Bill:
        """So far; final after the last chunk."""
        lines = [self._line(line) for line in self._meter.lines()]
        return Bill(
            prompt=self._prompt,
            cached=self._cached,
            completion=sum(self._visible.values()),
            lines=tuple(lines),
            cost=sum(line.cost for line in lines),
            prices=self._prices,
            overhead=max(self._busy - self._meter.waited, 0.0),
        )

    @property
    def visible(self) -> Mapping[str, int]:
        """Tokens of the answer, by the model that wrote them."""
        return self._visible

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Of the prompt, of these cached, of the answer: as its client is told."""
        return self._prompt, self._cached, sum(self._visible.values())

    def calling(self, record: CallRecord) -> None:
        record.headers = self.order.trace
        if self._observer is not None:
            self._observer.calling(self, record)

    def called(self, record: CallRecord) -> None:
        if len(self.calls) < MOST_CALLS:
            self.calls.append(record)
        else:
            self.notes.further += 1
        if self._observer is not None:
            self._observer.called(self, record)

    def _line(self, line: Line) -> Line:
        return replace(line, visible=self._visible.get(line.model, 0))

    async def _answer(self) -> AsyncGenerator[Chunk]:
        outcome: Outcome = "closed"
        try:
            async with self._meter, aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    if chunk.finish is not None:
                        outcome = self._ending(chunk)
                    yield self._stamped(chunk)
        except Exception as error:
            outcome, self.notes.error = _outcome(error), error
            raise
        finally:
            self.ended, self.outcome = True, outcome
            try:
                if self._observer is not None:
                    self._observer.answered(self, outcome)
            finally:
                await self._settle(outcome)

    async def _settle(self, outcome: Outcome) -> None:
        order, bill = self.order, self.bill
        explain = partial(explained, self, bill, outcome)
        receipt = Receipt(bill, outcome, order.call.id, order.request_id, explain)
        if self._reservation is None:
            self._account.refused(receipt)
        else:
            await self._reservation.settle(receipt)

    async def _chunks(self) -> AsyncGenerator[Chunk]:
        """The policy's chunks, cut at the deadline."""
        begun, early = False, list[Chunk]()
        try:
            async with asyncio.timeout(self._left()):
                found = await self._admit()
            async with aclosing(self._run(found)) as stream:
                while True:
                    # Around each step only: a timeout must not span a yield.
                    async with asyncio.timeout(self._left()) as self._step:
                        chunk = await anext(stream, None)
                    if chunk is None:
                        return
                    self._note(chunk)
                    shows = bool(chunk.tokens or chunk.text or chunk.raw or chunk.finish)
                    begun = begun or shows
                    if shows or chunk.decision:
                        early.append(chunk)
                    # The status goes out with the first chunk: not before there is something.
                    while begun and early:
                        yield early.pop(0)
        except TimeoutError as error:
            if not begun and self._cut == "deadline":
                raise DeadlineExceeded(
                    "The deadline passed before the first token", param="X-Budget-Latency-Ms"
                ) from error
            for index in sorted(self._writing):
                yield Chunk(index=index, finish="length", reason=self._cut)

    def _run(self, found: Sequence[Part]) -> AsyncGenerator[Chunk]:
        call, meter = self.order.call, self._meter
        if not self.order.echo or found[0].native:
            return self._written(found)
        answers = None if call.max_tokens == 0 else self._written(found)
        return choices.echoed(call, self._plan.first, meter, answers)

    def _written(self, found: Sequence[Part]) -> AsyncGenerator[Chunk]:
        policy, asked = self._policy, self.order.call.choices
        if len(found) == 1:
            return policy.run(found[0].call, self._meter)
        prompts = 1 + len(self.order.call.beside)
        stream = choices.run(policy, found, self._meter)
        if len(found) == asked:
            return stream
        return choices.best(stream, prompts, self._drawn, asked // prompts)

    async def _admit(self) -> list[Part]:
        """Count the prompts, estimate the worst case, refuse what `strict` refuses, and reserve."""
        call, meter, model = self.order.call, self._meter, self._plan.model
        policy = self._plan.policy.serving(call.to(model), meter, meter.prices)
        self._policy, self.fidelity = policy, policy.fidelity
        self.notes.serving = policy
        echo = self.order.echo
        found = await choices.parts(call, policy, model, meter, self._drawn, echo)
        self.notes.found = found
        scoring = sum(part.scoring for part in found)
        cost = sum(part.most for part in found)
        self._prompt = sum(part.prompt for part in found[:: self._drawn])  # each prompt once
        self.estimate = cost if self.budget is None else min(cost, self.budget)
        if self.order.strict:
            check(cost, self.budget, "cost {:.9f} USD", meter.param)
        if self.order.strict and meter.beneath is not None:
            most = sum(part.beneath.most for part in found if part.beneath is not None)
            check(most, meter.beneath.limit, "take {:.9f} accelerator-seconds", GPU_BUDGET)
        written = 0 if call.max_tokens is None else sum(part.completion for part in found)
        least = sum(part.least for part in found) + scoring
        await self._reserve(least, self._prompt + written)
        return found

    async def _reserve(self, least: int, tokens: int) -> None:
        """Hold the estimate on the account; less, where it has no more, is the budget then."""
        wanted = Wanted(
            id=self.order.call.id,
            policy=self.policy,
            model=self.model,
            most=self.estimate,
            least=self.estimate if self.order.strict else min(least, self.estimate),
            tokens=tokens,
        )
        self._reservation = await self._account.reserve(wanted)
        self._meter.limit = self._reservation.amount
        if self._reservation.amount < self.estimate:
            self.budget = self.estimate = self._reservation.amount
        # Where only the worst case bounds it, there is nothing for a policy to save.
        self._meter.scarce = self.budget is not None

    def _left(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def _note(self, chunk: Chunk) -> None:
        if chunk.considered:
            self.notes.note(chunk)
        # Of an engine's own bytes we know how many tokens they are, not which.
        shown = len(chunk.tokens) if chunk.raw is None else chunk.usage.completion
        if shown and not chunk.echo:
            self._visible[chunk.model] = self._visible.get(chunk.model, 0) + shown
        for low, high in (token.entropy for token in chunk.tokens if token.entropy is not None):
            self.entropy = "bounds" if low != high else self.entropy or "exact"
        self._calls[chunk.index] += bool(chunk.usage.prompt)
        first = chunk.index % (self.order.call.choices // (1 + len(self.order.call.beside))) == 0
        if first and self._calls[chunk.index] == 1:
            self._cached += chunk.usage.cached

    def _stamped(self, chunk: Chunk) -> Chunk:
        if chunk.decision is None:
            return chunk
        rest = self._meter.rest
        usd = None if rest is None else rest / PICO
        stamped = replace(chunk.decision, rest_usd=usd, choice=chunk.index)
        self.decisions.append(stamped)
        self.notes.decided.append(time.monotonic())
        if self._observer is not None:
            self._observer.decided(self, stamped)
        best = self._policy.best_first(self._plan.model)[0]
        if stamped.kind in ("whole", "precision") and stamped.model != best:
            self.fidelity = "approximate"
        return replace(chunk, decision=stamped)

    def _ending(self, chunk: Chunk) -> Outcome:
        """How the answer ends, if this is its last finish chunk."""
        if chunk.raw is not None or chunk.vectors:
            self._writing.clear()
        self._writing.discard(chunk.index)
        self._reasons.add(chunk.reason)
        if chunk.finish is not None:
            self.finishes.append(chunk.finish)
        if self._writing:
            return "closed"
        if "deadline" in self._reasons:
            return "deadline"
        if "cancelled" in self._reasons:
            return "closed"
        if "budget" in self._reasons:
            return "cut"
        steered = any(d.steered or d.kind == "steer" for d in self.decisions)
        return "steered" if steered else "kept"


def _outcome(error: Exception) -> Outcome:
    if isinstance(error, DeadlineExceeded):
        return "deadline"
    theirs = isinstance(error, FarthingError) and error.status < 500
    return "refused" if theirs else "failed"
