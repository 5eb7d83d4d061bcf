"""The rebuilt sessions are the ones that a plain model finds in the same events, and no other row is ever touched."""

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
from conftest import ROOT, cli, conninfo_of, psql, scalar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner import named_queries, query

Connection = psycopg.Connection[Any]
Insert = Callable[..., str]
Key = tuple[str, datetime]  # A session: its conversation and its start.
Counts = tuple[int, int, int, int]  # Messages, tool calls, memories, seconds.

REBUILD = named_queries()["rebuild_sessions"]
HOST = b"""
    CREATE TABLE alicia_messages (
        id TEXT PRIMARY KEY, conversation_id TEXT, created_at TIMESTAMP NOT NULL, deleted_at TIMESTAMP
    );
    CREATE TABLE alicia_tool_uses (
        id INTEGER PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
        message_id TEXT NOT NULL, created_at TIMESTAMP NOT NULL DEFAULT NOW(), deleted_at TIMESTAMP
    );
    CREATE TABLE alicia_memory_used (
        id INTEGER PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
        conversation_id TEXT NOT NULL DEFAULT 'ac_1', message_id TEXT, memory_id TEXT NOT NULL,
        created_at TIMESTAMP NOT NULL DEFAULT NOW(), deleted_at TIMESTAMP
    );
"""
START = datetime(2024, 2, 28, 23, 40)  # Before a midnight and a leap day.
GAP = timedelta(minutes=30)
MICROSECOND = timedelta(microseconds=1)
few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def host(db: Connection) -> Connection:
    """A database whose host keeps the event tables, and two conversations."""
    db.execute(HOST)
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1'), ('ac_2')")
    return db


def rebuild(db: Connection, **params: object) -> dict[str, int]:
    """Run it on this connection, with parameters as the runner gives them; the counts that are not 0."""
    values = {param.name: str(params.get(param.name, param.default)) for param in REBUILD.params}
    cursor = db.execute(REBUILD.statement.encode(), values)
    (row,) = cursor.fetchall()
    return {column.name: count for column, count in zip(cursor.description or (), row, strict=True) if count}


def table(db: Connection) -> dict[str, tuple[Any, ...]]:
    return {row[0]: row for row in db.execute("SELECT * FROM alicia_session_stats").fetchall()}


def stored(db: Connection) -> list[tuple[Any, ...]]:
    """The rows as they are stored: any write or lock would show."""
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
    """Wait until somebody waits for a lock in this database."""
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
    """What vouches for a rebuilt row. Ids must survive a release: this is not to change."""
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
    """Make the host's tables hold these messages and no other."""
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
    """The rows that are expected, but for updated_at."""
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
    """Messages, each some gap after the one before it in its conversation, in no order."""
    clocks, messages = defaultdict[str, datetime](lambda: START), list[Message]()
    for number, (conversation, gap, *rest) in enumerate(draw(st.lists(drawn, min_size=4, max_size=20))):
        clocks[conversation] += gap
        messages.append(Message(f"am_{number}", conversation, clocks[conversation], *rest))
    return draw(st.permutations(messages))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Message], list[Message]]:
    """Messages, and what became of them: some late, some soft-deleted, restored, deleted for good, or used more."""
    after = draw(events())
    before = [message for message in after if not draw(seldom)]
    before = [replace(message, deleted=not message.deleted) if draw(seldom) else message for message in before]
    return [replace(message, tools=message.tools[1:]) if draw(seldom) else message for message in before], after


# What is rebuilt ------------------------------------------------------------------------------------------


@given(histories(), st.sampled_from([0, 1, 30]))
@few
def test_a_rebuild_finds_the_sessions_of_the_model_and_touches_nothing_else(
    host: Connection, history: tuple[list[Message], list[Message]], minutes: int
) -> None:
    with host.transaction(force_rollback=True):
        for number, message in enumerate(m for m in history[1] if m.conversation != "ac_gone"):
            # Recorded rows in the same conversations, of the very start that the rebuilt ones have.
            host.execute(
                "INSERT INTO alicia_session_stats (id, conversation_id, message_count, created_at) VALUES (%s, %s, %s, %s)",
                [f"ass_{number}", message.conversation, number, message.at],
            )
        recorded = table(host)
        for messages in history:
            sessions = model(messages, timedelta(minutes=minutes))
            expected, before = rows_of(sessions), {key: row for key, row in table(host).items() if key not in recorded}
            store(host, messages)
            counts = rebuild(host, gap_minutes=minutes)
            after = table(host)
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
            rebuild(host, gap_minutes=minutes)
            assert table(host) == after


