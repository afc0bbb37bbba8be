"""Prepared statements do on both databases what SQLAlchemy does with them."""

import sqlite3

import pytest
from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.exc import IntegrityError

from app.errors import LedgerUnavailable
from app.storage.database import Database
from app.storage.prepared import Among, Prepared, inserting
from app.storage.tables import rates

ADD = inserting(rates)
CHANGE = Prepared(update(rates).where(rates.c.key == bindparam("of")).values(count=bindparam("to")))
FIND = Among(lambda keys: select(rates).where(rates.c.key.in_(keys)).order_by(rates.c.key))
DROP = Among(lambda keys: delete(rates).where(rates.c.key.in_(keys)))


def row(key, count=1):
    return {"key": key, "count": count, "expires": 10**15}


@pytest.fixture
async def database(ledger_url):
    database = Database(ledger_url)
    await database.migrate()
    await database.write(lambda connection: ADD.run(connection, [row("a"), row("b", 2), row("c")]))
    yield database
    await database.aclose()


async def test_what_was_written_is_read_as_sqlalchemy_reads_it(database):
    def work(connection):
        CHANGE.run(connection, [{"of": "a", "to": 7}, {"of": "c", "to": 8}])
        whole = connection.execute(select(rates).order_by(rates.c.key)).mappings().all()
        assert FIND.rows(connection, ["a", "b", "c"]) == [dict(each) for each in whole]
        return FIND.rows(connection, ["c", "nobody"]) + FIND.rows(connection, ["b"])

    assert await database.write(work) == [row("c", 8), row("b", 2)]


async def test_among_as_many_as_are_named(database):
    await database.write(lambda connection: DROP.run(connection, ["a", "c", "nobody"]))
    await database.write(lambda connection: DROP.run(connection, ["nobody"]))
    assert await database.read(lambda c: FIND.rows(c, ["a", "b", "c"])) == [row("b", 2)]


async def test_all_of_a_transaction_or_nothing(database):
    def work(connection):
        CHANGE.run(connection, [{"of": "a", "to": 7}])
        ADD.run(connection, [row("new"), row("a")])

    with pytest.raises((IntegrityError, sqlite3.IntegrityError)):  # a mistake: repeating is no use
        await database.write(work)
    assert await database.read(lambda c: FIND.rows(c, ["a", "new"])) == [row("a")]


async def test_what_the_file_cannot_do_now_it_may_do_later(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    with pytest.raises(LedgerUnavailable):  # nobody has made its tables
        await database.write(lambda connection: ADD.run(connection, [row("a")]))
    await database.aclose()
