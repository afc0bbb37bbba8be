"""What is counted and timed of requests and answers, and of the engines and the ledger behind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, get_args

from prometheus_client.exposition import generate_latest

from app.errors import FarthingError
from app.reasons import STRATEGIES, PlanKind
from app.telemetry.instruments import Instruments, Labels, Tally
from app.telemetry.names import EMBEDDED, OTHER, Names, Who
from app.telemetry.scraping import Scraper
from app.trail import CallRecord
from app.types import HAND_OVERS, Decision, Fidelity, Promise, Took, Tried, Usage

PICO = 10**12  # money reaches us in 1e-12 USD
CLIENT_GONE = 499  # nginx's number: nobody was there for an answer
FALLBACKS = ("plain", "whole", "repair")  # of the kinds of decisions
KINDS = (
    *("prompt", "cached", "completion", "discarded"),
    *("drafted", "accepted", "wasted", "predicted"),
)
"""Of tokens."""
OUTCOMES = ("kept", "cut", "steered", "deadline", "refused", "failed", "closed")
"""Of answers."""
TRIED = get_args(Tried)
PLANNED = get_args(PlanKind)
DRIFTS = ("cost", "first_token", "latency")
"""What the planner expects something of."""
NO_ROUTE = "no_such_route"  # the reason of what the framework refuses


class Line(Protocol):
    """What one model was paid for."""

    @property
    def model(self) -> str: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def cost(self) -> int: ...
    @property
    def visible(self) -> int: ...
    @property
    def gpu_us(self) -> int | None: ...


class Bill(Protocol):
    @property
    def lines(self) -> Sequence[Line]: ...
    @property
    def cost(self) -> int: ...
    @property
    def overhead(self) -> float: ...


class Answered(Protocol):
    """What is counted of an answer, once it has ended."""

    @property
    def target(self) -> str:
        """The model that was asked for, of a preset its best one."""
        ...

    @property
    def preset(self) -> str:
        """Empty where none was asked for."""
        ...

    @property
    def policy_name(self) -> str:
        """The policy's own name."""
        ...

    @property
    def fidelity(self) -> Fidelity: ...
    @property
    def budget(self) -> int | None: ...
    @property
    def admitted(self) -> bool:
        """Whether its money was held: else it never began."""
        ...

    @property
    def promise(self) -> Promise | None:
        """Of the way that the planner chose, where it did."""
        ...

    @property
    def took(self) -> Took:
        """From the request on, without what its client took to read."""
        ...

    @property
    def decisions(self) -> Sequence[Decision]: ...
    @property
    def bill(self) -> Bill: ...


