"""Statements that every request needs: compiled once, and handed to SQLite past SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sqlite3 import Cursor
from typing import Any, cast

from sqlalchemy import Connection, Table, bindparam, insert
from sqlalchemy.sql import ClauseElement, Executable
from sqlalchemy.sql.compiler import SQLCompiler


class Prepared:
    """A statement with named parameters.

    SQLAlchemy takes ten times as long over one as SQLite does. Over a network that is little, and
    there it knows which failures mean that a connection is gone: PostgreSQL is left to it.
    """

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        self._made: tuple[str, Sequence[str]] | None = None

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Once for each row of parameters."""
        if connection.dialect.name != "sqlite":
            connection.execute(self._statement, rows)
            return
        if self._made is None:
            compiled = _compiled(self._statement, connection)
            self._made = str(compiled), compiled.positiontup or ()
        text, names = self._made
        _cursor(connection).executemany(text, [[row[name] for name in names] for row in rows])


class Among:
    """A statement about the rows whose key is one of some values; it has no other parameters."""

    def __init__(self, make: Callable[[Any], Executable]) -> None:
        """`make`: of what a column's `in_` takes, the statement."""
        self._make = make
        self._statement = make(bindparam("values", expanding=True))
        self._made: dict[int, str] = {}  # by the number of values

    def rows(self, connection: Connection, values: Sequence[str]) -> list[dict[str, Any]]:
        """What it selects."""
        if connection.dialect.name != "sqlite":
            found = connection.execute(self._statement, {"values": values})
            return [dict(row) for row in found.mappings()]
        cursor = self._executed(connection, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def run(self, connection: Connection, values: Sequence[str]) -> None:
        """What it does, where it selects nothing."""
        if connection.dialect.name != "sqlite":
            connection.execute(self._statement, {"values": values})
        else:
            self._executed(connection, values)

    def _executed(self, connection: Connection, values: Sequence[str]) -> Cursor:
        text = self._made.get(len(values))
        if text is None:
            text = str(_compiled(self._make(values), connection))
            self._made[len(values)] = text
        return _cursor(connection).execute(text, values)


def inserting(table: Table, *without: str) -> Prepared:
    """Into this table, rows of all its columns but these."""
    names = [column.name for column in table.columns if column.name not in without]
    return Prepared(insert(table).values({name: bindparam(name) for name in names}))


def _compiled(statement: Executable, connection: Connection) -> SQLCompiler:
    made = cast(ClauseElement, statement).compile(
        dialect=connection.dialect, compile_kwargs={"render_postcompile": True}
    )
    return cast(SQLCompiler, made)


def _cursor(connection: Connection) -> Cursor:
    # Of the driver itself: the transaction is SQLAlchemy's, which has begun it.
    return cast(Cursor, connection.connection.cursor())
