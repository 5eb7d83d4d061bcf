"""A rebuild finds the sessions that a model in plain Python finds in the same messages, and writes no other row."""

import hashlib
import time
from base64 import urlsafe_b64encode
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from conftest import EVENTS, ROOT, cli, conninfo_of, psql, scalar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import alicia_session_stats as stats

Connection = psycopg.Connection[Any]
Insert = Callable[..., str]
Key = tuple[str, datetime]  # A session: its conversation and its start.
Counts = tuple[int, int, int, int]  # Messages, tool calls, memories, seconds.

REBUILD = stats.queries()["rebuild_sessions"]
START = datetime(2024, 2, 28, 23, 40)  # Before a midnight and a leap day.
GAP = timedelta(minutes=30)
MICROSECOND = timedelta(microseconds=1)
few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def app(db: Connection) -> Connection:
    """A database with the tables of the application, and two conversations."""
    db.execute(EVENTS)
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1'), ('ac_2')")
    return db


def rebuild(db: Connection, **params: Any) -> dict[str, int]:
    """Rebuild on this connection; the counts that are not 0."""
    (row,) = stats.query(db, "rebuild_sessions", **params)
    return {name: count for name, count in row.items() if count}


def table(db: Connection) -> dict[str, tuple[Any, ...]]:
    return {row[0]: row for row in db.execute("SELECT * FROM alicia_session_stats").fetchall()}


def stored(db: Connection) -> list[tuple[Any, ...]]:
    """The rows with the system columns that any write or lock changes."""
    return db.execute("SELECT ctid::TEXT, xmin::TEXT, xmax::TEXT, * FROM alicia_session_stats ORDER BY id").fetchall()


def send(db: Connection, at: datetime, conversation: str | None = "ac_1") -> str:
    """Insert a message; returns its id."""
    return scalar(
        db,
        "INSERT INTO alicia_messages SELECT 'am_' || COUNT(*), %s, %s FROM alicia_messages RETURNING id",
        conversation,
        at,
    )


def wait_for_a_lock(db: Connection) -> None:
    """Wait until a session waits for a lock in this database."""
    waiting = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = CURRENT_DATABASE() AND wait_event_type = 'Lock'"
    deadline = time.monotonic() + 30
    while not scalar(db, waiting):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# The model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    id: str
    conversation: str
    at: datetime
    deleted: bool
    tools: tuple[bool, ...]  # Each: was it soft-deleted?
    memories: tuple[tuple[str, bool], ...]


def model_id(key: Key) -> str:
    """The id of a rebuilt row. It must not change between releases."""
    microseconds = (key[1] - datetime(1970, 1, 1)) // MICROSECOND
    digest = hashlib.sha256(f"{key[0]} {Decimal(microseconds).scaleb(-6):.6f}".encode()).digest()
    return "ass_" + urlsafe_b64encode(digest[:16]).decode().rstrip("=")


def model(messages: Iterable[Message], gap: timedelta = GAP) -> dict[Key, Counts]:
    conversations = defaultdict[str, list[Message]](list)
    for message in messages:
        if not message.deleted:
            conversations[message.conversation].append(message)
    sessions: list[list[Message]] = []
    for each in conversations.values():
        ordered = sorted(each, key=lambda message: message.at)
        for before, message in zip([None, *ordered], ordered, strict=False):
            if before is None or message.at - before.at > gap:
                sessions.append([])
            sessions[-1].append(message)
    return {
        (session[0].conversation, session[0].at): (
            len(session),
            sum(not deleted for message in session for deleted in message.tools),
            len({memory for message in session for memory, deleted in message.memories if not deleted}),
            (session[-1].at - session[0].at) // timedelta(seconds=1),
        )
        for session in sessions
    }


def store(db: Connection, messages: list[Message]) -> None:
    """Replace what the tables of the application hold by these messages."""
    db.execute("TRUNCATE alicia_messages, alicia_tool_uses, alicia_memory_used")
    now = datetime(2024, 3, 1)
    with db.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO alicia_messages VALUES (%s, %s, %s, %s)",
            [(m.id, m.conversation, m.at, now if m.deleted else None) for m in messages],
        )
        cursor.executemany(
            "INSERT INTO alicia_tool_uses (message_id, deleted_at) VALUES (%s, %s)",
            [(m.id, now if deleted else None) for m in messages for deleted in m.tools],
        )
        cursor.executemany(
            "INSERT INTO alicia_memory_used (message_id, memory_id, deleted_at) VALUES (%s, %s, %s)",
            [(m.id, memory, now if deleted else None) for m in messages for memory, deleted in m.memories],
        )


