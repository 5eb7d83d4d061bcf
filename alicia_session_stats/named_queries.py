"""Run a named query: on a connection of its own, on the caller's, or on the caller's async one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from alicia_session_stats.database import READING, WRITING, Connection, SessionStatsError, UsageError, connect, explain_error
from alicia_session_stats.query_files import Query, find_query, queries
from alicia_session_stats.wording import unknown

__all__ = ["Answer", "Query", "Target", "fetch", "queries", "query", "query_async"]

# Sets statement_timeout and jit until the end of the transaction, and returns what they were.
SETTINGS = """
    SELECT
        CURRENT_SETTING('statement_timeout'), CURRENT_SETTING('jit'),
        SET_CONFIG('statement_timeout', %s, TRUE), SET_CONFIG('jit', %s, TRUE)
"""
Target = str | Connection | None
Answer = tuple[list[str], list[tuple[Any, ...]]]


def query(target: Target, name: str, /, *, timeout: float = 30, **params: object) -> list[dict[str, Any]]:
    """Run a named query.

    On an open connection the query joins the transaction, and neither commits nor rolls back. As after any failed
    statement, an error leaves that transaction to be rolled back. In autocommit mode, outside of a transaction, the query
    is a transaction of its own. A conninfo gets a connection of its own, READ ONLY unless the file says that it writes.

    Args:
        target: a conninfo, None for the configured database, or an open connection.
        name: a file of queries/, without its suffix.
        timeout: seconds after which the server cancels the query; 0 is no limit.
        **params: the file's parameters. What is left out, or None, takes the file's default.

    Returns:
        The rows as dicts, column name to value.

    Raises:
        UsageError: there is no such query, or a parameter is missing, unknown or not of its type.
        SessionStatsError: the server refused the query, or it took too long.
    """
    columns, rows = fetch(target, find_query(name), params, timeout=timeout)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def fetch(target: Target, query: Query, params: Mapping[str, object], *, timeout: float = 30, explain: str = "") -> Answer:
    """Run a query, or with the prefix `explain` its EXPLAIN. Arguments and errors are those of query().

    Returns:
        The names of the columns, and the rows as tuples.
    """
    values = _values(query, params)
    if isinstance(target, psycopg.Connection):
        return _run(target, query, values, timeout, explain)
    with connect(target) as connection:
        connection.read_only = not query.writes
        return _run(connection, query, values, timeout, explain)


def _run(connection: Connection, query: Query, values: dict[str, str], timeout: float, explain: str) -> Answer:
    try:
        cursor = psycopg.Cursor(connection, row_factory=tuple_row)
        with connection.transaction() if _is_outside_transaction(connection) else nullcontext():
            [before] = cursor.execute(SETTINGS, [_milliseconds(timeout), "off"]).fetchall()
            cursor.execute((explain + query.statement).encode(), values)
            columns = [column.name for column in cursor.description or ()]
            rows = cursor.fetchall() if columns else []
            cursor.execute(SETTINGS, before[:2])
    except psycopg.Error as error:
        raise _explained(error, query, timeout, connection.info.user) from error
    return columns, rows


async def query_async(
    connection: psycopg.AsyncConnection[Any], name: str, /, *, timeout: float = 30, **params: object
) -> list[dict[str, Any]]:
    """Run a named query on an open async connection. Arguments, result and errors are those of query()."""
    query = find_query(name)
    values = _values(query, params)
    try:
        cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
        async with connection.transaction() if _is_outside_transaction(connection) else nullcontext():
            await cursor.execute(SETTINGS, [_milliseconds(timeout), "off"])
            [before] = await cursor.fetchall()
            await cursor.execute(query.statement.encode(), values)
            columns = [column.name for column in cursor.description or ()]
            rows = await cursor.fetchall() if columns else []
            await cursor.execute(SETTINGS, before[:2])
    except psycopg.Error as error:
        raise _explained(error, query, timeout, connection.info.user) from error
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _is_outside_transaction(connection: Connection | psycopg.AsyncConnection[Any]) -> bool:
    return connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE


def _milliseconds(timeout: float) -> str:
    return str(max(1, round(timeout * 1000)) if timeout else 0)


def _values(query: Query, params: Mapping[str, object]) -> dict[str, str]:
    """The parameters as text, as psql would give them: the server infers their types."""
    names = [param.name for param in query.params]
    for name in params:
        if name not in names:
            raise UsageError(unknown(f"parameter of {query.name}", name, names))
    values: dict[str, str] = {}
    for param in query.params:
        given = params.get(param.name)
        value = param.default if given is None else str(given)
        option = f"--{param.name.replace('_', '-')}"
        if value is None:
            raise UsageError(f"{query.name} needs {option}: {param.description}")
        if param.type == "integer" and given is not None and not re.fullmatch("[0-9]+", value):
            raise UsageError(f"{option} must be a whole number, 0 or more, not '{value}'")
        if re.search("[\0\ud800-\udfff]", value):
            raise UsageError(f"{option} has a character that PostgreSQL cannot store")
        values[param.name] = value
    return values


def _explained(error: psycopg.Error, query: Query, timeout: float, role: str) -> SessionStatsError:
    message = f"{query.name}: {explain_error(error, role, WRITING if query.writes else READING)}"
    if isinstance(error, errors.QueryCanceled) and "statement timeout" in message:
        message = f"{query.name} took longer than {timeout:g} s: raise --timeout"
    elif isinstance(error, errors.UndefinedTable) and "alicia_session_stats" not in message:
        message += f". The query reads tables of the application: see query {query.name} --help"
    elif isinstance(error, errors.UndefinedTable | errors.UndefinedFunction | errors.UndefinedColumn):
        message += ". If this database is migrated, the role lacks USAGE on its schema; else run migrate"
    elif isinstance(error, errors.FeatureNotSupported | errors.InvalidColumnReference):
        message += ". If the table is distributed with Citus, scale/README.md says what to use instead"
    kind = UsageError if isinstance(error, psycopg.DataError) else SessionStatsError
    return kind(message, error.sqlstate)
