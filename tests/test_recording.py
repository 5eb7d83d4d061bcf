"""Recording loses nothing and counts nothing twice, also when writers are killed. Deleting takes the oldest and never waits."""

import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from conftest import ROOT, cli, conninfo_of, psql, scalar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

import alicia_session_stats as stats

Connection = psycopg.Connection[Any]
Insert = Callable[..., str]
COUNTERS = {
    "messages": "message_count",
    "tool_calls": "tool_call_count",
    "memories": "memories_used",
    "seconds": "session_duration_seconds",
}
MAXIMUM = 2**31 - 1
few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def table(db: Connection) -> list[tuple[Any, ...]]:
    return db.execute("SELECT * FROM alicia_session_stats ORDER BY id").fetchall()


def count_connections(db: Connection, condition: LiteralString) -> int:
    return scalar(db, f"SELECT COUNT(*) FROM pg_stat_activity WHERE datname = CURRENT_DATABASE() AND {condition}")


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(db: Connection, name: str, **params: Any) -> dict[str, Any]:
    """The only row of a query, run in the connection's transaction."""
    (row,) = stats.query(db, name, **params)
    return row


# start_session --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def test_session_starts_now_in_utc_with_every_count_at_0(db: Connection, zone: str) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    with db.transaction():
        db.execute("SELECT SET_CONFIG('TimeZone', %s, TRUE)", [zone])
        row = run(db, "start_session", conversation_id="ac_1")
        now = scalar(db, "SELECT NOW() AT TIME ZONE 'UTC'")
    assert row.pop("id").startswith("ass_")
    assert row == {"conversation_id": "ac_1", **dict.fromkeys(COUNTERS.values(), 0), "created_at": now, "updated_at": now}


def test_start_session_returns_the_row_that_is_in_the_table(db: Connection) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    rows = [stats.query(conninfo_of(db), "start_session", conversation_id="ac_1")[0] for _ in range(2)]
    assert sorted(tuple(row.values()) for row in rows) == table(db)


def test_session_of_an_unknown_conversation_is_one_clear_error(db: Connection) -> None:
    done = cli("query", "start_session", "--conversation_id", "ac_none", "--database", conninfo_of(db))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "(ac_none) is not present" in done.stderr
    assert table(db) == []


def test_repeated_start_returns_the_same_session_and_changes_nothing(db: Connection) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    first = run(db, "start_session", conversation_id="ac_1", session_id="mine")
    assert first["id"] == "mine"
    recorded = run(db, "record_activity", conversation_id="ac_1", session_id="mine", messages=2)
    assert run(db, "start_session", conversation_id="ac_1", session_id="mine") == recorded
    assert table(db) == [tuple(recorded.values())]


def test_concurrent_starts_of_one_session_return_the_same_row(db: Connection) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    conninfo = conninfo_of(db)
    with ThreadPoolExecutor() as pool:
        with psycopg.connect(conninfo) as other:
            first = run(other, "start_session", conversation_id="ac_1", session_id="mine")
            # Its snapshot is older than the commit that it waits for.
            second = pool.submit(stats.query, conninfo, "start_session", conversation_id="ac_1", session_id="mine")
            wait_until(lambda: count_connections(db, "wait_event_type = 'Lock'") == 1)
        assert second.result() == [first]
    assert len(table(db)) == 1


def test_id_of_a_session_of_another_conversation_is_refused(db: Connection, insert: Insert) -> None:
    insert("ac_1", id="mine")
    insert("ac_2")
    before = table(db)
    with pytest.raises(stats.SessionStatsError, match="session mine belongs to another conversation than ac_2") as raised:
        stats.query(db, "start_session", conversation_id="ac_2", session_id="mine")
    assert raised.value.sqlstate == "23505"
    assert table(db) == before