def rows_of(sessions: dict[Key, Counts]) -> dict[str, tuple[Any, ...]]:
    """The expected rows, without updated_at."""
    return {model_id(key): (model_id(key), key[0], *counts, key[1]) for key, counts in sessions.items() if key[0] != "ac_gone"}


seldom = st.integers(0, 4).map(lambda n: n == 0)
gaps = st.one_of(
    st.sampled_from([timedelta(0), MICROSECOND, GAP - MICROSECOND, GAP, GAP + MICROSECOND, timedelta(seconds=1) - MICROSECOND]),
    st.timedeltas(timedelta(0), 3 * GAP),
)
drawn = st.tuples(
    st.sampled_from(["ac_1", "ac_2", "ac_gone"]),
    gaps,
    seldom,
    st.lists(seldom, max_size=2).map(tuple),
    st.lists(st.tuples(st.sampled_from(["am_1", "am_2", "am_3"]), seldom), max_size=3).map(tuple),
)


@st.composite
def events(draw: st.DrawFn) -> list[Message]:
    """Messages in any order, each some gap after the one before it in its conversation."""
    clocks, messages = defaultdict[str, datetime](lambda: START), list[Message]()
    for number, (conversation, gap, *rest) in enumerate(draw(st.lists(drawn, min_size=4, max_size=20))):
        clocks[conversation] += gap
        messages.append(Message(f"am_{number}", conversation, clocks[conversation], *rest))
    return draw(st.permutations(messages))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Message], list[Message]]:
    """Messages before and after changes: some late, soft-deleted, restored, deleted for good, or with more tool uses."""
    after = draw(events())
    before = [message for message in after if not draw(seldom)]
    before = [replace(message, deleted=not message.deleted) if draw(seldom) else message for message in before]
    return [replace(message, tools=message.tools[1:]) if draw(seldom) else message for message in before], after


# What is rebuilt ------------------------------------------------------------------------------------------


@given(histories(), st.sampled_from([0, 1, 30]))
@few
def test_rebuild_finds_the_sessions_of_the_model_and_writes_nothing_else(
    app: Connection, history: tuple[list[Message], list[Message]], minutes: int
) -> None:
    with app.transaction(force_rollback=True):
        for number, message in enumerate(m for m in history[1] if m.conversation != "ac_gone"):
            # Recorded sessions with the same conversations and starts as the rebuilt ones.
            app.execute(
                "INSERT INTO alicia_session_stats (id, conversation_id, message_count, created_at) VALUES (%s, %s, %s, %s)",
                [f"ass_{number}", message.conversation, number, message.at],
            )
        recorded = table(app)
        for messages in history:
            sessions = model(messages, timedelta(minutes=minutes))
            expected, before = rows_of(sessions), {key: row for key, row in table(app).items() if key not in recorded}
            store(app, messages)
            counts = rebuild(app, gap_minutes=minutes)
            after = table(app)
            rebuilt = {key: row for key, row in after.items() if key not in recorded}

            assert {key: row for key, row in after.items() if key in recorded} == recorded
            assert {key: row[:-1] for key, row in rebuilt.items()} == expected
            kept = expected.keys() & before.keys()
            unchanged = {key for key in kept if before[key][:-1] == expected[key]}
            assert {key for key in kept if rebuilt[key][-1] == before[key][-1]} == unchanged
            assert all(rebuilt[key][-1] >= before[key][-1] for key in kept)
            assert counts == {
                name: count
                for name, count in {
                    "inserted": len(expected.keys() - before.keys()),
                    "updated": len(kept) - len(unchanged),
                    "deleted": len(before.keys() - expected.keys()),
                    "unchanged": len(unchanged),
                    "orphaned": sum(conversation == "ac_gone" for conversation, _ in sessions),
                }.items()
                if count
            }
            # Nothing is counted twice, and nothing is lost.
            assert sum(row[2] for row in rebuilt.values()) == sum(
                not message.deleted and message.conversation != "ac_gone" for message in messages
            )
            rebuild(app, gap_minutes=minutes)
            assert table(app) == after


def test_second_rebuild_writes_no_row(app: Connection) -> None:
    for minutes in (0, 10, 50, 200):
        send(app, START + timedelta(minutes=minutes))
    assert rebuild(app) == {"inserted": 3}
    before = stored(app)
    assert rebuild(app) == {"unchanged": 3}
    assert stored(app) == before


