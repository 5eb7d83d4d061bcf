"""Live recording keeps the sessions equal to a model in Python and to a rebuild, whatever is written, and by how many."""

import copy
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from random import Random
from typing import Any

import psycopg
import pytest
from conftest import MIGRATIONS, PASSWORD, ROOT, conninfo_of, pg_dump, psql, scalar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from test_rebuild import wait_for_a_lock

import alicia_session_stats as stats
from alicia_session_stats.recording import attach, detach

Connection = psycopg.Connection[Any]

# The application's tables, with the columns that matter here.
TABLES = """
    ALTER TABLE alicia_conversations ADD title TEXT NOT NULL DEFAULT '', ADD deleted_at TIMESTAMP;
    CREATE TABLE alicia_messages (
        id TEXT PRIMARY KEY,
        conversation_id TEXT NOT NULL REFERENCES alicia_conversations ON DELETE CASCADE,
        contents TEXT NOT NULL DEFAULT '',
        created_at TIMESTAMP NOT NULL DEFAULT NOW(),
        deleted_at TIMESTAMP
    );
    CREATE INDEX idx_messages_conversation ON alicia_messages (conversation_id) WHERE deleted_at IS NULL;
    CREATE TABLE alicia_tool_uses (
        id TEXT PRIMARY KEY DEFAULT GEN_RANDOM_UUID(),
        message_id TEXT NOT NULL REFERENCES alicia_messages ON DELETE CASCADE,
        deleted_at TIMESTAMP
    );
    CREATE INDEX idx_tool_uses_message ON alicia_tool_uses (message_id);
    CREATE TABLE alicia_memory_used (
        id TEXT PRIMARY KEY DEFAULT GEN_RANDOM_UUID(),
        message_id TEXT NOT NULL REFERENCES alicia_messages ON DELETE CASCADE,
        memory_id TEXT,
        deleted_at TIMESTAMP
    );
    CREATE INDEX idx_memory_used_message ON alicia_memory_used (message_id);
    INSERT INTO alicia_conversations (id) VALUES ('ac_1'), ('ac_2');
"""
START = datetime(2024, 2, 28, 23, 40)  # Before a midnight and a leap day.
GAP = timedelta(minutes=30)
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
COMPUTED = """
    SELECT conversation_id, created_at::TEXT, message_count, tool_call_count, memories_used, session_duration_seconds
    FROM alicia_session_stats
    WHERE id = alicia_session_stats_session_id(conversation_id, created_at)
"""


@pytest.fixture
def app(db: Connection) -> Connection:
    """A database with the tables of the application, and two conversations."""
    db.execute(TABLES)
    return db


@pytest.fixture
def live(app: Connection) -> Connection:
    attach(conninfo_of(app))
    return app


def rebuild(db: Connection, **params: Any) -> dict[str, int]:
    """Rebuild on this connection; the counts of what it had to change."""
    (row,) = stats.query(db, "rebuild_sessions", **params)
    return {name: count for name, count in row.items() if count and name in ("inserted", "updated", "deleted")}


# The model ------------------------------------------------------------------------------------------------


class Model:
    """What the application's tables hold, and the sessions that this makes."""

    def __init__(self) -> None:
        self.conversations: dict[str, bool] = {"ac_1": False, "ac_2": False}  # Deleted softly?
        self.messages: dict[str, list[Any]] = {}  # Conversation, time, deleted softly?
        self.uses: dict[str, list[Any]] = {}  # Message, memory or None for a tool, deleted softly?

    def sessions(self, gap: timedelta) -> set[tuple[Any, ...]]:
        found = set[tuple[Any, ...]]()
        for conversation, deleted in self.conversations.items():
            mine = sorted(
                (at, name) for name, (of, at, gone) in self.messages.items() if of == conversation and not (gone or deleted)
            )
            sessions: list[list[tuple[datetime, str]]] = []
            for at, name in mine:
                if not sessions or at - sessions[-1][-1][0] > gap:
                    sessions.append([])
                sessions[-1].append((at, name))
            for session in sessions:
                names = {name for _, name in session}
                uses = [memory for of, memory, gone in self.uses.values() if of in names and not gone]
                found.add(
                    (
                        conversation,
                        str(session[0][0]),
                        len(session),
                        sum(memory is None for memory in uses),
                        len({memory for memory in uses if memory is not None}),
                        (session[-1][0] - session[0][0]) // SECOND,
                    )
                )
        return found


edges = [
    timedelta(0), MICROSECOND, SECOND - MICROSECOND, SECOND, SECOND + MICROSECOND, GAP - MICROSECOND, GAP, GAP + MICROSECOND,
    GAP + SECOND - MICROSECOND, GAP + SECOND, GAP + SECOND + MICROSECOND, GAP - SECOND, GAP / 2, 2 * GAP,
]  # fmt: skip
conversations = st.sampled_from(["ac_1", "ac_1", "ac_1", "ac_2"])
memories = st.sampled_from(["am_1", "am_2", None])
KINDS = {
    "message": 6, "messages": 3, "use": 4, "uses": 2, "late": 5, "conversation": 3, "soft": 3, "delete": 2, "move": 2,
    "switch": 2, "use_soft": 2, "use_delete": 2, "use_move": 2, "with": 2, "upsert": 2, "hard": 1, "truncate": 1, "text": 1,
}  # fmt: skip
steps = st.lists(
    st.tuples(
        st.sampled_from([kind for kind, weight in KINDS.items() for _ in range(weight)]),
        conversations,
        st.sampled_from(edges),
        st.integers(0, 10**6),
        st.lists(st.tuples(conversations, st.sampled_from(edges), memories), min_size=1, max_size=5),
        st.sampled_from(["", "", "", "savepoint", "rollback"]),
    ),
    min_size=5,
    max_size=25,
)


def stored(db: Connection) -> Model:
    """The model of what the application's tables hold."""
    model = Model()
    model.conversations = dict(db.execute("SELECT id, deleted_at IS NOT NULL FROM alicia_conversations").fetchall())
    rows = db.execute("SELECT id, conversation_id, created_at, deleted_at IS NOT NULL FROM alicia_messages").fetchall()
    model.messages = {name: list(rest) for name, *rest in rows}
    rows = db.execute(
        "SELECT id, message_id, NULL, deleted_at IS NOT NULL FROM alicia_tool_uses "
        "UNION ALL SELECT id, message_id, memory_id, deleted_at IS NOT NULL FROM alicia_memory_used WHERE memory_id IS NOT NULL"
    ).fetchall()
    model.uses = {name: list(rest) for name, *rest in rows}
    return model


def check(db: Connection, at_least: int = 6) -> None:
    """The sessions are those of the model, and a rebuild has nothing to change."""
    found = set(db.execute(COMPUTED).fetchall())
    assert found == stored(db).sessions(GAP)
    assert len(found) >= at_least
    assert rebuild(db) == {}
    assert set(db.execute(COMPUTED).fetchall()) == found
    assert stats.verify(conninfo_of(db)) == []


