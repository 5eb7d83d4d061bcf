"""Value counts equal the sessions, whatever was summarized, and whatever is written before, while and after."""

import random
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import pytest
from conftest import APPLICATION, PASSWORD, PROGRAMS, conninfo_of, scalar
from psycopg import errors
from psycopg.conninfo import make_conninfo

import alicia_session_stats as stats

Connection = psycopg.Connection[Any]
START = datetime(2024, 3, 30, 22)  # Four days are written: the last hours of one, two whole ones, the first hours of another.
HOURS = 54
# Each window and metric whose value counts differ from the sessions, and each instant at which others are open.
DIFFERENCES = """
SELECT w.since::TEXT, w.until::TEXT, m.metric, v::TEXT, r::TEXT
FROM UNNEST(%(since)s::TIMESTAMP[], %(until)s::TIMESTAMP[]) AS w (since, until)
CROSS JOIN (VALUES ('messages'), ('tool_calls'), ('memories'), ('seconds'), ('from_seconds')) AS m (metric)
CROSS JOIN LATERAL alicia_session_stats_value_counts(m.metric, w.since, w.until) AS v
CROSS JOIN LATERAL (
    SELECT
        COALESCE(SUM(sessions), 0)::BIGINT AS sessions, COALESCE(SUM(value * sessions), 0) AS total,
        ARRAY_AGG(value ORDER BY value) AS counted_values, ARRAY_AGG(sessions_up_to ORDER BY value) AS sessions_up_to
    FROM (
        SELECT value, COUNT(*) AS sessions, SUM(COUNT(*)) OVER (ORDER BY value)::BIGINT AS sessions_up_to
        FROM (
            SELECT CASE m.metric
                WHEN 'messages' THEN message_count WHEN 'tool_calls' THEN tool_call_count
                WHEN 'memories' THEN memories_used WHEN 'seconds' THEN session_duration_seconds
                ELSE ('{0,1,10,30,60,180,600,1800,3600}'::INTEGER[])[
                    1 + WIDTH_BUCKET(session_duration_seconds, '{1,10,30,60,180,600,1800,3600}'::INTEGER[])
                ]
            END AS value
            FROM alicia_session_stats
            WHERE created_at >= w.since AND created_at < w.until
        ) AS measured
        GROUP BY value
    ) AS counts
) AS r
WHERE ROW(v.*)::TEXT <> ROW(r.*)::TEXT
UNION ALL
SELECT i.instant::TEXT, NULL, 'open', v.open::TEXT, r.open::TEXT
FROM UNNEST(%(since)s::TIMESTAMP[]) AS i (instant)
CROSS JOIN LATERAL (
    SELECT ARRAY_AGG((o.started_at, o.ended_at)::TEXT ORDER BY o) AS open FROM alicia_session_stats_open_at(i.instant) AS o
) AS v
CROSS JOIN LATERAL (
    SELECT ARRAY_AGG((s.started_at, s.ended_at)::TEXT ORDER BY s) AS open
    FROM (
        SELECT created_at, created_at + session_duration_seconds * INTERVAL '1 second' FROM alicia_session_stats
    ) AS s (started_at, ended_at)
    WHERE started_at < i.instant AND ended_at > i.instant
) AS r
WHERE v.open IS DISTINCT FROM r.open
"""


class Summarized(NamedTuple):
    """What a call of alicia_session_stats_summarize() did."""

    days: int
    sessions: int
    remaining: int


def summarize(connection: Connection, batch: int = 1_000_000) -> Summarized:
    (row,) = connection.execute("SELECT * FROM alicia_session_stats_summarize(%s)", [batch]).fetchall()
    return Summarized(*row)


def assert_exact(connection: Connection, chance: random.Random, windows: int = 6) -> None:
    """Some windows' value counts are those of their sessions, and at some instants those sessions are open that are."""
    edges = [sorted((some_edge(chance), some_edge(chance))) for _ in range(windows)] + [[START, START + timedelta(days=9)]]
    since, until = ([str(edge) for edge in of_all] for of_all in zip(*edges, strict=True))
    assert connection.execute(DIFFERENCES.encode(), {"since": since, "until": until}).fetchall() == []


def some_edge(chance: random.Random) -> datetime:
    edge = START + timedelta(seconds=chance.uniform(-1, HOURS + 1) * 3600)
    whole = chance.choice([None, "hour", "day"])
    if whole:
        edge = edge.replace(minute=0, second=0, microsecond=0)
    return edge.replace(hour=0) if whole == "day" else edge


