"""The rollup equals the sessions at every instant, whatever is written concurrently, and no writer waits for it."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from conftest import APPLICATION, ROOT, conninfo_of, psql, scalar
from psycopg import errors
from psycopg.conninfo import make_conninfo

import alicia_session_stats as stats

Connection = psycopg.Connection[Any]
# The migrations that create the rollup, keep it and fill it.
CREATE, KEEP, FILL = sorted(path for path in (ROOT / "migrations").glob("*_rollup.sql"))
LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
MAXIMUM = 2**31 - 1
QUARTER = timedelta(minutes=15)
MICROSECOND = timedelta(microseconds=1)
START = datetime(2024, 3, 31, 1)

# The rows that quarter_hours has and should not have, and those that it lacks. The bucket is computed differently than in
# the migrations. EXCEPT ALL, so that a second row of a bucket is a difference.
DIFFERENCES = """
WITH raw AS (
    SELECT
        COALESCE(
            DATE_TRUNC('hour', created_at) + FLOOR(EXTRACT(MINUTE FROM created_at) / 15) * INTERVAL '15 minutes', created_at
        ) AS bucket_start,
        COUNT(*) AS sessions, SUM(message_count) AS messages, SUM(tool_call_count) AS tool_calls,
        SUM(memories_used) AS memories, SUM(session_duration_seconds) AS seconds
    FROM alicia_session_stats
    GROUP BY 1
), view AS (
    SELECT bucket_start, sessions, messages, tool_calls, memories, seconds FROM alicia_session_stats_quarter_hours
)
SELECT 'missing', t::TEXT FROM (SELECT * FROM raw EXCEPT ALL SELECT * FROM view) AS t
UNION ALL
SELECT 'wrong', t::TEXT FROM (SELECT * FROM view EXCEPT ALL SELECT * FROM raw) AS t
ORDER BY 2, 1
"""
# The view's rows, and at least as many from the table. One statement, so one snapshot.
TOP = """
SELECT
    ARRAY(
        SELECT (message_count, created_at, id, conversation_id, tool_call_count, memories_used, session_duration_seconds)::TEXT
        FROM alicia_session_stats_top_sessions
        ORDER BY message_count DESC, created_at DESC, id DESC
    ),
    ARRAY(
        SELECT (message_count, created_at, id, conversation_id, tool_call_count, memories_used, session_duration_seconds)::TEXT
        FROM alicia_session_stats
        ORDER BY message_count DESC, created_at DESC, id DESC
        LIMIT GREATEST(%s, (SELECT COUNT(*) FROM alicia_session_stats_top_sessions))
    )