class History:
    """Applies steps to the application's tables and to the model alike."""

    def __init__(self, db: Connection) -> None:
        self.db, self.model = db, Model()
        self.clocks = {"ac_1": START, "ac_2": START}
        self.number = 0

    def name(self) -> str:
        self.number += 1
        return f"n{self.number}"

    def step(self, kind: str, conversation: str, edge: timedelta, pick: int, batch: list[Any]) -> None:
        model, execute = self.model, self.db.execute
        message = sorted(model.messages)[pick % len(model.messages)] if model.messages else None
        use = sorted(model.uses)[pick % len(model.uses)] if model.uses else None
        if kind in ("message", "late", "upsert"):
            if kind != "late":
                self.clocks[conversation] += edge
            at = self.clocks[conversation] - (edge * (pick % 3) if kind == "late" else timedelta(0))
            name = self.name()
            tail = "ON CONFLICT (id) DO UPDATE SET created_at = excluded.created_at" if kind == "upsert" else ""
            if kind == "upsert" and message:
                name = message
                conversation = model.messages[message][0]
            insert = f"INSERT INTO alicia_messages (id, conversation_id, created_at) VALUES (%s, %s, %s) {tail}"
            execute(insert.encode(), [name, conversation, at])
            model.messages[name] = [conversation, at, model.messages.get(name, [0, 0, False])[2]]
        elif kind in ("messages", "with"):
            rows = list[tuple[Any, ...]]()
            for of, gap, _ in batch:
                self.clocks[of] += gap
                rows.append((self.name(), of, self.clocks[of]))
            values = ", ".join(["(%s, %s, %s::TIMESTAMP)"] * len(rows))
            insert = f"INSERT INTO alicia_messages (id, conversation_id, created_at) VALUES {values}"
            uses = [(self.name(), name, memory) for (name, _, _), (_, _, memory) in zip(rows, batch, strict=True)]
            tools = [each for each in uses if each[2] is None]
            others = [each for each in uses if each[2] is not None]
            flat = [value for row in rows for value in row]
            if kind == "with" and tools and others:
                tool_values = ", ".join(["(%s, %s)"] * len(tools))
                memory_values = ", ".join(["(%s, %s, %s)"] * len(others))
                execute(
                    f"""
                    WITH first AS ({insert}),
                    second AS (INSERT INTO alicia_memory_used (id, message_id, memory_id) VALUES {memory_values})
                    INSERT INTO alicia_tool_uses (id, message_id) VALUES {tool_values}
                    """.encode(),
                    [*flat, *(value for row in others for value in row), *(value for row in tools for value in row[:2])],
                )
                model.uses.update({name: [of, memory, False] for name, of, memory in uses})
            else:
                execute(insert.encode(), flat)
            model.messages.update({name: [of, at, False] for name, of, at in rows})
        elif kind == "use" and message:
            self.insert_uses([(self.name(), message, batch[0][2])])
        elif kind == "uses" and message:
            names = sorted(model.messages)
            self.insert_uses([(self.name(), names[(pick + n) % len(names)], each[2]) for n, each in enumerate(batch)])
        elif kind == "delete" and message:
            execute("DELETE FROM alicia_messages WHERE id = %s", [message])
            del model.messages[message]
            model.uses = {name: each for name, each in model.uses.items() if each[0] != message}
        elif kind == "soft" and message:
            for name in sorted(model.messages)[: 1 + pick % 3] if pick % 2 else [message]:
                model.messages[name][2] = not model.messages[name][2]
            execute(
                "UPDATE alicia_messages AS m SET deleted_at = CASE WHEN n.gone THEN NOW() END "
                "FROM UNNEST(%s::TEXT[], %s::BOOLEAN[]) AS n (id, gone) WHERE n.id = m.id",
                [list(model.messages), [each[2] for each in model.messages.values()]],
            )
        elif kind == "move" and message:
            model.messages[message][1] += edge
            execute("UPDATE alicia_messages SET created_at = created_at + %s WHERE id = %s", [edge, message])
        elif kind == "switch" and message:
            model.messages[message][0] = conversation
            execute("UPDATE alicia_messages SET conversation_id = %s WHERE id = %s", [conversation, message])
        elif kind.startswith("use_") and use and message:
            of, memory, gone = model.uses[use]
            table = "alicia_tool_uses" if memory is None else "alicia_memory_used"
            if kind == "use_soft":
                model.uses[use][2] = not gone
                execute(
                    f"UPDATE {table} SET deleted_at = CASE WHEN deleted_at IS NULL THEN NOW() END WHERE id = %s".encode(), [use]
                )
            elif kind == "use_delete":
                del model.uses[use]
                execute(f"DELETE FROM {table} WHERE id = %s".encode(), [use])
            else:
                model.uses[use][0] = message
                execute(f"UPDATE {table} SET message_id = %s WHERE id = %s".encode(), [message, use])
        elif kind == "conversation":
            model.conversations[conversation] = not model.conversations[conversation]
            execute(
                "UPDATE alicia_conversations SET deleted_at = CASE WHEN %s THEN NOW() END WHERE id = %s",
                [model.conversations[conversation], conversation],
            )
        elif kind == "hard":
            execute("DELETE FROM alicia_conversations WHERE id = %s", [conversation])
            execute("INSERT INTO alicia_conversations (id) VALUES (%s)", [conversation])
            model.conversations[conversation] = False
            model.messages = {name: each for name, each in model.messages.items() if each[0] != conversation}
            model.uses = {name: each for name, each in model.uses.items() if each[0] in model.messages}
        elif kind == "truncate":
            execute("TRUNCATE alicia_tool_uses, alicia_memory_used" + (", alicia_messages" if pick % 2 else ""))
            model.uses = {}
            model.messages = {} if pick % 2 else model.messages
        elif kind == "text":
            execute("UPDATE alicia_messages SET contents = contents || 'x'")

    def insert_uses(self, uses: list[tuple[str, str, str | None]]) -> None:
        tools = [use for use in uses if use[2] is None]
        if tools:
            values = ", ".join(["(%s, %s)"] * len(tools))
            insert = f"INSERT INTO alicia_tool_uses (id, message_id) VALUES {values}"
            self.db.execute(insert.encode(), [value for use in tools for value in use[:2]])
        others = [use for use in uses if use[2] is not None]
        if others:
            values = ", ".join(["(%s, %s, %s)"] * len(others))
            insert = f"INSERT INTO alicia_memory_used (id, message_id, memory_id) VALUES {values}"
            self.db.execute(insert.encode(), [value for use in others for value in use])
        self.model.uses.update({name: [message, memory, False] for name, message, memory in uses})


class UndoError(Exception):
    pass


@pytest.fixture(params=[0, 30])
def gap(request: pytest.FixtureRequest, app: Connection) -> timedelta:
    attach(conninfo_of(app), gap_minutes=request.param)
    return timedelta(minutes=request.param)


@given(steps)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sessions_are_those_of_the_model_after_every_statement(app: Connection, gap: timedelta, history: list[Any]) -> None:
    minutes = gap // timedelta(minutes=1)
    with app.transaction(force_rollback=True):
        applied = History(app)
        for *step, how in history:
            before = copy.deepcopy(applied.model)
            try:
                if how:
                    with app.transaction():
                        applied.step(*step)
                        assert set(app.execute(COMPUTED).fetchall()) == applied.model.sessions(gap), step
                        if how == "rollback":
                            raise UndoError
                else:
                    applied.step(*step)
            except UndoError:
                applied.model = before
            assert set(app.execute(COMPUTED).fetchall()) == applied.model.sessions(gap), step
            assert rebuild(app, gap_minutes=minutes) == {}, step
        assert app.execute("SELECT * FROM alicia_session_stats_live_changes").fetchall() == []


