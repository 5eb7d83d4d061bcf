"""How many writes a second, and what one costs: the bare schema and ours in turns, each after a checkpoint and a warm-up."""

import math
import random
import re
import statistics
import subprocess
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg

from alicia_session_stats import SessionStatsError, embedded
from bench.samples import Connection, Size, in_turns, progress

WARM_UP = 2000  # Transactions.
IMAGELESS = 3  # Turns without full-page images.
HELD_TURNS = 3  # Turns with a snapshot held.
PROFILED = 200  # Single writes to take the times of.
NEWEST = 1000
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


@dataclass(frozen=True)
class Round:
    """What pgbench and the server's statistics tell of one round; the last three are per transaction."""

    tps: float
    wal: float
    images: float
    hot: float


@dataclass(frozen=True)
class Write:
    """Rounds of one kind of write in turns, the bare schema's and ours.

    imageless: the WAL bytes of each without full-page images. held: rounds while a snapshot is held.
    """

    kind: str
    turns: list[tuple[Round, Round]]
    imageless: tuple[float, float]
    held: list[tuple[Round, Round]]

    def ratio(self, of: str, turns: str = "turns") -> list[float]:
        return [getattr(ours, of) / getattr(bare, of) for bare, ours in getattr(self, turns)]

    def median(self, system: int, of: str, turns: str = "turns") -> float:
        return statistics.median(getattr(turn[system], of) for turn in getattr(self, turns))


def measure_writes(size: Size, seconds: float, pairs: int, folder: Path) -> list[Write]:
    """Run every kind of write in turns."""
    for database in (size.bare, size.ours):
        for statement in NUMBERED.split(";")[:-1]:
            database.execute(statement)
    writes = []
    with progress(len(WRITES) * (pairs + 1 + IMAGELESS + HELD_TURNS), "writes", "pairs") as bar:
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
            with closing(hold_snapshot(size.bare)), closing(hold_snapshot(size.ours)):
                held = [pair(script, turn, transactions) for turn in range(HELD_TURNS)]
            set_full_page_writes(size.bare, "off")
            rounds = [pair(script, turn, transactions) for turn in range(IMAGELESS)]
            set_full_page_writes(size.bare, "on")
            bare, ours = (statistics.median(each.wal for each in system) for system in zip(*rounds, strict=True))
            writes.append(Write(kind, turns, (bare, ours), held))
    return writes


def hold_snapshot(database: Connection) -> Connection:
    """A connection whose snapshot keeps every row version that is replaced from now on."""
    holder = psycopg.connect(database.info.dsn)
    holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    holder.execute("SELECT FROM alicia_session_stats LIMIT 1")
    return holder


def set_full_page_writes(admin: Connection, value: str) -> None:
    admin.execute(f"ALTER SYSTEM SET full_page_writes = {value}")
    admin.execute("SELECT PG_RELOAD_CONF()")
    admin.execute("CHECKPOINT")  # The process that does it has read the setting then.


def pgbench(database: Connection, script: Path, transactions: int) -> Round:
    """One round of pgbench: 8 clients that share so many transactions."""
    command = [embedded.wheel_programs() / "pgbench", "-h", database.info.host, "-p", str(database.info.port)]
    command += ["-U", database.info.user, "-f", script, "-c", "8", "-j", "2", "-M", "prepared", "-n"]
    command += ["-t", str(math.ceil(transactions / 8)), database.info.dbname]
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