"""
# The windows whose sums differ from those of the sessions.
WINDOWS = """
SELECT w.since::TEXT, w.until::TEXT, kept.sums::TEXT, raw.sums::TEXT
FROM UNNEST(%s::TIMESTAMP[], %s::TIMESTAMP[]) AS w (since, until)
CROSS JOIN LATERAL (
    SELECT ARRAY[SUM(sessions), SUM(messages), SUM(tool_calls), SUM(memories), SUM(seconds)] AS sums
    FROM (
        SELECT * FROM alicia_session_stats_between(w.since, w.until) UNION ALL SELECT NULL, 0, 0, 0, 0, 0
    ) AS parts
) AS kept
CROSS JOIN LATERAL (
    SELECT ARRAY[
        COUNT(id), SUM(message_count), SUM(tool_call_count), SUM(memories_used), SUM(session_duration_seconds)
    ] AS sums
    FROM (
        SELECT id, message_count, tool_call_count, memories_used, session_duration_seconds
        FROM alicia_session_stats
        WHERE created_at >= w.since AND (created_at < w.until OR w.until = 'infinity')
        UNION ALL
        SELECT NULL, 0, 0, 0, 0
    ) AS sessions
) AS raw
WHERE kept.sums <> raw.sums::NUMERIC[]
"""
ONE_MORE = (
    "UPDATE alicia_session_stats SET message_count = message_count + 1, tool_call_count = tool_call_count + 2 WHERE id = %s"
)


def assert_exact(connection: Connection, top: int = 10) -> None:
    """Quarter hours equal the sessions, and the top sessions are the first of them: at least so many, or all there are."""
    assert connection.execute(DIFFERENCES.encode()).fetchall() == []
    ((listed, raw),) = connection.execute(TOP.encode(), [top]).fetchall()
    assert listed == raw[: len(listed)]
    assert len(listed) >= min(top, len(raw))


def assert_windows_exact(connection: Connection, windows: Sequence[tuple[object, object]]) -> None:
    since, until = ([str(edge) for edge in edges] for edges in zip(*windows, strict=True))
    assert connection.execute(WINDOWS.encode(), [since, until]).fetchall() == []


def repair(connection: Connection) -> int:
    """Repair the rollup; how many buckets and sessions were wrong."""
    return int(scalar(connection, "SELECT SUM(corrections) FROM alicia_session_stats_repair()"))


def count(connection: Connection, relation: str) -> int:
    return scalar(connection, f"SELECT COUNT(*) FROM alicia_session_stats_{relation}")


def connect(db: Connection, level: str = "READ COMMITTED", **options: str) -> Connection:
    """Another connection to the same database, in autocommit mode."""
    connection = psycopg.connect(conninfo_of(db), autocommit=True)
    connection.execute(f"SET default_transaction_isolation = '{level.lower()}'".encode())
    for name, value in options.items():
        connection.execute(f"SET {name} = '{value}'".encode())
    return connection


def impatient(db: Connection, level: str = "READ COMMITTED") -> Connection:
    """A connection that fails as soon as it has to wait."""
    return connect(db, level, lock_timeout="100ms", deadlock_timeout="10ms")


def load(db: Connection, rows: int, quarters: int = 4, messages: str = "n % 7", prefix: str = "ass_") -> None:
    """Insert sessions ass_1 to ass_n, spread over so many quarters of an hour."""
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
    """Run the tasks in threads that start at the same time. Raises the first error of any."""
    gate = threading.Barrier(len(tasks))

    def run(task: Callable[[], Any]) -> Any:
        gate.wait(30)
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(run, task) for task in tasks]]


# Random histories ------------------------------------------------------------------------------------------

# The errors that the same statements may get without the rollup.
ORDINARY = (errors.SerializationFailure, errors.DeadlockDetected, errors.ForeignKeyViolation, errors.UniqueViolation)
COLUMNS = "id, conversation_id, message_count, tool_call_count, memories_used, session_duration_seconds, created_at"
SESSIONS, CONVERSATIONS = 24, 4


def some_id(chance: random.Random) -> str:
    number = chance.randrange(SESSIONS)
    return f"{'ASS' if number % 3 == 0 else 'ass'}_{number:02}"  # In the order of bytes otherwise than in a person's.


def some_time(chance: random.Random) -> datetime:
    """One of nine times: the start, the end and the inside of three quarters of an hour."""
    return START + chance.randrange(3) * QUARTER + chance.choice([timedelta(0), QUARTER - MICROSECOND, QUARTER / 3])


def some_window(chance: random.Random) -> tuple[object, object]:
    """Two edges on, just beside and between those times, also in reverse order or infinitely far away."""
    since, until = (
        some_time(chance) + chance.choice([-1, 0, 0, 1]) * MICROSECOND + chance.choice([-2, -1, 0, 0, 0, 1]) * QUARTER / 2
        for _ in range(2)
    )
    return chance.choice([since, since, since, "-infinity"]), chance.choice([until, until, until, "infinity"])


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
    condition = "id < %(id)s" if chance.random() < 0.3 else "id = %(id)s"
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


def assert_all_exact(connection: Connection, chance: random.Random) -> None:
    assert_exact(connection)
    assert_windows_exact(connection, [some_window(chance) for _ in range(10)])


def write_history(db: Connection, seed: int, transactions: int) -> int:
    """Random transactions, of which a third compare after each statement. How many were committed."""
    chance, committed = random.Random(seed), 0
    with closing(connect(db, deadlock_timeout="10ms")) as connection:
        for _ in range(transactions):
            compares = chance.random() < 0.3
            try:
                connection.execute(f"BEGIN ISOLATION LEVEL {chance.choice(LEVELS)}".encode())
                for _ in range(chance.randint(1, 5)):
                    chance.choice(STATEMENTS)(connection, chance)
                    if compares:
                        assert_all_exact(connection, chance)
                connection.execute(chance.choice([b"COMMIT", b"COMMIT", b"COMMIT", b"ROLLBACK"]))
                committed += 1
            except ORDINARY:
                connection.rollback()
    return committed


def watch(db: Connection, stop: threading.Event) -> int:
    """Compare again and again, twice in each snapshot. How often."""
    chance, compared = random.Random(0), 0
    with closing(connect(db, "REPEATABLE READ")) as connection:
        while not stop.is_set() or compared < 3:
            with connection.transaction():
                assert_all_exact(connection, chance)
                assert_all_exact(connection, chance)
            compared += 1
            time.sleep(0.02)
    return compared


@pytest.fixture
def conversations(db: Connection) -> None:
    db.execute("INSERT INTO alicia_conversations SELECT 'ac_' || n FROM GENERATE_SERIES(0, %s) AS n", [CONVERSATIONS - 1])


@pytest.mark.usefixtures("conversations")
@pytest.mark.parametrize("seed", [1, 2])
def test_random_concurrent_writers_leave_exact_sums_and_top_sessions_at_every_instant(db: Connection, seed: int) -> None:
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


# Random histories in hostile surroundings ------------------------------------------------------------------

# What is refused there, and leaves no trace.
REFUSED = (
    *ORDINARY,
    errors.LockNotAvailable,
    errors.InvalidTransactionState,
    errors.InsufficientPrivilege,
    errors.FeatureNotSupported,
)


def truncate(connection: Connection, _: random.Random) -> None:
    connection.execute("TRUNCATE alicia_session_stats")


def bypass_and_repair(connection: Connection, chance: random.Random) -> None:
    bypass(connection, chance)
    connection.execute("SELECT FROM alicia_session_stats_repair()")


def bypass(connection: Connection, chance: random.Random) -> None:
    """Write without the triggers of the sessions. As their owner, who may disable them."""
    connection.execute("ALTER TABLE alicia_session_stats DISABLE TRIGGER USER")
    update("message_count = message_count + 7", connection, chance)
    connection.execute("DELETE FROM alicia_session_stats WHERE id = %s", [some_id(chance)])
    connection.execute("ALTER TABLE alicia_session_stats ENABLE TRIGGER USER")


def restore_data(connection: Connection, _: random.Random) -> None:
    """What pg_restore --data-only sends after the sessions are deleted: them, and the rollup's rows of the dump."""
    tables = ("alicia_session_stats", "alicia_session_stats_rollup", "alicia_session_stats_top_candidates")
    dump: list[tuple[str, list[bytes]]] = []
    for table in tables:
        with connection.cursor() as cursor, cursor.copy(f"COPY {table} TO STDOUT".encode()) as lines:
            dump.append((table, [bytes(line) for line in lines]))
    connection.execute("DELETE FROM alicia_session_stats")
    for table, rows in dump:
        with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN".encode()) as lines:
            for row in rows:
                lines.write(row)


# What is done to the database before it is migrated, and after that.
SURROUNDINGS = {
    "plain": ("", ""),
    "default isolation": ("ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'", ""),
    "collation of the language": ('ALTER TABLE alicia_session_stats ALTER id TYPE TEXT COLLATE "en-x-icu"', ""),
    "forced row security": (
        "",
        "ALTER TABLE alicia_session_stats ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; "
        "CREATE POLICY tenant ON alicia_session_stats USING (conversation_id <> 'ac_' || PG_BACKEND_PID() % 4)",
    ),
    "search_path": (
        "",
        "CREATE SCHEMA mine; {shadows}; GRANT USAGE ON SCHEMA mine TO rollup_owner; RESET search_path; "
        "ALTER DATABASE {database} SET search_path = mine, public",
    ),
}
# Smaller limits, so that what is rare otherwise happens in nearly each transaction.
LIMITS = {
    "list_size CONSTANT BIGINT := 1000": "list_size CONSTANT BIGINT := 6",
    "OFFSET 999 ": "OFFSET 5 ",
    "r.versions < 200 ": "r.versions < 3 ",
    "::INTEGER % 50 ": "::INTEGER % 2 ",
}


def lower_limits(db: Connection) -> None:
    functions = "SELECT PG_GET_FUNCTIONDEF(oid) FROM pg_proc WHERE prolang <> 14 AND proname LIKE 'alicia%'"
    replaced: set[str] = set()
    for (function,) in db.execute(functions.encode()).fetchall():
        lowered = function
        for limit, lower in LIMITS.items():
            replaced |= {limit} if limit in lowered else set()
            lowered = lowered.replace(limit, lower)
        db.execute(lowered.encode())
    assert replaced == LIMITS.keys()