def send(db: Connection, at: datetime | str, conversation: str = "ac_1") -> str:
    """Insert a message; returns its id."""
    insert = "INSERT INTO alicia_messages (id, conversation_id, created_at) VALUES (GEN_RANDOM_UUID(), %s, %s) RETURNING id"
    return scalar(db, insert, conversation, at)


def sessions(db: Connection) -> list[tuple[Any, ...]]:
    """The sessions' start, messages, tool calls, memories and seconds."""
    return [row[1:] for row in db.execute(COMPUTED + " ORDER BY conversation_id, created_at").fetchall()]


@pytest.mark.parametrize("at", ["infinity", "-infinity", "294276-12-31 23:59:59.999999", "4713-01-01 BC", "9999-12-31"])
def test_message_at_the_end_of_time_is_recorded_like_any_other(live: Connection, at: str) -> None:
    for each in (START, at, START + GAP, at):
        send(live, each)
    assert sorted(row[1:] for row in sessions(live)) == [(2, 0, 0, 0), (2, 0, 0, 1800)]
    assert rebuild(live) == {}


def test_session_of_more_seconds_than_an_integer_holds_has_the_most_that_it_holds(app: Connection) -> None:
    attach(conninfo_of(app), gap_minutes=999999)
    for number in range(42):
        send(app, START + number * timedelta(minutes=900_000))
    assert sessions(app) == [(str(START), 42, 0, 0, 2**31 - 1)]
    assert rebuild(app, gap_minutes=999999) == {}


def test_many_messages_at_once_in_many_conversations(live: Connection) -> None:
    live.execute("INSERT INTO alicia_conversations (id) SELECT 'ac_' || n FROM GENERATE_SERIES(3, 300) AS n")
    for hours in (0, 0, 1, 5, 4):
        live.execute(
            "INSERT INTO alicia_messages (id, conversation_id, created_at) "
            "SELECT GEN_RANDOM_UUID(), 'ac_' || n, %s + m * INTERVAL '10 minutes' + n * INTERVAL '1 minute' "
            "FROM GENERATE_SERIES(1, 300) AS n, GENERATE_SERIES(0, n %% 4) AS m",
            [START + timedelta(hours=hours)],
        )
        check(live)
    live.execute("UPDATE alicia_messages SET deleted_at = NOW() WHERE id < '8'")
    check(live)
    live.execute("UPDATE alicia_messages SET conversation_id = 'ac_1' WHERE conversation_id > 'ac_2'")
    check(live, 1)
    live.execute("DELETE FROM alicia_conversations")
    assert sessions(live) == []


def test_messages_that_a_trigger_of_the_application_writes_count_once(live: Connection) -> None:
    live.execute(
        """
        CREATE FUNCTION answer() RETURNS TRIGGER LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.contents = 'question' THEN
                INSERT INTO alicia_tool_uses (message_id) VALUES (NEW.id);
                INSERT INTO alicia_messages (id, conversation_id, contents, created_at)
                VALUES (NEW.id || '_answer', NEW.conversation_id, 'answer', NEW.created_at + INTERVAL '1 second');
            END IF;
            RETURN NULL;
        END
        $$;
        CREATE TRIGGER answer AFTER INSERT ON alicia_messages FOR EACH ROW EXECUTE FUNCTION answer();
        """
    )
    insert = "INSERT INTO alicia_messages (id, conversation_id, contents, created_at) VALUES (%s, 'ac_1', 'question', %s)"
    for number in (1, 2, 0):
        live.execute(insert, [str(number), START + number * timedelta(minutes=20)])
        assert rebuild(live) == {}
    assert [row[1:] for row in sessions(live)] == [(6, 3, 0, 2401)]


def test_message_reads_only_the_latest_of_many_sessions(live: Connection) -> None:
    live.execute(
        "INSERT INTO alicia_messages SELECT CONCAT_WS('_', c, n), 'ac_' || c, '', %s + n * INTERVAL '1 hour' "
        "FROM GENERATE_SERIES(1, 2) AS c, GENERATE_SERIES(1, 100) AS n",
        [START],
    )
    live.execute("ANALYZE")
    read = "SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'alicia_session_stats'"
    live.execute("SELECT PG_STAT_FORCE_NEXT_FLUSH()")
    before = scalar(live, read)
    for minutes in (5, 10):
        send(live, START + timedelta(hours=100, minutes=minutes))
    live.execute("SELECT PG_STAT_FORCE_NEXT_FLUSH()")
    assert scalar(live, read) - before < 10
    check(live)


def test_streamed_text_calls_nothing(live: Connection) -> None:
    send(live, START)
    live.execute("SET track_functions = 'all'")
    for _ in range(3):
        live.execute("UPDATE alicia_messages SET contents = contents || 'x'")
    live.execute("SELECT PG_STAT_FORCE_NEXT_FLUSH()")
    assert live.execute("SELECT funcname FROM pg_stat_user_functions WHERE funcname LIKE 'alicia%'").fetchall() == []
    live.execute("UPDATE alicia_messages SET deleted_at = NOW()")
    live.execute("SELECT PG_STAT_FORCE_NEXT_FLUSH()")
    assert scalar(live, "SELECT COUNT(*) FROM pg_stat_user_functions WHERE funcname = 'alicia_session_stats_live_on_update'") == 1


def test_conversations_that_cannot_be_deleted_softly_are_recorded(app: Connection) -> None:
    app.execute("ALTER TABLE alicia_conversations DROP COLUMN deleted_at")
    attach(conninfo_of(app))
    for at in (START, START + GAP, START + 4 * GAP, START - GAP):
        send(app, at)
    app.execute("UPDATE alicia_conversations SET title = 'x'")
    app.execute("INSERT INTO alicia_messages SELECT id || 'x', 'ac_2', '', created_at FROM alicia_messages")
    assert [row[1:] for row in sessions(app)] == [(3, 0, 0, 3600), (1, 0, 0, 0)] * 2
    assert rebuild(app) == {}


def test_recorded_sessions_are_not_touched(live: Connection) -> None:
    recorded = stats.query(live, "start_session", conversation_id="ac_1")[0]["id"]
    stats.query(live, "record_activity", session_id=recorded, conversation_id="ac_1", messages=7)
    row = "SELECT s, xmin::TEXT FROM alicia_session_stats AS s WHERE id = %s"
    before = live.execute(row, [recorded]).fetchall()
    for at in (datetime(2020, 1, 1), START, START + GAP, datetime(2099, 1, 1)):
        send(live, at)
    live.execute("DELETE FROM alicia_messages WHERE created_at = %s", [START])
    assert live.execute(row, [recorded]).fetchall() == before
    assert [row[1:] for row in sessions(live)] == [(1, 0, 0, 0)] * 3


# Attach and detach ------------------------------------------------------------------------------------------------


def test_psql_attaches_and_detaches_alike(app: Connection) -> None:
    for name in ("attach", "attach", "detach", "detach"):
        done = psql(conninfo_of(app), "-q", "-f", ROOT / f"live/{name}.sql")
        assert (done.returncode, re.sub(".*NOTICE: .*already exists, skipping\n", "", done.stderr)) == (0, "")


