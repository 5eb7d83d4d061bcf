"""What the host has is adopted as it is, or refused before anything changed; rollback gives it back byte for byte."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from conftest import SERVER, cli, conninfo_of, pg_dump, scalar
from psycopg import errors
from psycopg.conninfo import make_conninfo

import runner

Connection = psycopg.Connection[Any]
MakeHost = Callable[..., Connection]
ROWS = {"alone": 0, "sessions": 1000, "million": 1_000_000}

PGCRYPTO = "RETURN prefix || '_' || TRANSLATE(ENCODE(GEN_RANDOM_BYTES(16), 'base64'), '+/=', '-_');"
NO_PGCRYPTO = "RETURN prefix || '_' || MD5(RANDOM()::TEXT || CLOCK_TIMESTAMP()::TEXT);"

HOST = """
CREATE TYPE conversation_state AS ENUM ('open', 'archived');
CREATE FUNCTION generate_random_id(prefix TEXT) RETURNS TEXT LANGUAGE plpgsql AS $$ BEGIN {random} END $$;
COMMENT ON FUNCTION generate_random_id(TEXT) IS 'The application''s ids';
CREATE FUNCTION update_updated_at_column() RETURNS TRIGGER LANGUAGE plpgsql
AS $$ BEGIN NEW.updated_at = NOW(); RETURN NEW; END $$;
COMMENT ON FUNCTION update_updated_at_column() IS 'Shared by every table';

CREATE TABLE users (
    id TEXT PRIMARY KEY DEFAULT generate_random_id('au'),
    name TEXT NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
);
CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON users
FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TABLE alicia_conversations (
    id TEXT PRIMARY KEY DEFAULT generate_random_id('ac'),
    user_id TEXT NOT NULL REFERENCES users(id),
    title VARCHAR(200) NOT NULL DEFAULT 'Untitled' CHECK (title <> ''),
    state conversation_state NOT NULL DEFAULT 'open',
    preferences JSONB NOT NULL DEFAULT '{{}}',
    tags TEXT[],
    created_at TIMESTAMP NOT NULL DEFAULT NOW(),
    updated_at TIMESTAMP NOT NULL DEFAULT NOW(),
    deleted_at TIMESTAMP
);
COMMENT ON TABLE alicia_conversations IS 'One row per conversation, deleted softly';
COMMENT ON COLUMN alicia_conversations.preferences IS 'What the user chose';
CREATE INDEX idx_conversations_open ON alicia_conversations (user_id) WHERE deleted_at IS NULL;
COMMENT ON INDEX idx_conversations_open IS 'What the sidebar reads';
CREATE TRIGGER update_conversations_updated_at BEFORE UPDATE ON alicia_conversations
FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TABLE alicia_messages (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    conversation_id TEXT NOT NULL REFERENCES alicia_conversations(id) ON DELETE CASCADE,
    body TEXT NOT NULL
);
CREATE VIEW open_conversations AS SELECT id, title FROM alicia_conversations WHERE deleted_at IS NULL;
GRANT SELECT ON alicia_conversations, open_conversations TO pg_monitor;
REVOKE EXECUTE ON FUNCTION update_updated_at_column() FROM PUBLIC;

INSERT INTO users (id, name) SELECT 'au_' || n, 'user ' || n FROM GENERATE_SERIES(1, 10) AS n;
INSERT INTO alicia_conversations (id, user_id, preferences, tags, updated_at, deleted_at)
SELECT 'ac_' || n, 'au_' || n % 10 + 1, JSONB_BUILD_OBJECT('n', n), ARRAY['tag'], '2024-01-01', CASE WHEN n % 7 = 0 THEN NOW() END
FROM GENERATE_SERIES(1, 1000) AS n;
INSERT INTO alicia_messages (conversation_id, body) SELECT 'ac_' || n, 'hello' FROM GENERATE_SERIES(1, 1000) AS n;
"""

SESSIONS = """
CREATE TABLE alicia_session_stats (
    id TEXT NOT NULL DEFAULT generate_random_id('ass'),
    conversation_id TEXT NOT NULL,
    message_count INTEGER NOT NULL DEFAULT 0,
    tool_call_count INTEGER NOT NULL DEFAULT 0,
    memories_used INTEGER NOT NULL DEFAULT 0,
    session_duration_seconds INTEGER NOT NULL DEFAULT 0,
    created_at TIMESTAMP NOT NULL DEFAULT NOW(),
    updated_at TIMESTAMP NOT NULL DEFAULT NOW()
);
INSERT INTO alicia_session_stats
SELECT 'ass_' || n, 'ac_' || n % 1000 + 1, n % 50, n % 7, n % 5, n % 3600,
    TIMESTAMP '2024-01-01' + n * INTERVAL '1 minute', TIMESTAMP '2024-01-02' + n * INTERVAL '1 minute'