def write_hostile_history(db: Connection, seed: int, transactions: int) -> int:
    """Random transactions of the owner, also with TRUNCATE, repairs and restores. How many were committed."""
    chance, committed = random.Random(seed), 0
    statements = [*STATEMENTS, *STATEMENTS, truncate, bypass_and_repair, restore_data]
    with closing(psycopg.connect(make_conninfo(conninfo_of(db), options="-c role=rollup_owner"), autocommit=True)) as connection:
        for _ in range(transactions):
            try:
                connection.execute(chance.choice([b"BEGIN", *(f"BEGIN ISOLATION LEVEL {level}".encode() for level in LEVELS)]))
                for _ in range(chance.randint(1, 4)):
                    chance.choice(statements)(connection, chance)
                connection.execute(chance.choice([b"COMMIT", b"COMMIT", b"COMMIT", b"ROLLBACK"]))
                committed += 1
            except REFUSED:
                connection.rollback()
    return committed


def watch_each_statement(db: Connection, stop: threading.Event) -> int:
    """Compare again and again, each time in a snapshot of its own: TRUNCATE is not safe for an older one. How often."""
    compared = 0
    with closing(connect(db, search_path="public")) as connection:
        while not stop.is_set() or compared < 3:
            with suppress(errors.DeadlockDetected):  # Under REPEATABLE READ, TRUNCATE also locks the rollup.
                assert_exact(connection, 0)
                compared += 1
            time.sleep(0.02)
    return compared


@pytest.fixture
def owner(bare: Connection) -> Iterator[str]:
    """The role that owns the package's objects and the application's; no superuser."""
    bare.execute("CREATE ROLE rollup_owner; GRANT ALL ON SCHEMA public TO rollup_owner")
    yield "rollup_owner"
    bare.execute("RESET search_path; DROP OWNED BY rollup_owner CASCADE; DROP ROLE rollup_owner")


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_random_histories_in_hostile_surroundings_are_exact(bare: Connection, owner: str, surroundings: str) -> None:
    before, after = (
        statement.format(database=bare.info.dbname, shadows=SHADOWS.replace("CREATE TEMPORARY TABLE ", "CREATE TABLE mine."))
        for statement in SURROUNDINGS[surroundings]
    )
    bare.execute(f"SET ROLE {owner}; {APPLICATION}; RESET ROLE".encode())
    try:
        bare.execute(before.encode())
    except (errors.FeatureNotSupported, errors.UndefinedObject):
        pytest.skip("this server is built without ICU, and has no collation but that of bytes")
    stats.migrate(make_conninfo(conninfo_of(bare), options=f"-c role={owner}"))
    bare.execute("INSERT INTO alicia_conversations SELECT 'ac_' || n FROM GENERATE_SERIES(0, %s) AS n", [CONVERSATIONS - 1])
    bare.execute("INSERT INTO alicia_conversations VALUES ('ac_old')")
    bare.execute(after.encode())
    lower_limits(bare)

    stop = threading.Event()
    with ThreadPoolExecutor() as pool, closing(connect(bare, "REPEATABLE READ", search_path="public")) as old:
        watching = pool.submit(watch_each_statement, bare, stop)
        try:
            with old.transaction():
                old.execute("SELECT FROM alicia_conversations")
                committed = together([partial(write_hostile_history, bare, 100 + number, 30) for number in range(3)])
                # In a snapshot that is older than everything: a session from the top of the list.
                old.execute("INSERT INTO alicia_session_stats (id, conversation_id, message_count) VALUES ('old', 'ac_old', 1)")
                old.execute("UPDATE alicia_session_stats SET message_count = 1000 WHERE id = 'old'")
        finally:
            stop.set()
        assert watching.result() >= 3
    assert min(committed) > 3

    # A difference that stays, and several repairs of it at once.
    with closing(connect(bare, search_path="public")) as repairing:
        assert_exact(repairing, 0)
        repairing.execute("ALTER TABLE alicia_session_stats NO FORCE ROW LEVEL SECURITY")
        assert_exact(repairing, 1)
        load(repairing, 30, messages="n % 20", prefix="new_")
        with repairing.transaction():
            restore_data(repairing, random.Random(1))
        assert_exact(repairing, 1)  # The restore deletes sessions of the short list.
        bypass(repairing, random.Random(1))
        repairing.execute("UPDATE alicia_session_stats SET session_duration_seconds = 1")
        with ExitStack() as stack:
            repairers = [stack.enter_context(closing(connect(bare, search_path="public"))) for _ in range(3)]
            together([partial(repair, connection) for connection in repairers])
        assert_exact(repairing, 3)
        assert repair(repairing) == 0


@pytest.mark.usefixtures("conversations")
@pytest.mark.parametrize("level", LEVELS)
def test_each_statement_of_one_writer_is_counted_before_the_next(db: Connection, level: str) -> None:
    chance = random.Random(7)
    with closing(connect(db, level)) as writer:
        for statement in 4 * STATEMENTS:
            try:
                with writer.transaction():
                    statement(writer, chance)
                    assert_all_exact(writer, chance)
            except errors.UniqueViolation:
                continue
            assert_all_exact(db, chance)
    assert repair(db) == 0


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_prepared_transaction_is_counted_when_it_commits(db: Connection, end: str) -> None:
    if scalar(db, "SHOW max_prepared_transactions") == "0":
        pytest.skip("the server that TEST_DATABASE_URL names allows no prepared transaction")
    load(db, 20)
    with closing(connect(db)) as writer:
        writer.execute("BEGIN")
        writer.execute(ONE_MORE, ["ass_1"])
        load(writer, 5, prefix="more_")
        writer.execute("DELETE FROM alicia_session_stats WHERE id = 'ass_2'")
        writer.execute(f"PREPARE TRANSACTION 'rollup-{end}'".encode())
    with closing(impatient(db)) as other:
        other.execute(ONE_MORE, ["ass_3"])
        assert_exact(other)
        other.execute(f"{end} PREPARED 'rollup-{end}'".encode())
    assert_exact(db)
    assert count(db, "top_sessions") == (24 if end == "COMMIT" else 20)
    assert repair(db) == 0


# Many rows, and extreme values -----------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS[:2])
def test_statements_of_many_rows_are_exact(db: Connection, level: str) -> None:
    with closing(connect(db, level)) as writer:
        load(writer, 5000, quarters=200)
        assert_exact(db, 500)
        for statement in (
            "UPDATE alicia_session_stats SET message_count = message_count * 2 + 1, memories_used = 3",
            "UPDATE alicia_session_stats SET created_at = created_at + INTERVAL '20 minutes' WHERE id LIKE '%1'",
            "DELETE FROM alicia_session_stats WHERE id LIKE '%2'",
            "DELETE FROM alicia_conversations WHERE id = 'ac_3'",
            "DELETE FROM alicia_session_stats",
        ):
            writer.execute(statement.encode())
            assert_exact(db)
    assert repair(db) == 0


