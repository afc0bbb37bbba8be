"""What is kept of why answers came out as they did: with their settlements, for a while."""

import json

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import event, text

from app.errors import LedgerUnavailable
from app.storage import database as module
from app.storage import explanations
from app.storage.database import Database
from app.storage.explanations import ExplanationStore
from app.storage.ledger import Ledger
from app.storage.records import Explained, Explanation, Owner, Reserve, Settle, Settlement
from tests.app.storage.test_responses import OURS, THEIRS, Clock

HOUR = 3_600_000


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def database(ledger_url):
    database = Database(ledger_url)
    await database.migrate()
    yield database
    await database.aclose()


@pytest.fixture
async def store(database, clock):
    return ExplanationStore(database, clock)


def one(id, owner=OURS, request_id="r", content="{}", keep=HOUR):
    return Explained(id, owner, Explanation(request_id, keep, content))


async def ids(store):
    query = text("SELECT id FROM explanations ORDER BY id")
    return list(await store._database.read(lambda c: c.execute(query).scalars().all()))


async def test_it_is_written_with_its_settlement_once_or_not_at_all(store, database, clock):
    ledger = Ledger(database, "p", clock)
    await database.write(
        lambda c: (
            c.execute(
                text(
                    "INSERT INTO accounts SELECT 'k', NULL, 0, 0, 0, NULL, 0, 0, 0, NULL, 0, 0, 0,"
                    " NULL, 0, 0, 0, 0"
                )
            ).rowcount
        )
    )
    (granted,) = await ledger.apply([Reserve("s.hold", "k", 10, 1)], 2**60)
    paid = Settlement("s", "k", outcome="kept", tenant="t", explanation=one("").explanation)
    settle = Settle(granted.id, granted.amount, granted.windows, paid)
    for _ in range(2):
        await ledger.apply([settle], 2**60)
    assert await store.find("s", Owner("k", "t")) == one("s", Owner("k", "t"))
    bad = Settlement("x", "k", outcome="kept", explanation=Explanation("r" * 200, 1, None))
    with pytest.raises(Exception):  # noqa: B017  (each database has its own)
        await ledger.apply([Settle("y", 0, granted.windows, bad)], 2**60)
    query = text("SELECT id FROM settlements")
    assert await database.read(lambda c: c.execute(query).scalars().all()) == ["s"]


@pytest.mark.parametrize("other", [THEIRS, Owner("a", "tenant")])
async def test_only_its_owner_finds_it_or_who_may_find_all(store, other):
    await store.add([one("s", request_id="theirs")])
    for id in ("s", "theirs"):
        assert await store.find(id, other) is None
        assert await store.find(id, OURS) == await store.find(id, None) == one("s", OURS, "theirs")


async def test_our_id_comes_before_a_client_s_and_of_these_the_newest(store, clock):
    for id in ("b", "c", "a"):
        clock.now += 1
        await store.add([one(id, request_id="again")])
    assert (await store.find("again", OURS)).id == "a"
    clock.now += 1
    await store.add([one("d", request_id="b")])
    assert (await store.find("b", OURS)).id == "b"
    clock.now += 1
    await store.add([one("e", THEIRS, "again")])
    assert (await store.find("again", OURS)).id == "a"
    assert (await store.find("again", None)).id == "e"


@pytest.mark.parametrize("owner", [OURS, None])
async def test_however_often_an_id_is_used_again_its_rows_are_not_sorted(tmp_path, owner, clock):
    database, asked = Database(f"sqlite:///{tmp_path}/ledger.db"), []
    await database.migrate()

    def plan(connection):
        event.listen(connection, "before_cursor_execute", lambda *said: asked.append(said[2:4]))

    class Watched:
        async def read(self, work):
            return await database.read(lambda c: (plan(c), work(c))[1])

    assert await ExplanationStore(Watched(), clock).find("again", owner) is None
    statement, values = asked[-1]
    steps = await database.read(
        lambda c: c.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    )
    (step,) = [step.detail for step in steps]
    assert "USING INDEX explanations_by_request" in step
    await database.aclose()


async def all_of(store, key=None, since=0, until=2**62):
    after, pages = (0, ""), []
    while after is not None:
        found, after = await store.page(key, since, until, after)
        pages.append([each.id for each in found])
    return pages