FROM GENERATE_SERIES(1, {rows}) AS n;
ALTER TABLE alicia_session_stats ADD PRIMARY KEY (id);
ALTER TABLE alicia_session_stats ADD FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id) ON DELETE CASCADE;
CREATE INDEX idx_session_stats_conversation ON alicia_session_stats(conversation_id);
CREATE INDEX idx_session_stats_created_at ON alicia_session_stats(created_at DESC);
CREATE TRIGGER touch_session_stats BEFORE UPDATE ON alicia_session_stats
FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
COMMENT ON TABLE alicia_session_stats IS 'The host''s own words';
COMMENT ON COLUMN alicia_session_stats.message_count IS 'The host''s own count';
COMMENT ON INDEX idx_session_stats_conversation IS 'The host''s own index';
COMMENT ON TRIGGER touch_session_stats ON alicia_session_stats IS 'The host''s own trigger';
GRANT SELECT ON alicia_session_stats TO pg_monitor;
"""

EVERY_OBJECT = """
SELECT 'relation', oid::TEXT, relname, ROW(relkind, PG_RELATION_FILENODE(oid), relacl, relowner, PG_GET_INDEXDEF(oid),
    OBJ_DESCRIPTION(oid, 'pg_class'))::TEXT FROM pg_class WHERE relnamespace = CURRENT_SCHEMA()::REGNAMESPACE
UNION ALL
SELECT 'column', attrelid || '.' || attnum, attname, ROW(FORMAT_TYPE(atttypid, atttypmod), attnotnull, attacl,
    PG_GET_EXPR(adbin, adrelid), COL_DESCRIPTION(attrelid, attnum))::TEXT
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE relnamespace = CURRENT_SCHEMA()::REGNAMESPACE AND attnum > 0 AND relkind <> 'i'
UNION ALL
SELECT 'constraint', oid::TEXT, conname, ROW(PG_GET_CONSTRAINTDEF(oid), OBJ_DESCRIPTION(oid, 'pg_constraint'))::TEXT
FROM pg_constraint WHERE connamespace = CURRENT_SCHEMA()::REGNAMESPACE
UNION ALL
SELECT 'trigger', oid::TEXT, tgname, ROW(PG_GET_TRIGGERDEF(oid), tgenabled, OBJ_DESCRIPTION(oid, 'pg_trigger'))::TEXT
FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT 'function', oid::TEXT, proname, ROW(PG_GET_FUNCTIONDEF(oid), proacl, OBJ_DESCRIPTION(oid, 'pg_proc'))::TEXT
FROM pg_proc WHERE pronamespace = CURRENT_SCHEMA()::REGNAMESPACE AND prokind IN ('f', 'p')
UNION ALL
SELECT 'enum', enumtypid::TEXT, enumlabel, enumsortorder::TEXT FROM pg_enum
"""


def dsn(name: str) -> str:
    return make_conninfo(**{**SERVER, "dbname": name})


def build(connection: Connection, rows: int) -> None:
    """Make the host, with so many sessions in a table of its own, or without the table."""
    crypto = scalar(connection, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pgcrypto')")
    if crypto:
        connection.execute("CREATE EXTENSION pgcrypto")
    connection.execute(HOST.format(random=PGCRYPTO if crypto else NO_PGCRYPTO).encode())
    if rows:
        connection.execute(SESSIONS.format(rows=rows).encode())


@pytest.fixture(scope="module")
def templates() -> Iterator[dict[str, str]]:
    """Databases to clone, and one to build in."""
    made = {}
    with psycopg.connect(**SERVER, autocommit=True) as admin:
        for template, rows in ROWS.items():
            made[template] = f"alicia_host_{template}"
            admin.execute(f"CREATE DATABASE {made[template]}".encode())
            with psycopg.connect(dsn(made[template])) as connection:
                build(connection, rows)
        made["scratch"] = "alicia_host_scratch"
        admin.execute("CREATE DATABASE alicia_host_scratch")
        yield made
        for name in made.values():
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def make_host(templates: dict[str, str]) -> Iterator[MakeHost]:
    """Clones a host, changes it by the given SQL, and connects to it."""
    with psycopg.connect(**SERVER, autocommit=True) as admin, ExitStack() as undo:

        def make(template: str, sql: str = "") -> Connection:
            name = f"alicia_host_{uuid4().hex[:12]}"
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {templates[template]} STRATEGY file_copy".encode())
            undo.callback(admin.execute, f"DROP DATABASE {name} WITH (FORCE)".encode())
            connection = undo.enter_context(psycopg.connect(dsn(name), autocommit=True))
            connection.execute(sql.encode())
            return connection

        yield make


@pytest.fixture
def remake_host(templates: dict[str, str]) -> Iterator[MakeHost]:
    """The same in always the same database, which is faster: for SQL that stays within the schema public."""
    with psycopg.connect(dsn(templates["scratch"]), autocommit=True) as connection:

        def remake(template: str, sql: str = "") -> Connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            build(connection, ROWS[template])
            connection.execute(sql.encode())
            return connection

        yield remake


def rows_of(connection: Connection) -> dict[str, Any]:
    """A checksum over every column of every row of the host's tables."""
    tables = scalar(
        connection,
        "SELECT ARRAY_AGG(relname::TEXT) FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition "
        "AND relnamespace = 'public'::REGNAMESPACE AND relname !~ 'yoyo|_created$'",
    )
    checksum = "SELECT COUNT(*) || ' ' || COALESCE(SUM(HASHTEXTEXTENDED(t::TEXT, 0)::NUMERIC), 0) FROM {} AS t"
    return {name: scalar(connection, checksum.format(name)) for name in tables}