def test_update_of_thousands_of_sessions_in_one_quarter_does_not_get_slower_with_each(db: Connection) -> None:
    """Each of them makes a new version of the bucket's row, and no old version can be removed before the commit."""
    load(db, 12000, quarters=1)
    read = "SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables WHERE relname = 'alicia_session_stats_rollup'"
    db.execute("SELECT pg_stat_force_next_flush()")
    before = scalar(db, read)
    db.execute("UPDATE alicia_session_stats SET tool_call_count = tool_call_count + 1")
    db.execute("SELECT pg_stat_force_next_flush()")
    assert scalar(db, read) - before < 55 * 12000
    assert_exact(db)


@pytest.mark.parametrize("level", LEVELS[:2])
@pytest.mark.parametrize("statement", ["TRUNCATE alicia_session_stats RESTART IDENTITY", "TRUNCATE alicia_conversations CASCADE"])
def test_truncate_empties_the_rollup_and_its_rollback_does_not(db: Connection, statement: str, level: str) -> None:
    load(db, 1500, messages="n")
    with closing(connect(db, level)) as writer:
        with writer.transaction(force_rollback=True):
            writer.execute(statement.encode())
            assert_exact(writer)
            load(writer, 3)
            assert_exact(writer)
        assert_exact(db, 900)
        assert scalar(db, "SELECT SUM(sessions) FROM alicia_session_stats_quarter_hours") == 1500
        writer.execute(statement.encode())
        assert (count(db, "quarter_hours"), count(db, "top_sessions")) == (0, 0)
        load(writer, 3)
    assert_exact(db)
    assert repair(db) == 0


def test_truncate_in_an_old_snapshot_also_removes_the_sums_committed_since(db: Connection) -> None:
    load(db, 10)
    with closing(connect(db, "REPEATABLE READ")) as writer, writer.transaction():
        writer.execute("SELECT FROM alicia_conversations")
        db.execute(ONE_MORE, ["ass_1"])
        db.execute("INSERT INTO alicia_session_stats (conversation_id, created_at) VALUES ('ac_1', '2020-01-01')")
        writer.execute("TRUNCATE alicia_session_stats")
    load(db, 3)
    assert_exact(db)
    assert repair(db) == 0


def test_session_written_in_a_snapshot_older_than_a_truncate_is_a_top_session(db: Connection) -> None:
    load(db, 20)
    with closing(connect(db, "REPEATABLE READ")) as old, old.transaction():
        old.execute("SELECT FROM alicia_conversations")
        db.execute("TRUNCATE alicia_session_stats")
        load(db, 20, prefix="new_")
        old.execute("INSERT INTO alicia_session_stats (id, conversation_id) VALUES ('late', 'ac_1')")
        old.execute("UPDATE alicia_session_stats SET message_count = 5000 WHERE id = 'late'")
    assert_exact(db)


@pytest.mark.parametrize(
    "lowered", ["TRUNCATE alicia_session_stats", "DELETE FROM alicia_session_stats WHERE message_count > 600"]
)
def test_quarter_begun_in_a_snapshot_older_than_a_lowered_cutoff_hides_no_top_session(db: Connection, lowered: str) -> None:
    load(db, 3000, messages="n")
    with closing(connect(db, "REPEATABLE READ")) as old, old.transaction():
        old.execute("SELECT FROM alicia_conversations")
        db.execute(lowered.encode())
        repair(db)
        old.execute("INSERT INTO alicia_session_stats (id, conversation_id, created_at) VALUES ('late', 'ac_1', '2030-01-01')")
    db.execute("UPDATE alicia_session_stats SET message_count = 700 WHERE id = 'late'")
    assert_exact(db)
    assert repair(db) == 0


EXTREME_TIMES = [
    "infinity",
    "-infinity",
    "4714-11-24 00:00:00 BC",
    "294276-12-31 23:59:59.999999",
    "0001-01-01 00:00:00",
    "2024-01-01 00:15:00",
    "2024-01-01 00:14:59.999999",
    "1999-12-31 23:45:00",
    "1999-12-31 23:44:59.999999",
    "2000-01-01 00:00:00",
]


@pytest.mark.parametrize("level", LEVELS[:2])
@pytest.mark.parametrize("when", EXTREME_TIMES)
def test_extreme_times_and_counts_are_summed(db: Connection, when: str, level: str) -> None:
    load(db, 3)
    with closing(connect(db, level)) as writer:
        writer.execute(
            "INSERT INTO alicia_session_stats SELECT 'edge_' || n, 'ac_1', %s, %s, %s, %s, %s FROM GENERATE_SERIES(1, 5) AS n",
            [MAXIMUM] * 4 + [when],
        )
        assert_exact(db)
        assert scalar(db, "SELECT MAX(messages) FROM alicia_session_stats_quarter_hours") == 5 * MAXIMUM
        assert_windows_exact(db, [("-infinity", "infinity"), ("-infinity", "2024-03-31 01:07"), ("2024-03-31 01:07", "infinity")])
        for statement in (
            "UPDATE alicia_session_stats SET message_count = 0, tool_call_count = 0 WHERE id = 'edge_1'",
            "UPDATE alicia_session_stats SET message_count = 2147483647, memories_used = 0 WHERE id = 'edge_1'",
            f"UPDATE alicia_session_stats SET created_at = '{when}' WHERE id = 'ass_2'",
            "UPDATE alicia_session_stats SET created_at = '2024-05-05' WHERE id = 'edge_2'",
            "DELETE FROM alicia_session_stats WHERE id LIKE 'edge%'",
        ):
            writer.execute(statement.encode())
            assert_exact(db)
    assert repair(db) == 0


# Never waiting ---------------------------------------------------------------------------------------------

MESSAGES = {"ordinary": "n % 7", "top": "1000000 + n"}
each_kind = pytest.mark.parametrize("messages", MESSAGES.values(), ids=MESSAGES)


@pytest.mark.parametrize("level", LEVELS[:2])
@each_kind
def test_writers_of_the_same_quarters_do_not_wait_for_an_open_transaction(db: Connection, messages: str, level: str) -> None:
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


@pytest.mark.parametrize("level", LEVELS[:2])
@each_kind
def test_eight_writers_in_random_order_never_wait_or_fail(db: Connection, messages: str, level: str) -> None:
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