class Telemetry:
    """Counts and times, each under the names that are known; all other names are `other`."""

    def __init__(self, shared: Path | None = None) -> None:
        """`shared`: where the processes of one gateway write, if there are several."""
        self.names = Names()
        self.shared = shared is not None
        self._made = Instruments(shared)
        self.scraper = Scraper(self._made.registry)
        self._count, self._spread = self._made.counters, self._made.histograms
        self._in_flight = self._made.gauge("farthing_requests_in_flight")

    def who(self, answer: Answered) -> Who:
        """The labels of a request that this answers."""
        return self.names.who(answer.target, answer.preset, answer.policy_name)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        with self._in_flight.track_inprogress():
            yield

    def requested(self, endpoint: str, who: Who, status: int, seconds: float) -> None:
        """One HTTP request has ended; `endpoint` is a route, never a URL. 0: nobody was there."""
        told = status or CLIENT_GONE
        code = str(told) if told in STATUSES else OTHER
        self._count["farthing_requests_total"](endpoint, *who, code).inc()
        self._spread["farthing_request_duration_seconds"](endpoint, *who).observe(seconds)

    def refused(self, reason: str) -> None:
        """An error took the place of an answer, or broke it off."""
        self._count["farthing_refusals_total"](reason).inc()

    def first_token(self, who: Who, seconds: float) -> None:
        self._spread["farthing_time_to_first_token_seconds"](*who).observe(seconds)

    def next_tokens(self, who: Who) -> Callable[[float, int], None]:
        """To be told how many tokens came together, how long after those before, in seconds for
        each."""
        return self._spread["farthing_inter_token_latency_seconds"](*who).observe_often

    def entropies(self, who: Who, model: str) -> Callable[[float], None]:
        """To be told the entropy of each token that this model writes, bits."""
        return self._of("farthing_entropy_bits", who, model).observe

    def handed_over(self, who: Who, model: str, seconds: float) -> None:
        """An answer went on so long after its last token, by this model."""
        labels = who.preset, who.policy, self.names.model(model)
        self._spread["farthing_hand_over_gap_seconds"](*labels).observe(seconds)

    def calling(self, answer: Answered, record: CallRecord) -> None:
        """A call of this answer begins."""

    def called(self, answer: Answered, record: CallRecord) -> None:
        """A call of this answer has ended."""
        model, who = self.names.model(record.model), self.who(answer)
        took = (record.ended or record.began) - record.began
        self._spread["farthing_engine_call_seconds"](model).observe(took)
        tried = [(attempt.server, attempt.outcome) for attempt in record.attempts]
        if not tried and (record.model, EMBEDDED) in self.names.servers:
            tried = [(EMBEDDED, record.outcome)]
        if tried:  # else it never had a place
            self._spread["farthing_queue_seconds"](model).observe(record.queued)
        for server, outcome in tried:
            where = self.names.server(record.model, server)
            self._count["farthing_engine_attempts_total"](*where, outcome).inc()
        for (read, kept), passes in record.passes().items():
            draft = self._of("farthing_draft_length_tokens", who, record.model)
            draft.observe_often(read, passes)
            accepted = self._of("farthing_accepted_length_tokens", who, record.model)
            accepted.observe_often(kept, passes)

    def decided(self, answer: Answered, decision: Decision) -> None:
        """Something was decided in it: it is counted at its end."""

    def answered(self, answer: Answered, outcome: str) -> None:
        """One answer has ended, well or not."""
        who, bill = self.who(answer), answer.bill
        outcome = outcome if outcome in OUTCOMES else OTHER
        how = who.preset, who.policy
        self._count["farthing_answers_total"](*how, answer.fidelity, outcome).inc()
        self._spread["farthing_overhead_seconds"](*how).observe(bill.overhead)
        for line in bill.lines:
            self._paid(Who(self.names.model(line.model), *how), line)
        for decision in answer.decisions:
            self._decided(who, decision)
        if answer.promise is not None and answer.admitted:
            self._planned(answer, answer.promise, whole=outcome in ("kept", "steered"))
        if answer.budget is not None:
            self._count["farthing_budget_outcomes_total"](*how, outcome).inc()
            if answer.admitted:
                self._budgeted(how, answer.budget, bill.cost)

    def show(self, name: str, values: Mapping[Labels, float]) -> None:
        """What this gauge says from now on, by labels; of what is not among them, nothing."""
        self._made.show(name, values)

    def show_process(self) -> None:
        """What the system knows of this process."""
        self._made.show_process()

    def settled(self, count: int) -> None:
        """So many settlements reached the ledger."""
        self._count["farthing_ledger_settled_total"]().inc(count)

    def wrote(self, seconds: float) -> None:
        """A transaction of the ledger took so long."""
        self._spread["farthing_ledger_write_seconds"]().observe(seconds)

    def scrape(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._made.registry)

    def _of(self, name: str, who: Who, model: str) -> Tally:
        """Of what this model did for whoever asked."""
        return self._spread[name](self.names.model(model), who.preset, who.policy)

    def _paid(self, who: Who, line: Line) -> None:
        usage, count = line.usage, self._count["farthing_tokens_total"]
        discarded = usage.completion - line.visible
        tokens = (
            *(usage.prompt, usage.cached, usage.completion, discarded),
            *(usage.drafted, usage.accepted, usage.wasted, usage.predicted),
        )
        for kind, number in zip(KINDS, tokens, strict=True):
            if number > 0:
                count(*who, kind).inc(number)
        self._count["farthing_visible_tokens_total"](*who).inc(line.visible)
        self._count["farthing_cost_usd_total"](*who).inc(line.cost / PICO)
        if line.gpu_us is not None:
            self._count["farthing_gpu_seconds_total"](*who).inc(line.gpu_us / 10**6)
        if usage.passes:
            self._count["farthing_verification_passes_total"](*who).inc(usage.passes)
        if usage.predicted:
            self._count["farthing_predicted_prompts_total"](*who).inc()

    def _decided(self, who: Who, decision: Decision) -> None:
        how = who.preset, who.policy
        if decision.kind in FALLBACKS:
            self._count["farthing_fallbacks_total"](*how, decision.kind).inc()
        elif decision.kind in HAND_OVERS:
            to = self.names.model(decision.model)
            self._count["farthing_switches_total"](*how, decision.kind, to).inc()
            if decision.entropy is not None:
                self._spread["farthing_switch_entropy_bits"](*how, to).observe(decision.entropy)
        elif decision.kind in STRATEGIES:
            self._count["farthing_strategies_total"](*how, decision.kind).inc()
            self._count["farthing_answers_made_total"](*how).inc(decision.answers or 0)
            self._count["farthing_prompt_dropped_tokens_total"](*how).inc(decision.dropped or 0)
        elif decision.saves is not None:
            saved = self._of("farthing_ttft_saved_seconds", who, decision.model)
            saved.observe(decision.saves)

    def _planned(self, answer: Answered, promise: Promise, whole: bool) -> None:
        """What became of what the planner expected: of a whole answer, by the first way that was
        tried."""
        way = self.names.way(promise.preset)
        self._count["farthing_plans_total"](way, promise.kind).inc()
        first, least, most = answer.took
        took = {
            "cost": (answer.bill.cost / PICO, promise.cost),
            "first_token": (first, promise.first_token),
            # Where its client may have kept the engine waiting, as near to it as can be.
            "latency": (min(max(promise.latency, least), most), promise.latency),
        }
        for kind, (actual, expected) in took.items():
            if whole and not promise.after and actual is not None and expected > 0:
                self._spread["farthing_plan_drift_ratio"](way, kind).observe(actual / expected)

    def _budgeted(self, how: tuple[str, str], admitted: int, spent: int) -> None:
        self._count["farthing_budget_spent_usd_total"](*how).inc(spent / PICO)
        self._count["farthing_budget_admitted_usd_total"](*how).inc(admitted / PICO)
        over = max(spent - admitted, 0)
        self._count["farthing_budget_overshoot_usd_total"](*how).inc(over / PICO)
        if admitted:
            self._spread["farthing_budget_utilization_ratio"](*how).observe(spent / admitted)


def reason_of(error: FarthingError) -> str:
    """The error's code, as clients see it, or else its class."""
    return error.code or re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


def _errors() -> Iterator[type[FarthingError]]:
    rest = [FarthingError]
    while rest:
        kind = rest.pop()
        yield kind
        rest += kind.__subclasses__()


def reasons() -> set[str]:
    """All that `reason_of` may say, and what the framework refuses."""
    return {NO_ROUTE, *(reason_of(kind("")) for kind in _errors())}


# What we answer with, and the framework: no such route, or not with this method.
STATUSES = frozenset((200, 201, 404, 405, CLIENT_GONE, *(kind.status for kind in _errors())))