def test_detach_leaves_the_dump_as_it_was(app: Connection) -> None:
    before = pg_dump(conninfo_of(app))
    attach(conninfo_of(app))
    assert stats.verify(conninfo_of(app)) == []
    assert pg_dump(conninfo_of(app)) != before
    send(app, START)
    detach(conninfo_of(app))
    assert pg_dump(conninfo_of(app)) == before
    send(app, START + GAP)
    assert [row[1:] for row in sessions(app)] == [(1, 0, 0, 0)]
    assert rebuild(app) == {"updated": 1}


def test_attach_fills_in_what_was_there(app: Connection) -> None:
    fill(app)
    stats.query(app, "rebuild_sessions", gap_minutes=5)
    send(app, START - GAP)
    attach(conninfo_of(app))
    check(app, 1)


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_attach_beside_writers_misses_nothing(app: Connection, isolation: str) -> None:
    fill(app)
    conninfo = conninfo_of(app)
    app.execute(f"ALTER DATABASE {app.info.dbname} SET default_transaction_isolation = '{isolation}'".encode())
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(work, conninfo, number, 150, True) for number in range(4)]
        for _ in range(3):
            attach(conninfo)
            detach(conninfo)
        attach(conninfo)
        ends = sum((each.result() for each in running), Counter[str]())
    assert ends["done"] > 100
    check(app)


def test_open_transaction_that_wrote_before_is_waited_for(app: Connection) -> None:
    with ThreadPoolExecutor() as pool:
        with psycopg.connect(conninfo_of(app)) as writer:
            send(writer, START)
            attaching = pool.submit(attach, conninfo_of(app))
            time.sleep(1)
            assert not attaching.done()
        attaching.result()
    assert [row[1:] for row in sessions(app)] == [(1, 0, 0, 0)]


def test_busy_conversation_holds_up_no_other_while_attach_fills_in(app: Connection) -> None:
    send(app, START)
    send(app, START, "ac_2")
    with ThreadPoolExecutor() as pool:
        with psycopg.connect(conninfo_of(app)) as writer:
            writer.execute("SELECT FROM alicia_conversations WHERE id = 'ac_1' FOR UPDATE")
            attaching = pool.submit(attach, conninfo_of(app))
            deadline = time.monotonic() + 30
            while len(sessions(app)) < 1:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            app.execute("SET lock_timeout = '2s'")
            send(app, START + GAP, "ac_2")
            assert not attaching.done()
        attaching.result()
    assert [row[1:] for row in sessions(app)] == [(1, 0, 0, 0), (2, 0, 0, 1800)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DROP TABLE alicia_tool_uses", "tables of the application are missing: alicia_tool_uses"),
        (
            "ALTER TABLE alicia_messages DROP CONSTRAINT alicia_messages_conversation_id_fkey; "
            "ALTER TABLE alicia_memory_used ALTER CONSTRAINT alicia_memory_used_message_id_fkey DEFERRABLE",
            "do not fit: alicia_messages has no foreign key on conversation_id that is checked at once, "
            "alicia_memory_used has no foreign key on message_id that is checked at once. A foreign key may be",
        ),
        (
            "ALTER TABLE alicia_messages DROP deleted_at, ALTER created_at TYPE TIMESTAMPTZ; "
            "ALTER TABLE alicia_tool_uses DROP deleted_at; ALTER TABLE alicia_memory_used DROP message_id",
            "do not fit: alicia_messages.created_at must be TIMESTAMP and is TIMESTAMP WITH TIME ZONE, "
            "alicia_messages.deleted_at must be TIMESTAMP and is missing, "
            "alicia_tool_uses.deleted_at must be TIMESTAMP and is missing, "
            "alicia_memory_used.message_id must be TEXT and is missing, "
            "alicia_memory_used has no foreign key on message_id that is checked at once. ",
        ),
        (
            "ALTER TABLE alicia_conversations ALTER deleted_at TYPE BOOLEAN USING FALSE",
            "do not fit: alicia_conversations.deleted_at must be TIMESTAMP and is BOOLEAN. ",
        ),
        (
            "ALTER TABLE alicia_messages RENAME TO chats; ALTER TABLE chats RENAME created_at TO sent_at; "
            "CREATE VIEW alicia_messages AS SELECT id, conversation_id, sent_at AS created_at, deleted_at FROM chats",
            "do not fit: chats.created_at is missing, which alicia_messages reads under another name. ",
        ),
        ("ALTER TABLE alicia_messages OWNER TO pg_monitor; SET ROLE pg_monitor", None),
    ],
)
def test_tables_that_do_not_fit_are_refused_and_nothing_is_changed(app: Connection, change: str, said: str | None) -> None:
    app.execute(change.encode())
    app.execute("RESET ROLE")
    if said is None:
        attach(conninfo_of(app))  # A superuser may.
        return
    before = pg_dump(conninfo_of(app))
    with pytest.raises(stats.SessionStatsError, match=re.escape(said)):
        attach(conninfo_of(app))
    assert pg_dump(conninfo_of(app)) == before


@pytest.mark.parametrize("name", ["alicia_messages", "alicia_tool_uses", "alicia_memory_used"])
def test_attach_demands_exactly_the_columns_that_recording_reads(app: Connection, name: str) -> None:
    """The tables have no other columns than the needed ones, and they are recorded."""
    needed = {
        "alicia_messages": ["id", "conversation_id", "created_at", "deleted_at"],
        "alicia_tool_uses": ["message_id", "deleted_at"],
        "alicia_memory_used": ["message_id", "memory_id", "deleted_at"],
    }
    columns = app.execute("SELECT attname FROM pg_attribute WHERE attrelid = %s::REGCLASS AND attnum > 0", [name]).fetchall()
    for column in {each for (each,) in columns} - set(needed[name]):
        app.execute(f"ALTER TABLE {name} DROP {column}".encode())
    for column in needed[name]:
        app.execute(f"ALTER TABLE {name} RENAME {column} TO other".encode())
        with pytest.raises(stats.SessionStatsError, match=re.escape(f"{name}.{column} must be")):
            attach(conninfo_of(app))
        app.execute(f"ALTER TABLE {name} RENAME other TO {column}".encode())
    attach(conninfo_of(app))
    message = send(app, START)
    app.execute("INSERT INTO alicia_tool_uses (message_id) VALUES (%s)", [message])
    app.execute("INSERT INTO alicia_memory_used (message_id, memory_id) VALUES (%s, 'am_1')", [message])
    assert [row[1:] for row in sessions(app)] == [(1, 1, 1, 0)]
    assert rebuild(app) == {}


def test_ids_may_be_varchar_and_those_of_memories_anything(app: Connection) -> None:
    app.execute("ALTER TABLE alicia_memory_used ALTER memory_id TYPE UUID USING NULL, ALTER message_id TYPE VARCHAR(64)")
    app.execute("ALTER TABLE alicia_tool_uses ALTER message_id TYPE VARCHAR(64)")
    app.execute("ALTER TABLE alicia_messages ALTER id TYPE VARCHAR(64), ALTER conversation_id TYPE VARCHAR(64)")
    app.execute("ALTER TABLE alicia_conversations ALTER id TYPE VARCHAR(64)")
    attach(conninfo_of(app))
    message = send(app, START)
    send(app, START - GAP)
    app.execute("INSERT INTO alicia_messages SELECT id || 'x', 'ac_2', '', created_at FROM alicia_messages")
    app.execute("INSERT INTO alicia_tool_uses (message_id) VALUES (%s)", [message])
    app.execute("INSERT INTO alicia_memory_used (message_id, memory_id) VALUES (%s, GEN_RANDOM_UUID())", [message])
    app.execute("UPDATE alicia_messages SET created_at = created_at + INTERVAL '1 second' WHERE conversation_id = 'ac_2'")
    app.execute("UPDATE alicia_memory_used SET memory_id = GEN_RANDOM_UUID()")
    assert [row[1:] for row in sessions(app)] == [(2, 1, 1, 1800), (2, 0, 0, 1800)]
    assert rebuild(app) == {}