def test_writers_of_top_sessions_do_not_wait_for_an_open_load_that_raises_the_cutoff(db: Connection) -> None:
    load(db, 1500, messages="n")
    with closing(impatient(db)) as writer, db.transaction():
        load(db, 1500, messages="1000000 + n", prefix="more_")
        for number in range(600, 1500, 100):
            writer.execute(ONE_MORE, [f"ass_{number}"])
        writer.execute("DELETE FROM alicia_session_stats WHERE message_count > 1400")
    assert_exact(db, 900)
    assert repair(db) == 0


def test_purge_and_writers_do_not_wait_for_each_other(db: Connection) -> None:
    load(db, 300, quarters=1)
    db.execute("UPDATE alicia_session_stats SET created_at = '2024-03-31'::TIMESTAMP + SUBSTR(id, 5)::INTEGER * INTERVAL '1 s'")
    load(db, 100, prefix="young_")
    db.execute("UPDATE alicia_session_stats SET created_at = NOW() AT TIME ZONE 'UTC' WHERE id LIKE 'young%'")
    deleted = 0
    with closing(impatient(db)) as purger, closing(impatient(db)) as writer:
        for turn in range(6):
            with purger.transaction(), writer.transaction():
                deleted += stats.query(purger, "delete_sessions_before", days=7, batch=40)[0]["deleted"]
                for session in [f"young_{1 + turn}", f"ass_{300 - turn}"]:
                    writer.execute(ONE_MORE, [session])
            with writer.transaction(), purger.transaction():
                writer.execute(ONE_MORE, [f"ass_{300 - turn}"])
                deleted += stats.query(purger, "delete_sessions_before", days=7, batch=5)[0]["deleted"]
            assert_exact(db)
    assert deleted == 6 * 45
    assert repair(db) == 0


@pytest.mark.parametrize("with_others", [False, True])
def test_transaction_that_writes_to_thousands_of_quarters_takes_few_locks(db: Connection, with_others: bool) -> None:
    load(db, 1, prefix="first_")
    with ExitStack() as stack:
        if with_others:
            other = stack.enter_context(closing(connect(db)))
            stack.enter_context(other.transaction())
            load(other, 2000, quarters=2000, prefix="other_")
        with db.transaction():
            load(db, 2000, quarters=2000)
            db.execute("UPDATE alicia_session_stats SET tool_call_count = 77")
            taken = scalar(db, "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = PG_BACKEND_PID()")
            assert taken <= 260
    assert_exact(db)


# Staying small ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS[:2])
def test_single_writer_leaves_one_row_for_each_quarter(db: Connection, level: str) -> None:
    with closing(connect(db, level)) as writer:
        load(writer, 20, quarters=2)
        for turn in range(500):
            writer.execute(ONE_MORE, [f"ass_{1 + turn % 20}"])
            assert count(db, "rollup") == 2
        writer.execute("DELETE FROM alicia_session_stats")
    assert_exact(db)
    assert count(db, "rollup") <= 2


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS[:2])
def test_thousands_of_concurrent_updates_leave_about_a_row_for_each_writer(db: Connection, level: str) -> None:
    load(db, 40, quarters=1)

    def write(number: int) -> None:
        with closing(connect(db, level)) as connection:
            for turn in range(500):
                connection.execute(ONE_MORE, [f"ass_{1 + number + 4 * (turn % 10)}"])

    together([partial(write, number) for number in range(4)])
    assert_exact(db)
    assert count(db, "rollup") <= (6 if level == "READ COMMITTED" else 100)  # A conflict of snapshots leaves one more.
    for turn in range(200):
        db.execute(ONE_MORE, [f"ass_{1 + turn % 40}"])
    assert count(db, "rollup") == 1
    assert_exact(db)


def test_update_of_all_sessions_leaves_one_row_for_each_quarter(db: Connection) -> None:
    load(db, 3000, quarters=4)
    for _ in range(2):
        db.execute("UPDATE alicia_session_stats SET tool_call_count = tool_call_count + 1")
    assert_exact(db)
    assert count(db, "rollup") == 4


