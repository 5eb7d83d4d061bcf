"""Run a named query: on a connection of its own, on the caller's, or on the caller's async one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from alicia_session_stats.database import READING, WRITING, Connection, SessionStatsError, UsageError, connect, explain_error
from alicia_session_stats.output import Column
from alicia_session_stats.query_files import Query, bind, find_query

DEFAULT_TIMEOUT, LONGEST_TIMEOUT = 30, 2_147_483  # Seconds. The server takes an INTEGER of milliseconds.
# Sets these until the end of the transaction, and returns what they were. Large windows are read faster without JIT
# compilation, and the text of a time must not depend on the role's DateStyle.
SETTINGS = """
    SELECT
        CURRENT_SETTING('statement_timeout'), CURRENT_SETTING('jit'), CURRENT_SETTING('DateStyle'),
        SET_CONFIG('statement_timeout', %s, TRUE), SET_CONFIG('jit', %s, TRUE), SET_CONFIG('DateStyle', %s, TRUE)
"""
AsyncConnection = psycopg.AsyncConnection[Any]
Cursor = psycopg.Cursor[tuple[Any, ...]]
Target = str | Connection | None
Result = TypeVar("Result")


def query(target: Target, name: str, /, *, timeout: float | None = None, **params: object) -> list[dict[str, Any]]:
    """Run a named query.

    On an open connection the query joins the transaction, and neither commits nor rolls back. As after any failed
    statement, an error leaves that transaction to be rolled back. In autocommit mode, outside of a transaction, the query
    is a transaction of its own. A conninfo gets a connection of its own, READ ONLY unless the file says that it writes.

    Args:
        target: a conninfo, None for the configured database, or an open connection, which may come from a pool.
        name: a file of queries/, without its suffix.
        timeout: seconds after which the server cancels the query; 0 is no limit. None is 30 on a connection of its own;
            an open connection keeps its own statement_timeout then, and nothing but the query is sent.
        **params: the file's parameters. What is left out, or None, takes the file's default.

    Returns:
        The rows as dicts, column name to value.

    Raises:
        UsageError: there is no such query, or a parameter is missing, unknown or not of its type, as is the timeout.
        SessionStatsError: the server refused the query, or it took too long.
    """
    return run(target, find_query(name), params, _dicts, timeout=timeout)


async def query_async(
    connection: AsyncConnection, name: str, /, *, timeout: float | None = None, **params: object
) -> list[dict[str, Any]]:
    """Run a named query on an open async connection. Arguments, result and errors are those of query()."""
    _check_type(connection, psycopg.AsyncConnection, "query_async takes an open psycopg.AsyncConnection", "async with")
    query = find_query(name)
    values = bind(query, params)
    _check_timeout(timeout)
    statement = query.statement.encode()
    try:
        cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
        if timeout is None:
            await cursor.execute(statement, values)
        else:
            async with connection.transaction() if _is_outside_transaction(connection) else nullcontext():
                settings = psycopg.AsyncCursor(connection, row_factory=tuple_row)
                before = await (await settings.execute(SETTINGS, _settings(timeout))).fetchone()
                await cursor.execute(statement, values)
                await settings.execute(SETTINGS, (before or ())[:3])
        return _named(cursor, await cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else [])
    except psycopg.Error as error:
        raise _explained(error, query, timeout, connection) from error


def run(
    target: Target,
    query: Query,
    params: Mapping[str, object],
    read: Callable[[Cursor], Result],
    *,
    timeout: float | None = None,
    explain: LiteralString = "",
) -> Result:
    """Run a query, or with the prefix `explain` its EXPLAIN, and read its result. Arguments and errors are those of query()."""
    values = bind(query, params)
    _check_timeout(timeout)
    statement = explain.encode() + query.statement.encode()
    if isinstance(target, psycopg.Connection):
        return _execute(target, query, statement, values, read, timeout)
    _check_type(target, str | None, "query takes a conninfo, None or an open psycopg.Connection", "with")
    with connect(target) as connection:
        connection.read_only = not query.writes
        return _execute(connection, query, statement, values, read, DEFAULT_TIMEOUT if timeout is None else timeout)


def fetch(
    target: Target, query: Query, params: Mapping[str, object], *, timeout: float | None = None
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The names of the columns, and the rows as tuples. Arguments and errors are those of query()."""
    return run(target, query, params, lambda cursor: (_names(cursor), _rows(cursor)), timeout=timeout)