async def test_all_of_them_come_page_by_page_each_once(store, clock, monkeypatch):
    monkeypatch.setattr(explanations, "_MANY", 2)
    start = clock.now
    for number, owner in enumerate((OURS, THEIRS, OURS, OURS, OURS)):
        clock.now += 10
        await store.add([one(f"{number}", owner, content=f"{number}")])
    await store.add([one("same", content="{}")])  # expires with the last one
    assert await all_of(store) == [["0", "1"], ["2", "3"], ["4", "same"], []]
    assert await all_of(store, key=THEIRS.key) == [["1"]]
    assert await all_of(store, since=start + 20, until=start + 40) == [["1", "2"], []]
    (found, *_), _ = await store.page(None, 0, 2**62)
    assert found == one("0", OURS, content="0")
    clock.now = start + 20 + HOUR
    assert await all_of(store) == [["2", "3"], ["4", "same"], []]


async def test_what_has_expired_is_not_there_and_is_swept(store, clock):
    await store.add([one("s"), one("t", keep=2 * HOUR)])
    clock.now += HOUR
    assert await store.find("s", None) is None and await store.find("t", None) is not None
    assert await store.sweep(None) == 1 and await ids(store) == ["t"]
    assert await store.sweep(None) == 0


async def test_beyond_so_many_bytes_the_oldest_go(store, clock):
    for number in range(6):
        clock.now += 10
        await store.add([one(f"{number}", content="x" * 100)])
    assert await store.sweep(600) == 0
    assert await store.sweep(None) == 0
    assert await store.sweep(250) == 4
    assert await ids(store) == ["4", "5"]


async def test_what_has_expired_goes_whether_or_not_all_can_be_summed_up(store, clock, monkeypatch):
    def too_long(most, connection):
        raise TimeoutError

    monkeypatch.setattr(explanations, "_beyond", too_long)
    await store.add([one("s"), one("t", keep=2 * HOUR)])
    clock.now += HOUR
    with pytest.raises(LedgerUnavailable):
        await store.sweep(1)
    assert await ids(store) == ["t"]


async def test_it_is_swept_little_by_little(store, clock, monkeypatch):
    monkeypatch.setattr(explanations, "_MANY", 4)
    sizes, delete = [], explanations._delete

    def counted(gone, connection):
        sizes.append(delete(gone, connection))
        return sizes[-1]

    monkeypatch.setattr(explanations, "_delete", counted)
    await store.add([one(f"{number}") for number in range(10)])
    clock.now += HOUR
    assert await store.sweep(None) == 10
    assert sizes == [4, 4, 2]


async def test_what_was_decided_before_there_were_any_is_carried_over(ledger_url, clock):
    old = Database(ledger_url)

    def to(connection, revision):
        config = Config()
        config.set_main_option("script_location", str(module._MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    def fill(connection):
        for id, outcome in (("s", "steered"), ("t", "kept"), ("u", "kept")):
            connection.execute(
                text(
                    "INSERT INTO settlements (id, key_id, at, day, policy, model, tenant,"
                    " outcome, prompt, completion, cost, prices) VALUES"
                    f" ('{id}', 'k', 5, 0, 'economy', 'm', 'me', '{outcome}', 1, 1, 5, 'v')"
                )
            )
        for row in (
            ("s", 0, "switch", "large", 12, 2.75, 2.5, 0.25),
            ("s", 1, "steer", "small", 30, float("inf"), None, None),
            ("u", 0, "whole", "small", 0, None, None, None),
        ):
            names = ("id", "p", "k", "m", "t", "e", "h", "r")
            connection.execute(
                text("INSERT INTO decisions VALUES (:id, :p, :k, :m, :t, :e, :h, :r)"),
                dict(zip(names, row, strict=True)),
            )

    await old.write(lambda c: to(c, "0005"))
    await old.write(fill)
    await old.migrate()
    store = ExplanationStore(old, clock)
    found = await store.find("s", Owner("k", "me"))
    content = json.loads(found.explanation.content)
    assert (content["outcome"], content["plan"]["policy"]) == ("steered", "economy")
    assert content["decisions"] == [
        {"kind": "switch", "model": "large", "token": 12, "entropy": 2.75, "threshold": 2.5}
        | {"rest_usd": 0.25},
        {"kind": "steer", "model": "small", "token": 30, "entropy": "inf", "threshold": None}
        | {"rest_usd": None},
    ]
    assert await ids(store) == ["s", "u"]
    with pytest.raises(LedgerUnavailable):
        await old.read(lambda c: c.execute(text("SELECT * FROM decisions")).all())
    await old.aclose()