@pytest.mark.parametrize("batch", [100, 1000, 5000])
def test_top_candidates_stay_few_however_many_sessions_are_inserted(db: Connection, batch: int) -> None:
    for number in range(20000 // batch):
        load(db, batch, messages=f"n + {number * batch}", prefix=f"ass_{number}_")
    assert_exact(db, 900)
    assert count(db, "top_candidates") <= 2500


def test_top_candidates_stay_few_however_often_top_sessions_change(db: Connection) -> None:
    load(db, 1500, messages="n")
    for _ in range(5):
        db.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
    assert_exact(db, 900)
    assert count(db, "top_candidates") <= 2500


# Reading little --------------------------------------------------------------------------------------------


def plan_of(db: Connection, sql: str) -> tuple[list[dict[str, Any]], int]:
    """The nodes of a query's plan, and how many pages it read."""

    def flat(node: dict[str, Any]) -> list[dict[str, Any]]:
        return [node, *(inner for child in node.get("Plans", []) for inner in flat(child))]

    plan = scalar(db, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}")[0]["Plan"]
    return flat(plan), plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


DAY = "bucket_start >= '2025-09-01' AND bucket_start < '2025-09-02'"
SMALL = [
    f"SELECT * FROM alicia_session_stats_quarter_hours WHERE {DAY}",
    f"SELECT SUM(messages) FROM alicia_session_stats_quarter_hours WHERE {DAY}",
    "SELECT SUM(messages) FROM alicia_session_stats_between('2025-08-31 23:50', '2025-09-01 23:40')",
    "SELECT * FROM alicia_session_stats_top_sessions ORDER BY message_count DESC, created_at DESC, id DESC LIMIT 10",
]


def test_a_day_and_the_top_ten_are_read_from_few_pages_of_a_large_rollup(db: Connection) -> None:
    load(db, 51_000, quarters=51_000, messages="n")
    assert count(db, "rollup") > 50_000
    for change in ("SELECT", "ANALYZE", "UPDATE alicia_session_stats SET message_count = message_count + 1 WHERE id LIKE '%7'"):
        db.execute(change.encode())
        for sql in SMALL:
            nodes, pages = plan_of(db, sql)
            scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
            print(change, sql, scanned, pages)
            assert scanned <= {"alicia_session_stats_top_cutoff", "pg_authid"}  # One row; the server's roles.
            assert pages < 200


# Top sessions ----------------------------------------------------------------------------------------------


def most_active(db: Connection, limit: int) -> tuple[list[Any], list[Any]]:
    """What the query answers, and what the sessions say."""
    rows = stats.query(conninfo_of(db), "most_active_sessions", limit=limit)
    raw = db.execute(
        "SELECT conversation_id, message_count, tool_call_count FROM alicia_session_stats "
        "ORDER BY message_count DESC, created_at DESC, id DESC LIMIT %s",
        [limit],
    ).fetchall()
    return [tuple(row.values())[:3] for row in rows], raw


@pytest.mark.parametrize("remain", [0, 5, 400])
def test_deleting_most_top_sessions_leaves_exact_answers_and_repair_finds_new_ones(db: Connection, remain: int) -> None:
    load(db, 4000, messages="n")
    assert count(db, "top_sessions") < 2500
    db.execute(
        "DELETE FROM alicia_session_stats "
        "WHERE message_count >= (SELECT MIN(message_count) + %s FROM alicia_session_stats_top_sessions)",
        [remain],
    )
    for limit in (1, 10, 500, 3000):
        answer, raw = most_active(db, limit)
        assert answer == raw
    assert_exact(db, remain)
    [difference] = stats.verify(conninfo_of(db))
    assert (difference["object"], difference["found"]) == ("top sessions", f"only {remain} are listed")
    db.execute(difference["fix"].encode())
    assert stats.verify(conninfo_of(db)) == []
    assert_exact(db, 1000)


def test_of_equally_active_sessions_the_newest_then_the_greatest_id_comes_first(db: Connection) -> None:
    load(db, 3000, quarters=1, messages="5")
    db.execute("UPDATE alicia_session_stats SET created_at = '2024-03-31' WHERE id LIKE '%7'")
    assert_exact(db, 800)
    answer, raw = most_active(db, 20)
    assert answer == raw
    db.execute("UPDATE alicia_session_stats SET created_at = '2025-01-01' WHERE id = 'ass_17'")
    first = "SELECT id FROM alicia_session_stats_top_sessions ORDER BY message_count DESC, created_at DESC, id DESC LIMIT 1"
    assert scalar(db, first) == "ass_17"
    assert_exact(db, 800)


def test_top_sessions_show_no_stale_or_repeated_candidate(db: Connection) -> None:
    """Concurrent writers leave such candidates behind."""
    load(db, 300, messages="n")
    for candidate in (
        "message_count, created_at, id, conversation_id",
        "message_count + 9, created_at, id, conversation_id",
        "message_count, created_at + INTERVAL '1 day', id, conversation_id",
        "message_count, created_at, id || 'x', conversation_id",
        "message_count, created_at, id, 'ac_other'",
    ):
        db.execute(f"INSERT INTO alicia_session_stats_top_candidates SELECT {candidate} FROM alicia_session_stats".encode())
    assert_exact(db, 300)


@pytest.mark.parametrize("level", LEVELS[:2])
def test_concurrent_writers_that_raise_the_cutoff_lose_no_top_session(db: Connection, level: str) -> None:
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
                assert_exact(connection, 0)

    together([partial(write, number) for number in range(4)])
    assert_exact(db, 10)


@pytest.mark.parametrize("level", LEVELS[:2])
def test_session_that_rises_above_a_cutoff_that_repair_has_lowered_is_a_top_session(db: Connection, level: str) -> None:
    """The bucket and the writer's snapshot may know a cutoff that is too high by now."""
    load(db, 3000, messages="n")
    db.execute("UPDATE alicia_session_stats SET tool_call_count = tool_call_count + 1")
    assert scalar(db, "SELECT MIN(message_count) FROM alicia_session_stats_top_sessions") > 2000
    with closing(connect(db, level)) as writer, writer.transaction():
        writer.execute("SELECT FROM alicia_conversations")
        db.execute("DELETE FROM alicia_session_stats WHERE message_count > 2100")
        assert repair(db) > 0
        writer.execute("UPDATE alicia_session_stats SET message_count = 1999 WHERE id = 'ass_200'")
    assert_exact(db, 1000)


# Repair ----------------------------------------------------------------------------------------------------

# What bypassed the triggers, and the objects in which verify finds a difference.
BYPASSED = {
    "inserts": (
        "INSERT INTO alicia_session_stats (conversation_id, message_count, created_at) VALUES ('ac_1', 9999, '2020-01-01')",
        {"sums of 1 quarter hours", "top sessions"},
    ),
    "updates": (
        "UPDATE alicia_session_stats SET message_count = message_count * 2 WHERE message_count > 1400",
        {"sums of 4 quarter hours", "top sessions"},
    ),
    "deletes": ("DELETE FROM alicia_session_stats WHERE id LIKE '%3'", {"sums of 2 quarter hours"}),
    "sums changed": ("UPDATE alicia_session_stats_rollup SET messages = messages + 1", {"sums of 4 quarter hours"}),
    "sums lost": ("DELETE FROM alicia_session_stats_rollup", {"sums of 4 quarter hours"}),
    "candidates lost": ("DELETE FROM alicia_session_stats_top_candidates", {"top sessions"}),
    "some candidates lost": ("DELETE FROM alicia_session_stats_top_candidates WHERE message_count > 1490", {"top sessions"}),
}


@pytest.mark.parametrize("bypassed", BYPASSED)
def test_verify_finds_what_bypassed_the_triggers_and_repair_removes_it_for_good(db: Connection, bypassed: str) -> None:
    statement, objects = BYPASSED[bypassed]
    load(db, 1500, messages="n")
    assert repair(db) == 0
    db.execute(f"SET session_replication_role = replica; {statement}; SET session_replication_role = origin".encode())
    found = stats.verify(conninfo_of(db))
    assert {row["object"] for row in found} == objects
    db.execute(found[0]["fix"].encode())
    assert stats.verify(conninfo_of(db)) == []
    assert_exact(db, 800)
    for turn in range(40):
        db.execute(ONE_MORE, [f"ass_{101 + 10 * turn}"])
    load(db, 10, prefix="more_")
    assert_exact(db, 800)
    assert repair(db) == 0


def differing(connection: Connection, **window: object) -> set[str]:
    """What verify_rollup names, without what it counts."""
    return {row["object"].split(" of ")[0] for row in stats.query(connection, "verify_rollup", **window)}


def write_untriggered(db: Connection, statement: str) -> None:
    with db.transaction():
        db.execute("SET LOCAL session_replication_role = replica")
        db.execute(statement.encode())


@pytest.mark.parametrize(
    ("created_at", "is_compared"),
    [
        ("2024-03-29T23:59:59.999999", False),
        ("2024-03-30", True),  # The window begins at 12:07, and its day is compared whole.
        ("2024-03-31T23:59:59.999999", True),
        ("2024-04-01", False),
    ],
)
def test_days_that_a_window_cuts_are_compared_whole(created_at: str, is_compared: bool, db: Connection) -> None:
    load(db, 600, messages="n")
    write_untriggered(db, f"INSERT INTO alicia_session_stats (conversation_id, created_at) VALUES ('ac_1', '{created_at}')")
    found = differing(db, days=1, until="2024-03-31T12:07")
    assert found == ({"sums", "top sessions"} if is_compared else set())
    assert differing(db, days=1, until="2024-04-01") == (found if created_at > "2024-03-31" else set())


def test_window_without_an_end_has_sessions_at_any_later_time_and_one_without_a_start_at_any_earlier(db: Connection) -> None:
    load(db, 600, messages="n")
    for created_at in ("-infinity", "0044-03-15 BC", "infinity", "9999-12-31"):
        write_untriggered(db, f"INSERT INTO alicia_session_stats (conversation_id, created_at) VALUES ('ac_1', '{created_at}')")
        is_later = created_at in ("infinity", "9999-12-31")
        assert differing(db) == {"sums", "top sessions"}
        assert (differing(db, days=3) != set()) == is_later
        assert (differing(db, until="2024-01-01") != set()) == (not is_later)
        assert repair(db) == 2


def test_summary_that_is_wrong_is_found_in_a_window_that_holds_its_day(db: Connection) -> None:
    load(db, 600, quarters=1, messages="n")
    db.execute("SELECT FROM alicia_session_stats_summarize()")
    write_untriggered(db, "UPDATE alicia_session_stats SET message_count = 601 - message_count WHERE message_count IN (1, 600)")
    assert differing(db) == {"top sessions"}  # The value counts are the same.
    shifted = "tool_call_count = tool_call_count + CASE id WHEN 'ass_7' THEN 1 ELSE -1 END"  # As many in all.
    write_untriggered(db, f"UPDATE alicia_session_stats SET {shifted} WHERE id IN ('ass_7', 'ass_10')")
    assert differing(db, days=0, until="2024-03-31T01:00") == {"summaries", "top sessions"}
    assert differing(db, days=0, until="2024-03-30T23:00") == set()
    repair(db)
    assert differing(db) == set()


def test_verify_reads_the_sessions_once_and_only_those_of_its_window(db: Connection) -> None:
    load(db, 6000, quarters=2000, messages="n")
    db.execute("SELECT FROM alicia_session_stats_summarize()")
    db.execute("ANALYZE")
    db.execute("SET max_parallel_workers_per_gather = 0")  # Each worker counts a scan of its own.
    in_window = "created_at >= '2024-04-01' AND created_at < '2024-04-03'"
    counters = f"""
        SELECT
            seq_scan,
            idx_tup_fetch - (SELECT COUNT(*) FROM alicia_session_stats_top_candidates WHERE %s)
                <= (SELECT COUNT(*) FROM alicia_session_stats WHERE {in_window})
        FROM pg_stat_xact_user_tables WHERE relname = 'alicia_session_stats'
    """
    for since, until, seq_scans, looked_up in (
        ("-infinity", "infinity", 1, "TRUE"),
        ("2024-04-01 12:07", "2024-04-02 12:07", 0, in_window),
    ):
        for _ in range(7):  # From the sixth call on, the server may take one plan for all windows.
            db.execute("SELECT PG_STAT_FORCE_NEXT_FLUSH()")
            with db.transaction():
                found = db.execute("SELECT * FROM alicia_session_stats_differences(%s, %s)", [since, until]).fetchall()
                assert found == []
                # What is looked up are the top candidates.
                assert db.execute((counters % looked_up).encode()).fetchall() == [(seq_scans, True)]


def test_role_that_reads_only_the_views_can_verify(bare: Connection, login: Callable[..., Connection]) -> None:
    stats.migrate(conninfo_of(bare))
    load(bare, 600, messages="n")
    reader = login("reader", "GRANT SELECT ON alicia_session_stats_parts, alicia_session_stats_top_sessions TO")
    assert differing(reader) == set()
    write_untriggered(bare, "DELETE FROM alicia_session_stats WHERE id = 'ass_7'")
    assert differing(reader, days=1, until="2024-04-01") == {"sums"}


def test_repair_while_others_write_loses_nothing(db: Connection) -> None:
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
            unneeded = [repair(db) for _ in range(15)]
            bypassing = "SET session_replication_role = replica; {}; RESET session_replication_role"
            db.execute(bypassing.format("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1')").encode())
            needed = repair(db)
        finally:
            stop.set()
        assert min(writer.result() for writer in writers) > 0
    assert set(unneeded) == {0}
    assert needed == 2  # The sums of its quarter of an hour, and a top session.
    assert_exact(db)
    assert repair(db) == 0


def test_repair_of_all_top_sessions_blocks_no_writer(db: Connection) -> None:
    load(db, 1500, messages="n")
    db.execute("DELETE FROM alicia_session_stats_top_candidates")
    with closing(impatient(db)) as writer, db.transaction():
        assert repair(db) == 1000
        writer.execute(ONE_MORE, ["ass_1"])
    assert_exact(db, 1000)


@pytest.mark.parametrize("level", LEVELS[1:])
def test_repair_refuses_a_snapshot_that_may_be_old(db: Connection, level: str) -> None:
    with closing(connect(db, level)) as old, pytest.raises(errors.InvalidTransactionState):
        repair(old)


# Privileges ------------------------------------------------------------------------------------------------

FORBIDDEN = [
    *(f"SELECT FROM alicia_session_stats_{name}" for name in ("rollup", "top_candidates", "top_cutoff")),
    "INSERT INTO alicia_session_stats_rollup DEFAULT VALUES",
    "UPDATE alicia_session_stats_top_cutoff SET message_count = 0",
    "SELECT alicia_session_stats_repair()",
    "SELECT alicia_session_stats_trim()",
    "SELECT alicia_session_stats_add(NOW()::TIMESTAMP, 1, 1, 1, 1, 1, FALSE)",
    "CREATE TRIGGER mine AFTER UPDATE ON mine.mine FOR EACH ROW EXECUTE FUNCTION alicia_session_stats_on_update()",
    "CREATE TRIGGER mine AFTER TRUNCATE ON mine.mine FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_on_truncate()",
    "CREATE TRIGGER mine AFTER INSERT ON mine.mine REFERENCING NEW TABLE AS changed_rows "
    "FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_on_insert_or_delete()",
]
# Objects of the writer's own with the names that the trigger functions use.
SHADOWS = """
    SET search_path = mine, public;
    CREATE TABLE mine.alicia_session_stats_rollup AS SELECT 1 AS sessions;
    CREATE TEMPORARY TABLE alicia_session_stats_top_cutoff AS SELECT 1 AS message_count;
    CREATE FUNCTION mine.date_bin(TEXT, TIMESTAMP, TEXT) RETURNS TIMESTAMP LANGUAGE sql RETURN NOW();
    CREATE FUNCTION mine.alicia_session_stats_bucket(TIMESTAMP) RETURNS TIMESTAMP LANGUAGE sql RETURN NOW();
"""


def test_writer_needs_and_gets_no_privilege_on_the_rollup(bare: Connection, login: Callable[..., Connection]) -> None:
    stats.migrate(conninfo_of(bare))
    writer = login("rollup_writer", "GRANT SELECT, INSERT, UPDATE, DELETE ON alicia_session_stats, alicia_conversations TO")
    bare.execute("CREATE SCHEMA mine AUTHORIZATION rollup_writer")
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
    writer.execute(SHADOWS.encode())
    writer.execute("UPDATE public.alicia_session_stats SET tool_call_count = 1, created_at = created_at + INTERVAL '1 hour'")
    assert_exact(bare)
    assert repair(bare) == 0


def test_roles_that_may_read_the_sessions_may_read_the_views_and_no_others(
    bare: Connection, login: Callable[..., Connection]
) -> None:
    stats.migrate(conninfo_of(bare))
    stats.rollback(conninfo_of(bare), steps=3)
    load(bare, 30)
    reader = login("Rollup's reader", "GRANT SELECT ON alicia_session_stats TO")
    stranger = login("rollup_stranger", "GRANT INSERT ON alicia_session_stats TO")
    stats.migrate(conninfo_of(bare))
    assert_exact(reader)
    assert_windows_exact(reader, [("2024-03-31 01:05", "2024-03-31 01:40")])
    for view in ("quarter_hours", "top_sessions"):
        with pytest.raises(errors.InsufficientPrivilege):
            stranger.execute(f"SELECT FROM alicia_session_stats_{view}".encode())
    for statement in FORBIDDEN[:3]:
        with pytest.raises(errors.InsufficientPrivilege):
            reader.execute(statement.encode())
    stats.rollback(conninfo_of(bare), steps=3)
    bare.execute("GRANT SELECT ON alicia_session_stats TO PUBLIC")
    stats.migrate(conninfo_of(bare))
    assert_exact(stranger)


# Migrating a live table ------------------------------------------------------------------------------------


@pytest.fixture
def before(db: Connection) -> Connection:
    """A database with sessions, and without the rollup."""
    stats.rollback(conninfo_of(db), steps=3)
    load(db, 2500, quarters=300, messages="n")
    return db


def write_regularly(db: Connection, stop: threading.Event, number: int) -> list[float]:
    """Write on a fixed schedule. Seconds that each write ended after it was due: a wait also counts for those behind it."""
    late: list[float] = []
    with closing(connect(db)) as connection:
        due = time.monotonic()
        while not stop.is_set():
            turn = len(late)
            connection.execute(ONE_MORE, [f"ass_{1 + number + 4 * (turn * 7 % 500)}"])
            if turn % 3 == 0:
                load(connection, 2, prefix=f"live_{number}_{turn}_", messages="100000 + n")
            if turn % 10 == 0:
                connection.execute("DELETE FROM alicia_session_stats WHERE id = %s", [f"ass_{2100 + 4 * (turn // 10) + number}"])
            late.append(time.monotonic() - due)
            due += 0.03
            time.sleep(max(0, due - time.monotonic()))
    return late


@pytest.mark.slow
def test_migrating_a_large_live_table_delays_no_writer_and_misses_no_write(before: Connection) -> None:
    load(before, 200_000, quarters=3000, messages="n % 5000", prefix="old_")
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write_regularly, before, stop, number) for number in range(4)]
        try:
            time.sleep(0.3)
            assert len(stats.migrate(conninfo_of(before))) == 3
            time.sleep(0.3)
        finally:
            stop.set()
        late = sorted(seconds for writer in writers for seconds in writer.result())
    print(f"{len(late)} writes, the latest {late[-1] * 1000:.0f} ms")
    assert late[-1] < 1
    assert_exact(before, 1000)
    assert repair(before) == 0