def test_a_second_rebuild_writes_no_row(host: Connection) -> None:
    for minutes in (0, 10, 50, 200):
        send(host, START + timedelta(minutes=minutes))
    assert rebuild(host) == {"inserted": 3}
    before = stored(host)
    assert rebuild(host) == {"unchanged": 3}
    assert stored(host) == before


def test_of_no_events_there_is_no_session(host: Connection, insert: Insert) -> None:
    assert rebuild(host) == {}
    recorded = insert()
    assert rebuild(host) == {}
    assert list(table(host)) == [recorded]


def test_the_same_events_give_the_same_ids_after_everything_was_deleted(host: Connection) -> None:
    send(host, START)
    send(host, START + 2 * GAP, "ac_2")
    rebuild(host)
    before = {key: row[:-1] for key, row in table(host).items()}
    host.execute("DELETE FROM alicia_session_stats")
    assert rebuild(host) == {"inserted": 2}
    assert {key: row[:-1] for key, row in table(host).items()} == before


def test_an_id_is_what_it_was_in_the_first_release(host: Connection) -> None:
    send(host, START)
    rebuild(host)
    assert list(table(host)) == ["ass_Lowg4HSXZc_5_Dz_OQcW2Q"]


def test_the_edge_of_the_gap(host: Connection) -> None:
    for at in (START, START + GAP, START + 2 * GAP + MICROSECOND):
        send(host, at)
    assert rebuild(host) == {"inserted": 2}
    assert rows_of({("ac_1", START): (2, 0, 0, 1800), ("ac_1", START + 2 * GAP + MICROSECOND): (1, 0, 0, 0)}) == {
        key: row[:-1] for key, row in table(host).items()
    }


@pytest.mark.parametrize(("lasts", "seconds"), [(0, 0), (1, 0), (999_999, 0), (1_000_000, 1), (1_999_999, 1)])
def test_a_duration_is_in_whole_seconds(host: Connection, lasts: int, seconds: int) -> None:
    send(host, START)
    send(host, START + lasts * MICROSECOND)
    assert rebuild(host) == {"inserted": 1}
    assert [row[5] for row in table(host).values()] == [seconds]
    assert rebuild(host) == {"unchanged": 1}


def test_a_late_message_joins_two_sessions_and_a_deleted_one_parts_them_again(host: Connection) -> None:
    send(host, START)
    send(host, START + 2 * GAP)
    assert rebuild(host) == {"inserted": 2}
    late = send(host, START + GAP)
    assert rebuild(host) == {"updated": 1, "deleted": 1}
    assert [row[2:7] for row in table(host).values()] == [(3, 0, 0, 3600, START)]
    host.execute("UPDATE alicia_messages SET deleted_at = NOW() WHERE id = %s", [late])
    assert rebuild(host) == {"inserted": 1, "updated": 1}


def test_a_late_message_before_the_first_gives_the_session_another_start_and_so_another_id(host: Connection) -> None:
    send(host, START)
    rebuild(host)
    (before,) = table(host)
    send(host, START - GAP)
    assert rebuild(host) == {"inserted": 1, "deleted": 1}
    assert before not in table(host)


def test_sessions_of_messages_that_are_gone_go_too(host: Connection) -> None:
    send(host, START)
    send(host, START, "ac_2")
    rebuild(host)
    host.execute("DELETE FROM alicia_messages WHERE conversation_id = 'ac_2'")
    assert rebuild(host) == {"deleted": 1, "unchanged": 1}
    host.execute("UPDATE alicia_messages SET deleted_at = NOW()")
    assert rebuild(host) == {"deleted": 1}


def test_messages_of_no_conversation_are_left_out(host: Connection) -> None:
    send(host, START, None)
    send(host, START, "ac_gone")
    assert rebuild(host) == {"orphaned": 1}
    assert table(host) == {}


def test_memories_of_no_message_and_tool_uses_of_an_unknown_one_count_nowhere(host: Connection) -> None:
    send(host, START)
    host.execute("INSERT INTO alicia_memory_used (message_id, memory_id) VALUES (NULL, 'am_1'), ('am_none', 'am_1')")
    host.execute("INSERT INTO alicia_tool_uses (message_id) VALUES ('am_none')")
    rebuild(host)
    assert [row[2:6] for row in table(host).values()] == [(1, 0, 0, 0)]


# Whose row it is ------------------------------------------------------------------------------------------