def some_rows(chance: random.Random, rows: int) -> list[tuple[Any, ...]]:
    """Sessions of which some are in the same quarter of an hour, and some last for days."""
    return [
        (
            f"ass_{chance.randrange(60)}",
            START + timedelta(minutes=15 * 9 * chance.randrange(4 * HOURS // 9), seconds=chance.choice([0, 1, 899.999999])),
            *(chance.randrange(5) for _ in range(3)),
            chance.choice([0, 1, 60, 1000, 5000, 200_000]),
        )
        for _ in range(rows)
    ]


INSERT = """
    INSERT INTO alicia_session_stats AS s
        (id, conversation_id, created_at, message_count, tool_call_count, memories_used, session_duration_seconds)
    VALUES (%s, 'ac_1', %s, %s, %s, %s, %s)
"""
UPSERT = (
    INSERT
    + """
    ON CONFLICT (id) DO UPDATE SET created_at = excluded.created_at, message_count = s.message_count + 1,
        session_duration_seconds = excluded.session_duration_seconds
"""
)


def upsert(connection: Connection, chance: random.Random) -> None:
    for row in some_rows(chance, chance.choice([1, 1, 8])):
        connection.execute(UPSERT, row)


def shift(connection: Connection, chance: random.Random) -> None:
    """A message less in one session, and one more in another of the same quarter of an hour: all sums stay as they are."""
    connection.execute(
        """
        WITH pair AS (
            SELECT a.id AS one, b.id AS other
            FROM alicia_session_stats AS a
            INNER JOIN alicia_session_stats AS b
                ON alicia_session_stats_bucket(a.created_at) = alicia_session_stats_bucket(b.created_at)
            WHERE a.id <> b.id AND a.message_count > 0
            ORDER BY a.id < %s, a.id, b.id
            LIMIT 1
        )
        UPDATE alicia_session_stats SET message_count = message_count + CASE id WHEN one THEN -1 ELSE 1 END
        FROM pair
        WHERE id IN (one, other)
        """,
        [f"ass_{chance.randrange(60)}"],
    )


def delete(connection: Connection, chance: random.Random) -> None:
    connection.execute("DELETE FROM alicia_session_stats WHERE id = %s", [f"ass_{chance.randrange(60)}"])


def purge(connection: Connection, chance: random.Random) -> None:
    connection.execute("DELETE FROM alicia_session_stats WHERE created_at < %s", [some_edge(chance)])


def summarize_some(connection: Connection, chance: random.Random) -> None:
    if scalar(connection, "SELECT CURRENT_SETTING('transaction_isolation')") == "read committed":
        summarize(connection, chance.choice([1, 10, 1000]))


STEPS: Sequence[Callable[[Connection, random.Random], None]] = (upsert, upsert, shift, delete, purge, summarize_some)


def some_steps(connection: Connection, chance: random.Random, depth: int = 0) -> None:
    """A few statements, some of them undone by ROLLBACK TO SAVEPOINT. The counts are exact in between."""
    for _ in range(chance.randrange(1, 5)):
        if depth < 2 and chance.random() < 0.2:
            with connection.transaction(force_rollback=chance.random() < 0.6):
                some_steps(connection, chance, depth + 1)
        else:
            chance.choice(STEPS)(connection, chance)
        assert_exact(connection, chance, windows=1)


@pytest.fixture
def history(db: Connection) -> Connection:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    return db


@pytest.mark.parametrize("seed", range(6))
def test_value_counts_are_exact_after_every_step_of_a_random_history(history: Connection, seed: int) -> None:
    """One connection writes and summarizes. Another sometimes holds an older snapshot."""
    chance = random.Random(seed)
    with closing(psycopg.connect(conninfo_of(history))) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for _ in range(40):
            what = chance.random()
            if what < 0.1:
                holder.rollback()  # TRUNCATE waits for it.
                history.execute("TRUNCATE alicia_session_stats")
            elif what < 0.2:
                history.execute("SELECT alicia_session_stats_repair()")
            elif what < 0.5:
                summarize_some(history, chance)
            else:
                level = chance.choice(["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ"])
                with history.transaction(force_rollback=chance.random() < 0.3):
                    history.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
                    some_steps(history, chance)
            assert_exact(history, chance)
            assert_exact(holder, chance)
            if chance.random() < 0.3:
                holder.rollback()


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_summary_made_beside_an_open_write_is_exact_once_that_ends(history: Connection, end: str) -> None:
    chance = random.Random(1)
    history.cursor().executemany(UPSERT, some_rows(chance, 60))
    with closing(psycopg.connect(conninfo_of(history))) as writer:
        writer.execute("UPDATE alicia_session_stats SET message_count = message_count + 3")
        assert summarize(history).remaining == 0
        writer.execute(end.encode())
    assert_exact(history, chance, windows=20)


def test_concurrent_writers_and_summaries_are_exact_at_every_instant(history: Connection) -> None:
    stop = threading.Event()
    chance = random.Random(7)

    def write(number: int) -> None:
        mine = random.Random(number)
        with closing(psycopg.connect(conninfo_of(history), autocommit=True)) as connection:
            if number % 2:
                connection.execute("SET default_transaction_isolation = 'repeatable read'")
            while not stop.is_set():
                try:
                    mine.choice((upsert, shift, delete))(connection, mine)
                except (errors.SerializationFailure, errors.DeadlockDetected, errors.CheckViolation):  # Below 0: another took it.
                    continue

    def keep_summarizing() -> int:
        with closing(psycopg.connect(conninfo_of(history), autocommit=True)) as connection:
            days = 0
            while not stop.is_set():
                days += summarize(connection).days
        return days

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        summarizers = [pool.submit(keep_summarizing) for _ in range(2)]
        try:
            for _ in range(60):
                assert_exact(history, chance, windows=3)
        finally:
            stop.set()
        for writer in writers:
            writer.result()
        assert sum(summarizer.result() for summarizer in summarizers) > 0
    assert summarize(history).remaining == 0
    assert_exact(history, chance)


def test_two_equal_rows_of_the_rollup_do_not_cancel_each_other(history: Connection) -> None:
    """Two writers under REPEATABLE READ may insert the same row in the same microsecond."""
    stamp = "SELECT stamp FROM alicia_session_stats_periods('2024-03-31', '2024-04-01') WHERE hours = 24"
    row = "INSERT INTO alicia_session_stats_rollup VALUES ('2024-03-31', {}, '2024-03-31', NULL, 1, 2, 0, 0, 9)"
    history.execute("SET alicia_session_stats.is_repair = on")  # Other rows that a client inserts may be those of a dump.
    history.execute(row.format(0).encode())
    before = scalar(history, stamp)
    history.execute(f"{row.format(2147483647)}, ('2024-03-31', 2147483647, '2024-03-31', NULL, 1, 2, 0, 0, 9)".encode())
    assert scalar(history, stamp) != before


def load(db: Connection, days: int, sessions: int = 10) -> None:
    """So many sessions in each of the days before today."""
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1') ON CONFLICT DO NOTHING")
    db.execute(
        """
        INSERT INTO alicia_session_stats (id, conversation_id, created_at, message_count, session_duration_seconds)
        SELECT
            FORMAT('ass_%%s_%%s', d, n), 'ac_1', (NOW() AT TIME ZONE 'UTC')::DATE - MAKE_INTERVAL(days => d, mins => n),
            n, 60 * n
        FROM GENERATE_SERIES(0, %s) AS d CROSS JOIN GENERATE_SERIES(1, %s) AS n
        """,
        [days - 1, sessions],
    )


def test_summarizing_takes_the_newest_days_first_a_batch_a_call_and_then_nothing(db: Connection) -> None:
    load(db, days=5)
    assert summarize(db, 20) == (2, 20, 3)
    newest = "SELECT CURRENT_DATE - MIN(starts_at)::DATE FROM alicia_session_stats_summaries WHERE hours = 24"
    assert scalar(db, newest) == 2
    assert summarize(db, 1) == (1, 10, 2)  # One at least.
    assert summarize(db) == (2, 20, 0)
    assert summarize(db) == (0, 0, 0)
    db.execute("UPDATE alicia_session_stats SET message_count = 7 WHERE id = 'ass_3_1'")
    assert summarize(db) == (1, 10, 0)


def test_summaries_of_days_that_were_emptied_go(db: Connection) -> None:
    load(db, days=3)
    summarize(db)
    db.execute("DELETE FROM alicia_session_stats WHERE id LIKE 'ass_1_%'")
    assert summarize(db) == (1, 0, 0)
    db.execute("TRUNCATE alicia_session_stats")
    assert summarize(db) == (3, 0, 0)
    assert scalar(db, "SELECT COUNT(*) FROM alicia_session_stats_summaries") == 0


def test_today_is_summarized_by_its_hours_that_are_over(db: Connection) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    db.execute(
        """
        INSERT INTO alicia_session_stats (id, conversation_id, created_at)
        SELECT 'ass_' || n, 'ac_1', DATE_TRUNC('hour', NOW() AT TIME ZONE 'UTC') + MAKE_INTERVAL(hours => n, secs => 1)
        FROM GENERATE_SERIES(-30, 5) AS n
        """
    )
    assert summarize(db).remaining == 0
    assert scalar(db, "SELECT DISTINCT COUNT(*) FROM alicia_session_stats_summaries WHERE hours = 1 GROUP BY metric") == 30
    latest = "SELECT MAX(starts_at) FROM alicia_session_stats_summaries WHERE hours = 24"
    assert scalar(db, latest) < scalar(db, "SELECT DATE_TRUNC('day', NOW() AT TIME ZONE 'UTC')")


def test_summarizing_waits_for_nobody_and_nobody_waits_for_it(db: Connection) -> None:
    load(db, days=3)
    with (
        closing(psycopg.connect(conninfo_of(db))) as writer,
        closing(psycopg.connect(conninfo_of(db))) as first,
        closing(psycopg.connect(conninfo_of(db))) as second,
    ):
        for connection in (db, writer, first, second):
            connection.execute("SET lock_timeout = '100ms'")
        writer.execute("UPDATE alicia_session_stats SET message_count = 5 WHERE id = 'ass_1_1'")
        assert summarize(first) == (3, 30, 0)
        assert summarize(second) == (0, 0, 3)
        db.execute("UPDATE alicia_session_stats SET message_count = 6 WHERE id = 'ass_2_2'")
        db.execute("DELETE FROM alicia_session_stats WHERE id = 'ass_0_3'")
        first.commit()
        writer.commit()
        second.commit()
        assert summarize(second) == (3, 29, 0)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_summarizing_refuses_a_snapshot_that_may_be_old(db: Connection, level: str) -> None:
    db.execute(f"SET default_transaction_isolation = '{level}'".encode())
    with pytest.raises(errors.InvalidTransactionState, match="must run under READ COMMITTED"):
        summarize(db)


def of_all_days(connection: Connection) -> Any:
    return scalar(
        connection,
        "SELECT (sessions, counted_values)::TEXT FROM alicia_session_stats_value_counts('messages', '-infinity', 'infinity')",
    )


def bypass(db: Connection, statement: str) -> None:
    with db.transaction():
        db.execute("SET LOCAL session_replication_role = replica")
        db.execute(statement.encode())


def wrong(db: Connection, since: object = "-infinity", until: object = "infinity") -> set[tuple[Any, ...]]:
    query = "SELECT hours, CURRENT_DATE - starts_at::DATE FROM alicia_session_stats_differences(%s, %s) WHERE kind = 'summaries'"
    return set(db.execute(query, [since, until]).fetchall())


def test_summary_is_what_is_read_while_its_stamp_agrees(db: Connection) -> None:
    """And so verify has to tell what bypassed the triggers."""
    load(db, days=4)
    summarize(db)
    before = of_all_days(db)
    bypass(db, "UPDATE alicia_session_stats SET message_count = 11 - message_count WHERE id IN ('ass_2_4', 'ass_2_7')")
    assert wrong(db) == set()
    shifted = "message_count = message_count + CASE id WHEN 'ass_2_4' THEN 4 ELSE -4 END"  # As many in all.
    bypass(db, f"UPDATE alicia_session_stats SET {shifted} WHERE id IN ('ass_2_4', 'ass_2_7')")
    assert of_all_days(db) == before
    assert wrong(db) == {(1, 3), (24, 3)}
    assert wrong(db, since=scalar(db, "SELECT CURRENT_DATE - 2")) == set()
    assert "summaries of 2 days or hours" in [row["object"] for row in stats.query(db, "verify_rollup")]
    corrections = dict(db.execute("SELECT * FROM alicia_session_stats_repair()").fetchall())
    assert corrections["summaries"] == 2
    assert stats.query(db, "verify_rollup") == []
    assert of_all_days(db) != before


def test_dump_and_restore_keep_the_summaries_valid(db: Connection, bare: Connection) -> None:
    load(db, days=3)
    summarize(db)
    dump = subprocess.run([PROGRAMS / "pg_dump", conninfo_of(db)], capture_output=True, check=True).stdout
    dump = dump.replace(b"SET transaction_timeout = 0;\n", b"")  # A newer pg_dump's, which PostgreSQL 15 does not know.
    command = [PROGRAMS / "psql", conninfo_of(bare), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
    subprocess.run(command, input=dump, check=True, capture_output=True)
    assert summarize(bare) == (0, 0, 0)


def test_role_under_a_policy_counts_the_sessions_that_it_sees(bare: Connection, login: Callable[..., Connection]) -> None:
    stats.migrate(conninfo_of(bare))
    load(bare, days=3)
    summarize(bare)
    bare.execute("ALTER TABLE alicia_session_stats ENABLE ROW LEVEL SECURITY")
    bare.execute("CREATE POLICY few ON alicia_session_stats USING (id LIKE 'ass_1_%')")
    views = ("parts", "stamps", "value_summaries")
    grants = [f"GRANT SELECT ON alicia_session_stats_{view} TO" for view in views]
    tenant = login("tenant", "GRANT SELECT ON alicia_session_stats TO", *grants)
    assert of_all_days(tenant) == '(10,"{1,2,3,4,5,6,7,8,9,10}")'
    assert scalar(bare, "SELECT sessions FROM alicia_session_stats_value_counts('messages', '-infinity', 'infinity')") == 30
    assert scalar(tenant, "SELECT COUNT(*) FROM alicia_session_stats_value_summaries") == 0
    with pytest.raises(errors.InsufficientPrivilege):
        summarize(tenant)


def test_owner_whom_a_policy_binds_is_told_so(login: Callable[..., Connection]) -> None:
    owner = login("owner", "GRANT CREATE, USAGE ON SCHEMA public TO")
    owner.execute(APPLICATION.encode())
    stats.migrate(make_conninfo(owner.info.dsn, password=PASSWORD))
    owner.execute("ALTER TABLE alicia_session_stats ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    with pytest.raises(errors.InsufficientPrivilege, match="hides sessions from owner"):
        summarize(owner)
    with pytest.raises(errors.InsufficientPrivilege, match="hides sessions from owner"):
        wrong(owner)


@pytest.mark.parametrize("seed", range(5))
def test_percentile_is_that_of_percentile_cont(db: Connection, seed: int) -> None:
    chance = random.Random(seed)
    numbers = [chance.choice([0, 0, 1, 2, 7, 2**31 - 1, chance.randrange(10**6)]) for _ in range(chance.choice([1, 2, 3, 50]))]
    fractions = [0.0, 0.5, 0.9, 0.95, 0.99, 1.0, chance.random()]
    query = """
        WITH numbers AS (SELECT n FROM UNNEST(%(numbers)s::INTEGER[]) AS n),
        fractions AS (SELECT ARRAY_AGG(f ORDER BY f) AS f FROM UNNEST(%(fractions)s::FLOAT8[]) AS f),
        counts AS (SELECT n, SUM(COUNT(*)) OVER (ORDER BY n)::BIGINT AS up_to FROM numbers GROUP BY n),
        arrays AS (SELECT ARRAY_AGG(n ORDER BY n) AS v, ARRAY_AGG(up_to ORDER BY n) AS u FROM counts)
        SELECT
            ARRAY(SELECT alicia_session_stats_percentile(e, v, u) FROM UNNEST(f) AS e),
            (SELECT PERCENTILE_CONT(f) WITHIN GROUP (ORDER BY n) FROM numbers),
            ARRAY(
                SELECT alicia_session_stats_percentile(e, v, u, (SELECT COUNT(*) FROM numbers WHERE n = 0)) FROM UNNEST(f) AS e
            ),
            (SELECT PERCENTILE_CONT(f) WITHIN GROUP (ORDER BY NULLIF(n, 0)) FROM numbers)
        FROM arrays CROSS JOIN fractions
    """
    ((ours, theirs, nonzero, their_nonzero),) = db.execute(query, {"numbers": numbers, "fractions": fractions}).fetchall()
    assert ours == theirs
    assert nonzero == (their_nonzero or [None] * len(fractions))
