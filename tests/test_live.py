"""Live recording keeps the sessions equal to a model in Python and to a rebuild, whatever is written, and by how many."""

import copy
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from conftest import ROOT, conninfo_of, psql
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import alicia_session_stats as stats
from alicia_session_stats.live import attach

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
KINDS = ["message"] * 6 + ["messages", "use", "use", "uses"] + [
    "late", "delete", "soft", "soft", "move", "switch", "use_soft", "use_delete", "use_move", "conversation", "text",
    "hard", "with", "truncate", "upsert",
]  # fmt: skip
steps = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        conversations,
        st.sampled_from(edges),
        st.integers(0, 10**6),
        st.lists(st.tuples(conversations, st.sampled_from(edges), memories), min_size=1, max_size=5),
        st.sampled_from(["", "", "", "savepoint", "rollback"]),
    ),
    min_size=1,
    max_size=25,
)


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
        elif kind == "hard" and pick % 4 == 0:
            execute("DELETE FROM alicia_conversations WHERE id = %s", [conversation])
            execute("INSERT INTO alicia_conversations (id) VALUES (%s)", [conversation])
            model.conversations[conversation] = False
            model.messages = {name: each for name, each in model.messages.items() if each[0] != conversation}
            model.uses = {name: each for name, each in model.uses.items() if each[0] in model.messages}
        elif kind == "truncate" and pick % 8 == 0:
            execute("TRUNCATE alicia_tool_uses, alicia_memory_used" + (", alicia_messages" if pick % 16 else ""))
            model.uses = {}
            model.messages = {} if pick % 16 else model.messages
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


class Undo(Exception):
    pass


@pytest.fixture(params=[0, 30])
def gap(request: pytest.FixtureRequest, app: Connection) -> Iterator[timedelta]:
    attach(conninfo_of(app), gap_minutes=request.param)
    yield timedelta(minutes=request.param)


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
                            raise Undo
                else:
                    applied.step(*step)
            except Undo:
                applied.model = before
            assert set(app.execute(COMPUTED).fetchall()) == applied.model.sessions(gap), step
            assert rebuild(app, gap_minutes=minutes) == {}, step
        assert app.execute("SELECT * FROM alicia_session_stats_live_changes").fetchall() == []


def test_psql_attaches_and_detaches_alike(app: Connection) -> None:
    for name in ("attach", "attach", "detach", "detach"):
        done = psql(conninfo_of(app), "-q", "-f", ROOT / f"live/{name}.sql")
        assert (done.returncode, re.sub(".*NOTICE: .*already exists, skipping\n", "", done.stderr)) == (0, "")
