"""Measure the package against the bare schema of the specification and DuckDB, side by side.

    python -m bench.bench ROWS [--json FILE] [--svg FILE] [--seconds S]

A server of its own, PostgreSQL 18 from the wheel, and every file it needs live in a temporary folder (TMPDIR), roughly
3 GB for each million rows, that is gone afterwards. Databases of ROWS, of a tenth and of a hundredth of them hold
the same sessions in the bare schema, in ours and in DuckDB. What is compared is measured in turns. Tables go to stdout.
"""

# ruff: noqa: RUF001 - a times sign is one.

import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import simplejson
import vl_convert
from tabulate import tabulate
from tqdm import tqdm

from alicia_session_stats import SessionStatsError, UsageError, embedded, migrate, queries
from alicia_session_stats.arguments import Parser, parse_count, parse_seconds
from alicia_session_stats.named_queries import fetch
from alicia_session_stats.query_files import read_query

HERE = Path(__file__).parent
BATCH = 2000  # Sessions of the sample that one statement makes.
CHUNKS = 10  # Of the load, in turns.
ROUNDS = 15  # Of each query, in turns.
PROFILED = 200  # Single writes to take the times of.
WARM_UP = 2000  # Transactions.
IMAGELESS = 3  # Turns without full-page images.
SYSTEMS = ("bare", "ours", "DuckDB")
SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "16GB", "checkpoint_timeout": "1h"}  # And fsync, as it is.
COLUMNS = """
    id TEXT, conversation_id TEXT, message_count INTEGER, tool_call_count INTEGER, memories_used INTEGER,
    session_duration_seconds INTEGER, created_at TIMESTAMP, updated_at TIMESTAMP
"""
STAGING = f"""
    CREATE UNLOGGED TABLE alicia_conversations (id TEXT); -- No key: two loaders would wait for each other.
    CREATE UNLOGGED TABLE alicia_session_stats ({COLUMNS});
"""
EXPORTED = {
    "conversations": "SELECT DISTINCT id FROM alicia_conversations",
    "sessions": "SELECT * FROM alicia_session_stats ORDER BY created_at, id",
}
# The specification's own words, but for the clock: stored times are UTC.
DOCUMENTED = {
    "average_session_metrics": """
        SELECT
            AVG(message_count) as avg_messages,
            AVG(tool_call_count) as avg_tools,
            AVG(session_duration_seconds) / 60.0 as avg_duration_minutes
        FROM alicia_session_stats
        WHERE created_at > {since}""",
    "most_active_sessions": """
        SELECT conversation_id, message_count, tool_call_count
        FROM alicia_session_stats
        ORDER BY message_count DESC
        LIMIT 10""",
    "session_stats": """
        SELECT message_count, tool_call_count, memories_used, session_duration_seconds
        FROM alicia_session_stats
        WHERE conversation_id = {conversation}""",
}
OTHERS = ("usage_over_time", "usage_change", "busiest_hours", "growth_forecast")
FASTER = {"average_session_metrics": (100, 1.0), "most_active_sessions": (1000, 0.2)}  # Times, and milliseconds.
# A conversation has as many sessions in a large sample as in a small one.
TYPICAL = """
    SELECT conversation_id FROM alicia_session_stats GROUP BY 1 HAVING COUNT(*) <= 5 ORDER BY COUNT(*) DESC, 1 LIMIT 1
"""
NUMBERED = """
    CREATE TABLE id_of (n INTEGER PRIMARY KEY, id TEXT);
    INSERT INTO id_of SELECT ROW_NUMBER() OVER (ORDER BY created_at DESC, id), id FROM alicia_session_stats;
    CREATE TABLE conversation_of (n INTEGER PRIMARY KEY, id TEXT);
    INSERT INTO conversation_of SELECT ROW_NUMBER() OVER (ORDER BY id), id FROM alicia_conversations;
    VACUUM ANALYZE id_of, conversation_of;
    ANALYZE alicia_session_stats;
"""
# Up and down: in a long run of nothing but up, any session would get among those with the most messages.
UPDATE = """
    UPDATE alicia_session_stats
    SET message_count = message_count + 1 - 2 * MOD(message_count, 2), tool_call_count = tool_call_count + 1,
        session_duration_seconds = session_duration_seconds + 20
    WHERE id = {}
"""
INSERT = """
    INSERT INTO alicia_session_stats (conversation_id, message_count, tool_call_count, session_duration_seconds)
    VALUES ({}, 2, 1, 20)
"""
NEWEST = 1000
WRITES = {  # What pgbench runs, with n up to a bound: the sessions, NEWEST or the conversations.
    "updates": ("sessions", UPDATE.format("(SELECT id FROM id_of WHERE n = :n)")),
    f"updates of the newest {NEWEST:,}": ("newest", UPDATE.format("(SELECT id FROM id_of WHERE n = :n)")),
    "inserts": ("conversations", INSERT.format("(SELECT id FROM conversation_of WHERE n = :n)")),
}
WRITTEN = """
    SELECT wal_bytes::BIGINT, wal_fpi, n_tup_upd, n_tup_hot_upd
    FROM pg_stat_wal CROSS JOIN pg_stat_user_tables
    WHERE relname = 'alicia_session_stats'
"""
SIZES = """
    SELECT c.relname, CASE c.relkind WHEN 'r' THEN PG_TABLE_SIZE(c.oid) ELSE PG_RELATION_SIZE(c.oid) END
    FROM pg_class AS c
    LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
    INNER JOIN pg_class AS t ON t.oid = COALESCE(i.indrelid, c.oid)
    WHERE t.relname ~ '^alicia_session_stats(_rollup|_top_candidates|_top_cutoff)?$' AND c.relkind IN ('r', 'i')
    ORDER BY t.oid, c.relkind DESC, c.oid
"""