def test_rebuild_of_times_with_a_zone_says_what_does_not_fit(app: Connection) -> None:
    app.execute("ALTER TABLE alicia_messages ALTER created_at TYPE TIMESTAMPTZ")
    with pytest.raises(stats.SessionStatsError) as error:
        rebuild(app)
    assert str(error.value).endswith(
        "the application's tables do not fit: alicia_messages.created_at must be TIMESTAMP and is TIMESTAMP WITH TIME ZONE. "
        "For other names or types, see the views in live/unprefixed.sql"
    )


def test_failure_to_fill_in_says_that_recording_is_on_and_what_to_run(app: Connection) -> None:
    send(app, START)
    app.execute("ALTER TABLE alicia_session_stats ADD CONSTRAINT none CHECK (message_count < 1)")
    said = r"recorded from now on, but not all of those before are filled in: new row .* attach again, or detach"
    with pytest.raises(stats.SessionStatsError, match=said) as error:
        attach(conninfo_of(app))
    assert error.value.sqlstate == "23514"
    assert "\n" not in str(error.value)
    app.execute("ALTER TABLE alicia_session_stats DROP CONSTRAINT none")
    send(app, START, "ac_2")
    assert len(sessions(app)) == 1
    attach(conninfo_of(app))
    assert len(sessions(app)) == 2


@pytest.mark.parametrize("gap", ["-1", "half an hour", "1000000", "1'; DROP TABLE alicia_messages; --"])
def test_gap_that_is_no_number_of_minutes_is_refused(app: Connection, gap: str) -> None:
    with pytest.raises(stats.SessionStatsError, match="gap_minutes must be a whole number"):
        attach(conninfo_of(app), gap_minutes=gap)


def test_rebuild_and_attach_with_another_gap_are_refused(app: Connection) -> None:
    attach(conninfo_of(app), gap_minutes=45)
    with pytest.raises(stats.SessionStatsError, match=r"recorded live with a gap of 45 minutes.* Set gap_minutes to 45"):
        rebuild(app)
    with pytest.raises(stats.SessionStatsError, match=r"recorded live with a gap of 45 minutes already. Run detach first"):
        attach(conninfo_of(app))
    assert rebuild(app, gap_minutes=45) == {}


def test_rollback_is_refused_until_detach(live: Connection) -> None:
    before = pg_dump(conninfo_of(live))
    steps = len(MIGRATIONS) - MIGRATIONS.index("0012_compute_session_stats_from_messages")
    with pytest.raises(stats.SessionStatsError, match=r"recorded live.* Run detach first"):
        stats.rollback(conninfo_of(live), steps=steps)
    assert pg_dump(conninfo_of(live)) == before
    detach(conninfo_of(live))
    stats.rollback(conninfo_of(live), steps=steps)
    send(live, START)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("ALTER TABLE alicia_messages DISABLE TRIGGER record_session_stats_insert", "disabled"),
        ("DROP TRIGGER record_session_stats_change ON alicia_memory_used", "missing"),
        ("GRANT INSERT ON alicia_session_stats_live_changes TO PUBLIC", "granted to PUBLIC"),
        ("ALTER FUNCTION alicia_session_stats_live_on_use() SECURITY INVOKER", None),
    ],
)
def test_verify_tells_what_is_wrong_with_live_recording_and_the_fix(live: Connection, change: str, found: str | None) -> None:
    live.execute(change.encode())
    (difference,) = stats.verify(conninfo_of(live))
    assert found in (difference["found"], None)
    live.execute(difference["fix"].encode())
    assert stats.verify(conninfo_of(live)) == []
    send(live, START)
    assert len(sessions(live)) == 1


# Privileges and failures -----------------------------------------------------------------------------------------


