"""The sums and leaders are those of the raw rows at every instant, whoever writes beside whom; and nobody waits for them."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from conftest import ROOT, conninfo_of, pg_dump, psql, scalar
from psycopg import errors
from psycopg.conninfo import make_conninfo

import runner

Connection = psycopg.Connection[Any]
COUNTING = sorted(path for path in (ROOT / "migrations").glob("00*.sql") if "0009" <= path.name[:4] <= "0011")
FILES = [path for path in COUNTING if not path.name.endswith(".rollback.sql")]
LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
SNAPSHOT = ["REPEATABLE READ", "SERIALIZABLE"]
MAXIMUM = 2**31 - 1
QUARTER = timedelta(minutes=15)
START = datetime(2024, 3, 31, 1)

# The quarter of an hour is reckoned otherwise than the triggers do. A row for each that differs.
DIFFERENCES = """
WITH raw AS (
    SELECT
        COALESCE(
            DATE_TRUNC('hour', created_at) + FLOOR(EXTRACT(MINUTE FROM created_at) / 15) * INTERVAL '15 minutes', created_at
        ) AS quarter_hour,
        COUNT(*)::NUMERIC AS sessions, SUM(memories_used)::NUMERIC AS memories, SUM(session_duration_seconds)::NUMERIC AS seconds,
        SUM(message_count)::NUMERIC AS messages, SUM(tool_call_count)::NUMERIC AS tool_calls
    FROM alicia_session_stats
    GROUP BY 1
), summed AS (
    SELECT quarter_hour, SUM(sessions), SUM(memories), SUM(active_seconds), SUM(messages), SUM(tool_calls)
    FROM alicia_session_stats_quarter_hours
    GROUP BY 1
    HAVING (SUM(sessions), SUM(memories), SUM(active_seconds), SUM(messages), SUM(tool_calls)) <> (0, 0, 0, 0, 0)
)
SELECT 'raw' AS side, t::TEXT FROM (SELECT * FROM raw EXCEPT SELECT * FROM summed) AS t
UNION ALL
SELECT 'summed', t::TEXT FROM (SELECT * FROM summed EXCEPT SELECT * FROM raw) AS t
ORDER BY 2, 1
"""
# One statement, so one snapshot.
LEADERS = """
SELECT
    ARRAY(
        SELECT id
        FROM (
            SELECT DISTINCT message_count, created_at, id
            FROM alicia_session_stats INNER JOIN alicia_session_stats_leaders
                USING (message_count, created_at, id, conversation_id)
        ) AS l
        ORDER BY message_count DESC, created_at DESC, id DESC
        LIMIT %(limit)s
    ),
    ARRAY(SELECT id FROM alicia_session_stats ORDER BY message_count DESC, created_at DESC, id DESC LIMIT %(limit)s)
"""
ONE_MORE = (
    "UPDATE alicia_session_stats SET message_count = message_count + 1, tool_call_count = tool_call_count + 2 WHERE id = %s"
)


def differences(connection: Connection) -> list[Any]:
    return connection.execute(DIFFERENCES.encode()).fetchall()


def assert_exact(connection: Connection, leaders: int | None = 10) -> None:
    """The sums are those of the rows, and the view has at least so many leaders (or all); None: whatever there are."""
    assert differences(connection) == []
    ((found, raw),) = connection.execute(LEADERS.encode(), {"limit": leaders or 100000}).fetchall()
    assert found == (raw if leaders else raw[: len(found)])


def repair(connection: Connection) -> int:
    return int(scalar(connection, "SELECT SUM(corrections) FROM alicia_session_stats_repair()"))


def counters(connection: Connection) -> int:
    return scalar(connection, "SELECT COUNT(*) FROM alicia_session_stats_counters")


def candidates(connection: Connection) -> int:
    return scalar(connection, "SELECT COUNT(*) FROM alicia_session_stats_candidates")


def connect(db: Connection, level: str = "READ COMMITTED", **options: str) -> Connection:
    """One more connection to the same database, in autocommit mode."""
    connection = psycopg.connect(conninfo_of(db), autocommit=True)
    connection.execute(f"SET default_transaction_isolation = '{level.lower()}'".encode())
    for name, value in options.items():
        connection.execute(f"SET {name} = '{value}'".encode())
    return connection


def impatient(db: Connection, level: str = "READ COMMITTED") -> Connection:
    """A connection that fails where it waits."""
    return connect(db, level, lock_timeout="100ms", deadlock_timeout="10ms")


def load(db: Connection, rows: int, quarters: int = 4, messages: str = "n % 7", prefix: str = "ass_") -> None:
    """Sessions ass_1 to ass_n, in so many quarters of an hour by turns."""
    db.execute("INSERT INTO alicia_conversations SELECT 'ac_' || n FROM GENERATE_SERIES(1, 5) AS n ON CONFLICT DO NOTHING")
    db.execute(
        f"""INSERT INTO alicia_session_stats
            (id, conversation_id, message_count, tool_call_count, memories_used, session_duration_seconds, created_at)
        SELECT %s || n, 'ac_' || 1 + n %% 5, {messages.replace("%", "%%")}, n %% 3, n %% 5, n %% 1000,
            TIMESTAMP '2024-03-31 01:00' + n %% %s * INTERVAL '15 minutes' + n %% 900 * INTERVAL '1 second'
        FROM GENERATE_SERIES(1, %s) AS n""".encode(),
        [prefix, quarters, rows],
    )


def together(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run them all at once, each in a thread; the first error of any is raised."""
    gate = threading.Barrier(len(tasks))

    def run(task: Callable[[], Any]) -> Any:
        gate.wait(30)
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(run, task) for task in tasks]]