def objects_of(connection: Connection) -> set[tuple[str, ...]]:
    """Every object of the host with its oid, file, definition, grants and comment."""
    return set(connection.execute(EVERY_OBJECT.encode()).fetchall())


def assert_complete(connection: Connection) -> None:
    """The table does what the package promises, whoever made its parts."""
    for column in ("conversation_id", "created_at"):
        assert scalar(
            connection,
            "SELECT COUNT(*) FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0] "
            "WHERE indrelid = 'alicia_session_stats'::REGCLASS AND indisvalid AND attname = %s",
            column,
        ), column
    with connection.transaction(force_rollback=True):
        parent = "SELECT id FROM alicia_conversations LIMIT 1"
        if scalar(connection, "SELECT COUNT(*) FROM alicia_conversations") == 0:
            parent = "INSERT INTO alicia_conversations DEFAULT VALUES RETURNING id"
        conversation = scalar(connection, parent)
        add = "INSERT INTO alicia_session_stats (conversation_id, updated_at) VALUES (%s, '2000-01-01') RETURNING id"
        session = scalar(connection, add, conversation)
        change = (
            "UPDATE alicia_session_stats SET message_count = message_count + 1 WHERE id = %s RETURNING updated_at > '2001-01-01'"
        )
        assert scalar(connection, change, session)
        for column in ("message_count", "tool_call_count", "memories_used", "session_duration_seconds"):
            with pytest.raises(errors.CheckViolation), connection.transaction():
                connection.execute(f"UPDATE alicia_session_stats SET {column} = -1 WHERE id = %s".encode(), [session])
        with pytest.raises(errors.ForeignKeyViolation), connection.transaction():
            connection.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_of_nobody')")
        connection.execute("DELETE FROM alicia_conversations WHERE id = %s", [conversation])
        assert scalar(connection, "SELECT COUNT(*) FROM alicia_session_stats WHERE id = %s", session) == 0


def assert_adopted_and_given_back(connection: Connection, *, replaced: str = "") -> None:
    """Migrate, look that the host is as it was and the package complete, roll back, and look that nothing stays."""
    conninfo = conninfo_of(connection)
    schema, rows, objects = pg_dump(conninfo), rows_of(connection), objects_of(connection)
    kept = {thing for thing in objects if thing[2] != replaced}
    assert runner.migrate(conninfo)
    assert kept <= objects_of(connection)
    assert rows.items() <= rows_of(connection).items()
    assert_complete(connection)
    assert runner.migrate(conninfo) == []
    runner.rollback(conninfo, steps=None, allow_data_loss=True)
    assert pg_dump(conninfo) == schema
    assert rows_of(connection) == rows
    assert kept <= objects_of(connection)


def assert_refused(connection: Connection, *said: str) -> None:
    """Migrate fails with one line that says all that, and leaves no trace."""
    conninfo = conninfo_of(connection)
    schema, rows, objects = pg_dump(conninfo), rows_of(connection), objects_of(connection)
    with pytest.raises(runner.SessionStatsError) as refusal:
        runner.migrate(conninfo)
    assert [part for part in said if part not in str(refusal.value)] == [], refusal.value
    assert "\n" not in str(refusal.value)
    assert pg_dump(conninfo) == schema
    assert rows_of(connection) == rows
    assert objects_of(connection) == objects


