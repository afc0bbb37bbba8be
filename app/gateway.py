"""The one use case: answer a call through a policy, on an account's money."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, Protocol

from app import choices, orders
from app.bill import Bill, Receipt, version
from app.budget import Account, Meter, Rate, Reservation, Wanted, check
from app.catalog import PICO, Catalog, GpuSeconds, Price
from app.choices import Part
from app.errors import DeadlineExceeded, FarthingError
from app.explaining import explained
from app.notes import Notes
from app.orders import GPU_BUDGET, Order, Plan
from app.outcomes import Ending, Outcome, outcome_of
from app.shown import Shown, Turns
from app.trail import CallRecord
from app.types import Chunk, Decision, Engine, Fidelity, Promise, Took
from policies.answers.asking import PASSED_ON
from policies.base import Planned

__all__ = ["Answer", "Gateway", "Observer", "Order", "Outcome", "Plan"]

MOST_CALLS = 512  # of one answer, that are remembered


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
        engine = self.engine
        if order.gpu is not None:
            plan, taken = orders.gpu_bound(order.gpu, plan, self.gpu)
            engine = Meter(engine, self.gpu, taken, param=GPU_BUDGET)
        meter = Meter(engine, prices, gpu=self.gpu)
        call = replace(order.call, account=account.id)
        order = replace(order, call=call, usd=orders.bound(order, account))
        if order.best_of is not None:
            order, plan = orders.ranked(order, plan, self.catalog)
        return Answer(order, plan, meter, prices_version, account, self.observer)

    def plan(self, order: Order) -> Plan:
        """Which policy answers, with which options."""
        return orders.planned(order, self.catalog)

    def planned(self, order: Order, account: Account) -> Plan:
        """The plan, refused as `answer` says."""
        return orders.allowed(order, self.plan(order), account, self.catalog)


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
        self.promise: Promise | None = None  # of the way that was chosen, where one was
        self.target = plan.target  # the model that was asked for, of a preset its best one
        self.fidelity: Fidelity = plan.policy.fidelity
        self.budget = order.usd
        self.estimate = 0  # worst case, 1e-12 USD
        self.decisions: list[Decision] = []
        self.calls: list[CallRecord] = []  # that have ended, but for those beyond MOST_CALLS
        self._drawn = order.best_of or order.call.choices // (1 + len(order.call.beside))
        self._plan = plan
        self._untold: Decision | None = None  # what was planned, until the first chunk
        self._meter = meter
        self.notes = Notes(plan, meter, Planned(plan.policy, plan.model), self._drawn)
        meter.witness = self
        self._account = account
        self._reservation: Reservation | None = None
        self._observer = observer
        self._prompt = 0
        self._early: list[Chunk] = []  # before there is something to show
        self.shown = Shown(order.call.choices // (1 + len(order.call.beside)))
        self.visible = self.shown.visible  # tokens of the answer, by the model that wrote them
        self._ending = Ending(set(range(order.call.choices)))
        self._prices = prices
        self._turns = Turns()
        self._deadline = order.call.goals.deadline
        self._cut: Literal["deadline", "cancelled"] = "deadline"  # why, if it comes to that
        self._step: asyncio.Timeout | None = None
        self.outcome: Outcome | Literal[""] = ""  # how it ended, once it has
        self.ended = False  # settled, or soon to be: there is nothing left to stop
        self._stream = self._answer()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Chunk:
        with self._turns:
            return await anext(self._stream)

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
    def finishes(self) -> Sequence[str]:
        """Of its choices."""
        return self._ending.finishes

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
        seen = self.visible
        lines = [replace(line, visible=seen.get(line.model, 0)) for line in self._meter.lines()]
        return Bill(
            prompt=self._prompt,
            cached=self.shown.cached,
            completion=sum(self.visible.values()),
            lines=tuple(lines),
            cost=sum(line.cost for line in lines),
            prices=self._prices,
            overhead=max(self._turns.busy - self._meter.waited, 0.0),
        )

    @property
    def took(self) -> Took:
        """Since the request came, of what was made so far, without its client's part in that."""
        arrived, first = self.order.arrived, self.shown.first if self.order.stream else None
        return None if first is None else first - arrived, *self._turns.took(arrived)

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Of the prompt, of these cached, of the answer: as its client is told."""
        return self._prompt, self.shown.cached, sum(self.visible.values())

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

    async def _answer(self) -> AsyncGenerator[Chunk]:
        outcome: Outcome = "closed"
        try:
            async with self._meter, aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    if chunk.finish is not None:
                        outcome = self._ending.take(chunk, self.decisions)
                    yield self._stamped(chunk)
        except Exception as error:
            outcome, self.notes.error = outcome_of(error), error
            raise
        finally:
            self.ended, self.outcome = True, outcome
            try:
                self.notes.planned.tell(outcome, self.took, self.tokens[-1])
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
                    if chunk.considered:
                        self.notes.note(chunk)
                    if self.shown.take(chunk) or chunk.decision:
                        self._early += self._with_plan(chunk)
                    # The status goes out with the first chunk: not before there is something.
                    while self.shown.first is not None and self._early:
                        yield self._early.pop(0)
        except TimeoutError as error:
            if self.shown.first is None and self._cut == "deadline":
                raise DeadlineExceeded(
                    "The deadline passed before the first token", param="X-Budget-Latency-Ms"
                ) from error
            for index in sorted(self._ending.writing):
                yield Chunk(index=index, finish="length", reason=self._cut)

    async def _run(self, found: Sequence[Part]) -> AsyncGenerator[Chunk]:
        """What is planned writes; where it fails before its first word, what is planned instead."""
        order, meter = self.order, self._meter
        while True:
            before, planned = len(self.calls), self.notes.planned
            stream = choices.written(order.call, planned, found, meter, self._drawn, order.echo)
            try:
                async with aclosing(stream) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except PASSED_ON as error:
                if self.shown.first is not None:
                    raise
                found = await self._instead(error, before)

    async def _instead(self, error: FarthingError, before: int) -> list[Part]:
        """What is run instead, on what is left of the money that is held. Raises the error where
        there is nothing. `before`: calls that had ended when what failed began."""
        failed = {call.model for call in self.calls[before:] if call.outcome == "failed"}
        planned = await self.notes.planned.instead(error, failed, self._meter.rest)
        self._early.clear()
        self.shown.begin_again()
        found, rest = await self._prepared(planned), self._meter.rest
        if rest is not None and sum(part.most for part in found) > rest:
            if self.order.strict:
                raise error
            self._meter.scarce = True
        return found

    async def _admit(self) -> list[Part]:
        """Count and reserve; where the account has less, plan with that."""
        self._meter.limit = self.budget
        found = await self._counted()
        if await self._reserve(found) and self._plan.policy.chooses:
            found = await self._counted()
        self._meter.scarce = self.budget is not None  # else there is nothing for a policy to save
        return found

    async def _counted(self) -> list[Part]:
        """Plan, count the prompts, estimate the worst case, and refuse what `strict` refuses."""
        meter, strict, policy = self._meter, self.order.strict, self._plan.policy
        asked = self.order.call.to(self._plan.model)
        if self.order.best_of is not None:
            asked = replace(asked, choices=self._drawn * (1 + len(asked.beside)))
        planned = await policy.planned(asked, meter, meter.prices, strict, self.budget)
        found = await self._prepared(planned)
        cost = sum(part.most for part in found)
        self.estimate = cost if self.budget is None else min(cost, self.budget)
        if strict:
            check(cost, self.budget, "cost {:.9f} USD", meter.param)
        if strict and meter.beneath is not None:
            most = sum(part.beneath.most for part in found if part.beneath is not None)
            check(most, meter.beneath.limit, "take {:.9f} accelerator-seconds", GPU_BUDGET)
        return found

    async def _prepared(self, planned: Planned) -> list[Part]:
        """What is to be run as it was planned; where its prompt cannot be counted, instead."""
        order, meter = self.order, self._meter
        while True:
            try:
                found = await choices.parts(order.call, planned, meter, self._drawn, order.echo)
                break
            except PASSED_ON as error:
                planned = await planned.instead(error, set(), meter.rest)
        self.notes.replan(planned, found)
        self._untold, self.promise = planned.decision, planned.promise
        self.fidelity = planned.policy.fidelity
        self._prompt = sum(part.prompt for part in found[:: self._drawn])  # each prompt once
        return found

    async def _reserve(self, found: Sequence[Part]) -> bool:
        """Hold the estimate; less, where there is no more, is the budget then, and it says so."""
        least = sum(part.least + part.scoring for part in found)
        if self._plan.policy.chooses:  # with less there may be a way that needs less
            models = self._plan.policy.worst_case(self._plan.model, 0, 0)
            least = min(least, choices.least(found, models, self._meter))
        written = sum(part.completion for part in found)
        wanted = Wanted(
            id=self.order.call.id,
            policy=self.policy,
            model=self.model,
            most=self.estimate,
            least=self.estimate if self.order.strict else min(least, self.estimate),
            tokens=self._prompt + (0 if self.order.call.max_tokens is None else written),
        )
        self._reservation = await self._account.reserve(wanted)
        self._meter.limit = held = self._reservation.amount
        if held >= self.estimate:
            return False
        self.budget = self.estimate = held
        return True

    def _left(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def _with_plan(self, chunk: Chunk) -> list[Chunk]:
        """This chunk, told with the first one what was planned."""
        plan, self._untold = self._untold, None
        if plan is None:
            return [chunk]
        if chunk.decision is None:
            return [replace(chunk, decision=plan)]
        if chunk.raw is None:
            return [Chunk(model=plan.model, decision=plan), chunk]
        self._decided(plan, chunk.index)  # no words of ours come before an engine's own
        return [chunk]

    def _stamped(self, chunk: Chunk) -> Chunk:
        said = chunk.decision
        return chunk if said is None else replace(chunk, decision=self._decided(said, chunk.index))

    def _decided(self, decision: Decision, choice: int) -> Decision:
        usd = None if self._meter.rest is None else self._meter.rest / PICO
        stamped = replace(decision, rest_usd=usd, choice=choice)
        self.decisions.append(stamped)
        self.notes.decided.append(time.monotonic())
        if self._observer is not None:
            self._observer.decided(self, stamped)
        best = self.notes.planned.best
        if stamped.kind in ("whole", "precision") and stamped.model != best:
            self.fidelity = "approximate"
        return stamped