Connection = psycopg.Connection[Any]
Ask = Callable[[], tuple[float, int]]  # Milliseconds, and buffers where they are known.


@dataclass(frozen=True)
class Size:
    """The same sessions in each of the systems."""

    rows: int
    bare: Connection
    ours: Connection
    duck: duckdb.DuckDBPyConnection


@dataclass(frozen=True)
class Read:
    """A query at one size: milliseconds in the server, milliseconds until the client has the rows, and buffers."""

    query: str
    rows: int
    server: dict[str, list[float]]
    client: dict[str, list[float]]
    buffers: dict[str, int]


@dataclass(frozen=True)
class Round:
    """What pgbench and the server's statistics tell of one round; the last three are per transaction."""

    tps: float
    wal: float
    images: float
    hot: float


@dataclass(frozen=True)
class Write:
    """Rounds of one kind of write in turns, the bare schema's and ours, and the WAL bytes of each without full-page images."""

    kind: str
    turns: list[tuple[Round, Round]]
    imageless: tuple[float, float]

    def ratio(self, of: str) -> list[float]:
        return [getattr(ours, of) / getattr(bare, of) for bare, ours in self.turns]

    def median(self, system: int, of: str) -> float:
        return statistics.median(getattr(turn[system], of) for turn in self.turns)


@dataclass(frozen=True)
class Goal:
    """A goal beside its figure."""

    measure: str
    bare: str
    ours: str
    duckdb: str
    ratio: str
    goal: str
    met: bool


# The server and the sample ----------------------------------------------------------------------------