def test_whoever_writes_messages_needs_no_other_right(live: Connection) -> None:
    live.execute("CREATE ROLE alicia_chat")
    try:
        live.execute(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON alicia_messages, alicia_tool_uses, alicia_memory_used TO alicia_chat; "
            "SET ROLE alicia_chat"
        )
        message = send(live, START)
        send(live, START - GAP)
        live.execute("INSERT INTO alicia_tool_uses (message_id) VALUES (%s)", [message])
        live.execute("INSERT INTO alicia_memory_used (message_id, memory_id) VALUES (%s, 'am_1')", [message])
        live.execute("UPDATE alicia_memory_used SET memory_id = 'am_2'")
        live.execute("DELETE FROM alicia_tool_uses")
        live.execute("INSERT INTO alicia_tool_uses (message_id) VALUES (%s)", [message])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            live.execute("SELECT FROM alicia_session_stats")
        for function in ("live_recompute('{ac_1}', 1)", "live_touch('{ac_1}')", "live_lock('{ac_1}')"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                live.execute(f"SELECT alicia_session_stats_{function}".encode())
        live.execute("RESET ROLE")
        assert [row[1:] for row in sessions(live)] == [(2, 1, 1, 1800)]
    finally:
        live.execute("RESET ROLE; DROP OWNED BY alicia_chat; DROP ROLE alicia_chat")


def test_only_the_owner_of_the_tables_attaches(bare: Connection, login: Callable[..., Connection]) -> None:
    bare.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    application, migrator = login("alicia_app"), login("alicia_migrator")
    application.execute("CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY)")
    application.execute(TABLES)
    application.execute("GRANT SELECT, REFERENCES, TRIGGER ON ALL TABLES IN SCHEMA public TO alicia_migrator")
    dsn = make_conninfo(migrator.info.dsn, password=PASSWORD)
    stats.migrate(dsn)
    with pytest.raises(stats.SessionStatsError, match=r"must own, or be a member of .*alicia_messages \(alicia_app"):
        attach(dsn)
    bare.execute("GRANT alicia_app TO alicia_migrator")
    attach(dsn)
    send(application, START)
    assert len(sessions(migrator)) == 1
    detach(dsn)
    bare.execute("REVOKE alicia_app FROM alicia_migrator")


# Each wins over a polymorphic one of pg_catalog, where that is not qualified.
HOSTILE = """
    CREATE FUNCTION trap(TEXT[], TEXT[]) RETURNS BOOLEAN LANGUAGE plpgsql AS $$ BEGIN RAISE 'an overload was called'; END $$;
    CREATE FUNCTION trap(TEXT[], TEXT) RETURNS TEXT[] LANGUAGE plpgsql AS $$ BEGIN RAISE 'an overload was called'; END $$;
    CREATE FUNCTION trap(TIMESTAMP, TIMESTAMP) RETURNS TIMESTAMP LANGUAGE plpgsql AS $$ BEGIN RAISE 'an overload'; END $$;
    CREATE FUNCTION cardinality(TEXT[]) RETURNS INTEGER LANGUAGE plpgsql AS $$ BEGIN RAISE 'an overload was called'; END $$;
    CREATE FUNCTION unnest(TEXT[]) RETURNS SETOF TEXT LANGUAGE plpgsql AS $$ BEGIN RAISE 'an overload was called'; END $$;
    CREATE FUNCTION array_append(TEXT[], TEXT) RETURNS TEXT[] LANGUAGE plpgsql AS $$ BEGIN RAISE 'an overload was called'; END $$;
    CREATE AGGREGATE array_agg(TEXT) (SFUNC = trap, STYPE = TEXT[], INITCOND = '{}');
    CREATE AGGREGATE lag(TIMESTAMP) (SFUNC = trap, STYPE = TIMESTAMP, INITCOND = '2024-01-01');
    CREATE OPERATOR = (FUNCTION = trap, LEFTARG = TEXT[], RIGHTARG = TEXT[]);
    CREATE OPERATOR <@ (FUNCTION = trap, LEFTARG = TEXT[], RIGHTARG = TEXT[]);
    CREATE OPERATOR <> (FUNCTION = trap, LEFTARG = TEXT[], RIGHTARG = TEXT[]);
    CREATE OPERATOR || (FUNCTION = trap, LEFTARG = TEXT[], RIGHTARG = TEXT);
"""


def test_overload_in_public_is_not_called(live: Connection) -> None:
    live.execute(HOSTILE)
    told = list[str | None]()
    live.add_notice_handler(lambda notice: told.append(notice.message_primary))
    with pytest.raises(psycopg.errors.RaiseException):
        live.execute("SELECT CARDINALITY('{a}'::TEXT[])")
    for at in (START, START - GAP, START + 4 * GAP):
        message = send(live, at)
    send(live, START, "ac_2")
    live.execute("INSERT INTO alicia_messages SELECT id || 'x', 'ac_2', '', created_at FROM alicia_messages")
    live.execute("INSERT INTO alicia_tool_uses (message_id) VALUES (%s)", [message])
    live.execute("INSERT INTO alicia_memory_used (message_id, memory_id) VALUES (%s, 'am_1')", [message])
    live.execute("UPDATE alicia_messages SET created_at = created_at + INTERVAL '1 hour' WHERE conversation_id = 'ac_1'")
    live.execute("UPDATE alicia_tool_uses SET deleted_at = NOW()")
    live.execute("UPDATE alicia_conversations SET deleted_at = NOW() WHERE id = 'ac_2'")
    live.execute("DELETE FROM alicia_memory_used")
    live.execute("TRUNCATE alicia_memory_used")
    live.execute("SET default_transaction_isolation = 'repeatable read'")
    send(live, START)
    assert told == []
    assert rebuild(live) == {}


def test_failure_to_record_keeps_the_message_and_warns(live: Connection) -> None:
    told = list[str]()
    live.add_notice_handler(lambda notice: told.append(f"{notice.severity}: {notice.message_primary}"))
    message = send(live, START)
    live.execute("ALTER TABLE alicia_session_stats ADD CONSTRAINT few CHECK (message_count + tool_call_count < 2)")
    send(live, START + GAP)
    live.execute("INSERT INTO alicia_tool_uses (message_id) VALUES (%s)", [message])
    live.execute("UPDATE alicia_messages SET created_at = created_at + INTERVAL '1 second'")
    assert scalar(live, "SELECT COUNT(*) FROM alicia_messages") == 2
    assert len(told) == 3
    assert all("is stored, but its sessions are not recorded: new row for relation" in each for each in told)
    live.execute("ALTER TABLE alicia_session_stats DROP CONSTRAINT few")
    assert rebuild(live) == {"inserted": 1, "deleted": 1}
    assert [row[1:] for row in sessions(live)] == [(2, 1, 0, 1800)]
    assert scalar(live, "SELECT COUNT(*) FROM alicia_session_stats_live_changes") == 0


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("alicia_messages", "deleted_at"), ("alicia_messages", "created_at"), ("alicia_messages", "conversation_id"),
        ("alicia_messages", "id"), ("alicia_conversations", "id"), ("alicia_tool_uses", "message_id"),
        ("alicia_tool_uses", "deleted_at"), ("alicia_memory_used", "message_id"), ("alicia_memory_used", "memory_id"),
        ("alicia_memory_used", "deleted_at"),
    ],
)  # fmt: skip
def test_column_that_was_renamed_does_not_stop_a_write(live: Connection, table: str, column: str) -> None:
    def renamed(name: str) -> str:
        return "other" if name == f"{table}.{column}" else name.split(".")[1]

    id_, conversation, at = (renamed(f"alicia_messages.{name}") for name in ("id", "conversation_id", "created_at"))
    message = send(live, START)
    live.execute("INSERT INTO alicia_tool_uses (message_id) VALUES (%s)", [message])
    live.execute("INSERT INTO alicia_memory_used (message_id, memory_id) VALUES (%s, 'am_1')", [message])
    told = set[str]()
    live.add_notice_handler(lambda notice: told.add(f"{notice.severity}: {notice.message_primary}"))
    live.execute(f"ALTER TABLE {table} RENAME {column} TO other".encode())
    for level in ("READ COMMITTED", "REPEATABLE READ"):
        live.execute(f"SET default_transaction_isolation = '{level}'".encode())
        insert = f"INSERT INTO alicia_messages ({id_}, {conversation}, {at}) VALUES (GEN_RANDOM_UUID(), 'ac_1', %s)"
        live.execute(insert.encode(), [START])
        live.execute(f"{insert}, (GEN_RANDOM_UUID(), 'ac_2', %s)".encode(), [START, START])
        live.execute(f"UPDATE alicia_messages SET {at} = {at} + INTERVAL '1 second'".encode())
        for uses, values in (("alicia_tool_uses", ""), ("alicia_memory_used", f", {renamed('alicia_memory_used.memory_id')}")):
            of = renamed(f"{uses}.message_id")
            live.execute(f"INSERT INTO {uses} ({of}{values}) SELECT {of}{values} FROM {uses}".encode())
            live.execute(f"UPDATE {uses} SET {renamed(f'{uses}.deleted_at')} = NOW()".encode())
            live.execute(f"DELETE FROM {uses} WHERE id = (SELECT MIN(id) FROM {uses})".encode())
        live.execute("UPDATE alicia_conversations SET deleted_at = CASE WHEN deleted_at IS NULL THEN NOW() END")
    live.execute("TRUNCATE alicia_tool_uses, alicia_memory_used")
    assert told
    lacks = re.compile(rf'is stored, but its sessions are not recorded: (column \w\.{column} does not|.* no field "{column}"$)')
    assert [each for each in told if not lacks.search(each)] == []
    live.execute(f"ALTER TABLE {table} RENAME other TO {column}".encode())
    rebuild(live)
    check(live, 2)
    assert scalar(live, "SELECT COUNT(*) FROM alicia_session_stats_live_changes") == 0


def test_table_that_is_gone_does_not_stop_messages(live: Connection) -> None:
    live.execute("DROP TABLE alicia_session_stats CASCADE")
    message = send(live, START)
    live.execute("INSERT INTO alicia_tool_uses (message_id) VALUES (%s)", [message])
    live.execute("DELETE FROM alicia_messages")


# Concurrency ------------------------------------------------------------------------------------------------

