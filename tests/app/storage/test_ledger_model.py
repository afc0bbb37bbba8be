"""The ledger against a model that keeps a list of everything and adds it up."""

import asyncio
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete

from app.storage.balance import windows_at
from app.storage.database import Database
from app.storage.keys import KeyStore
from app.storage.ledger import Ledger
from app.storage.records import Grant, KeyRow, Release, Reserve, Settle, Settlement
from app.storage.tables import reservations
from app.storage.usage import UsageStore
from tests.app.storage.reaping import reap

WINDOWS = ("minute", "day", "month", "total")
LEASE = 60_000  # milliseconds
START = 1_793_491_000_000  # shortly before the end of a month


@dataclass
class Hold:
    key: str
    amount: int
    windows: object
    until: int  # milliseconds
    expired: bool = False
    lost: int = 0  # of what was settled when it expired, what was not taken back
    released: bool = False
    used: bool = False


class Model:
    """Everything that happened; nothing is derived before it is asked for."""

    def __init__(self):
        self.limits = {}
        self.holds = {}
        self.paid = []  # key, cost, windows

    def spent(self, key, name, start):
        return sum(
            cost
            for owner, cost, windows in self.paid
            if owner == key and (name == "total" or getattr(windows, name) == start)
        )

    def held(self, key, name, start):
        return sum(
            hold.amount
            for hold in self.holds.values()
            if hold.key == key
            and not hold.expired
            and (name == "total" or getattr(hold.windows, name) == start)
        )

    def rest(self, key, windows):
        rests = []
        for name in WINDOWS:
            start = 0 if name == "total" else getattr(windows, name)
            limit = self.limits[key].get(name)
            limit = 9 * 10**18 if limit is None else limit
            rests.append(limit - self.spent(key, name, start) - self.held(key, name, start))
        return min(rests)


amounts = st.integers(0, 400)
limits = st.none() | st.integers(0, 1500)