def test_a_host_without_sessions_gets_them_and_keeps_the_rest(make_host: MakeHost) -> None:
    host = make_host("alone")
    assert_adopted_and_given_back(host)
    runner.migrate(conninfo_of(host))
    host.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1')")
    with pytest.raises(runner.SessionStatsError, match="alicia_session_stats holds 1 rows"):
        runner.rollback(conninfo_of(host), steps=None)


def test_a_million_rows_are_adopted_within_seconds_and_not_rewritten(make_host: MakeHost) -> None:
    host = make_host("million")
    started = time.monotonic()
    assert_adopted_and_given_back(host)
    assert time.monotonic() - started < 60
    assert scalar(host, "SELECT COUNT(*) FROM alicia_session_stats") == 1_000_000


MISSING = {
    "nothing": "",
    "index on conversation_id": "DROP INDEX idx_session_stats_conversation",
    "index on created_at": "DROP INDEX idx_session_stats_created_at",
    "both indexes": "DROP INDEX idx_session_stats_conversation, idx_session_stats_created_at",
    "trigger": "DROP TRIGGER touch_session_stats ON alicia_session_stats",
    "foreign key": "ALTER TABLE alicia_session_stats DROP CONSTRAINT alicia_session_stats_conversation_id_fkey",
    "everything but the columns": """
        DROP INDEX idx_session_stats_conversation, idx_session_stats_created_at;
        DROP TRIGGER touch_session_stats ON alicia_session_stats;
        ALTER TABLE alicia_session_stats DROP CONSTRAINT alicia_session_stats_conversation_id_fkey;
    """,
    "parent": """
        DELETE FROM alicia_session_stats;
        ALTER TABLE alicia_session_stats DROP CONSTRAINT alicia_session_stats_conversation_id_fkey;
        DROP TABLE alicia_conversations CASCADE;
    """,
}


@pytest.mark.parametrize("sql", MISSING.values(), ids=MISSING)
def test_what_is_missing_is_added(remake_host: MakeHost, sql: str) -> None:
    assert_adopted_and_given_back(remake_host("sessions", sql))


SAME = {
    "checks of another name": """
        ALTER TABLE alicia_session_stats
            ADD CONSTRAINT messages_ok CHECK (message_count >= 0),
            ADD CONSTRAINT tools_ok CHECK (tool_call_count >= 0) NOT VALID,
            ADD CONSTRAINT session_stats_memories_used_not_negative CHECK (memories_used >= 0),
            ADD CONSTRAINT seconds_ok CHECK (session_duration_seconds >= 0);
        COMMENT ON CONSTRAINT messages_ok ON alicia_session_stats IS 'The host''s own check';
    """,
    "checks in other words": """
        ALTER TABLE alicia_session_stats
            ADD CONSTRAINT all_ok CHECK (message_count >= 0 AND tool_call_count > -1 AND 0 <= memories_used);
    """,
    "a foreign key of another name": """
        ALTER TABLE alicia_session_stats RENAME CONSTRAINT alicia_session_stats_conversation_id_fkey TO of_conversation;
    """,
    "more indexes": """
        CREATE INDEX ix_by_conversation ON alicia_session_stats (conversation_id, created_at);
        CREATE INDEX ix_long ON alicia_session_stats (id) WHERE session_duration_seconds > 3000;
    """,
    "more triggers": """
        CREATE FUNCTION notify_host() RETURNS TRIGGER LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER notify AFTER INSERT ON alicia_session_stats FOR EACH ROW EXECUTE FUNCTION notify_host();
    """,
    "a view on the sessions, and a publication": """
        CREATE VIEW daily AS SELECT created_at::DATE AS day, COUNT(*) FROM alicia_session_stats GROUP BY 1;
        CREATE PUBLICATION everything FOR ALL TABLES;
    """,
    "a parent of varchar": "ALTER TABLE alicia_session_stats DROP CONSTRAINT alicia_session_stats_conversation_id_fkey;"
    "DROP TABLE alicia_conversations CASCADE; CREATE TABLE alicia_conversations (id VARCHAR(60) UNIQUE DEFAULT 'ac_1');"
    "INSERT INTO alicia_conversations SELECT DISTINCT conversation_id FROM alicia_session_stats;",
}


@pytest.mark.parametrize("sql", SAME.values(), ids=SAME)
def test_what_says_the_same_is_adopted(make_host: MakeHost, sql: str) -> None:
    assert_adopted_and_given_back(make_host("sessions", sql))


def test_the_hosts_own_check_is_not_doubled(remake_host: MakeHost) -> None:
    host = remake_host("sessions", SAME["checks of another name"])
    runner.migrate(conninfo_of(host))
    assert (
        scalar(host, "SELECT COUNT(*) FROM pg_constraint WHERE conrelid = 'alicia_session_stats'::REGCLASS AND contype = 'c'")
        == 4
    )