CHATS = [f"ac_{number}" for number in range(1, 5)]
LEVELS = ["READ COMMITTED"] * 3 + ["REPEATABLE READ", "SERIALIZABLE"]
INSERT = "INSERT INTO alicia_messages (id, conversation_id, created_at) VALUES (GEN_RANDOM_UUID(), %s, %s)"
ONE = "(SELECT id FROM alicia_messages WHERE conversation_id = %s ORDER BY MD5(id || %s) LIMIT 1)"
INSERTS = [
    f"INSERT INTO alicia_tool_uses (message_id) SELECT id FROM {ONE} AS m",
    f"INSERT INTO alicia_memory_used (message_id, memory_id) SELECT m.id, 'am_' || n FROM {ONE} AS m, GENERATE_SERIES(1, 2) AS n",
]
CHANGES = [
    f"UPDATE alicia_messages SET deleted_at = CASE WHEN deleted_at IS NULL THEN NOW() END WHERE id = {ONE}",
    f"UPDATE alicia_messages SET created_at = created_at + INTERVAL '20 minutes' WHERE id = {ONE}",
    f"UPDATE alicia_messages SET contents = contents || 'x' WHERE id = {ONE}",
    f"UPDATE alicia_tool_uses SET deleted_at = NOW() WHERE message_id = {ONE}",
    f"UPDATE alicia_memory_used SET deleted_at = NULL WHERE message_id = {ONE}",
    f"DELETE FROM alicia_memory_used WHERE message_id = {ONE}",
]
ANY = [
    f"DELETE FROM alicia_messages WHERE id = {ONE}",
    f"UPDATE alicia_messages SET conversation_id = 'ac_1' WHERE id = {ONE}",
    "UPDATE alicia_conversations SET deleted_at = CASE WHEN deleted_at IS NULL THEN NOW() END WHERE id = %s AND %s = %s",
]


def fill(db: Connection) -> None:
    db.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_3'), ('ac_4')")
    for chat in CHATS:
        for number in range(12):
            db.execute(INSERT, [chat, START + number * timedelta(minutes=25)])
    db.execute(f"ALTER DATABASE {db.info.dbname} SET deadlock_timeout = '50ms'".encode())


def write(connection: Connection, random: Random, statement: str, chat: str) -> None:
    if statement is INSERT:
        connection.execute(statement, [chat, START + random.randrange(8000) * timedelta(minutes=1)])
    else:
        marks = statement.count("%s")
        connection.execute(statement.encode(), [chat, str(random.random()), "none"][:marks])


def transact(connection: Connection, random: Random, chats: list[str], statements: list[str], mixed: bool) -> None:
    """One transaction, which may be rolled back, or in part."""
    connection.execute(f"BEGIN ISOLATION LEVEL {random.choice(LEVELS) if mixed else 'READ COMMITTED'}".encode())
    for statement in statements:
        chat = random.choice(chats)
        if random.random() < 0.2:
            connection.execute("SAVEPOINT s")
            write(connection, random, statement, chat)
            connection.execute("ROLLBACK TO s")
        write(connection, random, statement, chat)
    connection.execute("ROLLBACK" if random.random() < 0.15 else "COMMIT")


def work(conninfo: str, seed: int, transactions: int, everything: bool) -> Counter[str]:
    """Random transactions on a connection of its own. Returns how many ended with which SQLSTATE."""
    random, ends = Random(seed), Counter[str]()
    connection = psycopg.connect(conninfo, autocommit=True)
    for _ in range(transactions):
        chats = CHATS if everything else [random.choice(CHATS)]
        if everything:
            statements = random.choices([INSERT, *INSERTS, *CHANGES, *ANY], k=random.randint(1, 4))
        elif random.random() < 0.3:
            statements = [random.choice(CHANGES)]
        else:
            statements = random.choices([INSERT, *INSERTS], k=random.randint(1, 4))
        try:
            transact(connection, random, chats, statements, everything)
            ends["done"] += 1
        except psycopg.Error as error:
            ends[error.sqlstate or "closed"] += 1
            connection.close()
            connection = psycopg.connect(conninfo, autocommit=True)
    connection.close()
    return ends


KILL = """
    SELECT PG_TERMINATE_BACKEND(pid) FROM pg_stat_activity
    WHERE datname = CURRENT_DATABASE() AND pid <> PG_BACKEND_PID() AND query NOT LIKE '%PG_TERMINATE%' AND state <> 'idle'
    ORDER BY RANDOM() LIMIT 1
"""


def test_eight_writers_of_everything_with_rollbacks_kills_and_mixed_isolation(live: Connection) -> None:
    fill(live)
    conninfo = conninfo_of(live)
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(work, conninfo, number, 60, True) for number in range(8)]
        while not all(each.done() for each in running):
            time.sleep(0.2)
            with psycopg.connect(conninfo, autocommit=True) as killer:
                killer.execute(KILL)
        ends = sum((each.result() for each in running), Counter[str]())
    # Serialization failure, deadlock, killed connection, foreign key to a message that another writer deleted.
    assert ends.keys() <= {"done", "40001", "40P01", "57P01", "23503", "closed"}, ends
    assert ends["done"] > 100
    check(live)


def test_eight_writers_of_one_conversation_a_transaction_do_not_deadlock(live: Connection) -> None:
    fill(live)
    conninfo = conninfo_of(live)
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(work, conninfo, number, 80, False) for number in range(8)]
        ends = sum((each.result() for each in running), Counter[str]())
    assert ends == {"done": 8 * 80}
    check(live)


def test_order_of_message_and_conversation_does_not_matter(live: Connection) -> None:
    """One transaction updates the conversation and then writes a message, another does the reverse."""
    live.execute(f"ALTER DATABASE {live.info.dbname} SET deadlock_timeout = '50ms'".encode())
    statements = [("UPDATE alicia_conversations SET title = title || 'x' WHERE id = %s", ["ac_1"]), (INSERT, ["ac_1", START])]

    def run(in_order: list[Any]) -> None:
        with psycopg.connect(conninfo_of(live), autocommit=True) as connection:
            for _ in range(40):
                with connection.transaction():
                    for statement, values in in_order:
                        connection.execute(statement, values)

    with ThreadPoolExecutor() as pool:
        for each in [pool.submit(run, statements), pool.submit(run, statements[::-1])]:
            each.result()
    assert [row[1] for row in sessions(live)] == [80]


def test_writers_of_other_conversations_do_not_wait(live: Connection) -> None:
    with psycopg.connect(conninfo_of(live)) as writer:
        for at in (START, START - GAP, START + GAP):
            send(writer, at)
        live.execute("SET lock_timeout = '1ms'")
        for at in (START, START - GAP, START + GAP):
            send(live, at, "ac_2")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            send(live, START)


AFTER_SNAPSHOT = {
    "a session that began": lambda db: send(db, START + 4 * GAP),
    "a session that grew": lambda db: send(db, START + GAP),
    "a session that was joined": lambda db: send(db, START - GAP),
    "a conversation that got its first message": lambda db: send(db, START, "ac_2"),
    "a memory that was known": lambda db: db.execute(
        "INSERT INTO alicia_memory_used (message_id, memory_id) SELECT id, 'am_1' FROM alicia_messages"
    ),
    "a conversation that was deleted": lambda db: db.execute("UPDATE alicia_conversations SET deleted_at = NOW()"),
}  # fmt: skip


