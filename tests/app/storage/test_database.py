"""Two databases, one schema: opened, brought up to date, and refused in one line."""

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.errors import ConfigError, LedgerUnavailable
from app.storage.database import Database
from app.storage.tables import metadata


@pytest.fixture
async def database(ledger_url):
    database = Database(ledger_url)
    database.url = ledger_url
    await database.migrate()
    yield database
    await database.aclose()


async def execute(database, statement):
    await database.write(lambda connection: connection.execute(text(statement)).rowcount)


async def scalar(database, statement):
    return await database.read(lambda connection: connection.execute(text(statement)).scalar())


async def test_the_migrations_lead_to_the_tables_that_the_code_has(database):
    def differences(connection):
        return compare_metadata(MigrationContext.configure(connection), metadata)

    assert await database.write(differences) == []


async def test_migrating_again_changes_nothing(database):
    await execute(database, "INSERT INTO facts VALUES ('a', 'b')")
    await database.migrate()
    assert await scalar(database, "SELECT value FROM facts") == "b"


async def test_several_gateways_may_start_at_once(ledger_url):
    databases = [Database(ledger_url) for _ in range(4)]
    await asyncio.gather(*(database.migrate() for database in databases))
    await asyncio.gather(*(database.aclose() for database in databases))


@pytest.mark.parametrize("table", ["settlements", "settlement_lines"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET cost = 0"])
async def test_a_settlement_cannot_be_changed(database, table, statement):
    await execute(
        database,
        "INSERT INTO settlements VALUES ('s', 'k', 1, 0, 'p', 'm', '', 'kept', 1, 1, 5, NULL, 'v')",
    )
    await execute(database, "INSERT INTO settlement_lines VALUES ('s','m',1,0,1,1,5,0,0,0,NULL)")
    with pytest.raises((LedgerUnavailable, SQLAlchemyError)) as refusal:
        await execute(database, statement.format(table))
    assert "append-only" in str(refusal.value.__cause__)
    assert await scalar(database, f"SELECT cost FROM {table}") == 5


async def test_a_stopped_gateway_does_not_hold_its_locks_for_long(database):
    if database.sqlite:
        pytest.skip("SQLite's locks end with the process")
    for work in (database.read, database.write):
        for name, value in (("idle_in_transaction_session_timeout", "5s"), ("lock_timeout", "4s")):
            shown = await work(lambda c, name=name: c.execute(text(f"SHOW {name}")).scalar())
            assert shown == value


async def test_a_ledger_of_a_newer_version_is_left_alone(database):
    await execute(database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="newer Farthing"):
        await database.migrate()


@pytest.mark.parametrize("url", ["mysql://h/d", "sqlite://", "nonsense", "", "postgres"])
def test_another_database_is_refused_by_the_setting(url):
    with pytest.raises(ConfigError, match="FARTHING_LEDGER"):
        Database(url)


async def test_one_that_is_not_there_is_told_without_its_password():
    database = Database("postgresql://user:sw0rdfish@127.0.0.1:1/ledger")
    with pytest.raises(ConfigError) as refusal:
        await database.migrate()
    assert "127.0.0.1:1" in refusal.value.message
    assert "sw0rdfish" not in refusal.value.message
    with pytest.raises(LedgerUnavailable):
        await scalar(database, "SELECT 1")
    await database.aclose()


async def test_only_its_owner_may_read_the_file(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    await database.migrate()
    await database.aclose()
    assert (tmp_path / "ledger.db").stat().st_mode & 0o077 == 0


async def test_a_file_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be opened"):
        await Database(f"sqlite:///{tmp_path / 'file' / 'ledger.db'}").migrate()


async def test_a_transaction_that_nobody_waits_for_any_more_leaves_no_lock(database):
    """A client that leaves while its request writes must not shut out all others."""
    for _ in range(50):
        waiting = [
            asyncio.create_task(execute(database, "UPDATE facts SET value = 'x'")) for _ in range(4)
        ]
        await asyncio.sleep(0.001)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    await execute(database, "INSERT INTO facts VALUES ('still', 'here')")
    other = Database(database.url)
    await execute(other, "UPDATE facts SET value = 'there'")
    await other.aclose()
    assert await scalar(database, "SELECT value FROM facts") == "there"
