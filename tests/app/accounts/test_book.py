"""Whatever the database does, what was served is settled once, and nothing stays held."""

import asyncio
import random

import pytest

from app.accounts.book import Book
from app.accounts.journal import Journal
from app.errors import LedgerUnavailable
from app.storage.balance import windows_at
from app.storage.database import Database
from app.storage.keys import KeyStore
from app.storage.ledger import Ledger
from app.storage.records import Grant, KeyRow, Reserve, Settle, Settlement
from app.storage.usage import UsageStore
from tests.app.storage.reaping import reap

LIMIT = 10_000


class Faulty(Database):
    """Fails before or after its transactions commit, as often as it is told."""

    before = after = 0.0  # probabilities
    rng = random.Random(7)
    transactions = 0

    async def write(self, work):
        self.transactions += 1
        if self.rng.random() < self.before:
            raise LedgerUnavailable("before")
        result = await super().write(work)
        if self.rng.random() < self.after:
            raise LedgerUnavailable("after")
        return result


@pytest.fixture
async def database(ledger_url):
    database = Faulty(ledger_url)
    await database.migrate()
    store = KeyStore(database)
    await store.add(KeyRow("k", "k", b"d" * 32, False, 0), {"total": LIMIT})
    yield database
    await database.aclose()


@pytest.fixture
def new_book(database, tmp_path):
    made = iter(range(100))

    def make(**more):
        process = f"p{next(made)}"
        ledger = Ledger(database, process)
        return Book(ledger, Journal(tmp_path / "journal", process), **more)

    return make


@pytest.fixture
async def book(new_book):
    book = new_book()
    await book.start()
    yield book
    await book.aclose()


def asked(id, want=100, least=1):
    return Reserve(f"{id}.hold", "k", want, least)


def paid(grant, id, cost):
    settlement = Settlement(id, "k", "p", "m", "kept", 1, 1, cost, "v1")
    return Settle(grant.id, grant.amount, grant.windows, settlement)


async def spent(database):
    """Settlements, the account's own count, and what is held."""
    (total,) = await UsageStore(database).spent((), key="k")
    account = await Ledger(database).account("k")
    return total.cost, account.spent["total"], account.held["total"], account.running


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_waits_is_written_in_one_transaction(book, database):
    before = database.transactions
    grants = await asyncio.gather(*(book.reserve(asked(n)) for n in range(50)))
    await asyncio.gather(*(book.keep(paid(g, str(n), 10)) for n, g in enumerate(grants)))
    assert database.transactions - before <= 4
    assert await spent(database) == (500, 500, 0, 0)