def until(what: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# Random histories ------------------------------------------------------------------------------------------

# What PostgreSQL may answer to these statements on the bare table too.
ORDINARY = (errors.SerializationFailure, errors.DeadlockDetected, errors.ForeignKeyViolation, errors.UniqueViolation)
COLUMNS = "id, conversation_id, message_count, tool_call_count, memories_used, session_duration_seconds, created_at"
SESSIONS, CONVERSATIONS = 24, 4


def some_id(chance: random.Random) -> str:
    return f"ass_{chance.randrange(SESSIONS):02}"


def some_time(chance: random.Random) -> datetime:
    return START + chance.randrange(3) * QUARTER + chance.choice([timedelta(0), QUARTER - timedelta(microseconds=1), QUARTER / 3])


def some_row(chance: random.Random) -> tuple[Any, ...]:
    amounts = [chance.choice([0, 1, 2, 3, 50]) for _ in range(4)]
    return some_id(chance), f"ac_{chance.randrange(CONVERSATIONS)}", *amounts, some_time(chance)


def values(rows: Sequence[tuple[Any, ...]]) -> tuple[str, list[Any]]:
    return ", ".join([f"({', '.join(['%s'] * 7)})"] * len(rows)), [value for row in rows for value in row]


def insert_rows(connection: Connection, chance: random.Random) -> None:
    marks, bound = values([(f"{row[0]}_{chance.random()}", *row[1:]) for row in [some_row(chance)] * chance.choice([1, 1, 5])])
    connection.execute(f"INSERT INTO alicia_session_stats ({COLUMNS}) VALUES {marks}".encode(), bound)


def insert_or(action: str, connection: Connection, chance: random.Random) -> None:
    rows = {row[0]: row for row in (some_row(chance) for _ in range(chance.choice([1, 4])))}
    marks, bound = values([rows[name] for name in sorted(rows)])
    connection.execute(f"INSERT INTO alicia_session_stats ({COLUMNS}) VALUES {marks} ON CONFLICT (id) {action}".encode(), bound)


def update(assignment: str, connection: Connection, chance: random.Random) -> None:
    bound = {"when": some_time(chance), "conversation": f"ac_{chance.randrange(CONVERSATIONS)}", "id": some_id(chance)}
    several = chance.random() < 0.3
    condition = "id < %(id)s" if several else "id = %(id)s"
    connection.execute(f"UPDATE alicia_session_stats SET {assignment} WHERE {condition}".encode(), bound)


def delete(connection: Connection, chance: random.Random) -> None:
    condition = chance.choice(["id = %s", "id = %s", "id = %s OR id ~ '_0\\.'"])
    connection.execute(f"DELETE FROM alicia_session_stats WHERE {condition}".encode(), [some_id(chance)])


def delete_conversation(connection: Connection, chance: random.Random) -> None:
    conversation = f"ac_{chance.randrange(CONVERSATIONS)}"
    connection.execute("DELETE FROM alicia_conversations WHERE id = %s", [conversation])
    connection.execute("INSERT INTO alicia_conversations VALUES (%s) ON CONFLICT DO NOTHING", [conversation])


def merge(connection: Connection, chance: random.Random) -> None:
    marks, bound = values([some_row(chance)])
    connection.execute(
        f"""MERGE INTO alicia_session_stats AS s USING (VALUES {marks}) AS v ({COLUMNS}) ON s.id = v.id
        WHEN MATCHED AND s.message_count > 40 THEN DELETE
        WHEN MATCHED THEN UPDATE SET message_count = s.message_count + v.message_count
        WHEN NOT MATCHED THEN INSERT ({COLUMNS})
            VALUES (v.id, v.conversation_id, v.message_count, v.tool_call_count, v.memories_used, 7, v.created_at)""".encode(),
        bound,
    )


def copy(connection: Connection, chance: random.Random) -> None:
    with connection.cursor() as cursor, cursor.copy(f"COPY alicia_session_stats ({COLUMNS}) FROM STDIN".encode()) as lines:
        for _ in range(3):
            name, *rest = some_row(chance)
            lines.write_row((f"{name}_{chance.random()}", *rest))


def savepoint(connection: Connection, chance: random.Random) -> None:
    connection.execute("SAVEPOINT here")
    chance.choice(STATEMENTS[:-1])(connection, chance)
    connection.execute(chance.choice([b"ROLLBACK TO here", b"ROLLBACK TO here", b"RELEASE here"]))


STATEMENTS: list[Callable[[Connection, random.Random], None]] = [
    insert_rows,
    partial(insert_or, "DO NOTHING"),
    partial(insert_or, "DO UPDATE SET tool_call_count = alicia_session_stats.tool_call_count + EXCLUDED.message_count"),
    partial(update, "message_count = message_count + 1"),
    partial(update, "tool_call_count = 5, memories_used = memories_used + 1, session_duration_seconds = 9"),
    partial(update, "message_count = message_count / 2, created_at = created_at + INTERVAL '1 second'"),
    partial(update, "created_at = %(when)s"),
    partial(update, "conversation_id = %(conversation)s"),
    partial(update, "id = id || '_', message_count = 0"),
    partial(update, "updated_at = NOW()"),
    delete,
    delete_conversation,
    merge,
    copy,
    savepoint,
    savepoint,
]


def write_history(db: Connection, seed: int, transactions: int) -> int:
    """Random transactions; returns how many were committed. In a third, the writer compares after every statement."""
    chance, committed = random.Random(seed), 0
    with closing(connect(db, deadlock_timeout="10ms")) as connection:
        for _ in range(transactions):
            looks = chance.random() < 0.3
            try:
                connection.execute(f"BEGIN ISOLATION LEVEL {chance.choice(LEVELS)}".encode())
                for _ in range(chance.randint(1, 5)):
                    chance.choice(STATEMENTS)(connection, chance)
                    if looks:
                        assert_exact(connection)
                connection.execute(chance.choice([b"COMMIT", b"COMMIT", b"COMMIT", b"ROLLBACK"]))
                committed += 1
            except ORDINARY:
                connection.rollback()
    return committed


def watch(db: Connection, stop: threading.Event) -> int:
    looked = 0
    with closing(connect(db, "REPEATABLE READ")) as connection:
        while not stop.is_set() or looked < 3:
            with connection.transaction():
                assert_exact(connection)
                assert_exact(connection)
            looked += 1
            time.sleep(0.02)
    return looked


@pytest.mark.parametrize("seed", [1, 2])
def test_any_history_of_concurrent_writers_leaves_the_exact_sums_and_leaders_at_every_instant(db: Connection, seed: int) -> None:
    db.execute("INSERT INTO alicia_conversations SELECT 'ac_' || n FROM GENERATE_SERIES(0, %s) AS n", [CONVERSATIONS - 1])
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        watching = pool.submit(watch, db, stop)
        try:
            committed = together([partial(write_history, db, 100 * seed + number, 40) for number in range(4)])
        finally:
            stop.set()
        assert watching.result() >= 3
    assert min(committed) > 10
    assert_exact(db)
    assert repair(db) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_the_history_of_a_single_writer_is_exact_after_each_statement(db: Connection, level: str) -> None:
    db.execute("INSERT INTO alicia_conversations SELECT 'ac_' || n FROM GENERATE_SERIES(0, %s) AS n", [CONVERSATIONS - 1])
    chance = random.Random(7)
    with closing(connect(db, level)) as writer:
        for statement in 4 * STATEMENTS:
            try:
                with writer.transaction():
                    statement(writer, chance)
                    assert_exact(writer)
            except errors.UniqueViolation:
                continue
            assert_exact(db)
    assert repair(db) == 0


# Statements of many rows, and the edges --------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_statements_of_many_rows_are_exact(db: Connection, level: str) -> None:
    with closing(connect(db, level)) as writer:
        load(writer, 5000, quarters=200)
        assert_exact(db, 500)
        for statement in (
            "UPDATE alicia_session_stats SET message_count = message_count * 2 + 1, memories_used = 3",
            "UPDATE alicia_session_stats SET created_at = created_at + INTERVAL '20 minutes' WHERE id LIKE '%1'",
            "DELETE FROM alicia_session_stats WHERE id LIKE '%2'",
            "DELETE FROM alicia_conversations WHERE id = 'ac_3'",
        ):
            writer.execute(statement.encode())
            assert_exact(db)
        writer.execute("DELETE FROM alicia_session_stats")
        assert_exact(db)
    assert repair(db) == 0


def test_an_update_of_thousands_in_one_quarter_of_an_hour_does_not_read_the_sums_of_all_before_it(db: Connection) -> None:
    """Each change leaves a version of the counters' row behind, which none can clean before the transaction ends."""
    load(db, 12000, quarters=1)
    read = "SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables WHERE relname = 'alicia_session_stats_counters'"
    db.execute("SELECT pg_stat_force_next_flush()")
    before = scalar(db, read)
    db.execute("UPDATE alicia_session_stats SET tool_call_count = tool_call_count + 1")
    db.execute("SELECT pg_stat_force_next_flush()")
    assert scalar(db, read) - before < 55 * 12000
    assert_exact(db)


TRUNCATES = [
    "TRUNCATE alicia_session_stats",
    "TRUNCATE alicia_session_stats RESTART IDENTITY",
    "TRUNCATE alicia_conversations CASCADE",
]


@pytest.mark.parametrize("level", LEVELS)
def test_truncate_empties_and_its_rollback_does_not(db: Connection, level: str) -> None:
    for statement in TRUNCATES:
        truncates_exactly(db, statement, level)


def truncates_exactly(db: Connection, statement: str, level: str) -> None:
    load(db, 1500, messages="n")
    with closing(connect(db, level)) as writer:
        with writer.transaction(force_rollback=True):
            writer.execute(statement.encode())
            assert_exact(writer)
            assert (counters(writer), candidates(writer)) == (0, 0)
            load(writer, 3)
            assert_exact(writer)
        assert_exact(db)
        assert scalar(db, "SELECT SUM(sessions) FROM alicia_session_stats_quarter_hours") == 1500
        writer.execute(statement.encode())
        assert (counters(db), candidates(db)) == (0, 0)
        load(writer, 3)
        assert_exact(db)
        assert repair(db) == 0
        writer.execute("DELETE FROM alicia_session_stats")


@pytest.mark.parametrize("level", SNAPSHOT)
def test_truncate_of_an_old_snapshot_empties_what_others_have_committed_since(db: Connection, level: str) -> None:
    load(db, 10)
    with closing(connect(db, level)) as writer:
        with writer.transaction():
            writer.execute("SELECT FROM alicia_conversations")
            db.execute(ONE_MORE, ["ass_1"])
            db.execute("INSERT INTO alicia_session_stats (conversation_id, created_at) VALUES ('ac_1', '2020-01-01')")
            writer.execute("TRUNCATE alicia_session_stats")
        assert_exact(db)
        load(writer, 3)
    assert_exact(db)
    assert repair(db) == 0


EDGES = {
    "infinity": "infinity",
    "-infinity": "-infinity",
    "the first day": "4714-11-24 00:00:00 BC",
    "the last day": "294276-12-31 23:59:59.999999",
    "year 1": "0001-01-01 00:00:00",
    "on a quarter": "2024-01-01 00:15:00",
    "a microsecond before": "2024-01-01 00:14:59.999999",
    "before 2000, on a quarter": "1999-12-31 23:45:00",
    "before 2000, a microsecond before": "1999-12-31 23:44:59.999999",
    "2000": "2000-01-01 00:00:00",
}


@pytest.mark.parametrize("level", LEVELS)
def test_any_time_and_any_count_that_a_session_may_have_is_summed(db: Connection, level: str) -> None:
    for name, when in EDGES.items():
        print(name)
        sums_exactly(db, when, level)


def sums_exactly(db: Connection, when: str, level: str) -> None:
    load(db, 3)
    with closing(connect(db, level)) as writer:
        writer.execute(
            "INSERT INTO alicia_session_stats SELECT 'edge_' || n, 'ac_1', %s, %s, %s, %s, %s FROM GENERATE_SERIES(1, 5) AS n",
            [MAXIMUM] * 4 + [when],
        )
        assert_exact(db)
        assert (
            scalar(
                db,
                "SELECT MAX(m) FROM (SELECT SUM(messages) AS m FROM alicia_session_stats_quarter_hours "
                "GROUP BY quarter_hour) AS s",
            )
            == 5 * MAXIMUM
        )
        writer.execute("UPDATE alicia_session_stats SET message_count = 0, tool_call_count = 0 WHERE id = 'edge_1'")
        assert_exact(db)
        writer.execute("UPDATE alicia_session_stats SET message_count = %s, memories_used = 0 WHERE id = 'edge_1'", [MAXIMUM])
        assert_exact(db)
        writer.execute("UPDATE alicia_session_stats SET created_at = %s WHERE id = 'ass_2'", [when])
        writer.execute("UPDATE alicia_session_stats SET created_at = '2024-05-05' WHERE id = 'edge_2'")
        assert_exact(db)
        writer.execute("DELETE FROM alicia_session_stats WHERE id LIKE 'edge%'")
        assert_exact(db)
        assert repair(db) == 0
        writer.execute("DELETE FROM alicia_session_stats")


# Never waiting ---------------------------------------------------------------------------------------------

MESSAGES = {"low": "n % 7", "leading": "1000000 + n"}


@pytest.mark.parametrize("level", LEVELS[:2])
@pytest.mark.parametrize("messages", MESSAGES.values(), ids=MESSAGES)
def test_nobody_waits_for_an_open_transaction_in_the_same_quarters_of_an_hour(db: Connection, messages: str, level: str) -> None:
    load(db, 40, messages=messages)
    first, second = ["ass_1", "ass_2", "ass_3", "ass_4"], ["ass_8", "ass_7", "ass_6", "ass_5"]
    with ExitStack() as stack:
        a, b, c = (stack.enter_context(closing(impatient(db, level))) for _ in range(3))
        with a.transaction():
            a.execute("SELECT FROM alicia_conversations")
            with b.transaction():
                for mine, others in zip(first, second, strict=True):
                    a.execute(ONE_MORE, [mine])
                    b.execute(ONE_MORE, [others])
                    load(a, 1, prefix=f"a_{mine}")
                    load(b, 1, prefix=f"b_{mine}")
                    a.execute("DELETE FROM alicia_session_stats WHERE id = %s", [f"ass_1{mine[-1]}"])
                    b.execute("DELETE FROM alicia_session_stats WHERE id = %s", [f"ass_2{mine[-1]}"])
                    c.execute("UPDATE alicia_session_stats SET created_at = %s WHERE id = %s", [START, f"ass_3{mine[-1]}"])
                    assert_exact(db)
            assert_exact(db)
    assert_exact(db)
    assert repair(db) == 0


def raises_no_40001(db: Connection, statement: str, level: str) -> list[str]:
    """Two transactions, each open while the other writes sessions that only it writes; the errors of twenty such pairs."""
    failed = []
    with closing(impatient(db, level)) as a, closing(impatient(db, level)) as b:
        for turn in range(20):
            try:
                for each in (a, b):
                    each.execute("BEGIN")
                for number, each in enumerate((a, b, a, b)):
                    each.execute(statement.encode(), {"id": f"ass_{1 + number % 2 + 2 * (turn % 10)}", "n": turn})
                for each in (a, b):
                    each.execute("COMMIT")
            except psycopg.Error as error:
                failed.append(str(error))
                for each in (a, b):
                    each.rollback()
    return failed


DISJOINT = {
    "counters": "UPDATE alicia_session_stats SET tool_call_count = tool_call_count + 1 WHERE id = %(id)s",
    "leaders": "UPDATE alicia_session_stats SET message_count = message_count + 1 WHERE id = %(id)s",
    "insert": "INSERT INTO alicia_session_stats (conversation_id, message_count, created_at) VALUES ('ac_1', %(n)s, '2020-1-1')",
    "move": "UPDATE alicia_session_stats SET created_at = created_at + INTERVAL '17 minutes' WHERE id = %(id)s",
}


# Serializable transactions read the one floor, and now and then one more of them is retried.
@pytest.mark.parametrize("level", ["REPEATABLE READ"])
@pytest.mark.parametrize("name", DISJOINT)
def test_a_snapshot_transaction_fails_only_where_the_bare_table_makes_it_fail(db: Connection, name: str, level: str) -> None:
    load(db, 40)
    db.execute("ALTER TABLE alicia_session_stats DISABLE TRIGGER USER")
    bare = raises_no_40001(db, DISJOINT[name], level)
    repair(db)
    db.execute("ALTER TABLE alicia_session_stats ENABLE TRIGGER USER")
    assert_exact(db) if not bare else repair(db)
    counted = raises_no_40001(db, DISJOINT[name], level)
    assert_exact(db)
    assert counted[: len(counted) - len(bare)] == []


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("messages", MESSAGES.values(), ids=MESSAGES)
def test_eight_writers_in_opposite_orders_never_wait_nor_fail(db: Connection, messages: str, level: str) -> None:
    load(db, 64, messages=messages)

    def write(number: int) -> None:
        mine = [f"ass_{session}" for session in range(1, 65) if session // 4 % 8 == number]
        chance = random.Random(number)
        with closing(impatient(db, level)) as connection:
            for _ in range(12):
                with connection.transaction():
                    for session in chance.sample(mine, 6):
                        connection.execute(ONE_MORE, [session])

    before = scalar(db, "SELECT SUM(messages) FROM alicia_session_stats_quarter_hours")
    together([partial(write, number) for number in range(8)])
    assert scalar(db, "SELECT SUM(messages) FROM alicia_session_stats_quarter_hours") == before + 8 * 12 * 6
    assert_exact(db)
    assert repair(db) == 0


def test_deleting_batches_and_updating_do_not_wait_for_each_other(db: Connection) -> None:
    load(db, 400, quarters=1)
    db.execute(
        "UPDATE alicia_session_stats SET created_at = TIMESTAMP '2024-03-31' + SUBSTR(id, 5)::INTEGER * INTERVAL '1 second'"
    )
    statement = runner.named_queries()["delete_sessions_before"].statement.encode()
    young = [f"ass_{number}" for number in range(301, 401)]
    db.execute(
        "UPDATE alicia_session_stats SET updated_at = NOW(), created_at = NOW() AT TIME ZONE 'UTC' WHERE id = ANY(%s)", [young]
    )
    deleted = 0
    with closing(impatient(db)) as deleter, closing(impatient(db)) as writer:
        for turn in range(6):
            with deleter.transaction(), writer.transaction():
                deleted += deleter.execute(statement, {"days": "7", "batch": "40"}).fetchall()[0][0]
                for session in [*young[turn::10], f"ass_{300 - turn}"]:
                    writer.execute(ONE_MORE, [session])
            with writer.transaction(), deleter.transaction():
                writer.execute(ONE_MORE, [f"ass_{300 - turn}"])
                deleted += deleter.execute(statement, {"days": "7", "batch": "5"}).fetchall()[0][0]
            assert_exact(db)
    assert deleted == 6 * 45
    assert_exact(db)
    assert repair(db) == 0


# Staying small ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
def test_thousands_of_concurrent_updates_leave_a_row_or_so_for_each_writer(db: Connection, level: str) -> None:
    load(db, 40, quarters=1)

    def write(number: int) -> None:
        with closing(connect(db, level)) as connection:
            for turn in range(500):
                connection.execute(ONE_MORE, [f"ass_{1 + number + 4 * (turn % 10)}"])

    together([partial(write, number) for number in range(4)])
    assert_exact(db)
    assert counters(db) <= 6
    for turn in range(200):
        db.execute(ONE_MORE, [f"ass_{1 + turn % 40}"])
    assert counters(db) == 1
    assert_exact(db)


@pytest.mark.parametrize("level", LEVELS)
def test_a_single_writer_leaves_one_row_for_a_quarter_of_an_hour_and_none_for_an_empty_one(db: Connection, level: str) -> None:
    with closing(connect(db, level)) as writer:
        load(writer, 20, quarters=2)
        for turn in range(300):
            writer.execute(ONE_MORE, [f"ass_{1 + turn % 20}"])
        assert_exact(db)
        assert counters(db) <= 2 * (1 if level == "READ COMMITTED" else 20)
        writer.execute("DELETE FROM alicia_session_stats")
    assert_exact(db)
    assert counters(db) <= (0 if level == "READ COMMITTED" else 40)


def test_what_concurrent_writers_leave_of_an_emptied_quarter_of_an_hour_sums_to_zero(db: Connection) -> None:
    load(db, 400, quarters=2)

    def write(number: int) -> None:
        with closing(connect(db)) as connection:
            for session in range(1 + number, 401, 4):
                connection.execute("DELETE FROM alicia_session_stats WHERE id = %s", [f"ass_{session}"])

    together([partial(write, number) for number in range(4)])
    assert_exact(db)
    assert counters(db) <= 2 * 6


def test_a_bulk_update_leaves_a_few_rows_for_each_quarter_of_an_hour(db: Connection) -> None:
    """Those of long ago, which nobody will write to, too."""
    load(db, 3000, quarters=100)
    for _ in range(2):
        db.execute("UPDATE alicia_session_stats SET tool_call_count = tool_call_count + 1")
    assert_exact(db)
    assert counters(db) <= 3 * 100


@pytest.mark.parametrize("batch", [100, 999, 1000, 5000])
def test_candidates_stay_few_however_many_are_inserted(db: Connection, batch: int) -> None:
    for number in range(20000 // batch):
        load(db, batch, messages=f"n + {number * batch}", prefix=f"ass_{number}_")
    assert_exact(db, 900)
    assert candidates(db) <= 2500


def test_candidates_stay_few_however_often_leaders_change(db: Connection) -> None:
    load(db, 1500, messages="n")
    for _ in range(5):
        db.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
    assert_exact(db, 900)
    assert candidates(db) <= 2500


@pytest.mark.parametrize("others", [False, True])
def test_a_transaction_takes_few_locks_however_many_quarters_of_an_hour_it_touches(db: Connection, others: bool) -> None:
    taken = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = PG_BACKEND_PID()"
    load(db, 1, prefix="first_")
    with ExitStack() as stack:
        if others:
            other = stack.enter_context(closing(connect(db)))
            stack.enter_context(other.transaction())
            load(other, 2000, quarters=2000, prefix="other_")
        with db.transaction():
            load(db, 2000, quarters=2000)
            db.execute("UPDATE alicia_session_stats SET tool_call_count = 77")
            assert 200 <= scalar(db, taken) <= 260
    assert_exact(db)


# Leaders ---------------------------------------------------------------------------------------------------


def most_active(db: Connection, limit: int) -> tuple[list[Any], list[Any]]:
    """What the query says, and what the rows say."""
    rows = runner.query(conninfo_of(db), "most_active_sessions", limit=limit)
    raw = db.execute(
        "SELECT conversation_id, message_count, tool_call_count FROM alicia_session_stats "
        "ORDER BY message_count DESC, created_at DESC, id DESC LIMIT %s",
        [limit],
    ).fetchall()
    return [tuple(row.values())[:3] for row in rows], raw


@pytest.mark.parametrize("remain", [0, 5, 400])
def test_when_most_leaders_are_deleted_the_query_is_exact_and_repair_makes_new_ones(db: Connection, remain: int) -> None:
    load(db, 4000, messages="n")
    assert scalar(db, "SELECT message_count FROM alicia_session_stats_floor") > 2000
    db.execute(
        "DELETE FROM alicia_session_stats WHERE message_count > (SELECT message_count + %s FROM alicia_session_stats_floor)",
        [remain - 1],
    )
    for limit in (1, 10, 500, 3000):
        said, raw = most_active(db, limit)
        assert said == raw
    assert_exact(db, None)
    repair(db)
    assert_exact(db, 1000)
    assert repair(db) == 0
    db.execute("DELETE FROM alicia_session_stats WHERE message_count > 600")
    repair(db)
    assert_exact(db, 600)


def test_between_equals_the_newest_leads_and_then_the_greatest_id(db: Connection) -> None:
    load(db, 3000, quarters=1, messages="5")
    db.execute("UPDATE alicia_session_stats SET created_at = '2024-03-31' WHERE id LIKE '%7'")
    assert_exact(db, 800)
    said, raw = most_active(db, 20)
    assert said == raw
    db.execute("UPDATE alicia_session_stats SET created_at = '2025-01-01', message_count = 5 WHERE id = 'ass_17'")
    ((found, _),) = db.execute(LEADERS.encode(), {"limit": 1}).fetchall()
    assert found == ["ass_17"]
    assert_exact(db, 800)


@pytest.mark.parametrize("level", LEVELS)
def test_a_session_that_changes_its_conversation_still_leads(db: Connection, level: str) -> None:
    load(db, 20, messages="n")
    with closing(connect(db, level)) as writer:
        writer.execute("UPDATE alicia_session_stats SET conversation_id = 'ac_5' WHERE id = 'ass_20'")
        assert_exact(db)
        writer.execute("UPDATE alicia_session_stats SET conversation_id = 'ac_4'")
        assert_exact(db)
    assert repair(db) == 0


def test_a_deleted_session_that_comes_back_in_another_conversation_leads(db: Connection) -> None:
    """The candidate of the deleted one is still there, and may be found before or after the new one."""
    load(db, 300, messages="1")
    load(db, 1, messages="50", prefix="top_")
    db.execute(ONE_MORE.replace("id = %s", "id LIKE %s").encode(), ["ass_%"])
    db.execute("DELETE FROM alicia_session_stats WHERE id = 'top_1'")
    db.execute("VACUUM alicia_session_stats_candidates")  # Room for the new one before the old one.
    db.execute(
        "INSERT INTO alicia_session_stats (id, conversation_id, message_count, created_at) "
        "SELECT id, 'ac_5', message_count, created_at FROM alicia_session_stats_candidates WHERE id = 'top_1'"
    )
    assert_exact(db)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
def test_the_floor_is_never_wrong_after_concurrent_trims(db: Connection, level: str) -> None:
    load(db, 1500, messages="n % 40")

    def write(number: int) -> None:
        chance = random.Random(number)
        with closing(connect(db, level)) as connection:
            for turn in range(8):
                load(connection, 700, messages=f"(n * 7919 + {chance.randrange(1000)}) % 60", prefix=f"w{number}_{turn}_")
                connection.execute(
                    "UPDATE alicia_session_stats SET message_count = message_count + 3, "
                    "created_at = created_at - INTERVAL '1 day' WHERE id LIKE %s",
                    [f"w{number}_{turn}_%7"],
                )
                connection.execute("DELETE FROM alicia_session_stats WHERE id LIKE %s AND message_count > 50", [f"w{number}_%3"])
                assert_exact(connection, None)

    together([partial(write, number) for number in range(4)])
    assert_exact(db, None)
    assert_exact(db, 10)


# Drift and repair ------------------------------------------------------------------------------------------

UNSEEN = "SET session_replication_role = replica; {}; SET session_replication_role = origin"
DRIFTS = {
    "a sum changed": "UPDATE alicia_session_stats_counters SET messages = messages + 1",
    "a sum deleted": "DELETE FROM alicia_session_stats_counters WHERE quarter_hour = '2024-03-31 01:15'",
    "all sums deleted": "DELETE FROM alicia_session_stats_counters",
    "sums there twice": "INSERT INTO alicia_session_stats_counters SELECT quarter_hour, NULL, floor, sessions, memories, "
    "active_seconds, messages, tool_calls FROM alicia_session_stats_counters",
    "sums of nothing": "INSERT INTO alicia_session_stats_counters VALUES ('2020-01-01', 0, NULL, 1, 1, 1, 1, 1)",
    "unseen inserts": UNSEEN.format(
        "INSERT INTO alicia_session_stats (conversation_id, message_count, created_at) VALUES ('ac_1', 9999, '2020-01-01')"
    ),
    "unseen updates": UNSEEN.format(
        "UPDATE alicia_session_stats SET message_count = message_count * 2 WHERE message_count > 1400"
    ),
    "unseen deletes": UNSEEN.format("DELETE FROM alicia_session_stats WHERE id LIKE '%3'"),
    "candidates deleted": "DELETE FROM alicia_session_stats_candidates",
    "a few candidates deleted": "DELETE FROM alicia_session_stats_candidates WHERE message_count > 1490",
    "candidates and sums deleted": "DELETE FROM alicia_session_stats_candidates; DELETE FROM alicia_session_stats_counters",
    "floor deleted": "DELETE FROM alicia_session_stats_floor",
}


@pytest.mark.parametrize("drift", DRIFTS.values(), ids=DRIFTS)
def test_repair_tells_of_drift_and_mends_it_for_good(db: Connection, drift: str) -> None:
    load(db, 1500, messages="n")
    assert repair(db) == 0
    db.execute(drift.encode())
    assert repair(db) > 0
    assert_exact(db, 800)
    assert repair(db) == 0
    for turn in range(40):
        db.execute(ONE_MORE, [f"ass_{101 + 10 * turn}"])
    load(db, 10, prefix="more_")
    assert_exact(db, 800)
    assert repair(db) == 0


def test_a_session_above_the_floor_leads_also_after_repair_has_lowered_it(db: Connection) -> None:
    load(db, 3000, messages="n")
    (floor,) = db.execute("SELECT message_count FROM alicia_session_stats_floor").fetchall()
    for number in range(1, 9):
        db.execute(ONE_MORE, [f"ass_{number}"])
    assert db.execute("SELECT DISTINCT floor FROM alicia_session_stats_counters").fetchall() == [floor]
    db.execute("DELETE FROM alicia_session_stats WHERE message_count > 2100")
    assert_exact(db, 100)
    assert repair(db) > 0
    assert floor[0] > 2000
    db.execute("UPDATE alicia_session_stats SET message_count = 1999 WHERE id = 'ass_200'")
    assert_exact(db, 1000)


def test_repair_gathers_what_a_change_of_many_sessions_left(db: Connection) -> None:
    load(db, 6000, quarters=4)
    db.execute("UPDATE alicia_session_stats SET tool_call_count = tool_call_count + 1")
    assert counters(db) > 1000
    assert repair(db) == 0
    assert counters(db) == 4
    assert_exact(db)


def test_verify_tells_of_too_few_leaders_and_repair_finds_more(db: Connection) -> None:
    load(db, 3000, messages="n")
    assert runner.verify(conninfo_of(db)) == []
    db.execute("DELETE FROM alicia_session_stats WHERE message_count > 2300")
    (row,) = runner.verify(conninfo_of(db))
    assert (row["object"], row["found"]) == ("leaders", "300 are left")
    db.execute(row["mend"].encode())
    assert runner.verify(conninfo_of(db)) == []
    assert_exact(db, 1000)


def test_a_session_that_a_snapshot_from_before_truncate_writes_leads(db: Connection) -> None:
    load(db, 20)
    with closing(connect(db, "REPEATABLE READ")) as old:
        old.execute("BEGIN")
        old.execute("SELECT 1 FROM alicia_conversations")
        db.execute("TRUNCATE alicia_session_stats")
        load(db, 20, prefix="new_")
        old.execute("INSERT INTO alicia_session_stats (id, conversation_id) VALUES ('late', 'ac_1')")
        old.execute("UPDATE alicia_session_stats SET message_count = 5000 WHERE id = 'late'")
        old.execute("COMMIT")
    assert_exact(db)


def test_there_is_one_floor(db: Connection) -> None:
    with pytest.raises(errors.UniqueViolation):
        db.execute("INSERT INTO alicia_session_stats_floor SELECT * FROM alicia_session_stats_floor")


def test_without_a_floor_the_sums_are_exact_until_repair_brings_it_back(db: Connection) -> None:
    load(db, 20)
    db.execute("DELETE FROM alicia_session_stats_floor")
    for turn in range(3):
        load(db, 5, prefix=f"more_{turn}_")
        db.execute(ONE_MORE, ["ass_1"])
        db.execute(ONE_MORE, ["ass_2"])
    assert differences(db) == []
    assert repair(db) > 0
    assert_exact(db)


def test_repair_beside_writers_loses_nothing(db: Connection) -> None:
    load(db, 400, messages="n")
    stop = threading.Event()

    def write(number: int) -> int:
        chance, written = random.Random(number), 0
        with closing(connect(db)) as connection:
            while not stop.is_set():
                with connection.transaction():
                    for _ in range(3):
                        connection.execute(ONE_MORE, [f"ass_{4 * chance.randrange(100) + number}"])
                    load(connection, 2, prefix=f"new_{number}_{written}_")
                written += 1
        return written

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, number) for number in range(1, 5)]
        try:
            corrections = [repair(db) for _ in range(15)]
            db.execute("UPDATE alicia_session_stats_counters SET tool_calls = 5 WHERE slot > 5 OR quarter_hour < '2000-01-01'")
            db.execute("INSERT INTO alicia_session_stats_counters VALUES ('2024-03-31 01:00', NULL, NULL, 1, 1, 1, 1, 1)")
            mended = repair(db)
        finally:
            stop.set()
        assert min(writer.result() for writer in writers) > 3
    assert set(corrections) == {0}
    assert mended >= 1
    assert_exact(db)
    assert repair(db) == 0


@pytest.mark.parametrize("level", SNAPSHOT)
def test_repair_in_an_old_snapshot_makes_nothing_worse(db: Connection, level: str) -> None:
    load(db, 3000, messages="n")
    db.execute(DRIFTS["unseen inserts"].encode())
    db.execute("DELETE FROM alicia_session_stats WHERE message_count > 1500")
    with closing(connect(db, level)) as old, old.transaction():
        old.execute("SELECT FROM alicia_conversations")
        db.execute("INSERT INTO alicia_session_stats (conversation_id, created_at) VALUES ('ac_1', '2020-01-01')")
        db.execute("INSERT INTO alicia_session_stats (conversation_id, message_count) VALUES ('ac_1', 1900)")
        try:
            with old.transaction():
                repair(old)
        except psycopg.Error as refused:
            print(f"refused: {refused}")
    assert_exact(db, None)
    db.execute("UPDATE alicia_session_stats SET tool_call_count = 3 WHERE created_at < '2021-01-01'")
    repair(db)
    assert_exact(db, 1000)


def test_repair_with_all_candidates_gone_locks_no_writer_out(db: Connection) -> None:
    load(db, 1500, messages="n")
    db.execute("DELETE FROM alicia_session_stats_candidates")
    with closing(impatient(db)) as writer, db.transaction():
        assert repair(db) == 1000
        writer.execute(ONE_MORE, ["ass_1"])
    assert_exact(db, 1000)


# Rights ----------------------------------------------------------------------------------------------------

FORBIDDEN = [
    "SELECT FROM alicia_session_stats_counters",
    "SELECT FROM alicia_session_stats_candidates",
    "SELECT FROM alicia_session_stats_floor",
    "INSERT INTO alicia_session_stats_counters VALUES (NOW(), 0, 0, 0, 0, 0, 0, 0)",
    "UPDATE alicia_session_stats_counters SET sessions = 0",
    "DELETE FROM alicia_session_stats_candidates",
    "UPDATE alicia_session_stats_floor SET message_count = 0",
    "DELETE FROM alicia_session_stats_quarter_hours",
    "SELECT alicia_session_stats_repair()",
    "SELECT alicia_session_stats_trim()",
    "SELECT alicia_session_stats_count(NOW()::TIMESTAMP, 1, 1, 1, 1, 1, TRUE)",
    "CREATE TRIGGER mine AFTER TRUNCATE ON mine.mine FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_emptied()",
    "CREATE TRIGGER mine AFTER UPDATE ON mine.mine FOR EACH ROW EXECUTE FUNCTION alicia_session_stats_updated()",
    "CREATE TRIGGER mine AFTER INSERT ON mine.mine REFERENCING NEW TABLE AS new_rows "
    "FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_inserted()",
    "CREATE TRIGGER mine AFTER DELETE ON mine.mine REFERENCING OLD TABLE AS old_rows "
    "FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_deleted()",
]


def test_a_writer_needs_no_right_on_the_sums_and_gets_none(bare: Connection, login: Callable[..., Connection]) -> None:
    runner.migrate(conninfo_of(bare))
    writer = login("counters_writer", "GRANT SELECT, INSERT, UPDATE, DELETE ON alicia_session_stats, alicia_conversations TO")
    bare.execute("CREATE SCHEMA mine AUTHORIZATION counters_writer")
    writer.execute("CREATE TABLE mine.mine AS SELECT * FROM alicia_session_stats")
    load(writer, 2500, quarters=50, messages="n")
    for statement in (
        ONE_MORE.replace("%s", "'ass_2500'"),
        "UPDATE alicia_session_stats SET memories_used = 4, created_at = created_at + INTERVAL '1 hour'",
        "DELETE FROM alicia_session_stats WHERE id LIKE '%1'",
        "DELETE FROM alicia_conversations WHERE id = 'ac_3'",
    ):
        writer.execute(statement.encode())
        assert_exact(bare)
    for statement in FORBIDDEN:
        with pytest.raises(errors.InsufficientPrivilege):
            writer.execute(statement.encode())
    # Nothing of the writer's stands in for what the triggers call.
    writer.execute("SET search_path = mine, public")
    writer.execute("CREATE TABLE mine.alicia_session_stats_counters AS SELECT 1 AS sessions")
    writer.execute("CREATE TEMPORARY TABLE alicia_session_stats_floor AS SELECT 1 AS message_count")
    writer.execute("CREATE FUNCTION mine.date_bin(TEXT, TIMESTAMP, TEXT) RETURNS TIMESTAMP LANGUAGE sql RETURN NOW()")
    writer.execute("UPDATE public.alicia_session_stats SET tool_call_count = 1, created_at = created_at + INTERVAL '1 hour'")
    assert_exact(bare)
    assert repair(bare) == 0


def test_who_could_read_the_sessions_reads_the_sums_and_leaders(bare: Connection, login: Callable[..., Connection]) -> None:
    runner.migrate(conninfo_of(bare))
    runner.rollback(conninfo_of(bare), steps=3)
    load(bare, 30)
    reader = login("Counters' reader", "GRANT SELECT ON alicia_session_stats TO")
    stranger = login("counters_stranger", "GRANT INSERT ON alicia_session_stats TO")
    runner.migrate(conninfo_of(bare))
    assert_exact(reader)
    for view in ("alicia_session_stats_quarter_hours", "alicia_session_stats_leaders"):
        with pytest.raises(errors.InsufficientPrivilege):
            stranger.execute(f"SELECT FROM {view}".encode())
    for statement in FORBIDDEN[:3]:
        with pytest.raises(errors.InsufficientPrivilege):
            reader.execute(statement.encode())
    runner.rollback(conninfo_of(bare), steps=3)
    bare.execute("GRANT SELECT ON alicia_session_stats TO PUBLIC")
    runner.migrate(conninfo_of(bare))
    assert_exact(reader)
    assert scalar(stranger, "SELECT COUNT(*) > 0 FROM alicia_session_stats_leaders")


# Installing on a live table, and taking it back ------------------------------------------------------------


@pytest.fixture
def before(db: Connection) -> Connection:
    """A database with sessions, and without what counts them."""
    runner.rollback(conninfo_of(db), steps=3)
    load(db, 2500, quarters=300, messages="n")
    return db


def hammer(db: Connection, stop: threading.Event, number: int) -> list[float]:
    """Write on a fixed schedule; seconds from when each was due, so that a wait counts for all behind it."""
    waited: list[float] = []
    with closing(connect(db)) as connection:
        due = time.monotonic()
        while not stop.is_set():
            turn = len(waited)
            connection.execute(ONE_MORE, [f"ass_{1 + number + 4 * (turn * 7 % 500)}"])
            if turn % 3 == 0:
                load(connection, 2, prefix=f"live_{number}_{turn}_", messages="100000 + n")
            if turn % 10 == 0:
                connection.execute("DELETE FROM alicia_session_stats WHERE id = %s", [f"ass_{2100 + 4 * (turn // 10) + number}"])
            waited.append(time.monotonic() - due)
            due += 0.03
            time.sleep(max(0, due - time.monotonic()))
    return waited


@pytest.mark.slow
def test_migrating_a_large_live_table_holds_no_writer_up_and_misses_no_write(before: Connection) -> None:
    load(before, 200_000, quarters=3000, messages="n % 5000", prefix="old_")
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(hammer, before, stop, number) for number in range(4)]
        try:
            time.sleep(0.3)
            assert len(runner.migrate(conninfo_of(before))) == 3
            time.sleep(0.3)
        finally:
            stop.set()
        waited = sorted(seconds for writer in writers for seconds in writer.result())
    print(f"{len(waited)} writes, the longest wait {waited[-1] * 1000:.0f} ms")
    assert waited[-1] < 1
    assert_exact(before, 1000)
    assert repair(before) == 0


