"""The database: SQLite in a file, or PostgreSQL; its migrations, and its failures in our words."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    CompileError,
    DataError,
    IntegrityError,
    InvalidRequestError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from app.errors import ConfigError, LedgerUnavailable

_MIGRATIONS = Path(__file__).with_name("migrations")
_MIGRATION_LOCK = 0x666172746869  # any number, the same in every gateway
_PATIENCE_S = 5  # for a connection, a lock, a statement
RETRY_AFTER = 1.0  # seconds
_FAILURES = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
# A bug of ours rather than a database that is away.
_MISTAKES = (IntegrityError, DataError, ProgrammingError, InvalidRequestError, CompileError)
log = logging.getLogger(__name__)


class Database:
    """Connections to one database; none is made before the first transaction."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError for a URL that is neither SQLite's nor PostgreSQL's."""
        parsed = _parsed(url)
        self.name = parsed.render_as_string(hide_password=True)
        self.sqlite = parsed.get_backend_name() == "sqlite"
        if self.sqlite:
            path = Path(parsed.database or "").expanduser()
            parsed = parsed.set(drivername="sqlite+aiosqlite", database=str(path))
            connect: dict[str, Any] = {"timeout": _PATIENCE_S, "isolation_level": None}
        else:
            parsed = parsed.set(drivername="postgresql+asyncpg")
            connect = {"timeout": _PATIENCE_S, "command_timeout": _PATIENCE_S}
        self._file = Path(parsed.database or "") if self.sqlite else None
        self._engine = create_async_engine(parsed, connect_args=connect, pool_recycle=1800)
        self._reading = self._engine.execution_options(farthing_reads=True)
        if self.sqlite:
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)

    async def migrate(self) -> None:
        """Bring the tables up to date. Raises ConfigError where that cannot be done."""
        try:
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            async with self._engine.begin() as connection:
                if not self.sqlite:
                    lock = text("SELECT pg_advisory_xact_lock(:lock)")
                    await connection.execute(lock, {"lock": _MIGRATION_LOCK})
                await connection.run_sync(_upgrade)
        except CommandError as error:
            raise ConfigError(
                f"the ledger {self.name} is from a newer Farthing: {error}"
            ) from error
        except _FAILURES as error:
            raise ConfigError(f"the ledger {self.name} cannot be opened: {said(error)}") from error

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, committed at the end. Raises LedgerUnavailable, its outcome unknown."""
        try:
            async with self._engine.begin() as connection:
                yield connection
        except _MISTAKES:
            raise
        except _FAILURES as error:
            raise unavailable(error) from error

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads, and waits for no writer. Raises LedgerUnavailable."""
        try:
            async with self._reading.begin() as connection:
                yield connection
        except _MISTAKES:
            raise
        except _FAILURES as error:
            raise unavailable(error) from error

    async def aclose(self) -> None:
        await self._engine.dispose()


def unavailable(error: BaseException) -> LedgerUnavailable:
    log.warning("the ledger does not answer: %s", said(error))
    return LedgerUnavailable("The ledger does not answer; try again", retry_after=RETRY_AFTER)


def said(error: BaseException) -> str:
    """The driver's own words, without the statement and its parameters."""
    origin = getattr(error, "orig", None) or error
    return str(origin).partition("\n")[0] or type(origin).__name__


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        backend = ""
    if backend in ("postgresql", "postgres") or (backend == "sqlite" and parsed.database):
        return parsed
    raise ConfigError(
        "ledger (FARTHING_LEDGER): must be sqlite:///path/to/file.db,"
        " postgresql://user:password@host/database, or off"
    )


def _prepare_sqlite(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    # FULL: what was committed outlives a power cut. WAL: readers and the writer do not wait.
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock before anything is read, as SELECT ... FOR UPDATE does.
    reads = connection.get_execution_options().get("farthing_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    ScriptDirectory.from_config(config)
    command.upgrade(config, "head")