def test_without_messages_there_is_no_session(app: Connection, insert: Insert) -> None:
    assert rebuild(app) == {}
    recorded = insert()
    assert rebuild(app) == {}
    assert list(table(app)) == [recorded]


def test_same_messages_give_the_same_ids_after_everything_was_deleted(app: Connection) -> None:
    send(app, START)
    send(app, START + 2 * GAP, "ac_2")
    rebuild(app)
    before = {key: row[:-1] for key, row in table(app).items()}
    app.execute("DELETE FROM alicia_session_stats")
    assert rebuild(app) == {"inserted": 2}
    assert {key: row[:-1] for key, row in table(app).items()} == before


def test_id_of_a_rebuilt_session_never_changes(app: Connection) -> None:
    send(app, START)
    rebuild(app)
    assert list(table(app)) == ["ass_Lowg4HSXZc_5_Dz_OQcW2Q"]


def test_message_exactly_one_gap_later_is_in_the_same_session(app: Connection) -> None:
    for at in (START, START + GAP, START + 2 * GAP + MICROSECOND):
        send(app, at)
    assert rebuild(app) == {"inserted": 2}
    assert rows_of({("ac_1", START): (2, 0, 0, 1800), ("ac_1", START + 2 * GAP + MICROSECOND): (1, 0, 0, 0)}) == {
        key: row[:-1] for key, row in table(app).items()
    }


@pytest.mark.parametrize(("lasts", "seconds"), [(0, 0), (1, 0), (999_999, 0), (1_000_000, 1), (1_999_999, 1)])
def test_duration_is_in_whole_seconds(app: Connection, lasts: int, seconds: int) -> None:
    send(app, START)
    send(app, START + lasts * MICROSECOND)
    assert rebuild(app) == {"inserted": 1}
    assert [row[5] for row in table(app).values()] == [seconds]
    assert rebuild(app) == {"unchanged": 1}


def test_late_message_joins_two_sessions_and_its_deletion_parts_them_again(app: Connection) -> None:
    send(app, START)
    send(app, START + 2 * GAP)
    assert rebuild(app) == {"inserted": 2}
    late = send(app, START + GAP)
    assert rebuild(app) == {"updated": 1, "deleted": 1}
    assert [row[2:7] for row in table(app).values()] == [(3, 0, 0, 3600, START)]
    app.execute("UPDATE alicia_messages SET deleted_at = NOW() WHERE id = %s", [late])
    assert rebuild(app) == {"inserted": 1, "updated": 1}


def test_late_message_before_the_first_gives_the_session_another_start_and_id(app: Connection) -> None:
    send(app, START)
    rebuild(app)
    (before,) = table(app)
    send(app, START - GAP)
    assert rebuild(app) == {"inserted": 1, "deleted": 1}
    assert before not in table(app)


@pytest.mark.parametrize("at", ["infinity", "-infinity", "294276-12-31 23:59:59.999999", "4713-01-01 BC"])
def test_message_at_the_end_of_time_is_rebuilt_like_any_other(app: Connection, at: str) -> None:
    for number, each in enumerate((START, at, START + GAP, at)):
        app.execute("INSERT INTO alicia_messages VALUES (%s, 'ac_1', %s)", [str(number), each])
    assert rebuild(app) == {"inserted": 2}
    counts = "SELECT created_at::TEXT, message_count, session_duration_seconds FROM alicia_session_stats ORDER BY 3"
    assert app.execute(counts).fetchall() == [(at.replace("4713-01-01", "4713-01-01 00:00:00"), 2, 0), (str(START), 2, 1800)]
    for minutes in (0, 2147483647):
        rebuild(app, gap_minutes=minutes)
    assert rebuild(app, gap_minutes=2147483647) in ({"unchanged": 1}, {"unchanged": 2})


def test_conversation_that_is_deleted_softly_counts_nothing_where_it_can_be(app: Connection) -> None:
    send(app, START)
    send(app, START, "ac_2")
    assert rebuild(app) == {"inserted": 2}
    app.execute("ALTER TABLE alicia_conversations ADD deleted_at TIMESTAMP")
    assert rebuild(app) == {"unchanged": 2}
    app.execute("UPDATE alicia_conversations SET deleted_at = NOW() WHERE id = 'ac_2'")
    assert rebuild(app, since_days=1) == {"deleted": 1}
    app.execute("UPDATE alicia_conversations SET deleted_at = NULL")
    assert rebuild(app) == {"inserted": 1, "unchanged": 1}