@contextmanager
def workplace() -> Iterator[tuple[Path, str]]:
    """A temporary folder and a server in it, for as long as the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="alicia-bench-"))
    folder.chmod(0o755)
    for variable in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[variable]
    os.environ |= {"ALICIA_SESSION_STATS_HOME": str(folder), "PGSERVER_POSTGRES_VERSION": "18"}
    try:
        with psycopg.connect(embedded.start(), autocommit=True) as admin:
            for name, value in SETTINGS.items():
                admin.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        embedded.stop()
        yield folder, embedded.start()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # The second Ctrl-C, too, leaves nothing behind.
        embedded.stop()
        shutil.rmtree(folder)


def create(server: str, name: str) -> Connection:
    """A connection, in autocommit mode, to a new database."""
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    return psycopg.connect(server, dbname=name, autocommit=True)


def export_sample(server: str, folder: Path, rows: int) -> list[Path]:
    """Make a sample of so many sessions, two batches at a time: files of its conversations and of its sessions."""
    sample = read_query(HERE / "sample.sql")
    files = [folder / f"{name}_{rows}.csv" for name in EXPORTED]
    with create(server, f"staging_{rows}") as staging, ThreadPoolExecutor(2) as pool, progress(rows, "sample") as bar:
        staging.execute(STAGING)

        def make(first: int) -> int:
            last = min(first + BATCH - 1, rows)
            fetch(staging.info.dsn, sample, {"rows": rows, "first": first, "last": last}, timeout=600)
            return last - first + 1

        for made in pool.map(make, range(1, rows + 1, BATCH)):
            bar.update(made)
        for file, query in zip(files, EXPORTED.values(), strict=True):
            with file.open("wb") as out, staging.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT csv)") as copy:
                out.writelines(copy)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE staging_{rows} WITH (FORCE)")
    return files


def load(server: str, folder: Path, rows: int) -> tuple[Size, list[tuple[float, float]]]:
    """Load a sample into each of the systems: these, and the seconds of each chunk, the bare schema's and ours."""
    conversations, sessions = export_sample(server, folder, rows)
    size = Size(rows, create(server, f"bare_{rows}"), create(server, f"ours_{rows}"), duckdb.connect(folder / f"{rows}.duckdb"))
    size.bare.execute((HERE / "bare.sql").read_text())
    migrate(size.ours.info.dsn)
    for connection in (size.bare, size.ours):
        copy_in(connection, "alicia_conversations", conversations.read_bytes())

    seconds: list[tuple[float, float]] = []
    with sessions.open("rb") as lines, progress(2 * rows, "COPY") as bar:
        while chunk := b"".join(islice(lines, math.ceil(rows / CHUNKS))):
            taken = {}
            for connection in in_turns((size.bare, size.ours), len(seconds)):
                taken[connection] = copy_in(connection, "alicia_session_stats", chunk)
                bar.update(chunk.count(b"\n"))
            seconds.append((taken[size.bare], taken[size.ours]))
    for connection in (size.bare, size.ours):
        connection.execute("VACUUM ANALYZE")

    size.duck.execute(f"CREATE TABLE alicia_session_stats ({COLUMNS})")
    size.duck.execute(f"COPY alicia_session_stats FROM '{sessions}' (FORMAT csv, HEADER FALSE)")
    size.duck.execute("CREATE INDEX idx_session_stats_conversation ON alicia_session_stats (conversation_id)")
    size.duck.execute("CHECKPOINT")
    conversations.unlink()
    sessions.unlink()
    return size, seconds


def copy_in(connection: Connection, table: str, csv: bytes) -> float:
    """COPY, with its commit; returns the seconds."""
    begun = time.perf_counter()
    with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT csv)") as copy:
        copy.write(csv)
    return time.perf_counter() - begun


# Reads ------------------------------------------------------------------------------------------------


def measure_reads(sizes: Sequence[Size]) -> list[Read]:
    """Ask every query in turns, of every system at every size."""
    reads = []
    todo = [(name, [s for s in sizes if name in DOCUMENTED or s is not sizes[0]]) for name in (*DOCUMENTED, *OTHERS)]
    with progress(ROUNDS * sum(len(at) for _, at in todo), "queries", "rounds") as bar:
        for name, at in todo:
            asked = [(Read(name, s.rows, defaultdict(list), defaultdict(list), {}), questions(name, s)) for s in at]
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


def questions(name: str, size: Size) -> dict[str, list[Ask]]:
    """How to ask a query: until the client has the rows, and then in the server, of each system that knows it."""
    query = queries()[name]
    values = {param.name: param.default for param in query.params}
    if name not in DOCUMENTED:
        return {"ours": ask_postgres(size.ours, query.statement, values)}
    (conversation,) = size.bare.execute(TYPICAL).fetchone()
    if "conversation_id" in values:
        values["conversation_id"] = conversation
    literal = DOCUMENTED[name].format(since="NOW() AT TIME ZONE 'UTC' - INTERVAL '30 days'", conversation="%(conversation_id)s")
    return {
        "bare": ask_postgres(size.bare, literal, values),
        "ours": ask_postgres(size.ours, query.statement, values),
        "DuckDB": [ask_duckdb(size.duck, name, conversation)],
    }


def ask_postgres(connection: Connection, statement: str, values: dict[str, Any]) -> list[Ask]:
    def in_server() -> tuple[float, int]:
        explain = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement}"
        plan = connection.execute(explain, values, prepare=False).fetchone()[0][0]
        return plan["Execution Time"], plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]

    return [timed(lambda: connection.execute(statement, values, prepare=True).fetchall()), in_server]