def test_counts_that_were_written_to_a_rebuilt_row_are_put_right(host: Connection) -> None:
    send(host, START)
    rebuild(host)
    (session,) = table(host)
    query(conninfo_of(host), "record_activity", session_id=session, messages=5, seconds=9)
    assert rebuild(host) == {"updated": 1}
    assert [row[2:6] for row in table(host).values()] == [(1, 0, 0, 0)]


@pytest.mark.parametrize("change", ["created_at = created_at + INTERVAL '1 second'", "conversation_id = 'ac_2'"])
def test_a_rebuilt_row_whose_start_or_conversation_the_application_changed_is_its_own(host: Connection, change: str) -> None:
    send(host, START)
    rebuild(host)
    host.execute(f"UPDATE alicia_session_stats SET message_count = 7, {change}".encode())
    before = stored(host)
    rebuild(host)
    assert stored(host) == before
    host.execute("DELETE FROM alicia_messages")
    assert rebuild(host) == {}
    assert stored(host) == before


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("change", ["created_at = created_at + INTERVAL '1 second'", "conversation_id = 'ac_2'"])
def test_so_is_one_that_the_application_changed_while_the_rebuild_waited_for_it(
    host: Connection, change: str, deleted: bool
) -> None:
    message = send(host, START)
    rebuild(host)
    host.execute("UPDATE alicia_messages SET deleted_at = NOW() WHERE id = %s", [message]) if deleted else send(host, START + GAP)
    with ThreadPoolExecutor() as pool:
        with psycopg.connect(conninfo_of(host)) as application:
            application.execute(f"UPDATE alicia_session_stats SET message_count = 7, {change}".encode())
            rebuilding = pool.submit(query, conninfo_of(host), "rebuild_sessions")
            wait_for_a_lock(host)
            before = table(application)
        assert rebuilding.result()[0].items() >= {"inserted": 0, "updated": 0, "deleted": 0}.items()
    assert table(host) == before


def test_a_row_that_took_an_id_from_another_session_is_not_deleted_in_its_place(host: Connection, insert: Insert) -> None:
    taken = insert("ac_1", id=model_id(("ac_1", START)), created_at=START + GAP)
    recorded = insert("ac_1", created_at=START)
    assert rebuild(host) == {}
    assert table(host).keys() == {taken, recorded}


# since_days -----------------------------------------------------------------------------------------------


def test_since_days_looks_at_recent_conversations_only_and_at_them_whole(host: Connection) -> None:
    now = scalar(host, "SELECT NOW() AT TIME ZONE 'UTC'")
    ten_days_ago = now - timedelta(days=10)
    for at in (ten_days_ago, now - timedelta(days=2, minutes=20), now - timedelta(days=2), now - timedelta(days=2, minutes=-20)):
        send(host, at)
    send(host, ten_days_ago, "ac_2")
    assert rebuild(host, since_days=2) == {"inserted": 2}
    assert sorted(row[2:6] for row in table(host).values()) == [(1, 0, 0, 0), (3, 0, 0, 2400)]
    assert rebuild(host, since_days=1) == {}
    assert rebuild(host) == {"inserted": 1, "unchanged": 2}


def test_the_edge_of_since_days_is_inside(host: Connection) -> None:
    with host.transaction():
        edge = scalar(host, "SELECT NOW() AT TIME ZONE 'UTC'") - timedelta(days=2)
        send(host, edge)
        send(host, edge - MICROSECOND, "ac_2")
        assert rebuild(host, since_days=2) == {"inserted": 1}


def test_a_message_deleted_of_late_is_recent_and_so_is_a_session(host: Connection) -> None:
    now = scalar(host, "SELECT NOW() AT TIME ZONE 'UTC'")
    old, recent = send(host, now - timedelta(days=10)), send(host, now - timedelta(days=1), "ac_2")
    rebuild(host)
    host.execute("UPDATE alicia_messages SET deleted_at = %s WHERE id = %s", [now, old])
    host.execute("DELETE FROM alicia_messages WHERE id = %s", [recent])
    assert rebuild(host, since_days=2) == {"deleted": 2}


# At any time, from anywhere -------------------------------------------------------------------------------


def test_no_setting_of_the_session_changes_a_row(host: Connection) -> None:
    send(host, START)
    send(host, datetime(1969, 12, 31, 23, 59, 59, 500000))
    assert rebuild(host) == {"inserted": 2}
    assert set(table(host)) == {model_id(("ac_1", START)), model_id(("ac_1", datetime(1969, 12, 31, 23, 59, 59, 500000)))}
    for setting in (
        "TimeZone = 'Asia/Tokyo'",
        "DateStyle = 'German, DMY'",
        "IntervalStyle = 'sql_standard'",
        "extra_float_digits = -15",
    ):
        host.execute(f"SET {setting}".encode())
        assert rebuild(host) == {"unchanged": 2}