def test_the_hosts_own_trigger_is_not_doubled(remake_host: MakeHost) -> None:
    host = remake_host("sessions")
    runner.migrate(conninfo_of(host))
    names = (
        "SELECT ARRAY_AGG(tgname::TEXT) FROM pg_trigger "
        "WHERE tgrelid = 'alicia_session_stats'::REGCLASS AND NOT tgisinternal AND tgtype & 2 = 2"  # Those that fire before.
    )
    assert scalar(host, names) == ["touch_session_stats"]


@pytest.mark.parametrize(
    ("index", "columns"),
    [("idx_session_stats_conversation", "conversation_id"), ("idx_session_stats_created_at", "created_at DESC")],
)
def test_an_invalid_index_of_an_interrupted_build_is_built_again(make_host: MakeHost, index: str, columns: str) -> None:
    host = make_host("sessions", f"DROP INDEX {index}")
    with psycopg.connect(conninfo_of(host)) as writer:
        writer.execute("UPDATE alicia_session_stats SET message_count = 1 WHERE id = 'ass_1'")
        host.execute("SET statement_timeout = '300ms'")
        with pytest.raises(errors.QueryCanceled):
            host.execute(f"CREATE INDEX CONCURRENTLY {index} ON alicia_session_stats ({columns})".encode())
        host.execute("RESET statement_timeout")
    assert scalar(host, "SELECT indisvalid FROM pg_index WHERE indexrelid = %s::REGCLASS", index) is False
    assert_adopted_and_given_back(host, replaced=index)


def without_parent(then: str) -> tuple[str, str]:
    return "alone", f"DROP TABLE alicia_conversations CASCADE; {then}"


def altered(change: str) -> tuple[str, str]:
    return "sessions", f"ALTER TABLE alicia_session_stats {change}"


def instead_of_index(name: str, what: str) -> tuple[str, str]:
    return "sessions", f"DROP INDEX {name}; {what}"


def instead_of_ids(what: str) -> tuple[str, str]:
    return "alone", f"DROP FUNCTION generate_random_id CASCADE; {what}"