def ask_duckdb(connection: duckdb.DuckDBPyConnection, name: str, conversation: str) -> Ask:
    """The same words; the clock is read here, since DuckDB needs an extension to know time zones."""
    since = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=30)
    connection.execute(f"PREPARE {name} AS {DOCUMENTED[name].format(since='$1', conversation='$1')}")
    given = {"average_session_metrics": f"(TIMESTAMP '{since}')", "session_stats": f"('{conversation}')"}
    return timed(lambda: connection.execute(f"EXECUTE {name}{given.get(name, '')}").fetchall())


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


# Writes -----------------------------------------------------------------------------------------------


def measure_writes(size: Size, seconds: float, pairs: int, folder: Path) -> list[Write]:
    """Run every kind of write in turns, each after a checkpoint and a warm-up."""
    writes = []
    with progress(len(WRITES) * (pairs + 1 + IMAGELESS), "writes", "pairs") as bar:
        (conversations,) = size.bare.execute("SELECT COUNT(*) FROM conversation_of").fetchone()
        most = {"sessions": size.rows, "newest": min(NEWEST, size.rows), "conversations": conversations}

        def pair(script: Path, turn: int, transactions: int) -> tuple[Round, Round]:
            done = {database: pgbench(database, script, transactions) for database in in_turns((size.bare, size.ours), turn)}
            bar.update()
            return done[size.bare], done[size.ours]

        for kind, (bound, statement) in WRITES.items():
            script = folder / "pgbench.sql"
            script.write_text(f"\\set n random(1, {most[bound]})\n{' '.join(statement.split())};\n")
            size.bare.execute("CHECKPOINT")
            warm, _ = pair(script, 0, WARM_UP)
            # Of the same number, not the same time: as many pages are written for the first time, whole, by each.
            transactions = math.ceil(warm.tps * seconds)
            turns = [pair(script, turn, transactions) for turn in range(pairs)]
            set_full_page_writes(size.bare, "off")
            rounds = [pair(script, turn, transactions) for turn in range(IMAGELESS)]
            set_full_page_writes(size.bare, "on")
            bare, ours = (statistics.median(each.wal for each in system) for system in zip(*rounds, strict=True))
            writes.append(Write(kind, turns, (bare, ours)))
    return writes


def set_full_page_writes(admin: Connection, value: str) -> None:
    admin.execute(f"ALTER SYSTEM SET full_page_writes = {value}")
    admin.execute("SELECT PG_RELOAD_CONF()")
    admin.execute("CHECKPOINT")  # The process that does it has read the setting then.


def pgbench(database: Connection, script: Path, transactions: int) -> Round:
    """One round of pgbench: 8 clients that share so many transactions."""
    command = [embedded.wheel_programs() / "pgbench", "-h", database.info.host, "-U", database.info.user, "-f", script]
    command += ["-c", "8", "-j", "2", "-M", "prepared", "-n", "-t", str(math.ceil(transactions / 8)), database.info.dbname]
    before = database.execute(WRITTEN).fetchone()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SessionStatsError(f"pgbench: {' '.join(done.stderr.split())}")
    # A process reports its statistics when it ends, and is seen until then.
    while database.execute("SELECT FROM pg_stat_activity WHERE application_name = 'pgbench'").fetchone():
        time.sleep(0.01)
    wal, images, updated, hot = (b - a for a, b in zip(before, database.execute(WRITTEN).fetchone(), strict=True))
    transactions = int(re.search(r"actually processed: (\d+)", done.stdout)[1])
    tps = float(re.search(r"tps = ([\d.]+)", done.stdout)[1])
    return Round(tps, wal / transactions, images / transactions, hot / updated if updated else 0.0)


def profile(database: Connection, statement: str, table: str) -> dict[str, float]:
    """Microseconds of one write alone, by where they go: the median of each step."""
    steps: dict[str, list[float]] = defaultdict(list)
    with psycopg.connect(database.info.dsn) as connection:
        ids = [row[0] for row in connection.execute(f"SELECT id FROM {table}")]
        for chosen in random.Random(1).choices(ids, k=PROFILED):
            explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.format('%s')}"
            plan = connection.execute(explain, [chosen]).fetchone()[0][0]
            triggers = {each.get("Constraint Name", each["Trigger Name"]): each["Time"] for each in plan["Triggers"]}
            begun = time.perf_counter()
            connection.commit()
            steps["COMMIT"].append(1e6 * (time.perf_counter() - begun))
            steps["statement, apart from triggers"].append(1000 * (plan["Execution Time"] - sum(triggers.values())))
            for name, milliseconds in triggers.items():
                steps[name].append(1000 * milliseconds)
            steps["total"].append(1000 * plan["Execution Time"] + steps["COMMIT"][-1])
    order = sorted(steps, key=lambda name: (name == "total", name == "COMMIT", name != "statement, apart from triggers"))
    return {name: statistics.median(steps[name]) for name in order}