def test_session_without_messages_is_deleted(app: Connection) -> None:
    send(app, START)
    send(app, START, "ac_2")
    rebuild(app)
    app.execute("DELETE FROM alicia_messages WHERE conversation_id = 'ac_2'")
    assert rebuild(app) == {"deleted": 1, "unchanged": 1}
    app.execute("UPDATE alicia_messages SET deleted_at = NOW()")
    assert rebuild(app) == {"deleted": 1}


def test_messages_of_no_conversation_are_left_out(app: Connection) -> None:
    send(app, START, None)
    send(app, START, "ac_gone")
    assert rebuild(app) == {"orphaned": 1}
    assert table(app) == {}


def test_tool_uses_and_memories_of_no_known_message_count_nowhere(app: Connection) -> None:
    send(app, START)
    app.execute("INSERT INTO alicia_memory_used (message_id, memory_id) VALUES (NULL, 'am_1'), ('am_none', 'am_1')")
    app.execute("INSERT INTO alicia_tool_uses (message_id) VALUES ('am_none')")
    rebuild(app)
    assert [row[2:6] for row in table(app).values()] == [(1, 0, 0, 0)]


# Which rows it may write ----------------------------------------------------------------------------------------


def test_counts_written_to_a_rebuilt_row_are_overwritten(app: Connection) -> None:
    send(app, START)
    rebuild(app)
    (session,) = table(app)
    conversation = scalar(app, "SELECT conversation_id FROM alicia_session_stats")
    stats.query(app, "record_activity", session_id=session, conversation_id=conversation, messages=5, seconds=9)
    assert rebuild(app) == {"updated": 1}
    assert [row[2:6] for row in table(app).values()] == [(1, 0, 0, 0)]


@pytest.mark.parametrize("change", ["created_at = created_at + INTERVAL '1 second'", "conversation_id = 'ac_2'"])
def test_rebuilt_row_whose_start_or_conversation_changed_is_never_written_again(app: Connection, change: str) -> None:
    send(app, START)
    rebuild(app)
    app.execute(f"UPDATE alicia_session_stats SET message_count = 7, {change}".encode())
    before = stored(app)
    rebuild(app)
    assert stored(app) == before
    app.execute("DELETE FROM alicia_messages")
    assert rebuild(app) == {}
    assert stored(app) == before


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("change", ["created_at = created_at + INTERVAL '1 second'", "conversation_id = 'ac_2'"])
def test_row_that_changed_while_the_rebuild_waited_for_it_is_not_written(app: Connection, change: str, deleted: bool) -> None:
    message = send(app, START)
    rebuild(app)
    app.execute("UPDATE alicia_messages SET deleted_at = NOW() WHERE id = %s", [message]) if deleted else send(app, START + GAP)
    with ThreadPoolExecutor() as pool:
        with psycopg.connect(conninfo_of(app)) as application:
            application.execute(f"UPDATE alicia_session_stats SET message_count = 7, {change}".encode())
            rebuilding = pool.submit(stats.query, conninfo_of(app), "rebuild_sessions")
            wait_for_a_lock(app)
            before = table(application)
        assert rebuilding.result()[0].items() >= {"inserted": 0, "updated": 0, "deleted": 0}.items()
    assert table(app) == before


# since_days -----------------------------------------------------------------------------------------------


def test_since_days_rebuilds_recent_conversations_only_and_whole(app: Connection) -> None:
    now = scalar(app, "SELECT NOW() AT TIME ZONE 'UTC'")
    ten_days_ago = now - timedelta(days=10)
    for at in (ten_days_ago, now - timedelta(days=2, minutes=20), now - timedelta(days=2), now - timedelta(days=2, minutes=-20)):
        send(app, at)
    send(app, ten_days_ago, "ac_2")
    assert rebuild(app, since_days=2) == {"inserted": 2}
    assert sorted(row[2:6] for row in table(app).values()) == [(1, 0, 0, 0), (3, 0, 0, 2400)]
    assert rebuild(app, since_days=1) == {}
    assert rebuild(app) == {"inserted": 1, "unchanged": 2}


def test_message_exactly_since_days_ago_is_inside(app: Connection) -> None:
    with app.transaction():
        edge = scalar(app, "SELECT NOW() AT TIME ZONE 'UTC'") - timedelta(days=2)
        send(app, edge)
        send(app, edge - MICROSECOND, "ac_2")
        assert rebuild(app, since_days=2) == {"inserted": 1}


