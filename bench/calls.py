"""Measure what query() adds to the same SQL by hand, on an open connection: python -m bench.calls [CONNINFO]

The conninfo names a scratch server, or a pooler in front of one; without one, the embedded server is used. The ways take
turns, and the medians go to stdout. The database that it makes is dropped.
"""

# ruff: noqa: RUF001 - a times sign is one.

import asyncio
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from tabulate import tabulate

import alicia_session_stats as stats
from alicia_session_stats import embedded

TURNS = 500
DATABASE = "alicia_calls"
Call = TypeVar("Call")
LOAD = """
    INSERT INTO alicia_conversations (id) SELECT 'ac_' || n FROM GENERATE_SERIES(0, 999) AS n;
    INSERT INTO alicia_session_stats (conversation_id, message_count, session_duration_seconds, created_at)
    SELECT 'ac_' || n % 1000, n % 40, n % 900, NOW() AT TIME ZONE 'UTC' - n * INTERVAL '10 minutes'
    FROM GENERATE_SERIES(1, 20000) AS n;
"""


def main(server: str) -> None:
    """Measure on a database of its own, and print a table."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {DATABASE}".encode())
        connection.execute(f"CREATE DATABASE {DATABASE}".encode())
    conninfo = make_conninfo(server, dbname=DATABASE)
    try:
        stats.migrate(conninfo)
        with psycopg.connect(conninfo, autocommit=True, prepare_threshold=None) as connection:
            connection.execute(LOAD)
            connection.execute("ANALYZE")
            connection.execute("SET synchronous_commit = off")  # The disk is not what is measured.
            [[session, conversation]] = connection.execute(
                "SELECT id, conversation_id FROM alicia_session_stats ORDER BY id LIMIT 1"
            ).fetchall()
            asked: dict[str, dict[str, Any]] = {
                "average_session_metrics": {},
                "session_stats": {"conversation_id": "ac_1"},
                "record_activity": {"session_id": session, "conversation_id": conversation, "messages": 1},
            }
            lines = [line(name, measure(connection, conninfo, name, params)) for name, params in asked.items()]
            lines += [line(f"{name}, async", asyncio.run(measure_async(conninfo, name, asked[name]))) for name in asked]
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)".encode())
    print(tabulate(lines, ["median, ms", "by hand", "query()", "", "with timeout", "own connection"], "github"))


def line(name: str, ways: dict[str, list[float]]) -> list[str]:
    medians = {way: statistics.median(seconds) * 1000 for way, seconds in ways.items()}
    ratio = f"{medians['query'] / medians['hand']:.2f}×"
    cells = [f"{medians[way]:.3f}" if way in medians else "" for way in ("hand", "query", "timeout", "own")]
    return [name, *cells[:2], ratio, *cells[2:]]


def shuffled(ways: dict[str, Call]) -> list[tuple[str, Call]]:
    """The ways in a random order: on a busy machine, the call after a long one waits for its turn."""
    return random.sample(list(ways.items()), len(ways))


def by_hand(name: str, params: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The statement and the parameters, as an application would pass them itself."""
    query = stats.queries()[name]
    return query.sql("psycopg").encode(), {param.name: params.get(param.name, param.default) for param in query.params}


def measure(connection: psycopg.Connection[Any], conninfo: str, name: str, params: dict[str, Any]) -> dict[str, list[float]]:
    statement, values = by_hand(name, params)
    ways: dict[str, Callable[[], object]] = {
        "hand": lambda: connection.cursor(row_factory=dict_row).execute(statement, values).fetchall(),
        "query": lambda: stats.query(connection, name, **params),
        "timeout": lambda: stats.query(connection, name, timeout=30, **params),
    }
    taken: dict[str, list[float]] = defaultdict(list)
    for turn in range(TURNS):
        if turn % 20 == 0:
            ways["own"] = lambda: stats.query(conninfo, name, **params)
        for way, call in shuffled(ways):
            begun = time.perf_counter()
            call()
            taken[way].append(time.perf_counter() - begun)
        ways.pop("own", None)
    return taken


async def measure_async(conninfo: str, name: str, params: dict[str, Any]) -> dict[str, list[float]]:
    statement, values = by_hand(name, params)
    taken: dict[str, list[float]] = defaultdict(list)
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None) as connection:
        await connection.execute("SET synchronous_commit = off")

        async def hand() -> object:
            return await (await connection.cursor(row_factory=dict_row).execute(statement, values)).fetchall()

        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "hand": hand,
            "query": lambda: stats.query_async(connection, name, **params),
            "timeout": lambda: stats.query_async(connection, name, timeout=30, **params),
        }
        for _ in range(TURNS):
            for way, call in shuffled(ways):
                begun = time.perf_counter()
                await call()
                taken[way].append(time.perf_counter() - begun)
    return taken


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else embedded.start())
