"""Measure what recording costs the application that writes messages.

    python -m bench.live [--seconds S] [--rounds N]

The same messages go into three databases in turns, on a server of its own with fsync: the application's tables alone (bare);
with the triggers of live/attach.sql (live); and with a count of the whole conversation at each message, as an application
does that keeps no sessions (counting). Then, how long rebuild_sessions takes. Tables go to stdout.

Messages come 20 minutes apart, with two hours of silence after each ten, and time passes with them: a session has ten messages,
however long the measure lasts, and each tenth message begins one. The other sessions of a real table are there too. Without
these, every session that is written would be one of the thousand with the most messages, and every message would change that
list; in an application few do. The tables hold the same number of messages whatever the length of the conversations.
"""

# ruff: noqa: RUF001 - a times sign is one.

from __future__ import annotations

import argparse
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from tabulate import tabulate

from alicia_session_stats import SessionStatsError, embedded, migrate, query
from alicia_session_stats.recording import attach
from bench.samples import create, in_turns, workplace

CLIENTS = 4
MESSAGES = 200_000  # In the tables at first.
LENGTHS = (10, 100, 1_000)  # Messages in each conversation at first.
OTHERS = 100_000  # Sessions of other conversations.
BULK_LENGTH = 100
BULK_CONVERSATIONS = 200
BULK = 100_000
BATCHES = (BULK, 1_000)  # Rows of one INSERT.
DAYS = (1, 7, 366)  # Of the rebuilds; the last is everything.
SYSTEMS = ("bare", "live", "counting")
# As the application creates them, but for columns that do not matter here.
TABLES = """
    CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY, title TEXT NOT NULL DEFAULT '', deleted_at TIMESTAMP);
    CREATE TABLE alicia_messages (
        id TEXT PRIMARY KEY,
        conversation_id TEXT NOT NULL REFERENCES alicia_conversations ON DELETE CASCADE,
        sequence_number INTEGER NOT NULL,
        contents TEXT NOT NULL DEFAULT '',
        created_at TIMESTAMP NOT NULL DEFAULT NOW(),
        updated_at TIMESTAMP NOT NULL DEFAULT NOW(),
        deleted_at TIMESTAMP
    );
    CREATE INDEX idx_messages_conversation ON alicia_messages (conversation_id, sequence_number) WHERE deleted_at IS NULL;
    CREATE TABLE alicia_tool_uses (
        id TEXT PRIMARY KEY, message_id TEXT NOT NULL REFERENCES alicia_messages ON DELETE CASCADE, deleted_at TIMESTAMP
    );
    CREATE INDEX idx_tool_uses_message ON alicia_tool_uses (message_id) WHERE deleted_at IS NULL;
    CREATE TABLE alicia_memory_used (
        id TEXT PRIMARY KEY, message_id TEXT NOT NULL REFERENCES alicia_messages ON DELETE CASCADE, memory_id TEXT,
        deleted_at TIMESTAMP
    );
    CREATE INDEX idx_memory_used_message ON alicia_memory_used (message_id) WHERE deleted_at IS NULL;
"""
# When message number m of conversation number c is created. The conversations do not all begin a session at once.
MINUTE = "20 * {m} + 120 * (({m} + {c}) / 10)"
FILL = f"""
    INSERT INTO alicia_conversations (id) SELECT 'ac_' || c FROM GENERATE_SERIES(1, %(conversations)s) AS c;
    INSERT INTO alicia_messages (id, conversation_id, sequence_number, contents, created_at)
    SELECT
        CONCAT_WS('_', 'am', c, m), 'ac_' || c, m, REPEAT('x', 200),
        TIMESTAMP '2024-01-01' + ({MINUTE.format(m="m", c="c")}) * INTERVAL '1 minute'
    FROM GENERATE_SERIES(1, %(conversations)s) AS c, GENERATE_SERIES(1, %(length)s) AS m;
"""
# A Pareto distribution: half have fewer than six messages, a thousand more than 94.
FILL_OTHERS = f"""
    INSERT INTO alicia_conversations (id) SELECT 'other_' || c FROM GENERATE_SERIES(0, {OTHERS // 4}) AS c;
    INSERT INTO alicia_session_stats (conversation_id, message_count, session_duration_seconds, created_at)
    SELECT 'other_' || n / 4, 3 * POWER(n / {OTHERS}.0, -0.75), 0, TIMESTAMP '2023-01-01' + n * INTERVAL '5 minutes'
    FROM GENERATE_SERIES(1, {OTHERS}) AS n;
"""
# Each client has conversations of its own. Each gets a message before any gets the next one, each time in another order.
INSERT = f"""
\\set m {{length}} + 1 + :n / {{share}}
\\set c 1 + :client_id + {CLIENTS} * permute(:n % {{share}}, {{share}}, :m)
\\set minute {MINUTE.format(m=":m", c=":c")}
\\set n :n + 1
INSERT INTO alicia_messages (id, conversation_id, sequence_number, contents, created_at)
VALUES (GEN_RANDOM_UUID()::TEXT, 'ac_' || :c, :m, REPEAT('x', 200), TIMESTAMP '2024-01-01' + :minute * INTERVAL '1 minute');
"""
COUNT = """
SELECT COUNT(*), (
    SELECT COUNT(*) FROM alicia_tool_uses AS t INNER JOIN alicia_messages AS m ON m.id = t.message_id
    WHERE m.conversation_id = 'ac_' || :c AND m.deleted_at IS NULL AND t.deleted_at IS NULL
) FROM alicia_messages WHERE conversation_id = 'ac_' || :c AND deleted_at IS NULL;
"""
# Each conversation gets one message a minute, an hour of silence after twenty, long after what is there.
LOAD = """
    INSERT INTO alicia_messages (id, conversation_id, sequence_number, contents, created_at)
    SELECT
        GEN_RANDOM_UUID()::TEXT, 'ac_' || 1 + n %% %(conversations)s, n, REPEAT('x', 200),
        TIMESTAMP '2040-01-01' + n / %(conversations)s * INTERVAL '1 minute'
        + n / %(conversations)s / 20 * INTERVAL '1 hour'
    FROM GENERATE_SERIES(%(first)s::INTEGER, %(last)s) AS n
"""
UNLOAD = "DELETE FROM alicia_messages WHERE created_at >= '2040-01-01'"
# Ten messages a conversation, a minute apart, over a year; each third has a tool use, each second a memory.
YEAR = """
    INSERT INTO alicia_conversations (id) SELECT 'ac_' || c FROM GENERATE_SERIES(1, %(messages)s / 10) AS c;
    INSERT INTO alicia_messages (id, conversation_id, sequence_number, contents, created_at)
    SELECT
        MD5(c || ' ' || m), 'ac_' || c, m, REPEAT('x', 200),
        NOW() AT TIME ZONE 'UTC' - c * (INTERVAL '3650 days' / %(messages)s) - (10 - m) * INTERVAL '1 minute'
    FROM GENERATE_SERIES(%(messages)s / 10, 1, -1) AS c, GENERATE_SERIES(1, 10) AS m;
    INSERT INTO alicia_tool_uses (id, message_id) SELECT id, id FROM alicia_messages WHERE sequence_number %% 3 = 0;
    INSERT INTO alicia_memory_used (id, message_id, memory_id)
    SELECT id, id, sequence_number FROM alicia_messages WHERE sequence_number %% 2 = 0;
"""
CHECK = "SELECT * FROM alicia_session_stats_compare(ARRAY(SELECT id FROM alicia_conversations), 30) WHERE action <> 'keep'"
Connection = psycopg.Connection[Any]