def test_filling_the_sums_takes_no_lock_that_a_writer_waits_for(before: Connection) -> None:
    for path in FILES[:2]:
        assert psql(conninfo_of(before), "-q", "-1", "-f", path).returncode == 0
    with closing(impatient(before)) as writer, closing(connect(before)) as filling, filling.transaction():
        filling.execute(FILES[2].read_bytes())
        writer.execute(ONE_MORE, ["ass_1"])
        load(writer, 3, prefix="meanwhile_", messages="10000")
    assert_exact(before, 1000)


def ledger(connection: Connection) -> list[Any]:
    return connection.execute("SELECT object FROM alicia_session_stats_created ORDER BY 1").fetchall()


def test_rollback_leaves_no_trace(before: Connection) -> None:
    dumped, recorded, tables = (
        pg_dump(conninfo_of(before)),
        ledger(before),
        before.execute("SELECT COUNT(*) FROM pg_class").fetchall(),
    )
    for _ in range(2):
        assert len(runner.migrate(conninfo_of(before))) == 3
        assert_exact(before, 1000)
        assert len(runner.rollback(conninfo_of(before), steps=3)) == 3
        assert pg_dump(conninfo_of(before)) == dumped
        assert ledger(before) == recorded
        assert before.execute("SELECT COUNT(*) FROM pg_class").fetchall() == tables
        before.execute(ONE_MORE, ["ass_1"])
    assert scalar(before, "SELECT COUNT(*) FROM alicia_session_stats") == 2500