@pytest.mark.parametrize("name", ["start_session", "record_activity", "record_totals"])
def test_missing_session_and_missing_conversation_are_the_same_kind_of_error(name: str, db: Connection, insert: Insert) -> None:
    insert("ac_1", id="mine")
    insert("ac_2")
    before = table(db)
    # Neither there, nor in this conversation, nor the conversation itself.
    asked = [("ac_1", "none"), ("ac_2", "mine"), ("ac_none", "mine")] if name != "start_session" else [("ac_none", "new")]
    for conversation, session in asked:
        with pytest.raises(stats.SessionStatsError) as raised:
            stats.query(db, name, conversation_id=conversation, session_id=session)
        assert not isinstance(raised.value, stats.UsageError)
        assert (raised.value.sqlstate, str(raised.value).count("\n")) == ("23503", 0)
    assert table(db) == before


# record_totals --------------------------------------------------------------------------------------------

totals = st.lists(st.tuples(*[st.integers(0, 9)] * 4), max_size=6)


@given(totals, st.randoms(use_true_random=False))
@few
def test_totals_in_any_order_and_any_number_of_times_end_alike(
    db: Connection, calls: list[tuple[int, int, int, int]], chance: random.Random
) -> None:
    repeated = [*calls, *chance.sample(calls, len(calls) // 2)]
    chance.shuffle(repeated)
    with db.transaction(force_rollback=True):
        db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
        db.execute("INSERT INTO alicia_session_stats (id, conversation_id, message_count) VALUES ('ass_1', 'ac_1', 4)")
        for amounts in repeated:
            given = dict(zip(COUNTERS, amounts, strict=True))
            row = run(db, "record_totals", session_id="ass_1", conversation_id="ac_1", **given)
            assert tuple(row.values()) == table(db)[0]
        assert table(db)[0][2:6] == tuple(map(max, zip((4, 0, 0, 0), *calls, strict=True)))


def test_repeated_totals_do_not_touch_updated_at(db: Connection, insert: Insert) -> None:
    session = insert()
    first = run(db, "record_totals", session_id=session, conversation_id="ac_1", messages=7, seconds=60)
    assert run(db, "record_totals", session_id=session, conversation_id="ac_1", messages=6, seconds=60) == first


# record_activity ------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["ass_1", "ass_2"]), *[st.integers(0, 9)] * 4), max_size=8))
@few
def test_recorded_activity_adds_up_in_its_session_and_in_no_other(
    db: Connection, calls: list[tuple[str, int, int, int, int]]
) -> None:
    expected = {"ass_1": [0] * 4, "ass_2": [0] * 4, "ass_3": [0] * 4}
    with db.transaction(force_rollback=True):
        db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
        db.execute("INSERT INTO alicia_session_stats (id, conversation_id) SELECT UNNEST(%s::TEXT[]), 'ac_1'", [list(expected)])
        for session, *amounts in calls:
            expected[session] = [before + more for before, more in zip(expected[session], amounts, strict=True)]
            row = run(
                db, "record_activity", conversation_id="ac_1", session_id=session, **dict(zip(COUNTERS, amounts, strict=True))
            )
            stored = db.execute("SELECT * FROM alicia_session_stats WHERE id = %s", [session]).fetchone()
            assert tuple(row.values()) == stored
            assert [row[column] for column in COUNTERS.values()] == expected[session]
        assert {row[0]: list(row[2:6]) for row in table(db)} == expected


def test_updated_at_advances_only_when_something_was_recorded(db: Connection, insert: Insert) -> None:
    session = insert()
    (before,) = table(db)
    assert tuple(run(db, "record_activity", conversation_id="ac_1", session_id=session).values()) == before
    assert run(db, "record_activity", conversation_id="ac_1", session_id=session, seconds=1)["updated_at"] > before[-1]


def test_unknown_session_is_one_clear_error_in_python_the_command_line_and_psql(db: Connection, insert: Insert) -> None:
    insert()
    before, conninfo = table(db), conninfo_of(db)
    with pytest.raises(stats.SessionStatsError, match="session ass_none does not exist") as raised:
        stats.query(conninfo, "record_activity", conversation_id="ac_1", session_id="ass_none", messages=1)
    assert raised.value.sqlstate == "23503"
    done = cli("query", "record_activity", "--conversation_id", "ac_1", "--session_id", "it's 100%", "--database", conninfo)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "session it's 100% does not exist" in done.stderr
    done = psql(conninfo, "-v", "session_id=ass_none", "-v", "conversation_id=ac_1", "-f", ROOT / "queries/record_activity.sql")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[0].endswith("ERROR:  session ass_none does not exist in conversation ac_1")
    assert table(db) == before


def test_session_deleted_while_the_writer_waited_for_it_is_an_error(db: Connection, insert: Insert) -> None:
    session = insert()
    command = ["query", "record_activity", "--conversation_id", "ac_1", "--session_id", session, "--database", conninfo_of(db)]
    with ThreadPoolExecutor() as pool:
        with psycopg.connect(conninfo_of(db)) as other:
            other.execute("DELETE FROM alicia_session_stats")
            writing = pool.submit(cli, *command)
            wait_until(lambda: count_connections(db, "wait_event_type = 'Lock'") == 1)
        done = writing.result()
    assert done.returncode == 1
    assert f"session {session} does not exist" in done.stderr


@pytest.mark.parametrize("name", COUNTERS)
def test_count_beyond_the_integer_maximum_is_one_clear_error_and_changes_nothing(
    name: str, db: Connection, insert: Insert
) -> None:
    session = insert(**{COUNTERS[name]: MAXIMUM - 5})
    before = table(db)
    others = [f"--{each}=1" for each in COUNTERS if each != name]
    done = cli(
        "query",
        "record_activity",
        "--conversation_id",
        "ac_1",
        "--session_id",
        session,
        f"--{name}=6",
        *others,
        "--database",
        conninfo_of(db),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "alicia-session-stats: record_activity: integer out of range\n"
    assert table(db) == before
    assert run(db, "record_activity", conversation_id="ac_1", session_id=session, **{name: 5})[COUNTERS[name]] == MAXIMUM


@pytest.mark.parametrize("name", ["record_activity", "record_totals"])
@pytest.mark.parametrize("param", COUNTERS)
def test_psql_refuses_a_negative_number_and_changes_nothing(name: str, param: str, db: Connection, insert: Insert) -> None:
    session = insert(**dict.fromkeys(COUNTERS.values(), 5))
    before, file = table(db), ROOT / "queries" / f"{name}.sql"
    given = ["-v", f"session_id={session}", "-v", "conversation_id=ac_1", *(f"-v{each}=1" for each in COUNTERS if each != param)]
    for amount in (-1, -6):
        done = psql(conninfo_of(db), "-v", "VERBOSITY=verbose", *given, "-v", f"{param}={amount}", "-f", file)
        assert (done.returncode, done.stdout) == (3, "")
        if amount == -6 and name == "record_activity":  # The sum is negative, which the CHECK constraint refuses first.
            assert "ERROR:  23514: " in done.stderr
        else:
            assert "ERROR:  22023: messages, tool_calls, memories and seconds must not be negative\n" in done.stderr
    assert table(db) == before


def test_session_that_changed_after_the_snapshot_is_a_serialization_failure(db: Connection, insert: Insert) -> None:
    given: dict[str, Any] = {"conversation_id": "ac_1", "session_id": insert()}
    with psycopg.connect(conninfo_of(db)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1")
        run(db, "record_totals", **given, messages=2)
        with pytest.raises(stats.SessionStatsError) as raised:
            run(connection, "record_totals", **given, messages=3)
        assert raised.value.sqlstate == "40001"
        connection.rollback()
        assert run(connection, "record_totals", **given, messages=3)["message_count"] == 3


def test_psql_starts_and_records_alike(db: Connection) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    done = psql(conninfo_of(db), "-Atq", "-v", "conversation_id=ac_1", "-f", ROOT / "queries/start_session.sql")
    assert (done.returncode, done.stderr) == (0, "")
    given = [
        "-v",
        f"session_id={done.stdout.split('|')[0]}",
        "-v",
        "conversation_id=ac_1",
        "-v",
        "messages=2",
        "-v",
        "seconds=40",
    ]
    done = psql(conninfo_of(db), "-Atq", *given, "-f", ROOT / "queries/record_activity.sql")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("|")[2:6] == ["2", "0", "0", "40"]


# 64 writers -----------------------------------------------------------------------------------------------

SESSIONS, PROCESSES, THREADS, DOOMED, CALLS = 100, 8, 8, 2, 40

# Each writes to stdout, a file that outlives it, what it asks for and what was acknowledged. After an error it continues
# with another increment, so that nothing is asked for twice.
WRITER = """
import os, random, sys, threading
import psycopg
import alicia_session_stats as stats

conninfo, process, sessions, threads, calls = sys.argv[1], *map(int, sys.argv[2:])
statement = stats.queries()["record_activity"].statement.encode()

def write(writer):
    chance, connection = random.Random(writer), None
    for number in range(calls):
        session, amount = chance.randrange(sessions), chance.randrange(1, 2**18)
        os.write(1, f"asked {writer} {number} {session} {amount}\\n".encode())
        try:
            connection = connection or stats.connect(conninfo)
            counts = {"messages": "1", "tool_calls": "2", "memories": "3", "seconds": str(amount)}
            values = {"session_id": f"ass_{session}", "conversation_id": "ac_1", **counts}
            assert connection.execute(statement, values).fetchone()[0] == f"ass_{session}"
        except psycopg.OperationalError:
            connection = None
        else:
            os.write(1, f"acknowledged {writer} {number} {session} {amount}\\n".encode())

for thread in range(threads):
    threading.Thread(target=write, args=[process * threads + thread]).start()
"""


def start_writers(conninfo: str, process: int, log: Path) -> subprocess.Popen[bytes]:
    calls = 10**9 if process < DOOMED else CALLS
    arguments = [make_conninfo(conninfo, application_name="writer"), *map(str, (process, SESSIONS, THREADS, calls))]
    with log.open("ab") as stdout:
        return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], cwd=ROOT, stdout=stdout)


def terminate_one(db: Connection) -> int:
    """Terminate the connection of one writer; returns how many were terminated, 0 or 1."""
    return scalar(
        db,
        "SELECT COUNT(*) FILTER (WHERE pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity "
        "WHERE datname = CURRENT_DATABASE() AND application_name = 'writer' ORDER BY RANDOM() LIMIT 1) AS w",
    )


def subset_sums(amounts: list[int]) -> set[int]:
    sums = {0}
    for amount in amounts:
        sums |= {each + amount for each in sums}
    return sums


def test_64_writers_of_which_some_are_killed_lose_no_acknowledged_increment_and_add_none_twice(
    db: Connection, tmp_path: Path
) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    db.execute(
        "INSERT INTO alicia_session_stats (id, conversation_id) SELECT 'ass_' || n, 'ac_1' FROM GENERATE_SERIES(0, %s) AS n",
        [SESSIONS - 1],
    )
    logs = [tmp_path / str(process) for process in range(PROCESSES)]
    processes = [start_writers(conninfo_of(db), process, log) for process, log in enumerate(logs)]
    terminated = 0
    try:
        while any(process.poll() is None for process in processes):
            terminated += terminate_one(db)
            for process, log in zip(processes[:DOOMED], logs, strict=False):
                if log.read_bytes().count(b"acknowledged") > THREADS * CALLS // 2:
                    process.kill()
            time.sleep(random.uniform(0.02, 0.08))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    wait_until(lambda: count_connections(db, "application_name = 'writer'") == 0)

    asked, acknowledged = (
        {line.split(" ", 1)[1] for log in logs for line in log.read_text().splitlines() if line.startswith(word)}
        for word in ("asked", "acknowledged")
    )
    sure, doubtful = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for each in asked:
        _, _, session, amount = each.split()
        (sure if each in acknowledged else doubtful)[f"ass_{session}"].append(int(amount))
    assert [process.returncode for process in processes] == [-9] * DOOMED + [0] * (PROCESSES - DOOMED)
    # At least all that were not killed. One of those that were may have lost its connection each time.
    assert len({each.split()[0] for each in acknowledged}) >= (PROCESSES - DOOMED) * THREADS
    assert terminated > 0
    assert sum(map(len, doubtful.values())) >= DOOMED
    for session, _, messages, tool_calls, memories, seconds, *_ in table(db):
        assert len(sure[session]) <= messages <= len(sure[session]) + len(doubtful[session])
        assert (tool_calls, memories) == (2 * messages, 3 * messages)  # All of an increment, or nothing.
        assert seconds - sum(sure[session]) in subset_sums(doubtful[session])


# delete_sessions_before -----------------------------------------------------------------------------------

DAY = timedelta(days=1)
ages = st.one_of(
    st.sampled_from([7 * DAY, 7 * DAY + timedelta(microseconds=1), 7 * DAY - timedelta(microseconds=1), 8 * DAY]),
    st.timedeltas(-DAY, 400 * DAY),
)


@given(st.lists(ages, max_size=12), st.integers(0, 5), st.sampled_from(["UTC", "Asia/Tokyo"]))
@few
def test_batch_is_the_oldest_sessions_before_the_edge(db: Connection, old: list[timedelta], batch: int, zone: str) -> None:
    with db.transaction(force_rollback=True):
        db.execute("SELECT SET_CONFIG('TimeZone', %s, TRUE)", [zone])
        now = scalar(db, "SELECT NOW() AT TIME ZONE 'UTC'")
        db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
        rows = [(now - age, f"ass_{number}") for number, age in enumerate(old)]
        with db.cursor() as cursor:
            cursor.executemany("INSERT INTO alicia_session_stats (conversation_id, created_at, id) VALUES ('ac_1', %s, %s)", rows)
        doomed = sorted(row for row in rows if row[0] < now - 7 * DAY)
        for _ in range(3):
            expected = {"deleted": len(doomed[:batch]), "more_remain": len(doomed) > batch}
            assert run(db, "delete_sessions_before", days=7, batch=batch) == expected
            rows, doomed = [row for row in rows if row not in doomed[:batch]], doomed[batch:]
            assert sorted((row[6], row[0]) for row in table(db)) == sorted(rows)


def test_session_that_is_being_written_is_skipped_without_waiting_and_remains(db: Connection, insert: Insert) -> None:
    written, others = insert(created_at="2020-01-01"), [insert(created_at=f"2020-01-0{day}") for day in (2, 3, 4)]
    with psycopg.connect(conninfo_of(db)) as writer:
        run(writer, "record_activity", conversation_id="ac_1", session_id=written, messages=1)
        db.execute("SET lock_timeout = '100ms'")
        assert run(db, "delete_sessions_before", days=1, batch=2) == {"deleted": 2, "more_remain": True}
        assert {row[0] for row in table(db)} == {written, others[2]}
        assert run(db, "delete_sessions_before", days=1, batch=2) == {"deleted": 1, "more_remain": True}
        assert run(db, "delete_sessions_before", days=1, batch=2) == {"deleted": 0, "more_remain": True}
    assert [row[2] for row in table(db)] == [1]
    assert run(db, "delete_sessions_before", days=1, batch=2) == {"deleted": 1, "more_remain": False}


def test_two_concurrent_deletes_take_different_sessions(db: Connection, insert: Insert) -> None:
    for day in range(1, 6):
        insert(created_at=f"2020-01-0{day}")
    db.execute("SET lock_timeout = '100ms'")
    with psycopg.connect(conninfo_of(db)) as other:
        assert run(other, "delete_sessions_before", days=1, batch=3) == {"deleted": 3, "more_remain": True}
        assert run(db, "delete_sessions_before", days=1, batch=3)["deleted"] == 2
    assert table(db) == []


def test_delete_without_days_or_with_negative_days_deletes_nothing(db: Connection, insert: Insert) -> None:
    insert(created_at="2020-01-01")
    with pytest.raises(stats.UsageError, match="needs --days"):
        stats.query(db, "delete_sessions_before")
    with pytest.raises(stats.UsageError, match="0 or more"):
        stats.query(db, "delete_sessions_before", days=-1)
    done = psql(conninfo_of(db), "-v", "days=-1", "-f", ROOT / "queries/delete_sessions_before.sql")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[0].endswith("ERROR:  days must not be negative")
    assert len(table(db)) == 1


def test_batch_is_found_by_indexes_with_any_statistics(db: Connection) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    fill = (
        "INSERT INTO alicia_session_stats (conversation_id, created_at) "
        "SELECT 'ac_1', TIMESTAMP '2020-01-01' + n * INTERVAL '1 minute' FROM GENERATE_SERIES(1, 5000) AS n"
    )
    for statistics in ("DELETE FROM alicia_session_stats", "SELECT"):  # Of an empty table, then of a full one.
        db.execute(fill)
        db.execute(statistics.encode())
        db.execute("ANALYZE alicia_session_stats")
        db.execute(fill)
        statement = stats.queries()["delete_sessions_before"].statement
        plan = db.execute(f"EXPLAIN {statement}".encode(), {"days": "7", "batch": "2000"}).fetchall()
        lines = [line for (line,) in plan]
        assert any("using idx_session_stats_created_at" in line for line in lines)
        assert any("alicia_session_stats_pkey" in line for line in lines)
        assert not any("Seq Scan" in line for line in lines)


# purge ----------------------------------------------------------------------------------------------------


def purge(conninfo: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return cli("purge", *arguments, "--database", conninfo)


def test_purge_deletes_batch_by_batch_each_in_its_own_transaction(db: Connection, insert: Insert) -> None:
    young = insert()
    db.execute(
        "INSERT INTO alicia_session_stats (conversation_id, created_at) SELECT 'ac_1', '2020-01-01' FROM GENERATE_SERIES(1, 201)"
    )
    db.execute("""
        CREATE TABLE batches AS SELECT TXID_CURRENT() AS transaction, 0::BIGINT AS sessions WHERE FALSE;
        CREATE FUNCTION note_batch() RETURNS TRIGGER LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO batches SELECT TXID_CURRENT(), COUNT(*) FROM deleted;
            RETURN NULL;
        END $$;
        CREATE TRIGGER note_batch AFTER DELETE ON alicia_session_stats REFERENCING OLD TABLE AS deleted
        FOR EACH STATEMENT EXECUTE FUNCTION note_batch();
    """)
    done = purge(conninfo_of(db), "--days", "30", "--batch", "100", "--yes")
    assert (done.returncode, done.stdout) == (0, "")
    assert "201 sessions deleted" in done.stderr
    assert [row[0] for row in table(db)] == [young]
    batches = db.execute("SELECT COUNT(DISTINCT transaction), ARRAY_AGG(sessions ORDER BY sessions) FROM batches").fetchone()
    assert batches == (3, [1, 100, 100])
    assert purge(conninfo_of(db), "--days", "30").returncode == 0


def test_purge_fails_when_sessions_remain_that_are_being_written(db: Connection, insert: Insert) -> None:
    written, *_ = [insert(created_at="2020-01-01") for _ in range(3)]
    with psycopg.connect(conninfo_of(db)) as writer:
        run(writer, "record_activity", conversation_id="ac_1", session_id=written, messages=1)
        done = purge(conninfo_of(db), "--days", "30", "--yes")
    assert done.returncode == 1
    assert "some old sessions remain" in done.stderr.splitlines()[-1]
    assert [row[0] for row in table(db)] == [written]


@pytest.mark.parametrize("days", [[], ["soon"], ["-1"], ["2147483648"]])
def test_purge_without_a_good_number_of_days_is_one_clear_line_and_deletes_nothing(
    days: list[str], db: Connection, insert: Insert
) -> None:
    insert(created_at="2020-01-01")
    done = purge(conninfo_of(db), *(f"--days={each}" for each in days))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert len(table(db)) == 1