def prepare(server: str, length: int) -> dict[str, Connection]:
    """The three databases, with conversations of this length."""
    made = dict[str, Connection]()
    for system in SYSTEMS:
        made[system] = create(server, f"{system}_{length}")
        made[system].execute(TABLES)
        values = {"conversations": MESSAGES // length, "length": length}
        psycopg.ClientCursor(made[system]).execute(FILL, values)
        if system == "live":
            migrate(made[system].info.dsn)
            attach(made[system].info.dsn)
            made[system].execute(FILL_OTHERS)
        made[system].execute("VACUUM ANALYZE")
    return made


def pgbench(database: Connection, script: Path, sent: int, more: int) -> float:
    """Messages a second of CLIENTS clients, each of which has sent so many messages and sends so many more."""
    command = [embedded.wheel_programs() / "pgbench", "-h", database.info.host, "-U", database.info.user, "-f", script]
    command += ["-c", str(CLIENTS), "-j", "2", "-M", "prepared", "-n", "-D", f"n={sent}", "-t", str(more)]
    done = subprocess.run([*command, database.info.dbname], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SessionStatsError(f"pgbench: {' '.join(done.stderr.split())}")
    return float(re.search(r"tps = ([\d.]+)", done.stdout)[1])


def measure_messages(databases: dict[str, Connection], length: int, rounds: int, seconds: float, folder: Path) -> list[Any]:
    scripts = {}
    for system in SYSTEMS:
        scripts[system] = folder / f"{system}.sql"
        insert = INSERT.format(length=length, share=MESSAGES // length // CLIENTS)
        scripts[system].write_text(insert + (COUNT if system == "counting" else ""))
    databases["bare"].execute("CHECKPOINT")
    sent = dict.fromkeys(SYSTEMS, 0)
    found = {system: list[float]() for system in SYSTEMS}

    def run(system: str, messages: float) -> float:
        more = math.ceil(messages / CLIENTS)
        sent[system] += more
        return pgbench(databases[system], scripts[system], sent[system] - more, more)

    messages = run("bare", 500) * seconds
    for turn in range(rounds):
        for system in in_turns(SYSTEMS, turn):
            share = messages if system != "counting" else max(100, messages * 100 / (100 + length))
            found[system].append(run(system, share))
    return row(f"{length:,} messages in each conversation", found)


def row(what: str, found: dict[str, list[float]]) -> list[Any]:
    """Medians, and the median of the ratios of each round with its range."""
    ratios = [live / bare for live, bare in zip(found["live"], found["bare"], strict=True)]
    medians = [f"{statistics.median(found[system]):,.0f}" if found.get(system) else "" for system in SYSTEMS]
    return [what, *medians, f"{statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f})"]


def measure_bulk(databases: dict[str, Connection], rounds: int, batch: int) -> list[Any]:
    found: dict[str, list[float]] = {"bare": [], "live": []}
    for turn in range(rounds):
        for system in in_turns(("bare", "live"), turn):
            cursor = psycopg.ClientCursor(databases[system])
            databases[system].execute("CHECKPOINT")
            begun = time.monotonic()
            for first in range(0, BULK, batch):
                cursor.execute(LOAD, {"conversations": BULK_CONVERSATIONS, "first": first, "last": first + batch - 1})
            found[system].append(BULK / (time.monotonic() - begun))
            databases[system].execute(UNLOAD)
            databases[system].execute("VACUUM ANALYZE")
    return row(f"{BULK:,} in statements of {batch:,}", found)


def measure_rebuilds(server: str, messages: int, rounds: int) -> list[list[Any]]:
    """Seconds of a rebuild that finds nothing to write, of windows and of everything."""
    database = create(server, "rebuilds")
    database.execute(TABLES)
    psycopg.ClientCursor(database).execute(YEAR, {"messages": messages})
    migrate(database.info.dsn)
    query(database, "rebuild_sessions")
    database.execute("VACUUM ANALYZE")
    rows = list[list[Any]]()
    for days in DAYS:
        found = list[float]()
        for _ in range(rounds):
            begun = time.monotonic()
            query(database, "rebuild_sessions", since_days=days)
            found.append(time.monotonic() - begun)
        rows.append([f"since_days={days}, of {messages:,} messages in a year", f"{statistics.median(found):.2f}"])
    return rows


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.live", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5, help="of a round (5)")
    parser.add_argument("--rounds", type=int, default=5, help="of each measure (5)")
    parser.add_argument("--messages", type=int, default=1_000_000, help="of the rebuilds (1000000)")
    options = parser.parse_args(arguments)
    headers = ["messages a second", *SYSTEMS, "live / bare"]
    with workplace(None) as (folder, server):
        messages, bulk = list[list[Any]](), list[list[Any]]()
        for length in LENGTHS:
            databases = prepare(server, length)
            messages.append(measure_messages(databases, length, options.rounds, options.seconds, folder))
            if length == BULK_LENGTH:
                bulk += [measure_bulk(databases, min(options.rounds, 3), batch) for batch in BATCHES]
            if databases["live"].execute(CHECK).fetchall():
                raise SessionStatsError("the sessions are not those of the messages")
        print(tabulate(messages, headers, "github", disable_numparse=True), end="\n\n")
        print(tabulate(bulk, headers, "github", disable_numparse=True), end="\n\n")
        rebuilds = measure_rebuilds(server, options.messages, min(options.rounds, 3))
        print(tabulate(rebuilds, ["rebuild", "seconds"], "github", disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