def fetch_text(
    target: Target, query: Query, params: Mapping[str, object], *, timeout: float | None = None, explain: LiteralString = ""
) -> tuple[list[Column], list[list[str | None]]]:
    """The columns with their types, and the rows as the server writes them, so that psql shows the same text."""
    return run(target, query, params, _texts, timeout=timeout, explain=explain)


def _execute(
    connection: Connection,
    query: Query,
    statement: bytes,
    values: dict[str, str],
    read: Callable[[Cursor], Result],
    timeout: float | None,
) -> Result:
    try:
        cursor = psycopg.Cursor(connection, row_factory=tuple_row)
        if timeout is None:
            cursor.execute(statement, values)
        else:
            with connection.transaction() if _is_outside_transaction(connection) else nullcontext():
                settings = psycopg.Cursor(connection, row_factory=tuple_row)
                before = settings.execute(SETTINGS, _settings(timeout)).fetchone()
                cursor.execute(statement, values)
                settings.execute(SETTINGS, (before or ())[:3])
        return read(cursor)
    except psycopg.Error as error:
        raise _explained(error, query, timeout, connection) from error


def _dicts(cursor: Cursor) -> list[dict[str, Any]]:
    return _named(cursor, _rows(cursor))


def _named(cursor: Cursor | psycopg.AsyncCursor[Any], rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    names = _names(cursor)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _names(cursor: Cursor | psycopg.AsyncCursor[Any]) -> list[str]:
    # Quicker than cursor.description, which describes each column. The queries' column names are ASCII.
    result = cursor.pgresult
    return [(result.fname(position) or b"").decode() for position in range(result.nfields)] if result else []


def _rows(cursor: Cursor) -> list[tuple[Any, ...]]:
    return cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []


def _texts(cursor: Cursor) -> tuple[list[Column], list[list[str | None]]]:
    columns = [Column(column.name, column.type_code) for column in cursor.description or ()]
    result, encoding = cursor.pgresult, cursor.connection.info.encoding
    if result is None:
        return columns, []
    cells = [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]
    return columns, [[None if cell is None else cell.decode(encoding) for cell in row] for row in cells]


def _check_type(given: object, expected: Any, takes: str, opens: str) -> None:
    if not isinstance(given, expected):
        raise UsageError(f"{takes}, not a {type(given).__name__}. From a pool: {opens} pool.connection() as connection")


def _check_timeout(timeout: object) -> None:
    if timeout is not None and not (isinstance(timeout, int | float) and 0 <= timeout <= LONGEST_TIMEOUT):
        raise UsageError(f"timeout must be a number of seconds, from 0 to {LONGEST_TIMEOUT}, not {timeout!r}")


def _is_outside_transaction(connection: Connection | AsyncConnection) -> bool:
    return connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE


def _settings(timeout: float) -> tuple[str, str, str]:
    milliseconds = max(1, round(timeout * 1000)) if timeout else 0
    return str(milliseconds), "off", "ISO"


def _explained(
    error: psycopg.Error, query: Query, timeout: float | None, connection: Connection | AsyncConnection
) -> SessionStatsError:
    message = f"{query.name}: {explain_error(error, connection, WRITING if query.writes else READING)}"
    if isinstance(error, errors.QueryCanceled) and "statement timeout" in message:
        limit = "the connection's statement_timeout" if timeout is None else f"{timeout:g} s: raise --timeout"
        message = f"{query.name} took longer than {limit}"
    elif isinstance(error, errors.UndefinedTable) and "alicia_session_stats" not in message:
        message += f". The query reads tables of the application: see query {query.name} --help"
    elif isinstance(error, errors.UndefinedTable | errors.UndefinedFunction | errors.UndefinedColumn):
        message += ". If status lists a pending migration, run migrate; else the role lacks USAGE on the schema"
    elif isinstance(error, errors.FeatureNotSupported | errors.InvalidColumnReference) and "stats_raise(" not in str(error):
        message += ". If the table is distributed with Citus, scale/README.md says what to use instead"
    kind = UsageError if isinstance(error, psycopg.DataError) else SessionStatsError
    return kind(message, error.sqlstate)
