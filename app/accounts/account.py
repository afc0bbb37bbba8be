"""The account of one API key, as one request meets it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from app.accounts.book import Book
from app.accounts.explanations import Explanations
from app.accounts.headroom import Headroom
from app.accounts.rates import Rates
from app.bill import Bill, Receipt
from app.budget import Rate, Wanted
from app.catalog import usd
from app.errors import KeySpent, RateLimited
from app.storage.records import (
    ANONYMOUS,
    Grant,
    KeyRow,
    Line,
    Owner,
    Refusal,
    Reserve,
    Settle,
    Settlement,
)

_SOON_S = 1.0  # when money that running requests hold may be free again
_PER = {"minute": " per minute", "day": " per day", "month": " per month", "total": " in all"}
_PARAM = {
    "minute": "usd_per_minute",
    "day": "usd_per_day",
    "month": "usd_per_month",
    "total": "usd_total",
    "concurrency": "concurrency",
}


@dataclass
class KeyAccount:
    """An account in the ledger; without a key that of everybody who needs none."""

    headroom: Headroom
    counters: Rates
    explanations: Explanations
    key: KeyRow | None = None
    tenant: str = ""  # on whose behalf, where a trusted peer says so
    rates: list[Rate] = field(default_factory=list)

    @property
    def id(self) -> str:
        return ANONYMOUS if self.key is None else self.key.id

    @property
    def default(self) -> int | None:
        return None if self.key is None else self.key.default_budget

    @property
    def ceiling(self) -> int | None:
        return None if self.key is None else self.key.max_budget

    def allows(self, name: str) -> bool:
        return self.key is None or self.key.models is None or name in self.key.models

    async def reserve(self, wanted: Wanted) -> KeyReservation:
        if self.key is not None:
            await self.counters.admit(self.key, wanted.tokens, self.rates)
        op = Reserve(
            id=f"{wanted.id}.hold",
            key=self.id,
            want=wanted.most,
            least=wanted.least,
            concurrency=None if self.key is None else self.key.concurrency,
            policy=wanted.policy,
            model=wanted.model,
        )
        # Requests at once are counted as reservations, so each must have one of its own.
        granted = await self.headroom.reserve(op, ahead=op.concurrency is None)
        if isinstance(granted, Refusal):
            raise _refused(granted, wanted.least)
        return KeyReservation(self, wanted, granted)

    def refused(self, receipt: Receipt) -> None:
        self.explanations.refused(Owner(self.id, self.tenant), receipt)


@dataclass
class KeyReservation:
    account: KeyAccount
    wanted: Wanted
    grant: Grant

    @property
    def amount(self) -> int:
        return min(self.grant.amount, self.wanted.most)

    async def settle(self, receipt: Receipt) -> None:
        book: Book = self.account.headroom.book
        # Before anything is awaited: whoever stops waiting, it will be settled.
        done = book.keep(
            Settle(
                self.grant.id,
                self.grant.amount,
                self.grant.windows,
                self._settlement(receipt),
            )
        )
        if self.account.key is not None:
            bill = receipt.bill
            self.account.counters.add(
                self.account.key, bill.prompt + bill.completion - self.wanted.tokens
            )
        await book.kept(done)

    def _settlement(self, receipt: Receipt) -> Settlement:
        bill = receipt.bill
        return Settlement(
            id=self.wanted.id,
            key=self.account.id,
            policy=self.wanted.policy,
            model=self.wanted.model,
            tenant=self.account.tenant,
            outcome=receipt.outcome,
            prompt=bill.prompt,
            completion=bill.completion,
            cost=bill.cost,
            gpu_us=bill.gpu_us,
            prices=bill.prices,
            lines=_lines(bill),
            explanation=self.account.explanations.of(receipt),
        )


def _lines(bill: Bill) -> tuple[Line, ...]:
    return tuple(
        Line(
            line.model,
            line.usage.prompt,
            line.usage.cached,
            line.usage.completion,
            line.visible,
            line.cost,
            line.usage.drafted,
            line.usage.accepted,
            line.usage.predicted,
            line.gpu_us,
        )
        for line in bill.lines
    )


def _refused(why: Refusal, least: int) -> KeySpent | RateLimited:
    """Final where waiting does not help; else with the time after which it may."""
    param = _PARAM[why.limit]
    if why.limit == "concurrency":
        return RateLimited(
            f"This key's limit of {why.amount} requests at once is reached",
            param=param,
            retry_after=_SOON_S,
        )
    limit = f"This key's limit of {usd(why.amount)} USD{_PER[why.limit]}"
    left = max(why.amount - why.spent, 0)
    if left >= least:
        return RateLimited(
            f"{limit} is promised to running requests; some of it may be free again soon",
            param=param,
            retry_after=_SOON_S,
        )
    message = f"{limit} leaves {usd(left)} USD; this request needs at least {usd(least)} USD"
    if why.limit == "minute" and why.resets is not None and least <= why.amount:
        return RateLimited(message, param=param, retry_after=max(why.resets - time.time(), 1.0))
    return KeySpent(message, param=param)