@pytest.mark.parametrize("name", [path.name for path in FILES])
def test_each_file_and_its_rollback_may_be_run_twice(before: Connection, name: str) -> None:
    conninfo = conninfo_of(before)
    for path in FILES:
        for _ in range(1 + (path.name == name)):
            assert psql(conninfo, "-q", "-1", "-f", path).returncode == 0
    assert_exact(before, 1000)
    for path in reversed(FILES):
        for _ in range(1 + (path.name == name)):
            assert psql(conninfo, "-q", "-1", "-f", path.with_suffix(".rollback.sql")).returncode == 0
    assert len(runner.migrate(conninfo)) == 3
    assert_exact(before, 1000)


def views(connection: Connection) -> int:
    return scalar(connection, "SELECT COUNT(*) FROM pg_class WHERE relkind = 'v' AND relname LIKE 'alicia%'")


@pytest.mark.parametrize("killed", [False, True])
def test_between_counting_and_filling_nobody_can_read_half_the_sums(before: Connection, killed: bool) -> None:
    conninfo = conninfo_of(before)
    for path in FILES[:2]:
        assert psql(conninfo, "-q", "-1", "-f", path).returncode == 0
    load(before, 50, prefix="between_", messages="5000 + n")
    before.execute(
        "UPDATE alicia_session_stats SET created_at = created_at + INTERVAL '1 day', message_count = 7 WHERE id LIKE '%11'"
    )
    before.execute("DELETE FROM alicia_session_stats WHERE id LIKE '%22'")
    assert views(before) == 0
    if killed:
        with closing(connect(before)) as writer, writer.transaction():
            writer.execute(ONE_MORE, ["ass_1"])
            command = [sys.executable, str(ROOT / "runner.py"), "migrate", "--database", conninfo]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
                until(lambda: scalar(before, "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") > 0)
                process.kill()
    assert views(before) == 0
    assert_migrates_exactly(before)


def assert_migrates_exactly(before: Connection) -> None:
    runner.migrate(conninfo_of(before))
    assert views(before) == 2
    assert_exact(before, 900)
    assert repair(before) == 0


def test_a_table_further_down_the_search_path_is_counted(bare: Connection) -> None:
    """Migrations 0001 to 0008 adopt it."""
    runner.migrate(conninfo_of(bare))
    runner.rollback(conninfo_of(bare), steps=3)
    load(bare, 2500, messages="n")
    bare.execute("CREATE SCHEMA app")
    conninfo = make_conninfo(conninfo_of(bare), options="-csearch_path=app,public")
    with closing(psycopg.connect(conninfo, autocommit=True)) as host:
        for path in FILES:
            done = psql(conninfo, "-q", "-1", "-f", path)
            assert done.returncode == 0, done.stderr
        load(host, 2500, messages="n", prefix="more_")
        assert_exact(host)