BY_CONVERSATION = "idx_session_stats_conversation"
BY_TIME = "idx_session_stats_created_at"
UNCALLABLE = "generate_random_id"
MISFITS: dict[str, tuple[tuple[str, str], list[str]]] = {
    "bigint count": (altered("ALTER message_count TYPE BIGINT"), ["column message_count is bigint, must be integer"]),
    "time with a zone": (
        altered("ALTER created_at TYPE TIMESTAMPTZ"),
        ["column created_at is timestamp with time zone, must be timestamp without time zone"],
    ),
    "uuid id": (
        altered("ALTER id DROP DEFAULT, ALTER id TYPE UUID USING GEN_RANDOM_UUID(), ALTER id SET DEFAULT GEN_RANDOM_UUID()"),
        ["column id is uuid, must be text"],
    ),
    "extra column": (
        altered("ADD deleted_at TIMESTAMP"),
        ["column deleted_at is timestamp without time zone, must not be there"],
    ),
    "missing column": (altered("DROP memories_used"), ["column memories_used is missing, must be integer"]),
    "nullable column": (altered("ALTER updated_at DROP NOT NULL"), ["column updated_at is nullable, must be NOT NULL"]),
    "count without default": (
        altered("ALTER tool_call_count DROP DEFAULT"),
        ["column tool_call_count has no default, must have 0"],
    ),
    "count with another default": (
        altered("ALTER tool_call_count SET DEFAULT 1"),
        ["column tool_call_count has default 1, must be 0"],
    ),
    "id without default": (altered("ALTER id DROP DEFAULT"), ["column id has no default"]),
    "time without default": (altered("ALTER created_at DROP DEFAULT"), ["column created_at has no default"]),
    "several at once": (
        altered("ALTER message_count TYPE BIGINT, DROP memories_used, ADD deleted_at TIMESTAMP"),
        ["column message_count is bigint", "column memories_used is missing", "column deleted_at"],
    ),
    "no primary key": (altered("DROP CONSTRAINT alicia_session_stats_pkey"), ["column id is not the primary key, must be"]),
    "another primary key": (
        altered("DROP CONSTRAINT alicia_session_stats_pkey, ADD PRIMARY KEY (id, created_at)"),
        ["column id is not the primary key, must be"],
    ),
    "negative counts": (
        ("sessions", "UPDATE alicia_session_stats SET message_count = -3, memories_used = -1 WHERE id IN ('ass_7', 'ass_8')"),
        ["in 2 rows", "message_count is as low as -3", "memories_used is as low as -1", "must be 0 or more"],
    ),
    "orphans without a foreign key": (
        (
            "sessions",
            "ALTER TABLE alicia_session_stats DROP CONSTRAINT alicia_session_stats_conversation_id_fkey;"
            "UPDATE alicia_session_stats SET conversation_id = 'ac_gone' WHERE id = 'ass_7'",
        ),
        ["in 1 rows conversation_id names no conversation"],
    ),
    "foreign key without cascade": (
        altered(
            "DROP CONSTRAINT alicia_session_stats_conversation_id_fkey,"
            "ADD CONSTRAINT of_conversation FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id)"
        ),
        ["constraint of_conversation is FOREIGN KEY", "must be", "ON DELETE CASCADE"],
    ),
    "foreign key to another table": (
        altered(
            "DROP CONSTRAINT alicia_session_stats_conversation_id_fkey,"
            "ADD CONSTRAINT of_user FOREIGN KEY (conversation_id) REFERENCES users(id) ON DELETE CASCADE NOT VALID"
        ),
        ["constraint of_user is FOREIGN KEY", "REFERENCES alicia_conversations(id) ON DELETE CASCADE"],
    ),
    "sessions a view": (
        ("alone", "CREATE VIEW alicia_session_stats AS SELECT id FROM alicia_conversations"),
        ["alicia_session_stats is not a table"],
    ),
    "sessions partitioned": (
        (
            "alone",
            "CREATE TABLE alicia_session_stats (id TEXT PRIMARY KEY DEFAULT generate_random_id('ass'),"
            "conversation_id TEXT NOT NULL REFERENCES alicia_conversations(id) ON DELETE CASCADE,"
            "message_count INTEGER NOT NULL DEFAULT 0, tool_call_count INTEGER NOT NULL DEFAULT 0,"
            "memories_used INTEGER NOT NULL DEFAULT 0, session_duration_seconds INTEGER NOT NULL DEFAULT 0,"
            "created_at TIMESTAMP NOT NULL DEFAULT NOW(), updated_at TIMESTAMP NOT NULL DEFAULT NOW()) PARTITION BY HASH (id);"
            "CREATE TABLE alicia_session_stats_0 PARTITION OF alicia_session_stats FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        ),
        ["alicia_session_stats is", "partitioned"],
    ),
    "parent with uuid id": (
        without_parent("CREATE TABLE alicia_conversations (id UUID PRIMARY KEY)"),
        ["alicia_conversations.id is uuid, must be text"],
    ),
    "parent without id": (
        without_parent("CREATE TABLE alicia_conversations (uid TEXT PRIMARY KEY)"),
        ["alicia_conversations.id is missing, must be text"],
    ),
    "parent without unique id": (
        without_parent("CREATE TABLE alicia_conversations (id TEXT, day DATE, PRIMARY KEY (id, day))"),
        ["alicia_conversations.id is not unique, must be the primary key or UNIQUE"],
    ),
    "parent unique in part": (
        without_parent(
            "CREATE TABLE alicia_conversations (id TEXT); CREATE UNIQUE INDEX ON alicia_conversations (id) WHERE id > 'a'"
        ),
        ["alicia_conversations.id is not unique"],
    ),
    "parent unique at commit only": (
        without_parent("CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY DEFERRABLE)"),
        ["alicia_conversations.id", "deferrable"],
    ),
    "parent unlogged": (
        without_parent("CREATE UNLOGGED TABLE alicia_conversations (id TEXT PRIMARY KEY)"),
        ["alicia_conversations is", "unlogged"],
    ),
    "parent a view": (
        without_parent("CREATE VIEW alicia_conversations AS SELECT id FROM users"),
        ["alicia_conversations is not a table"],
    ),
    "parent a materialized view": (
        without_parent("CREATE MATERIALIZED VIEW alicia_conversations AS SELECT id FROM users"),
        ["alicia_conversations is not a table"],
    ),
    "index name on another table": (
        instead_of_index(BY_CONVERSATION, f"CREATE INDEX {BY_CONVERSATION} ON alicia_messages (conversation_id)"),
        [
            f"{BY_CONVERSATION} is CREATE INDEX",
            "alicia_messages",
            "must be a btree index on alicia_session_stats (conversation_id)",
        ],
    ),
    "index name on another column": (
        instead_of_index(BY_TIME, f"CREATE INDEX {BY_TIME} ON alicia_session_stats (updated_at)"),
        [f"{BY_TIME} is CREATE INDEX", "(updated_at)", "must be a btree index on alicia_session_stats (created_at)"],
    ),
    "index name on a part": (
        instead_of_index(BY_TIME, f"CREATE INDEX {BY_TIME} ON alicia_session_stats (created_at) WHERE message_count > 0"),
        [f"{BY_TIME} is CREATE INDEX", "WHERE (message_count > 0)", "must be"],
    ),
    "index name of a hash": (
        instead_of_index(BY_CONVERSATION, f"CREATE INDEX {BY_CONVERSATION} ON alicia_session_stats USING HASH (conversation_id)"),
        [f"{BY_CONVERSATION} is CREATE INDEX", "hash", "must be a btree"],
    ),
    "index name allows one session a conversation": (
        instead_of_index(
            BY_CONVERSATION,
            "DELETE FROM alicia_session_stats WHERE id <> 'ass_1';"
            f"CREATE UNIQUE INDEX {BY_CONVERSATION} ON alicia_session_stats (conversation_id)",
        ),
        [f"{BY_CONVERSATION} is CREATE UNIQUE INDEX", "must be"],
    ),
    "index name of a table": (
        instead_of_index(BY_TIME, f"CREATE TABLE {BY_TIME} (n INTEGER)"),
        [f"{BY_TIME} is not an index", "must be a btree index on alicia_session_stats (created_at)"],
    ),
    "index name of a sequence, no sessions": (
        ("alone", f"CREATE SEQUENCE {BY_TIME}"),
        [f"{BY_TIME} is not an index"],
    ),
    "constraint name says something else": (
        altered("ADD CONSTRAINT session_stats_duration_not_negative CHECK (session_duration_seconds < 1000000)"),
        ["session_stats_duration_not_negative is CHECK", "must be CHECK"],
    ),
    "trigger name does something else": (
        (
            "sessions",
            "CREATE FUNCTION audit() RETURNS TRIGGER LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
            "DROP TRIGGER touch_session_stats ON alicia_session_stats; CREATE TRIGGER update_session_stats_updated_at "
            "AFTER UPDATE ON alicia_session_stats FOR EACH ROW EXECUTE FUNCTION audit()",
        ),
        ["update_session_stats_updated_at is", "must be"],
    ),
    "function name does something else": (
        ("alone", "CREATE FUNCTION update_session_stats_updated_at() RETURNS INTEGER LANGUAGE sql RETURN 1"),
        ["update_session_stats_updated_at() ", "trigger"],
    ),
    "ids of no text": (
        instead_of_ids("CREATE FUNCTION generate_random_id() RETURNS TEXT LANGUAGE sql RETURN 'x'"),
        [UNCALLABLE, "cannot be called"],
    ),
    "ids of an integer": (
        instead_of_ids("CREATE FUNCTION generate_random_id(size INTEGER) RETURNS TEXT LANGUAGE sql RETURN size::TEXT"),
        [UNCALLABLE],
    ),
    "ids of two texts": (
        instead_of_ids("CREATE FUNCTION generate_random_id(a TEXT, b TEXT) RETURNS TEXT LANGUAGE sql RETURN a || b"),
        [UNCALLABLE, "cannot be called"],
    ),
    "ids that nothing tells apart": (
        instead_of_ids(
            "CREATE FUNCTION generate_random_id(a TEXT, n INTEGER DEFAULT 1) RETURNS TEXT LANGUAGE sql RETURN a;"
            "CREATE FUNCTION generate_random_id(a TEXT, n TEXT DEFAULT '') RETURNS TEXT LANGUAGE sql RETURN a"
        ),
        [UNCALLABLE, "cannot be called"],
    ),
    "ids by a procedure": (
        instead_of_ids("CREATE PROCEDURE generate_random_id(a TEXT) LANGUAGE sql AS 'SELECT 1'"),
        [UNCALLABLE, "cannot be called"],
    ),
    "ids by the set": (
        instead_of_ids("CREATE FUNCTION generate_random_id(a TEXT) RETURNS SETOF TEXT LANGUAGE sql AS 'SELECT a'"),
        [UNCALLABLE, "cannot be called"],
    ),
}


@pytest.mark.parametrize(("made_by", "said"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_refused_before_anything_changed(
    remake_host: MakeHost, made_by: tuple[str, str], said: list[str]
) -> None:
    assert_refused(remake_host(*made_by), *said)


YOYO_TABLES = """
CREATE TABLE {schema}._yoyo_migration (
    migration_hash VARCHAR(64) PRIMARY KEY, migration_id VARCHAR(255), applied_at_utc TIMESTAMP
);
CREATE TABLE {schema}._yoyo_log (
    id VARCHAR(36) PRIMARY KEY, migration_hash VARCHAR(64), migration_id VARCHAR(255), operation VARCHAR(10),
    username VARCHAR(255), hostname VARCHAR(255), comment VARCHAR(255), created_at_utc TIMESTAMP
);
CREATE TABLE {schema}._yoyo_version (version INT NOT NULL PRIMARY KEY, installed_at_utc TIMESTAMP);
INSERT INTO {schema}._yoyo_version VALUES (2, NOW());
CREATE TABLE {schema}.yoyo_lock (locked INT DEFAULT 1, ctime TIMESTAMP, pid INT NOT NULL, PRIMARY KEY (locked));
"""
YOYO_ROWS = """
INSERT INTO {schema}._yoyo_migration SELECT ENCODE(SHA256(n::BYTEA), 'hex'), n, NOW()
FROM UNNEST(ARRAY['0001_create_users', '0002_create_conversations']) AS n;
INSERT INTO {schema}._yoyo_log (id, migration_id, operation) VALUES ('x', '0001_create_users', 'apply');
"""


@pytest.mark.parametrize("sql", [YOYO_TABLES + YOYO_ROWS, YOYO_TABLES], ids=["with migrations", "still empty"])
def test_a_host_that_uses_yoyo_keeps_its_tables_and_rows(make_host: MakeHost, sql: str) -> None:
    host = make_host("sessions", sql.format(schema="public"))
    every = "SELECT migration_id, applied_at_utc FROM _yoyo_migration ORDER BY 1"
    before = host.execute(every.encode()).fetchall()
    assert_adopted_and_given_back(host)
    assert host.execute(every.encode()).fetchall() == before
    runner.migrate(conninfo_of(host))
    assert set(before) < set(host.execute(every.encode()).fetchall())
    assert [row["state"] for row in runner.status(conninfo_of(host))] == ["applied"] * 11


def test_a_refusal_leaves_the_hosts_own_empty_yoyo_tables(make_host: MakeHost) -> None:
    unfit = "ALTER TABLE alicia_session_stats ADD deleted_at TIMESTAMP"
    assert_refused(make_host("sessions", YOYO_TABLES.format(schema="public") + unfit), "deleted_at")


def test_a_host_whose_yoyo_lives_in_another_schema_of_the_search_path_keeps_it(make_host: MakeHost) -> None:
    host = make_host("alone", f"CREATE SCHEMA stats; {(YOYO_TABLES + YOYO_ROWS).format(schema='public')}")
    conninfo = make_conninfo(conninfo_of(host), options="-csearch_path=stats,public")
    before = pg_dump(conninfo_of(host))
    runner.migrate(conninfo)
    assert scalar(host, "SELECT TO_REGCLASS('stats.alicia_session_stats') IS NOT NULL")
    assert scalar(host, "SELECT COUNT(*) FROM public._yoyo_migration") == 2
    runner.rollback(conninfo, steps=None)
    assert pg_dump(conninfo_of(host)) == before
    assert scalar(host, "SELECT COUNT(*) FROM public._yoyo_migration") == 2


def keep_writing(conninfo: str, ended: threading.Event, waits: list[float]) -> None:
    """Insert, update and delete sessions and conversations, and note how long each statement took."""
    statements: list[LiteralString] = [
        "INSERT INTO alicia_session_stats (id, conversation_id) VALUES (%(id)s, 'ac_1')",
        "UPDATE alicia_session_stats SET message_count = message_count + 1 WHERE id = %(id)s",
        "UPDATE alicia_conversations SET title = %(id)s WHERE id = 'ac_1'",
        "DELETE FROM alicia_session_stats WHERE id = %(id)s",
    ]
    with psycopg.connect(conninfo, autocommit=True) as connection:
        while not ended.is_set():
            for statement in statements:
                started = time.monotonic()
                connection.execute(statement, {"id": f"ass_writer_{threading.get_ident()}"})
                waits.append(time.monotonic() - started)


def test_no_writer_waits_while_a_million_rows_are_adopted(make_host: MakeHost) -> None:
    host = make_host("million", MISSING["everything but the columns"])
    before = rows_of(host)["alicia_session_stats"]
    ended, waits = threading.Event(), list[float]()
    writers = [threading.Thread(target=keep_writing, args=(conninfo_of(host), ended, waits)) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        done = cli("migrate", env={"DATABASE_URL": conninfo_of(host), "PGAPPNAME": f"test {os.getpid()}"})
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    assert done.returncode == 0, done.stderr
    assert len(waits) > 100
    assert max(waits) < 1
    assert_complete(host)
    assert rows_of(host)["alicia_session_stats"] == before