class LedgerMachine(RuleBasedStateMachine):
    url = ""
    number = 0

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.database = Database(self.url)
        self.now = START
        self.ledger = Ledger(self.database, "p", clock=lambda: self.now)
        self.usage = UsageStore(self.database)
        self.model = Model()
        self.count = 0
        self.runner.run(self.prepare())

    async def prepare(self):
        await self.database.migrate()
        await self.database.write(lambda c: c.execute(delete(reservations)).rowcount)
        store = KeyStore(self.database)
        for _ in range(2):
            type(self).number += 1
            key = f"key{type(self).number}"
            await store.add(KeyRow(key, "k", b"d" * 32, False, 0), {})
            self.model.limits[key] = {}
        self.store = store

    def teardown(self):
        for key in self.model.limits:
            (total,) = self.runner.run(self.usage.spent((), key=key))
            assert total.cost == self.model.spent(key, "total", 0)
        self.runner.run(self.database.aclose())
        self.runner.close()

    def apply(self, *ops):
        return self.runner.run(self.ledger.apply(ops, self.now + LEASE))

    def key(self, first):
        return sorted(self.model.limits)[not first]

    def next_id(self):
        self.count += 1
        return f"{self.key(True)}-{self.count}"

    def pick(self, choice, wanted=lambda hold: True):
        found = [id for id, hold in sorted(self.model.holds.items()) if wanted(hold)]
        return found[choice % len(found)] if found else None

    @rule(first=st.booleans(), minute=limits, day=limits, month=limits, total=limits)
    def limit(self, first, minute, day, month, total):
        key = self.key(first)
        new = dict(zip(WINDOWS, (minute, day, month, total), strict=True))
        self.runner.run(self.store.change(key, {"name": "k"}, new))
        self.model.limits[key] = new

    @rule(
        first=st.booleans(), want=amounts, share=st.floats(0, 1), ahead=amounts, twice=st.booleans()
    )
    def reserve(self, first, want, share, ahead, twice):
        key, id = self.key(first), self.next_id()
        least = int(want * share)
        op = Reserve(id, key, want, least, ahead)
        rest = self.model.rest(key, windows_at(self.now // 1000))
        results = self.apply(*[op] * (1 + twice))  # made once, however often it is tried
        assert len({*results}) == 1
        if want and rest < least:
            assert not isinstance(results[0], Grant)
            return
        amount = min(want, rest) if want else 0
        amount += max(min(ahead, (rest - amount) // 16), 0)
        assert (results[0].id, results[0].amount) == (id, amount)
        self.model.holds[id] = Hold(key, amount, windows_at(self.now // 1000), self.now + LEASE)

    @rule(
        choice=st.integers(0, 99), part=st.floats(0, 1), cost=st.floats(0, 1), twice=st.booleans()
    )
    def settle(self, choice, part, cost, twice):
        id = self.pick(choice, lambda hold: not hold.released)
        if id is None:
            return
        hold = self.model.holds[id]
        left = hold.lost if hold.expired else hold.amount
        amount = int(left * part) if part < 0.5 else left
        paid = int(amount * cost)
        request = self.next_id()
        settlement = Settlement(request, hold.key, "p", "m", "kept", 1, 1, paid, "v1")
        op = Settle(id, amount, hold.windows, settlement)
        for _ in range(1 + twice):
            self.apply(op)
        self.model.paid.append((hold.key, paid, hold.windows))
        hold.used = True
        self.give_back(id, amount)

    @rule(choice=st.integers(0, 99), twice=st.booleans())
    def release(self, choice, twice):
        id = self.pick(choice, lambda hold: not (hold.released or hold.used))
        if id is None:
            return
        hold = self.model.holds[id]
        for _ in range(1 + twice):
            self.apply(Release(id, hold.key))
        hold.released = True
        self.give_back(id, hold.lost if hold.expired else hold.amount)

    def give_back(self, id, amount):
        hold = self.model.holds[id]
        if hold.expired:
            hold.lost -= amount
            # Of a release the minute is not known any more; by then it is over.
            windows = replace(hold.windows, minute=0) if hold.released else hold.windows
            self.model.paid.append((hold.key, -amount, windows))
        else:
            hold.amount -= amount
            if hold.amount == 0:
                del self.model.holds[id]

    @rule()
    def release_what_was_never_made(self):
        self.apply(Release(self.next_id(), self.key(True)))

    @rule(seconds=st.sampled_from([1, 20, 61, 3600, 86_400, 40 * 86_400]))
    def wait(self, seconds):
        self.now += seconds * 1000

    @initialize(wants=st.lists(st.integers(1, 400), min_size=2, max_size=6))
    def begin(self, wants):
        for number, want in enumerate(wants):
            self.reserve(bool(number % 2), want, 0.0, 0, False)

    @rule(seconds=st.integers(61, 200))
    def lose(self, seconds):
        """Long enough for leases to run out, and for somebody to notice."""
        self.wait(seconds)
        self.reap()

    @rule()
    def renew(self):
        self.runner.run(self.ledger.renew(sorted(self.model.holds), self.now + LEASE))
        for hold in self.model.holds.values():
            if not hold.expired:
                hold.until = self.now + LEASE

    @rule()
    def reap(self):
        self.runner.run(reap(self.ledger))
        for id, hold in list(self.model.holds.items()):
            if hold.expired or hold.until >= self.now:
                continue
            hold.expired, hold.lost, hold.amount = True, hold.amount, 0
            self.model.paid.append((hold.key, hold.lost, hold.windows))
            if not hold.lost:
                del self.model.holds[id]

    @invariant()
    def the_accounts_are_those_of_the_model(self):
        windows = windows_at(self.now // 1000)
        for key in self.model.limits:
            account = self.runner.run(self.ledger.account(key))
            for name in WINDOWS:
                start = 0 if name == "total" else getattr(windows, name)
                assert account.spent[name] == self.model.spent(key, name, start)
                assert account.held[name] == self.model.held(key, name, start)
            open_ones = [h for h in self.model.holds.values() if h.key == key and not h.expired]
            assert account.running == len(open_ones)


def test_the_ledger_does_what_the_model_does(ledger_url):
    machine = type("Machine", (LedgerMachine,), {"url": ledger_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
