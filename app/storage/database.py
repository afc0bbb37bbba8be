"""The database: SQLite in a file, or PostgreSQL; its migrations, and its failures in our words."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.ext.asyncio import create_async_engine

from app.errors import ConfigError, LedgerUnavailable

T = TypeVar("T")
Work: TypeAlias = Callable[[Connection], T]
_MIGRATIONS = Path(__file__).with_name("migrations")
_MIGRATION_LOCK = 0x666172746869  # any number, the same in every gateway
_PATIENCE_S = 5  # for a connection, a lock, a statement
# A gateway that is stopped in the middle of a transaction must not stop all others for long.
_SERVER_SETTINGS = {
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "4s",
    "tcp_user_timeout": "10s",
}
_FAILURES = (
    *(SQLAlchemyError, sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError),
    *(OSError, TimeoutError),
)
_MISTAKES = (IntegrityError, DataError, sqlite3.IntegrityError, sqlite3.DataError)
log = logging.getLogger(__name__)


class Database:
    """Connections to one database; none is made before the first transaction.

    A transaction is a function of a connection. For PostgreSQL it runs on the event loop, over
    the asynchronous driver. SQLite has no such driver: there all of it runs in one thread, which
    costs a third of what handing over every statement does.
    """

    def __init__(self, url: str, *, durable: bool = True) -> None:
        """Raises ConfigError for a URL that is neither SQLite's nor PostgreSQL's.

        A SQLite file that is not `durable` may be lost in a power cut, and is faster.
        """
        parsed = _parsed(url)
        self.name = parsed.render_as_string(hide_password=True)
        self.sqlite = parsed.get_backend_name() == "sqlite"
        self._backend = _Sqlite(parsed, durable) if self.sqlite else _Postgres(parsed)

    async def migrate(self) -> None:
        """Bring the tables up to date. Raises ConfigError where that cannot be done."""
        try:
            await self._backend.run(self._migrate, writes=True)
        except CommandError as error:
            raise ConfigError(
                f"the ledger {self.name} is from a newer Farthing: {error}"
            ) from error
        except _FAILURES as error:
            raise ConfigError(f"the ledger {self.name} cannot be opened: {said(error)}") from error

    async def write(self, work: Work[T]) -> T:
        """What `work` returns, committed. Raises LedgerUnavailable, its outcome then unknown."""
        return await self._transaction(work, writes=True)

    async def read(self, work: Work[T]) -> T:
        """What `work` returns; it only reads, and waits for no writer. Raises LedgerUnavailable."""
        return await self._transaction(work, writes=False)

    async def aclose(self) -> None:
        await self._backend.aclose()

    async def _transaction(self, work: Work[T], *, writes: bool) -> T:
        try:
            return await self._backend.run(work, writes=writes)
        except _FAILURES as error:
            if _is_mistake(error):
                raise
            log.warning("the ledger does not answer: %s", said(error))
            raise LedgerUnavailable from error

    def _migrate(self, connection: Connection) -> None:
        if not self.sqlite:
            lock = text("SELECT pg_advisory_xact_lock(:lock)")
            connection.execute(lock, {"lock": _MIGRATION_LOCK})
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


class _Sqlite:
    def __init__(self, url: URL, durable: bool) -> None:
        self._file = Path(url.database or "").expanduser()
        self._engine = create_engine(
            url.set(drivername="sqlite+pysqlite", database=str(self._file)),
            connect_args={"timeout": _PATIENCE_S, "isolation_level": None},
            hide_parameters=True,  # errors are logged, what clients said is not
        )
        self._reading = self._engine.execution_options(farthing_reads=True)
        event.listen(self._engine, "connect", partial(_prepare_sqlite, durable))
        event.listen(self._engine, "begin", _begin_sqlite)
        # One thread writes: SQLite allows one writer. Another reads, and does not wait for it.
        self._writer = ThreadPoolExecutor(1, "ledger-writer")
        self._reader = ThreadPoolExecutor(1, "ledger-reader")

    async def run(self, work: Work[T], *, writes: bool) -> T:
        thread = self._writer if writes else self._reader
        return await asyncio.get_running_loop().run_in_executor(thread, self._run, work, writes)

    def _run(self, work: Work[T], writes: bool) -> T:
        if writes and not self._file.exists():
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file.touch(mode=0o600)
        with (self._engine if writes else self._reading).begin() as connection:
            return work(connection)

    async def aclose(self) -> None:
        self._writer.shutdown()
        self._reader.shutdown()
        self._engine.dispose()


class _Postgres:
    def __init__(self, url: URL) -> None:
        # Strangers' keys are looked up over the one; the other is for money alone.
        self._reading, self._engine = (
            create_async_engine(
                url.set(drivername="postgresql+asyncpg"),
                connect_args={
                    "timeout": _PATIENCE_S,
                    "command_timeout": _PATIENCE_S,
                    "server_settings": _SERVER_SETTINGS,
                },
                hide_parameters=True,
                pool_recycle=1800,
                pool_timeout=_PATIENCE_S,
            )
            for _ in range(2)
        )

    async def run(self, work: Work[T], *, writes: bool) -> T:
        async with (self._engine if writes else self._reading).begin() as connection:
            return await connection.run_sync(work)

    async def aclose(self) -> None:
        await self._engine.dispose()
        await self._reading.dispose()


def _is_mistake(error: BaseException) -> bool:
    """Whether the values are at fault, and not the database: they will be next time too."""
    if isinstance(error, _MISTAKES):
        return True
    if isinstance(error, DBAPIError):  # PostgreSQL's class 22: data exceptions
        return str(getattr(error.orig, "sqlstate", None) or "").startswith("22")
    return isinstance(error, StatementError)


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


def _prepare_sqlite(durable: bool, connection: Any, record: object) -> None:
    cursor = connection.cursor()
    # FULL: what was committed outlives a power cut.
    cursor.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
    # WAL: readers and the writer do not wait for each other. To change over, SQLite does not wait
    # for a process that does the same just now, as it does for every other lock.
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock before anything is read, as SELECT ... FOR UPDATE does.
    reads = connection.get_execution_options().get("farthing_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
