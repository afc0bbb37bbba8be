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
    await database.migrate()
    yield database
    await database.aclose()


async def test_the_migrations_lead_to_the_tables_that_the_code_has(database):
    def differences(connection):
        return compare_metadata(MigrationContext.configure(connection), metadata)

    async with database.writing() as connection:
        assert await connection.run_sync(differences) == []


async def test_migrating_again_changes_nothing(database):
    async with database.writing() as connection:
        await connection.execute(text("INSERT INTO facts VALUES ('a', 'b')"))
    await database.migrate()
    async with database.reading() as connection:
        assert (await connection.execute(text("SELECT value FROM facts"))).scalar() == "b"


async def test_several_gateways_may_start_at_once(ledger_url):
    databases = [Database(ledger_url) for _ in range(4)]
    await asyncio.gather(*(database.migrate() for database in databases))
    await asyncio.gather(*(database.aclose() for database in databases))


@pytest.mark.parametrize("table", ["settlements", "settlement_lines"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET cost = 0"])
async def test_a_settlement_cannot_be_changed(database, table, statement):
    async with database.writing() as connection:
        await connection.execute(
            text(
                "INSERT INTO settlements VALUES"
                " ('s', 'k', 1, 0, 'p', 'm', '', 'kept', 1, 1, 5, NULL, 'v')"
            )
        )
        await connection.execute(text("INSERT INTO settlement_lines VALUES ('s','m',1,0,1,1,5)"))
    with pytest.raises((LedgerUnavailable, SQLAlchemyError)) as refusal:
        async with database.writing() as connection:
            await connection.execute(text(statement.format(table)))
    assert "append-only" in str(refusal.value.__cause__)
    async with database.reading() as connection:
        assert (await connection.execute(text(f"SELECT cost FROM {table}"))).scalar() == 5


async def test_a_ledger_of_a_newer_version_is_left_alone(database):
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
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
        async with database.reading():
            pass
    await database.aclose()


async def test_a_file_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be opened"):
        await Database(f"sqlite:///{tmp_path / 'file' / 'ledger.db'}").migrate()