@pytest.mark.parametrize("seed", range(4))
async def test_random_failures_and_cancellations_lose_nothing(new_book, database, seed):
    """Requests that are cancelled at any moment, on a database that fails at any moment."""
    book = new_book(patience_s=0.5)
    await book.start()
    rng = random.Random(seed)
    database.rng = random.Random(seed)
    database.before = database.after = 0.15
    told = []

    async def request(number):
        grant = None
        try:
            await asyncio.sleep(rng.uniform(0, 0.3))
            grant = await book.reserve(asked(number))
            await asyncio.sleep(rng.uniform(0, 0.05))
        finally:
            if isinstance(grant, Grant):
                cost = rng.randint(0, grant.amount)
                told.append(cost)
                done = book.keep(paid(grant, str(number), cost))
                await book.kept(done)

    tasks = [asyncio.create_task(request(n)) for n in range(120)]
    for task in rng.sample(tasks, 40):
        asyncio.get_running_loop().call_later(rng.uniform(0, 0.4), task.cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = {type(r) for r in results if r is not None}
    assert kinds <= {LedgerUnavailable, asyncio.CancelledError}
    database.before = database.after = 0.0
    await until(lambda: not book.owed and not book.away)
    await book.aclose()
    assert await spent(database) == (sum(told), sum(told), 0, 0)
    assert sum(told) <= LIMIT and told
    assert await Ledger(database).open_reservations() == 0


async def test_while_the_database_is_away_a_reservation_is_refused_at_once(book, database):
    database.before = 1.0
    with pytest.raises(LedgerUnavailable):
        await book.reserve(asked("a"))
    assert book.away
    tries = database.transactions
    for number in range(50):
        with pytest.raises(LedgerUnavailable) as refusal:
            await book.reserve(asked(number))
    assert refusal.value.retry_after == 1
    assert database.transactions - tries < 5
    database.before = 0.0
    await until(lambda: not book.away)
    assert isinstance(await book.reserve(asked("b")), Grant)


async def test_what_cannot_be_settled_is_in_the_journal_before_the_client_is_told(
    book, database, tmp_path
):
    grant = await book.reserve(asked("a"))
    database.before = 1.0
    await book.keep(paid(grant, "a", 42))
    (file,) = (tmp_path / "journal").glob("*.jsonl")
    assert '"cost":42' in file.read_text()
    assert (await spent(database))[0] == 0
    database.before = 0.0
    await until(lambda: not book.owed)
    assert await spent(database) == (42, 42, 0, 0)
    assert not file.exists()


async def test_a_dead_gateway_s_journal_is_settled_by_the_next_once(new_book, database, tmp_path):
    dead = new_book()
    await dead.start()
    grant = await dead.reserve(asked("a"))
    database.before = 1.0
    await dead.keep(paid(grant, "a", 42))
    # It dies: nothing of it runs any more, and its lock on the file is gone.
    for task in (dead._writer, *dead._tenders):
        task.cancel()
    dead.journal._file.close()
    dead.journal._lock.release()
    with next((tmp_path / "journal").glob("*.jsonl")).open("ab") as file:
        file.write(b'{"kind":"Settle","reserv')  # in the middle of a word
    database.before = 0.0
    heirs = [new_book() for _ in range(3)]
    for heir in heirs:
        await heir.start()
    await until(lambda: not list((tmp_path / "journal").glob("*.jsonl")))
    for heir in heirs:
        await heir.aclose()
    assert await spent(database) == (42, 42, 0, 0)


async def test_a_living_gateway_s_journal_is_its_own(book, new_book, database, tmp_path):
    grant = await book.reserve(asked("a"))
    database.before = 1.0
    await book.keep(paid(grant, "a", 42))
    other = new_book()
    await other._adopt()
    assert list((tmp_path / "journal").glob("*.jsonl"))
    database.before = 0.0


async def test_closing_settles_what_there_is(new_book, database):
    book = new_book()
    await book.start()
    grant = await book.reserve(asked("a"))
    book.keep(paid(grant, "a", 5))
    await book.aclose()
    assert await spent(database) == (5, 5, 0, 0)
    with pytest.raises(LedgerUnavailable):
        await book.reserve(asked("b"))


async def test_leases_are_renewed_while_a_request_runs(new_book, database):
    book = new_book(lease_s=0.4)
    await book.start()
    grant = await book.reserve(asked("a"))
    await asyncio.sleep(1.0)
    assert await reap(Ledger(database)) == 0
    await book.keep(paid(grant, "a", 7))
    assert await spent(database) == (7, 7, 0, 0)
    await book.aclose()


async def test_a_process_that_lost_its_lease_pays_what_it_cost(new_book, database):
    book = new_book(lease_s=1000)
    await book.start()
    grant = await book.reserve(asked("a"))
    await book.ledger.renew([grant.id], 0)  # as if it had been stopped for long
    await reap(Ledger(database))
    assert (await spent(database))[:3] == (100, 100, 0)
    await book.keep(paid(grant, "a", 7))
    await book.keep(paid(grant, "a", 7))
    assert await spent(database) == (7, 7, 0, 0)
    await book.aclose()


def never(grant, id):
    """A settlement that no database takes."""
    bad = paid(grant, id, 3)
    object.__setattr__(bad.settlement, "outcome", None)
    return bad


async def test_what_can_never_be_written_hurts_nobody_else(book, caplog, tmp_path, database):
    grants = [await book.reserve(asked(n)) for n in range(3)]
    done = [
        book.keep(paid(grants[0], "a", 2)),
        book.keep(never(grants[1], "b")),
        book.keep(paid(grants[2], "c", 4)),
    ]
    await asyncio.gather(*done)
    assert "can never be settled" in caplog.text
    assert (await spent(database))[0] == 6
    assert isinstance(await book.reserve(asked("d")), Grant)
    (file,) = (tmp_path / "journal").glob("*.rejected")
    assert '"id":"b"' in file.read_text()


async def test_nor_does_it_alone(book, database):
    grant = await book.reserve(asked("a"))
    await book.keep(never(grant, "a"))
    assert isinstance(await book.reserve(asked("b")), Grant)
    assert not book.away and not book.owed


async def test_the_database_may_go_away_while_one_is_set_aside(new_book, database, tmp_path):
    """Those after it are kept in the journal, and a reservation among them is nobody's."""
    book = new_book()
    await book.start()
    grants = [await book.reserve(asked(n)) for n in range(4)]
    reject = book.journal.reject

    def away(entry):
        reject(entry)
        database.before = 1.0

    book.journal.reject = away
    kept = [book.keep(never(grants[0], "bad"))]
    kept += [book.keep(paid(grant, str(n), 7)) for n, grant in enumerate(grants[1:])]
    refused = asyncio.create_task(book.reserve(asked("late")))
    async with asyncio.timeout(1.5):
        await asyncio.gather(*kept)
    with pytest.raises(LedgerUnavailable):
        await refused
    await book.aclose()
    assert len(list((tmp_path / "journal").glob("*.jsonl"))) == 1
    database.before = 0.0
    heir = new_book()
    await heir.start()
    await until(lambda: not list((tmp_path / "journal").glob("*.jsonl")))
    await heir.aclose()
    assert (await spent(database))[0] == 21
    assert await Ledger(database).open_reservations() == 1  # of the one that was set aside


async def test_what_could_not_be_journaled_is_once_there_is_room(new_book, database, tmp_path):
    book = new_book()
    await book.start()
    grant = await book.reserve(asked("a"))
    write, tries = book.journal.write, iter(range(100))

    def full_once(entries):
        if next(tries) == 0:
            raise OSError(28, "No space left on device")
        write(entries)

    book.journal.write = full_once
    database.before = 1.0
    await book.keep(paid(grant, "a", 7))
    await book.aclose()
    (file,) = (tmp_path / "journal").glob("*.jsonl")
    assert '"cost":7' in file.read_text()


async def test_leases_are_renewed_however_much_there_is_to_adopt(new_book, database, tmp_path):
    dead = Journal(tmp_path / "journal", "dead")
    dead.write([paid(Grant(f"{n}.hold", 5, windows_at(0), 0), str(n), 1) for n in range(3000)])
    dead.close()
    book = new_book(lease_s=1.0)
    await book.start()
    grant = await book.reserve(asked("a"))
    for _ in range(25):
        await asyncio.sleep(0.1)
        assert await reap(Ledger(database)) == 0
    await book.keep(paid(grant, "a", 7))
    await book.aclose()


async def test_an_orphan_that_cannot_be_settled_stops_nothing(new_book, database, tmp_path):
    dead = Journal(tmp_path / "journal", "dead")
    lost = Grant("lost.hold", 5, windows_at(0), 0)
    good = paid(lost, "good", 1)
    dead.write([never(lost, "bad"), good, paid(lost, "other", 1)])
    dead.close()
    book = new_book(lease_s=0.4)
    await book.start()
    grant = await book.reserve(asked("a"))
    await until(lambda: not list((tmp_path / "journal").glob("*.jsonl")))
    await asyncio.sleep(1.0)
    assert await reap(Ledger(database)) == 0  # its lease was renewed all the while
    await book.keep(paid(grant, "a", 7))
    assert (await spent(database))[0] == 9
    await book.aclose()


async def test_a_journal_that_cannot_be_written_costs_no_answer(new_book, database, monkeypatch):
    book = new_book()
    await book.start()
    grant = await book.reserve(asked("a"))
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(book.journal, "write", lambda entries: (_ for _ in ()).throw(full))
    database.before = 1.0
    await book.keep(paid(grant, "a", 7))
    database.before = 0.0
    await until(lambda: not book.owed and not book.away)
    assert isinstance(await book.reserve(asked("b")), Grant)
    assert (await spent(database))[0] == 7
    await book.aclose()


async def test_whatever_the_writer_meets_it_goes_on(book, database, monkeypatch):
    def surprise(owed):
        monkeypatch.undo()
        raise RuntimeError("surprise")

    monkeypatch.setattr(book, "_settled", surprise)
    with pytest.raises(LedgerUnavailable):
        await book.reserve(asked("a"))  # it was made, but nobody knows
    await until(lambda: not book.owed and not book.away)
    assert await spent(database) == (0, 0, 0, 0)
    assert isinstance(await book.reserve(asked("b")), Grant)


async def test_a_reservation_made_again_after_it_expired_is_nobody_s(new_book, database):
    """Its commit's answer was lost for longer than its lease."""
    ledger = Ledger(database)
    await ledger.apply([asked("a")], 0)
    assert await reap(ledger) == 1
    assert await ledger.apply([asked("a")], 2**60, again=True) == [None]
    assert await spent(database) == (0, 0, 0, 0)


async def test_what_is_settled_after_the_end_waits_for_the_next_gateway(
    new_book, database, tmp_path
):
    book = new_book()
    await book.start()
    grant = await book.reserve(asked("a"))
    await book.aclose()
    await book.keep(paid(grant, "a", 7))
    heir = new_book()
    await heir.start()
    await until(lambda: not list((tmp_path / "journal").glob("*.jsonl")))
    await heir.aclose()
    assert await spent(database) == (7, 7, 0, 0)


async def test_closing_what_never_started_is_fine(new_book):
    await new_book().aclose()