@pytest.mark.parametrize("column", ["since TIMESTAMP", "gap_minutes INTEGER", "conversations TEXT[]"])
@pytest.mark.parametrize("name", ["alicia_conversations", "alicia_messages"])
def test_further_column_named_like_a_variable_does_not_matter(app: Connection, name: str, column: str) -> None:
    app.execute(f"ALTER TABLE {name} ADD COLUMN {column}".encode())
    send(app, START)
    send(app, START + timedelta(days=1))
    assert rebuild(app) == {"inserted": 2}


def test_conversation_is_recent_by_a_deleted_message_or_by_a_session(app: Connection) -> None:
    now = scalar(app, "SELECT NOW() AT TIME ZONE 'UTC'")
    old, recent = send(app, now - timedelta(days=10)), send(app, now - timedelta(days=1), "ac_2")
    rebuild(app)
    app.execute("UPDATE alicia_messages SET deleted_at = %s WHERE id = %s", [now, old])
    app.execute("DELETE FROM alicia_messages WHERE id = %s", [recent])
    assert rebuild(app, since_days=2) == {"deleted": 2}


# Settings and concurrency ----------------------------------------------------------------------------------


def test_settings_of_the_session_do_not_change_the_ids(app: Connection) -> None:
    send(app, START)
    send(app, datetime(1969, 12, 31, 23, 59, 59, 500000))
    assert rebuild(app) == {"inserted": 2}
    assert set(table(app)) == {model_id(("ac_1", START)), model_id(("ac_1", datetime(1969, 12, 31, 23, 59, 59, 500000)))}
    for setting in (
        "TimeZone = 'Asia/Tokyo'",
        "DateStyle = 'German, DMY'",
        "IntervalStyle = 'sql_standard'",
        "extra_float_digits = -15",
    ):
        app.execute(f"SET {setting}".encode())
        assert rebuild(app) == {"unchanged": 2}


def test_psql_rebuilds_alike(app: Connection) -> None:
    send(app, START)
    send(app, START + GAP)
    path = ROOT / "queries/rebuild_sessions.sql"
    for variables, expected in [((), "1|0|0|0|0"), (("-v", "gap_minutes=29", "-v", "since_days=36500"), "1|1|0|0|0")]:
        done = psql(conninfo_of(app), "-Atq", *variables, "-f", path)
        assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", expected)


@pytest.mark.parametrize("missing", ["alicia_messages", "alicia_tool_uses", "alicia_memory_used"])
def test_missing_table_of_the_application_is_one_clear_line(app: Connection, missing: str) -> None:
    app.execute(f"DROP TABLE {missing}".encode())
    done = cli("query", "rebuild_sessions", "--database", conninfo_of(app))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f'relation "{missing}" does not exist' in done.stderr


def load(db: Connection, sessions: int, first: int = 0) -> None:
    """So many sessions of three messages each, ten to a conversation, with a tool use and a memory for each message."""
    bounds = [first, first + sessions - 1]
    db.execute(
        "INSERT INTO alicia_conversations SELECT DISTINCT 'ac_' || n / 10 FROM GENERATE_SERIES(%s::INTEGER, %s) AS n "
        "ON CONFLICT DO NOTHING",
        bounds,
    )
    db.execute(
        "INSERT INTO alicia_messages SELECT CONCAT_WS('_', 'am', n, m), 'ac_' || n / 10, "
        "TIMESTAMP '2025-01-01' + n * INTERVAL '1 hour' + m * INTERVAL '1 minute' "
        "FROM GENERATE_SERIES(%s::INTEGER, %s) AS n, GENERATE_SERIES(1, 3) AS m",
        bounds,
    )
    db.execute("INSERT INTO alicia_tool_uses (message_id) SELECT id FROM alicia_messages")
    db.execute("INSERT INTO alicia_memory_used (message_id, memory_id) SELECT id, 'am_1' FROM alicia_messages")


def test_second_of_two_concurrent_rebuilds_waits_and_inserts_nothing_twice(app: Connection) -> None:
    load(app, 30)
    conninfo = conninfo_of(app)
    with ThreadPoolExecutor() as pool:
        with psycopg.connect(conninfo) as first:
            assert rebuild(first) == {"inserted": 30}
            second = pool.submit(stats.query, conninfo, "rebuild_sessions")
            wait_for_a_lock(app)
        assert second.result() == [{"inserted": 0, "updated": 0, "deleted": 0, "unchanged": 30, "orphaned": 0}]
    assert len(table(app)) == 30