def test_psql_rebuilds_alike(host: Connection) -> None:
    send(host, START)
    send(host, START + GAP)
    path = ROOT / "queries/rebuild_sessions.sql"
    for variables, expected in [((), "1|0|0|0|0"), (("-v", "gap_minutes=29", "-v", "since_days=36500"), "1|1|0|0|0")]:
        done = psql(conninfo_of(host), "-Atq", *variables, "-f", path)
        assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", expected)


@pytest.mark.parametrize("missing", ["alicia_messages", "alicia_tool_uses", "alicia_memory_used"])
def test_a_missing_host_table_is_one_clear_line(host: Connection, missing: str) -> None:
    host.execute(f"DROP TABLE {missing}".encode())
    done = cli("query", "rebuild_sessions", "--database", conninfo_of(host))
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


def test_of_two_rebuilds_at_once_the_second_waits_and_makes_nothing_twice(host: Connection) -> None:
    load(host, 30)
    conninfo = conninfo_of(host)
    with ThreadPoolExecutor() as pool:
        with psycopg.connect(conninfo) as first:
            assert rebuild(first) == {"inserted": 30}
            second = pool.submit(query, conninfo, "rebuild_sessions")
            wait_for_a_lock(host)
        assert second.result() == [{"inserted": 0, "updated": 0, "deleted": 0, "unchanged": 30, "orphaned": 0}]
    assert len(table(host)) == 30


def test_many_rebuilds_at_once_while_messages_arrive_end_in_the_same_rows_as_one(host: Connection) -> None:
    conninfo = conninfo_of(host)
    with ThreadPoolExecutor(4) as pool:
        for round_ in range(4):
            load(host, 50, first=50 * round_)
            rebuilds = [pool.submit(query, conninfo, "rebuild_sessions", gap_minutes=30 - round_ % 2 * 30) for _ in range(8)]
            host.execute("UPDATE alicia_messages SET deleted_at = NOW() WHERE id LIKE 'am_%7_2'")
            for each in rebuilds:
                each.result()
    rebuild(host)
    found = {key: row[:-1] for key, row in table(host).items()}
    assert rebuild(host) == {"unchanged": 200}
    host.execute("DELETE FROM alicia_session_stats")
    rebuild(host)
    assert {key: row[:-1] for key, row in table(host).items()} == found


# The cost -------------------------------------------------------------------------------------------------


def work(plan: dict[str, Any]) -> int:
    """The most rows that a node of the plan went through, over all of its loops."""
    seen = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Join Filter", 0)
    return max([plan["Actual Loops"] * seen, *map(work, plan.get("Plans", []))])


@pytest.mark.parametrize("statistics", ["of an empty table", "of one conversation", "none"])
def test_no_part_of_the_work_is_quadratic_whatever_the_statistics_say(host: Connection, statistics: str) -> None:
    host.execute("ALTER TABLE alicia_session_stats SET (autovacuum_enabled = FALSE)")
    if statistics != "none":
        load(host, 10)
        rebuild(host)
        if statistics == "of an empty table":
            host.execute("DELETE FROM alicia_session_stats")
        host.execute("ANALYZE alicia_session_stats")
    load(host, 1500, first=10)
    host.execute("ANALYZE alicia_messages, alicia_tool_uses, alicia_memory_used, alicia_conversations")
    for minutes in (30, 30, 0, 30):  # All new, all the same, all different, two in three to delete.
        explained = f"EXPLAIN (ANALYZE, FORMAT JSON) {REBUILD.statement}".encode()
        ((plans,),) = host.execute(explained, {"gap_minutes": str(minutes), "since_days": "36500"}).fetchall()
        assert work(plans[0]["Plan"]) < 20 * 3 * 1500


def test_few_recent_conversations_are_found_by_indexes(host: Connection) -> None:
    load(host, 1500)
    rebuild(host)
    host.execute("CREATE INDEX ON alicia_messages (conversation_id)")
    host.execute("ANALYZE")
    rows = host.execute(f"EXPLAIN {REBUILD.statement}".encode(), {"gap_minutes": "30", "since_days": "1"}).fetchall()
    plan = "\n".join(line for (line,) in rows)
    for index in REBUILD.documentation.partition("Reads: ")[2].partition("\n")[0].split(", "):
        assert f"{index} on alicia_session_stats" in plan or f"on {index} " in plan