def run_twice(connection: Connection, *paths: Any) -> None:
    for path in paths:
        for _ in range(2):
            done = psql(conninfo_of(connection), "-q", "-1", "-f", path)
            assert done.returncode == 0, done.stderr


def test_writers_do_not_wait_while_the_rollup_is_filled(before: Connection) -> None:
    run_twice(before, CREATE, KEEP)
    with closing(impatient(before)) as writer, closing(connect(before)) as filling, filling.transaction():
        filling.execute(FILL.read_bytes())
        writer.execute(ONE_MORE, ["ass_1"])
        load(writer, 3, prefix="meanwhile_", messages="10000")
    assert_exact(before, 1000)


def views(connection: Connection) -> int:
    return scalar(connection, "SELECT COUNT(*) FROM pg_class WHERE relkind = 'v' AND relname LIKE 'alicia%'")


def test_nobody_reads_half_of_the_sums_before_the_rollup_is_filled(before: Connection) -> None:
    run_twice(before, CREATE, KEEP)
    load(before, 50, prefix="between_", messages="5000 + n")
    before.execute(
        "UPDATE alicia_session_stats SET created_at = created_at + INTERVAL '1 day', message_count = 7 WHERE id LIKE '%11'"
    )
    before.execute("DELETE FROM alicia_session_stats WHERE id LIKE '%22'")
    assert views(before) == 0
    stats.migrate(conninfo_of(before))
    assert_exact(before, 900)
    assert repair(before) == 0
    run_twice(before, FILL)
    assert_exact(before, 900)


def test_applications_table_in_another_schema_than_the_package_is_counted(bare: Connection) -> None:
    bare.execute(f"{APPLICATION}; CREATE SCHEMA package".encode())
    load(bare, 2500, messages="n")
    conninfo = make_conninfo(conninfo_of(bare), options="-csearch_path=package,public")
    stats.migrate(conninfo)
    with closing(psycopg.connect(conninfo, autocommit=True)) as application:
        load(bare, 2500, messages="n", prefix="more_")
        bare.execute(ONE_MORE, ["ass_1"])
        assert_exact(application)
        assert repair(application) == 0