def test_concurrent_rebuilds_while_messages_arrive_end_in_the_same_rows_as_one(app: Connection) -> None:
    conninfo = conninfo_of(app)
    with ThreadPoolExecutor(4) as pool:
        for round_ in range(4):
            load(app, 50, first=50 * round_)
            rebuilds = [
                pool.submit(stats.query, conninfo, "rebuild_sessions", gap_minutes=30 - round_ % 2 * 30) for _ in range(8)
            ]
            app.execute("UPDATE alicia_messages SET deleted_at = NOW() WHERE id LIKE 'am_%7_2'")
            for each in rebuilds:
                each.result()
    rebuild(app)
    found = {key: row[:-1] for key, row in table(app).items()}
    assert rebuild(app) == {"unchanged": 200}
    app.execute("DELETE FROM alicia_session_stats")
    rebuild(app)
    assert {key: row[:-1] for key, row in table(app).items()} == found


# The cost -------------------------------------------------------------------------------------------------


def work(plan: dict[str, Any]) -> int:
    """The most rows that a node of the plan went through, over all of its loops."""
    seen = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Join Filter", 0)
    return max([plan["Actual Loops"] * seen, *map(work, plan.get("Plans", []))])


@pytest.mark.parametrize("statistics", ["of an empty table", "of one conversation", "none"])
def test_rebuild_with_outdated_statistics_is_not_quadratic(app: Connection, statistics: str) -> None:
    app.execute("ALTER TABLE alicia_session_stats SET (autovacuum_enabled = FALSE)")
    if statistics != "none":
        load(app, 10)
        rebuild(app)
        if statistics == "of an empty table":
            app.execute("DELETE FROM alicia_session_stats")
        app.execute("ANALYZE alicia_session_stats")
    load(app, 1500, first=10)
    app.execute("ANALYZE alicia_messages, alicia_tool_uses, alicia_memory_used, alicia_conversations")
    for minutes in (30, 30, 0, 30):  # All new, all the same, all different, two in three to delete.
        explained = b"EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM alicia_session_stats_compare(%s, %s)"
        conversations = [f"ac_{number}" for number in range(151)]
        with psycopg.ClientCursor(app) as cursor:
            ((plans,),) = cursor.execute(explained, [conversations, minutes]).fetchall()
        assert work(plans[0]["Plan"]) < 20 * 3 * 1500
        rebuild(app, gap_minutes=minutes)


def test_recent_conversations_cost_one_scan_of_the_messages_and_index_scans(app: Connection) -> None:
    load(app, 2400)  # An hour apart, so a day is a hundredth.
    age = scalar(app, "SELECT NOW() AT TIME ZONE 'UTC' - MAX(created_at) FROM alicia_messages")
    app.execute("UPDATE alicia_messages SET created_at = created_at + %s", [age])
    app.execute("CREATE INDEX conversation ON alicia_messages (conversation_id) WHERE deleted_at IS NULL")
    app.execute("CREATE INDEX tool_use ON alicia_tool_uses (message_id) WHERE deleted_at IS NULL")
    app.execute("CREATE INDEX memory ON alicia_memory_used (message_id) WHERE deleted_at IS NULL")
    rebuild(app)
    app.execute("VACUUM ANALYZE")
    scans = """
        SELECT relname, PG_STAT_GET_XACT_NUMSCANS(oid) FROM pg_class
        WHERE relname IN ('conversation', 'tool_use', 'memory', 'idx_session_stats_created_at', 'idx_session_stats_conversation')
            OR relkind = 'r' AND relname ~ '^alicia_(messages|tool_uses|memory_used|session_stats)$'
    """
    with app.transaction():  # In one transaction, since the counters are reset at some later end of one.
        before = dict(app.execute(scans.encode()).fetchall())
        assert rebuild(app, since_days=1)["unchanged"] < 50
        found = {name: count - before[name] for name, count in app.execute(scans.encode()).fetchall()}
    tables = {name: count for name, count in found.items() if name.startswith("alicia_")}
    assert tables == {"alicia_messages": 1, "alicia_tool_uses": 0, "alicia_memory_used": 0, "alicia_session_stats": 0}
    assert all(count for name, count in found.items() if name not in tables)
