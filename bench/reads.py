"""How long every query takes, at every size, in turns: ours, DuckDB, and for the specification's three the bare schema."""

import math
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alicia_session_stats import SessionStatsError, queries
from bench.samples import HERE, Connection, Size, in_turns, progress

ROUNDS = 15  # Of each query.
# The specification's own words, but for the clock: stored times are UTC.
DOCUMENTED = {
    "average_session_metrics": """
        SELECT
            AVG(message_count) as avg_messages,
            AVG(tool_call_count) as avg_tools,
            AVG(session_duration_seconds) / 60.0 as avg_duration_minutes
        FROM alicia_session_stats
        WHERE created_at > %(until)s::TIMESTAMP - INTERVAL '30 days'""",
    "most_active_sessions": """
        SELECT conversation_id, message_count, tool_call_count
        FROM alicia_session_stats
        ORDER BY message_count DESC
        LIMIT 10""",
    "session_stats": """
        SELECT message_count, tool_call_count, memories_used, session_duration_seconds
        FROM alicia_session_stats
        WHERE conversation_id = %(conversation_id)s""",
}
DUCKDB: dict[str, str] = dict(re.findall(r"^-- query: (\w+)\n(.*?);$", (HERE / "duckdb.sql").read_text(), re.M | re.S))
# What has to read the sessions of its window; everything else reads sums, value counts or an index.
READS_SESSIONS = {
    "list_sessions",
    "engagement",
    "conversation_retention",
    "peak_concurrency",
    "usage_change",
    "usage_over_time",
}
READS_SUMMARIES = ("session_percentiles", "metric_usage", "session_length_distribution", "engagement", "peak_concurrency")
# A conversation has as many sessions in a large sample as in a small one.
TYPICAL = """
    SELECT conversation_id FROM alicia_session_stats GROUP BY 1 HAVING COUNT(*) <= 5 ORDER BY COUNT(*) DESC, 1 LIMIT 1
"""

Ask = Callable[[], tuple[float, int]]  # Milliseconds, and buffers where they are known.


@dataclass(frozen=True)
class Read:
    """A query at one size: milliseconds in the server, milliseconds until the client has the rows, and buffers."""

    query: str
    rows: int
    server: dict[str, list[float]]
    client: dict[str, list[float]]
    buffers: dict[str, int]


def measure_reads(sizes: Sequence[Size], names: Sequence[str], until: datetime, label: str = "") -> list[Read]:
    """Ask every query in turns, of every system at every size."""
    reads = []
    with progress(ROUNDS * len(names) * len(sizes), f"queries{label}", "rounds") as bar:
        for name in names:
            asked = [
                (Read(name + label, size.rows, defaultdict(list), defaultdict(list), {}), questions(name, size, until))
                for size in sizes
            ]
            often = {ask: calibrate(ask) for _, of_size in asked for asks in of_size.values() for ask in asks}
            for turn in range(ROUNDS):
                for read, of_size in asked:
                    for system, asks in in_turns(tuple(of_size.items()), turn):
                        for ask, values in zip(asks, (read.client, read.server), strict=False):
                            answers = [ask() for _ in range(often[ask])]
                            values[system].append(statistics.median(ms for ms, _ in answers))
                            if values is read.server:
                                read.buffers[system] = answers[-1][1]
                    bar.update()
            reads += [read for read, _ in asked]
    return reads


def questions(name: str, size: Size, until: datetime) -> dict[str, list[Ask]]:
    """How to ask a query: until the client has the rows, and then in the server, of each system that knows it."""
    query = queries()[name]
    (conversation,) = size.bare.execute(TYPICAL).fetchone()
    known = {"until": str(until), "conversation_id": conversation}
    values = {p.name: known[p.name] if p.name == "until" or p.default is None else p.default for p in query.params}
    ours = ask_postgres(size.ours, query.statement, values)
    duck = ask_duckdb(size, name, until if "until" in values else values.get("conversation_id"))
    compare(name, size, values)
    if name not in DOCUMENTED:
        return {"ours": ours, "DuckDB": [duck]}
    return {"bare": ask_postgres(size.bare, DOCUMENTED[name], known), "ours": ours, "DuckDB": [duck]}


def compare(name: str, size: Size, values: dict[str, Any]) -> None:
    """The columns that DuckDB answers are equal to ours, up to the rounding of ours."""
    found = size.ours.execute(queries()[name].statement, values)
    columns = [column.name for column in found.description]
    theirs = size.duck.execute(f"EXECUTE {name}")
    chosen = [columns.index(column) for column, *_ in theirs.description]
    ours = [[row[n] for n in chosen] for row in found.fetchall()]
    for a, b in zip(ours, their_rows := theirs.fetchall(), strict=False):
        if not all(is_equal(*pair) for pair in zip(a, b, strict=True)):
            raise SessionStatsError(f"{name} at {size.rows:,} rows: {a} but DuckDB {b}")
    if len(ours) != len(their_rows):
        raise SessionStatsError(f"{name} at {size.rows:,} rows: {len(ours)} rows but DuckDB {len(their_rows)}")


def is_equal(ours: Any, theirs: Any) -> bool:
    if ours is None or theirs is None or isinstance(theirs, str):
        return ours == theirs
    if hasattr(theirs, "year"):
        return str(ours)[:10] == str(theirs)[:10]
    return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=0.051 if isinstance(theirs, float) else 0.0051)


def ask_postgres(connection: Connection, statement: str, values: dict[str, Any]) -> list[Ask]:
    def in_server() -> tuple[float, int]:
        explain = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement}"
        plan = connection.execute(explain, values, prepare=False).fetchone()[0][0]
        return plan["Execution Time"], plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]

    return [timed(lambda: connection.execute(statement, values, prepare=True).fetchall()), in_server]


def ask_duckdb(size: Size, name: str, value: object) -> Ask:
    """A literal for the parameter, which a prepared statement of DuckDB's plans as well."""
    literal = f"(TIMESTAMP '{value}')" if isinstance(value, datetime) else f"'{value}'"
    size.duck.execute(f"PREPARE {name} AS {DUCKDB[name].replace('$1', literal)}")
    return timed(lambda: size.duck.execute(f"EXECUTE {name}").fetchall())


def timed(act: Callable[[], object]) -> Ask:
    def ask() -> tuple[float, int]:
        begun = time.perf_counter()
        act()
        return 1000 * (time.perf_counter() - begun), 0

    return ask


def calibrate(ask: Ask) -> int:
    """How often to ask in a round: for about 5 milliseconds, and 25 times at most. This also warms up."""
    fastest = min(ask()[0] for _ in range(6))
    return max(1, min(25, int(5 / fastest)))