@pytest.mark.parametrize("what", AFTER_SNAPSHOT)
@pytest.mark.parametrize("change", ["insert", "delete"])
def test_transaction_with_an_older_snapshot_fails_and_its_retry_is_right(live: Connection, what: str, change: str) -> None:
    message = send(live, START)
    live.execute("INSERT INTO alicia_memory_used (message_id, memory_id) VALUES (%s, 'am_1'), (%s, 'am_1')", [message] * 2)
    other = send(live, START - GAP, "ac_2") if change == "delete" else ""

    def write(writer: Connection) -> None:
        if change == "insert":
            send(writer, START + 2 * GAP)
            send(writer, START + 2 * GAP, "ac_2")
        else:
            writer.execute("DELETE FROM alicia_messages WHERE id = %s", [other])
            writer.execute("DELETE FROM alicia_memory_used WHERE id = (SELECT MIN(id) FROM alicia_memory_used)")

    with psycopg.connect(conninfo_of(live)) as writer:
        writer.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        writer.execute("SELECT")
        AFTER_SNAPSHOT[what](live)
        with pytest.raises(psycopg.errors.SerializationFailure):
            write(writer)
        writer.rollback()
        write(writer)
    check(live, 0)


def test_truncate_leaves_only_sessions_that_its_snapshot_lacks_and_a_rebuild_deletes_them(live: Connection) -> None:
    send(live, START)
    with psycopg.connect(conninfo_of(live)) as writer:
        writer.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        writer.execute("SELECT")
        send(live, START, "ac_2")
        writer.execute("TRUNCATE alicia_messages CASCADE")
    assert [row[0] for row in live.execute(COMPUTED).fetchall()] == ["ac_2"]
    assert rebuild(live) == {"deleted": 1}
    send(live, START)
    send(live, START, "ac_2")
    live.execute("TRUNCATE alicia_messages CASCADE")
    check(live, 0)


def test_snapshot_older_than_attach_fails(app: Connection) -> None:
    with psycopg.connect(conninfo_of(app)) as writer:
        writer.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        writer.execute("SELECT")
        send(app, START)
        stats.query(app, "rebuild_sessions")
        # The index is built CONCURRENTLY, which waits for the snapshot.
        with ThreadPoolExecutor() as pool:
            attaching = pool.submit(attach, conninfo_of(app))
            while not scalar(app, "SELECT TO_REGPROC('alicia_session_stats_live_on_message') IS NOT NULL"):
                time.sleep(0.05)
            with pytest.raises(psycopg.errors.SerializationFailure):
                send(writer, START + GAP)
            writer.rollback()
            attaching.result()
        send(writer, START + GAP)
    assert [row[1:] for row in sessions(app)] == [(2, 0, 0, 1800)]


def test_tool_use_of_a_message_that_is_moved_meanwhile_counts_where_the_message_is(live: Connection) -> None:
    message = send(live, START)
    send(live, START, "ac_2")
    with ThreadPoolExecutor() as pool, psycopg.connect(conninfo_of(live), autocommit=True) as other:
        with psycopg.connect(conninfo_of(live)) as mover:
            mover.execute("UPDATE alicia_messages SET conversation_id = 'ac_2' WHERE id = %s", [message])
            using = pool.submit(other.execute, "INSERT INTO alicia_tool_uses (message_id) VALUES (%s)", [message])
            wait_for_a_lock(live)
        using.result()
    assert [row[1:] for row in sessions(live)] == [(2, 1, 0, 0)]


# The newer application -----------------------------------------------------------------------------------------------

UNPREFIXED = """
    CREATE TABLE conversations (id TEXT PRIMARY KEY, deleted_at TIMESTAMPTZ);
    CREATE TABLE messages (
        id TEXT PRIMARY KEY,
        conversation_id TEXT NOT NULL REFERENCES conversations,
        content TEXT NOT NULL DEFAULT '',
        created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
        deleted_at TIMESTAMPTZ
    );
    CREATE INDEX idx_msg_conv ON messages (conversation_id, created_at) WHERE deleted_at IS NULL;
    CREATE TABLE tool_uses (id TEXT PRIMARY KEY, message_id TEXT NOT NULL REFERENCES messages);
    CREATE TABLE memory_uses (
        id TEXT PRIMARY KEY,
        memory_id TEXT NOT NULL,
        message_id TEXT NOT NULL REFERENCES messages,
        conversation_id TEXT NOT NULL REFERENCES conversations
    );
    INSERT INTO conversations VALUES ('c1', NULL), ('c2', NULL), ('c3', NOW());
    INSERT INTO messages (id, conversation_id, created_at)
    SELECT c || n, c, TIMESTAMPTZ '2024-02-28 23:40+00' + n * INTERVAL '20 minutes'
    FROM UNNEST(ARRAY['c1', 'c2', 'c3']) AS c, GENERATE_SERIES(1, 3) AS n;
"""


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_application_without_prefix_is_recorded_and_left_as_it_was(bare: Connection, zone: str) -> None:
    bare.execute(UNPREFIXED)
    conninfo = make_conninfo(conninfo_of(bare), options=f"-csearch_path=alicia,public -cTimeZone={zone}")
    before = pg_dump(conninfo)
    assert psql(conninfo, "-qf", ROOT / "live/unprefixed.sql").stderr == ""
    assert psql(conninfo, "-qf", ROOT / "live/unprefixed.sql").stderr == ""
    stats.migrate(conninfo)
    with psycopg.connect(conninfo, autocommit=True) as db:
        bare.execute("INSERT INTO conversations VALUES ('c4')")
        bare.execute("INSERT INTO messages VALUES ('m1', 'c4', '', '2024-02-29 00:00+00')")
        assert rebuild(db) == {"inserted": 3}
        whole = ("2024-02-29 00:00:00", 3, 0, 0, 2400)
        single = ("2024-02-29 00:00:00", 1, 0, 0, 0)
        assert sessions(db) == [whole, whole, single]

        attach(conninfo)
        assert [row for row in stats.verify(conninfo) if "TimeZone" not in row["object"]] == []
        insert = "INSERT INTO messages (id, conversation_id, created_at) VALUES"
        bare.execute(f"{insert} ('m2', 'c4', '2024-02-29 00:20+00'), ('m3', 'c4', '2024-02-29 01:00+00')".encode())
        bare.execute(f"{insert} ('m4', 'c4', '2024-02-29 01:10+00')".encode())
        bare.execute("INSERT INTO tool_uses VALUES ('t1', 'm4'); INSERT INTO memory_uses VALUES ('u1', 'x', 'm3', 'c4')")
        bare.execute("INSERT INTO memory_uses VALUES ('u2', 'x', 'm4', 'c4'), ('u3', 'y', 'm4', 'c4')")
        bare.execute("UPDATE conversations SET deleted_at = CASE id WHEN 'c1' THEN NOW() END")
        bare.execute("UPDATE messages SET deleted_at = NOW() WHERE id = 'c22'")
        found = sessions(db)
        assert rebuild(db) == {}
        assert [row[1:] for row in found] == [(1, 0, 0, 0), (1, 0, 0, 0), (3, 0, 0, 2400), (2, 0, 0, 1200), (2, 1, 2, 600)]

    detach(conninfo)
    stats.rollback(conninfo, steps=None, allow_data_loss=True)
    assert psql(conninfo, "-qf", ROOT / "live/unprefixed.rollback.sql").stderr == ""
    assert pg_dump(conninfo) == before