def measure_sizes(database: Connection) -> dict[str, int]:
    sizes = {str(name): int(size) for name, size in database.execute(SIZES)}
    (sessions,) = database.execute("SELECT COUNT(*) FROM alicia_session_stats").fetchone()
    return {**sizes, "bytes per session": round(sum(sizes.values()) / sessions)}


# The goals --------------------------------------------------------------------------------------------


def judge(rows: int, chunks: list[tuple[float, float]], reads: list[Read], writes: list[Write]) -> Iterator[Goal]:
    """Every goal beside its figure."""
    at = {(read.query, read.rows): read for read in reads}
    large = "" if rows == 5_000_000 else " (at 5,000,000)"
    for name in DOCUMENTED:
        full, tenth = at[name, rows], at[name, rows // 10]
        bare, ours = (statistics.median(full.server[system]) for system in SYSTEMS[:2])
        if name in FASTER:
            times, limit = FASTER[name]
            said = f"≥ {times:,}× faster{large}"
            yield Goal(name, f"{brief(bare)} ms", f"{brief(ours)} ms", "", f"{brief(bare / ours)}×", said, bare / ours >= times)
            yield Goal(name, "", f"{brief(ours)} ms", "", "", f"< {limit:g} ms{large}", ours < limit)
        bare, ours, duck = (statistics.median(full.client[system]) for system in SYSTEMS)
        cells = [f"{brief(value)} ms" for value in (bare, ours, duck)]
        if name not in FASTER:  # A few microseconds in the server, of which the clock there tells one.
            yield Goal(f"{name}, to the client", *cells, f"{ours / bare:.2f}×", "no slower (≤ 1.1×)", ours / bare <= 1.1)
        yield Goal(f"{name}, to the client", *cells, f"{brief(duck / ours)}×", "faster than DuckDB", ours < duck)
        slower = statistics.median(full.server["ours"]) / statistics.median(tenth.server["ours"])
        yield Goal(f"{name}, rows × 10", "", "", "", f"{slower:.2f}×", "≤ 1.5× time", slower <= 1.5)
        more = full.buffers["ours"] / max(1, tenth.buffers["ours"])
        yield Goal(f"{name}, rows × 10", "", "", "", f"{more:.2f}×", "≤ 1.5× buffers", more <= 1.5)

    for write in writes:
        cells = [f"{write.median(system, 'tps'):,.0f} tps" for system in (0, 1)]
        ratio = statistics.median(write.ratio("tps"))
        yield Goal(write.kind, *cells, "", f"{ratio:.2f}×", "≥ 0.75× tps", ratio >= 0.75)
        if write.kind != "inserts":
            cells = [f"{write.median(system, 'wal'):,.0f} B" for system in (0, 1)]
            ratio = statistics.median(write.ratio("wal"))
            yield Goal(f"{write.kind}, WAL", *cells, "", f"{ratio:.2f}×", "≤ 1.6× WAL", ratio <= 1.6)
            cells = [f"{wal:,.0f} B" for wal in write.imageless]
            ratio = write.imageless[1] / write.imageless[0]
            yield Goal(f"{write.kind}, WAL without page images", *cells, "", f"{ratio:.2f}×", "≤ 1.6× WAL", ratio <= 1.6)
    ratio = statistics.median(bare / ours for bare, ours in chunks)
    cells = [f"{sum(seconds):.2f} s" for seconds in zip(*chunks, strict=True)]
    yield Goal(f"COPY of {rows:,} rows", *cells, "", f"{ratio:.2f}×", "≥ 0.75× rows/s", ratio >= 0.75)


# What is shown ----------------------------------------------------------------------------------------


def print_tables(figures: dict[str, Any]) -> None:
    rows, reads, writes = figures["rows"], figures["reads"], figures["writes"]
    goals = [[*list(vars(goal).values())[:-1], "ok" if goal.met else "missed"] for goal in figures["goals"]]
    show(f"GOALS, at {rows:,} rows: medians, ratios of neighbours in time", ["measure", *SYSTEMS, "ratio", "goal", ""], goals)

    cells = [
        [r.query, f"{r.rows:,}", *(spread(r.server.get(s)) for s in SYSTEMS[:2]), *(spread(r.client.get(s)) for s in SYSTEMS)]
        for r in reads
    ]
    headers = ["query", "rows", "bare", "ours", "bare, client", "ours, client", "DuckDB, client"]
    show("READS: ms in the server, and until the client has the rows, median (least–most)", headers, cells)

    at = {(read.query, read.rows): read for read in reads}
    cells = []
    for name in (*DOCUMENTED, *OTHERS):
        small, full = at[name, rows // 10], at[name, rows]
        a, b = (statistics.median(read.server["ours"]) for read in (small, full))
        x, y = small.buffers["ours"], full.buffers["ours"]
        cells.append([name, brief(a), brief(b), f"{b / a:.2f}×", f"{x:,}", f"{y:,}", f"{y / max(1, x):.2f}×"])
    headers = ["query", f"ms at {rows // 10:,}", f"ms at {rows:,}", "", f"buffers at {rows // 10:,}", f"buffers at {rows:,}", ""]
    show("GROWTH of ours, rows × 10", headers, cells)

    cells = []
    for write in writes:
        for system in (0, 1):
            turns = [pair[system] for pair in write.turns]
            per = [spread([turn.wal for turn in turns]), f"{write.median(system, 'images'):.3f}"]
            per += [f"{write.imageless[system]:,.0f}", f"{100 * write.median(system, 'hot'):.0f}"]
            cells.append([write.kind, SYSTEMS[system], spread([turn.tps for turn in turns]), *per])
        ratios = [spread(write.ratio("tps")), spread(write.ratio("wal")), ""]
        cells.append([write.kind, "ours / bare", *ratios, f"{write.imageless[1] / write.imageless[0]:.2f}×", ""])
    headers = ["write", "", "tps, median (least–most)", "WAL B (least–most)", "page images", "WAL B without images", "HOT %"]
    show("WRITES: 8 clients, one row a transaction; WAL and images for each", headers, cells)

    for kind, steps in figures["profile"].items():
        names = dict.fromkeys([*steps["ours"], *steps["bare"]])
        cells = [
            [
                name,
                *(f"{of[name]:.0f}" if name in of else "" for of in (steps["bare"], steps["ours"])),
                f"{100 * steps['ours'][name] / steps['ours']['total']:.0f}" if name in steps["ours"] else "",
            ]
            for name in names
        ]
        show(f"WHERE THE TIME OF ONE {kind} GOES: µs, one client", ["step", "bare", "ours", "% of ours"], cells)

    sizes = figures["sizes"]
    cells = [[name, *(f"{of[name]:,}" if name in of else "" for of in sizes.values())] for name in sizes["ours"]]
    show("SIZES: bytes", ["", *sizes], cells)
    show("EXACTNESS: alicia_session_stats_repair()", ["object", "corrections"], list(figures["repair"].items()))


def show(title: str, headers: list[str], cells: list[list[Any]]) -> None:
    align = ["left" if not i or header in ("", "goal", "object") else "right" for i, header in enumerate(headers)]
    print(f"\n{title}\n\n{tabulate(cells, headers, 'github', colalign=align, disable_numparse=True)}")


def brief(value: float) -> str:
    """Three digits."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def spread(values: list[float] | None) -> str:
    return f"{brief(statistics.median(values))} ({brief(min(values))}–{brief(max(values))})" if values else ""


def draw(reads: list[Read]) -> str:
    """How the documented queries grow, as SVG that is read on a dark page too."""
    points = [
        {"query": r.query, "rows": r.rows, "system": system, "ms": statistics.median(values)}
        for r in reads
        if r.query in DOCUMENTED
        for system, values in r.client.items()
    ]
    colour = {"field": "system", "scale": {"domain": list(SYSTEMS), "range": ["#7a8190", "#0b62d6", "#c2570c"]}}
    ticks = {"values": sorted({point["rows"] for point in points}), "format": ",d", "grid": False}
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "padding": 16,
        "title": {"text": "Milliseconds until the client has the rows, as the table grows", "anchor": "start", "offset": 12},
        "data": {"values": points},
        "facet": {"column": {"field": "query", "sort": list(DOCUMENTED), "title": None, "header": {"labelFontSize": 13}}},
        "spec": {
            "width": 240,
            "height": 250,
            "mark": {"type": "line", "strokeWidth": 2.25, "point": {"size": 45}},
            "encoding": {
                "x": logarithmic("rows", "sessions", **ticks),
                "y": logarithmic("ms", "ms", format="~r", tickCount=5),
                "color": {**colour, "legend": {"orient": "top", "title": None, "labelFontSize": 12}},
            },
        },
        "config": {"font": "system-ui, sans-serif"},
    }
    return vl_convert.vegalite_to_svg(spec)


def logarithmic(field: str, title: str, **axis: Any) -> dict[str, Any]:
    scale = {"type": "log", "nice": False}
    return {"field": field, "type": "quantitative", "scale": scale, "axis": {"title": title, **axis}}


# The command ------------------------------------------------------------------------------------------


def progress(total: int, text: str, unit: str = "rows") -> tqdm:
    return tqdm(total=total, unit=f" {unit}", desc=text)


def in_turns(several: Sequence[Any], turn: int) -> Sequence[Any]:
    """The one order in one turn, the other in the next."""
    return several[:: -1 if turn % 2 else 1]


def measure(rows: int, seconds: float) -> dict[str, Any]:
    """Everything there is to say."""
    with workplace() as (folder, server):
        loaded = [load(server, folder, size) for size in (rows // 100, rows // 10, rows)]
        sizes, chunks = [size for size, _ in loaded], loaded[-1][1]
        full = sizes[-1]
        reads = measure_reads(sizes)
        stored = {"bare": measure_sizes(full.bare), "ours": measure_sizes(full.ours)}
        for database in (full.bare, full.ours):
            for statement in NUMBERED.split(";")[:-1]:
                database.execute(statement)
        writes = measure_writes(full, seconds, 5 if rows < 1_000_000 else 9, folder)
        profiled = {
            kind: {"bare": profile(full.bare, statement, table), "ours": profile(full.ours, statement, table)}
            for kind, statement, table in (("UPDATE", UPDATE, "id_of"), ("INSERT", INSERT, "conversation_of"))
        }
        repair = dict(full.ours.execute("SELECT object, corrections FROM alicia_session_stats_repair()").fetchall())
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": rows,
            "postgresql": full.ours.info.parameter_status("server_version"),
            "duckdb": duckdb.__version__,
            "cpus": os.cpu_count(),
            "settings": SETTINGS,
            "goals": list(judge(rows, chunks, reads, writes)),
            "copy_seconds": chunks,
            "reads": reads,
            "writes": writes,
            "profile": profiled,
            "sizes": {**stored, "ours, after the writes": measure_sizes(full.ours)},
            "repair": repair,
        }


def parse(arguments: Sequence[str]) -> Any:
    parser = Parser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("rows", metavar="ROWS", type=parse_count, help="sessions, 1000 or more")
    parser.add_argument("--json", metavar="FILE", type=Path, default=HERE / "results.json", help="where the figures go")
    parser.add_argument("--svg", metavar="FILE", type=Path, default=HERE / "growth.svg", help="where the growth is drawn")
    parser.add_argument("--seconds", metavar="S", type=parse_seconds, help="of a pgbench round (3; from a million rows 5)")
    a = parser.parse_args(arguments)
    if a.rows < 1000:
        raise UsageError(f"ROWS must be 1000 or more, not {a.rows}")
    for file in (a.json, a.svg):
        if not file.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {file.parent}")
    return a


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code: 0 done, whatever goal was missed, 1 failed or not exact, 2 usage."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        a = parse(arguments)
        figures = measure(a.rows, a.seconds or (3 if a.rows < 1_000_000 else 5))
    except (SessionStatsError, psycopg.Error) as error:
        print(f"bench: {' '.join(str(error).split())}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        print("bench: interrupted; nothing is left behind", file=sys.stderr)
        return 130
    print_tables(figures)
    a.json.write_text(simplejson.dumps(figures, indent=2, ensure_ascii=False, default=vars) + "\n")
    a.svg.write_text(draw(figures["reads"]))
    if any(figures["repair"].values()):
        print("bench: the sums did not agree with the sessions", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
