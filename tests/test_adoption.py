"""What the application has is adopted as it is, or refused before anything changed; rollback leaves it as it was."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlencode

import psycopg
import pytest
from conftest import MIGRATIONS, cli, conninfo_of, pg_dump, scalar
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import alicia_session_stats as stats

Connection = psycopg.Connection[Any]
Build = Callable[..., Connection]

PGCRYPTO = "RETURN prefix || '_' || TRANSLATE(ENCODE(GEN_RANDOM_BYTES(16), 'base64'), '+/=', '-_');"
NO_PGCRYPTO = "RETURN prefix || '_' || MD5(RANDOM()::TEXT || CLOCK_TIMESTAMP()::TEXT);"

APPLICATION = """
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

SPECIFIED = """
    id TEXT PRIMARY KEY DEFAULT generate_random_id('ass'),
    conversation_id TEXT NOT NULL REFERENCES alicia_conversations(id) ON DELETE CASCADE,
    message_count INTEGER NOT NULL DEFAULT 0, tool_call_count INTEGER NOT NULL DEFAULT 0,
    memories_used INTEGER NOT NULL DEFAULT 0, session_duration_seconds INTEGER NOT NULL DEFAULT 0,
    created_at TIMESTAMP NOT NULL DEFAULT NOW(), updated_at TIMESTAMP NOT NULL DEFAULT NOW()
"""
MORE_SESSIONS = """
INSERT INTO alicia_session_stats
SELECT 'ass_' || n, 'ac_' || n % 1000 + 1, n % 50, n % 7, n % 5, n % 3600,
    TIMESTAMP '2024-01-01' + n * INTERVAL '1 minute', TIMESTAMP '2024-01-02' + n * INTERVAL '1 minute'
FROM GENERATE_SERIES({first}, {last}) AS n;
"""
SESSIONS = f"""
CREATE TABLE alicia_session_stats ({SPECIFIED});
{MORE_SESSIONS.format(first=1, last="{rows}")}
CREATE INDEX idx_session_stats_conversation ON alicia_session_stats(conversation_id);
CREATE INDEX idx_session_stats_created_at ON alicia_session_stats(created_at DESC);
CREATE TRIGGER touch_session_stats BEFORE UPDATE ON alicia_session_stats
FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
COMMENT ON TABLE alicia_session_stats IS 'The application''s own words';
COMMENT ON COLUMN alicia_session_stats.message_count IS 'The application''s own count';
COMMENT ON INDEX idx_session_stats_conversation IS 'The application''s own index';
COMMENT ON TRIGGER touch_session_stats ON alicia_session_stats IS 'The application''s own trigger';
GRANT SELECT ON alicia_session_stats TO pg_monitor;
"""


@pytest.fixture
def build(bare: Connection) -> Build:
    """Builds an application with so many sessions in a table of its own, or none; then runs the given SQL."""

    def build_application(sessions: int = 1000, sql: str = "") -> Connection:
        has_crypto = scalar(bare, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pgcrypto')")
        if has_crypto:
            bare.execute("CREATE EXTENSION pgcrypto")
        bare.execute(APPLICATION.format(random=PGCRYPTO if has_crypto else NO_PGCRYPTO).encode())
        if sessions:
            bare.execute(SESSIONS.format(rows=sessions).encode())
        bare.execute(sql.encode())
        return bare

    return build_application


def rows_of(connection: Connection) -> dict[str, Any]:
    """A checksum over every column of every row of the application's tables."""
    tables = scalar(
        connection,
        "SELECT ARRAY_AGG(relname::TEXT) FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition "
        "AND relnamespace = 'public'::REGNAMESPACE AND relname !~ 'yoyo|owned_objects'",
    )
    checksum = "SELECT COUNT(*) || ' ' || COALESCE(SUM(HASHTEXTEXTENDED(t::TEXT, 0)::NUMERIC), 0) FROM {} AS t"
    return {name: scalar(connection, checksum.format(name)) for name in tables}


def objects_of(connection: Connection, schema: str) -> set[str]:
    """The definition, comment and grants of each object of a dump, and the file of each relation: a rewrite would change it."""
    definitions = {text.strip() for text in schema.split("\n\n")}
    files = connection.execute("SELECT CONCAT(oid, relname, PG_RELATION_FILENODE(oid)) FROM pg_class WHERE oid > 16384")
    # A CHECK that migrate adds stands in this CREATE TABLE.
    return {text for text in definitions if "CREATE TABLE public.alicia_session_stats (" not in text} | {row[0] for row in files}


def assert_complete(connection: Connection) -> None:
    """The table does what the package promises, and who created each part does not matter."""
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
    """Migrate: the application is as it was and the package complete. Roll back: nothing of the package stays."""
    conninfo = conninfo_of(connection)
    schema, rows = pg_dump(conninfo), rows_of(connection)
    objects = objects_of(connection, schema)
    kept = {thing for thing in objects if not replaced or replaced not in thing}
    assert stats.migrate(conninfo) == MIGRATIONS
    assert kept <= objects_of(connection, pg_dump(conninfo))
    assert rows.items() <= rows_of(connection).items()
    assert_complete(connection)
    assert stats.migrate(conninfo) == []
    assert stats.verify(conninfo) == []
    stats.rollback(conninfo, steps=None, allow_data_loss=True)
    assert pg_dump(conninfo) == schema
    assert rows_of(connection) == rows
    assert kept <= objects_of(connection, schema)


def assert_refused(connection: Connection, *said: str) -> None:
    """Migrate fails with one line that says all that, and leaves no trace."""
    conninfo = conninfo_of(connection)
    schema, rows = pg_dump(conninfo), rows_of(connection)
    objects = objects_of(connection, schema)
    with pytest.raises(stats.SessionStatsError) as refusal:
        stats.migrate(conninfo)
    assert [part for part in said if part not in str(refusal.value)] == [], refusal.value
    assert "\n" not in str(refusal.value)
    assert pg_dump(conninfo) == schema
    assert rows_of(connection) == rows
    assert objects_of(connection, schema) == objects


# Adopted


def altered(change: str) -> str:
    return f"ALTER TABLE alicia_session_stats {change};"


NO_KEY = altered("DROP CONSTRAINT alicia_session_stats_conversation_id_fkey")
NO_INDEXES = "DROP INDEX idx_session_stats_conversation, idx_session_stats_created_at;"
ONLY_COLUMNS = f"{NO_KEY} {NO_INDEXES} DROP TRIGGER touch_session_stats ON alicia_session_stats;"
NO_PARENT = "DROP TABLE alicia_conversations CASCADE;"
ADOPTED: dict[str, tuple[int, str]] = {
    "no sessions": (0, ""),
    "complete": (1000, ""),
    "one index": (1000, "DROP INDEX idx_session_stats_created_at"),
    "columns only": (1000, ONLY_COLUMNS),
    "no parent": (1000, f"{NO_KEY} {NO_PARENT} DELETE FROM alicia_session_stats"),
    "parent of varchar, unique": (
        1000,
        f"{NO_KEY} {NO_PARENT} CREATE TABLE alicia_conversations (id VARCHAR(60) UNIQUE DEFAULT 'ac_1');"
        "INSERT INTO alicia_conversations SELECT DISTINCT conversation_id FROM alicia_session_stats",
    ),
    "columns of its own": (
        1000,
        altered("ADD deleted_at TIMESTAMP, ADD tenant TEXT NOT NULL DEFAULT 'x', ADD n BIGINT GENERATED ALWAYS AS IDENTITY"),
    ),
    "check and key of other names": (
        1000,
        altered(
            "ADD CONSTRAINT counts_ok CHECK (LEAST(message_count, tool_call_count, memories_used, session_duration_seconds) >= 0)"
        )
        + altered("RENAME CONSTRAINT alicia_session_stats_conversation_id_fkey TO of_conversation"),
    ),
    "checks in other words": (
        1000,
        altered("ADD CONSTRAINT all_ok CHECK (message_count >= 0 AND tool_call_count > -1 AND 0 <= memories_used) NOT VALID"),
    ),
    "more of everything": (
        1000,
        """
        CREATE INDEX ix_by_conversation ON alicia_session_stats (conversation_id, created_at);
        CREATE INDEX ix_long ON alicia_session_stats (id) WHERE session_duration_seconds > 3000;
        CREATE FUNCTION notify_team() RETURNS TRIGGER LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER notify AFTER INSERT ON alicia_session_stats FOR EACH ROW EXECUTE FUNCTION notify_team();
        CREATE VIEW daily AS SELECT created_at::DATE AS day, COUNT(*) FROM alicia_session_stats GROUP BY 1;
        CREATE PUBLICATION everything FOR ALL TABLES;
        """,
    ),
}


@pytest.mark.parametrize(("sessions", "sql"), ADOPTED.values(), ids=ADOPTED)
def test_what_fits_is_kept_and_what_is_missing_is_added(build: Build, sessions: int, sql: str) -> None:
    assert_adopted_and_given_back(build(sessions, sql))


def test_what_the_application_has_under_another_name_is_not_doubled(build: Build) -> None:
    application = build(*ADOPTED["check and key of other names"])
    stats.migrate(conninfo_of(application))
    here = "= 'alicia_session_stats'::REGCLASS"
    constraints = (
        f"SELECT ARRAY_AGG(conname::TEXT ORDER BY conname) FROM pg_constraint WHERE conrelid {here} AND contype IN ('c', 'f')"
    )
    assert scalar(application, constraints) == ["counts_ok", "of_conversation"]
    before_update = f"SELECT ARRAY_AGG(tgname::TEXT) FROM pg_trigger WHERE tgrelid {here} AND NOT tgisinternal AND tgtype & 2 = 2"
    assert scalar(application, before_update) == ["touch_session_stats"]


@pytest.mark.parametrize(
    ("index", "columns"),
    [("idx_session_stats_conversation", "conversation_id"), ("idx_session_stats_created_at", "created_at DESC")],
)
def test_an_invalid_index_of_an_interrupted_build_is_built_again(build: Build, index: str, columns: str) -> None:
    application = build(1000, f"DROP INDEX {index}")
    with psycopg.connect(conninfo_of(application)) as writer:
        writer.execute("UPDATE alicia_session_stats SET message_count = 1 WHERE id = 'ass_1'")
        application.execute("SET statement_timeout = '300ms'")
        with pytest.raises(errors.QueryCanceled):
            application.execute(f"CREATE INDEX CONCURRENTLY {index} ON alicia_session_stats ({columns})".encode())
        application.execute("RESET statement_timeout")
    assert scalar(application, "SELECT indisvalid FROM pg_index WHERE indexrelid = %s::REGCLASS", index) is False
    assert_adopted_and_given_back(application, replaced=index)


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


@pytest.mark.slow
def test_no_writer_waits_while_a_million_sessions_are_adopted_and_none_is_rewritten(build: Build) -> None:
    application = build(1000, ONLY_COLUMNS)
    application.execute(MORE_SESSIONS.format(first=1001, last=1_000_000).encode())  # Quicker than with the key and the indexes.
    rows, objects = rows_of(application)["alicia_session_stats"], objects_of(application, pg_dump(conninfo_of(application)))
    ended, waits = threading.Event(), list[float]()
    writers = [threading.Thread(target=keep_writing, args=(conninfo_of(application), ended, waits)) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        done = cli("migrate", "--database", conninfo_of(application))
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    assert done.returncode == 0, done.stderr
    assert len(waits) > 100
    assert max(waits) < 1
    assert_complete(application)
    assert rows_of(application)["alicia_session_stats"] == rows
    assert objects <= objects_of(application, pg_dump(conninfo_of(application)))


# Refused

BY_CONVERSATION, BY_TIME = "idx_session_stats_conversation", "idx_session_stats_created_at"
# How many sessions, what is changed, and what is said.
MISFITS: dict[str, tuple[int, str, list[str]]] = {
    "many columns": (
        1000,
        altered(
            "ALTER id DROP DEFAULT, ALTER message_count TYPE BIGINT, ALTER tool_call_count SET DEFAULT 1, DROP memories_used,"
            "ALTER session_duration_seconds DROP DEFAULT, ALTER created_at TYPE TIMESTAMPTZ, ALTER updated_at DROP NOT NULL,"
            "ADD tenant TEXT NOT NULL DEFAULT ''"
        )
        + altered("ALTER tenant DROP DEFAULT"),
        [
            "the tables in this database do not fit: ",
            ".id is text NOT NULL, must be text NOT NULL DEFAULT generate_random_id('ass'::text)",
            ".message_count is bigint NOT NULL DEFAULT 0, must be integer NOT NULL DEFAULT 0",
            ".tool_call_count is integer NOT NULL DEFAULT 1, must be",
            ".memories_used is missing, must be integer NOT NULL DEFAULT 0",
            ".session_duration_seconds is integer NOT NULL, must be",
            ".created_at is timestamp with time zone NOT NULL DEFAULT now(), must be timestamp without time zone",
            ".updated_at is timestamp without time zone DEFAULT now(), must be timestamp without time zone NOT NULL",
            ".tenant is text NOT NULL, must be nullable, or with a default",
        ],
    ),
    "id of uuid": (
        1000,
        altered("ALTER id DROP DEFAULT, ALTER id TYPE UUID USING GEN_RANDOM_UUID(), ALTER id SET DEFAULT GEN_RANDOM_UUID()"),
        ["COLUMN alicia_session_stats.id is uuid NOT NULL", "must be text"],
    ),
    "key of two columns": (
        1000,
        altered("DROP CONSTRAINT alicia_session_stats_pkey, ADD PRIMARY KEY (id, created_at)"),
        ["_pkey ON alicia_session_stats is PRIMARY KEY (id, created_at), must be PRIMARY KEY (id)"],
    ),
    "one session for a conversation": (
        1,
        altered("ADD CONSTRAINT once UNIQUE (conversation_id)"),
        ["CONSTRAINT once ON alicia_session_stats is UNIQUE (conversation_id), must be not unique"],
    ),
    "negative counts": (
        1000,
        "UPDATE alicia_session_stats SET message_count = -3, memories_used = -1 WHERE id IN ('ass_7', 'ass_8')",
        ["rows of alicia_session_stats with a negative count or duration: 2. Nothing was changed"],
    ),
    "sessions of no conversation": (
        1000,
        f"{NO_KEY} UPDATE alicia_session_stats SET conversation_id = 'ac_gone' WHERE id = 'ass_7'",
        ["rows of alicia_session_stats whose conversation does not exist: 1. Nothing was changed"],
    ),
    "sessions but no table of conversations": (
        1000,
        f"{NO_KEY} {NO_PARENT}",
        ["rows of alicia_session_stats whose conversation does not exist: 1000"],
    ),
    "foreign key without cascade": (
        1000,
        NO_KEY + altered("ADD CONSTRAINT of_it FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id)"),
        ["CONSTRAINT of_it ON alicia_session_stats is FOREIGN KEY", "must be", "ON DELETE CASCADE"],
    ),
    "foreign key to another table": (
        1000,
        NO_KEY + altered("ADD CONSTRAINT of_user FOREIGN KEY (conversation_id) REFERENCES users ON DELETE CASCADE NOT VALID"),
        ["CONSTRAINT of_user ON alicia_session_stats is FOREIGN KEY", "REFERENCES alicia_conversations(id) ON DELETE CASCADE"],
    ),
    "a view": (
        0,
        "CREATE VIEW alicia_session_stats AS SELECT id FROM alicia_conversations",
        ["TABLE alicia_session_stats is", "must be permanent table"],
    ),
    "partitioned": (
        0,
        f"CREATE TABLE alicia_session_stats ({SPECIFIED}) PARTITION BY HASH (id)",
        ["TABLE alicia_session_stats is permanent partitioned table, must be permanent table"],
    ),
    "unlogged": (
        0,
        f"CREATE TABLE alicia_session_stats ({SPECIFIED}); ALTER TABLE alicia_session_stats SET UNLOGGED",
        ["TABLE alicia_session_stats is temporary or unlogged table, must be permanent table"],
    ),
    "parent with uuid id": (
        0,
        f"{NO_PARENT} CREATE TABLE alicia_conversations (id UUID PRIMARY KEY)",
        ["COLUMN alicia_conversations.id is uuid NOT NULL, must be text"],
    ),
    "parent without id": (
        0,
        f"{NO_PARENT} CREATE TABLE alicia_conversations (uid TEXT PRIMARY KEY)",
        ["COLUMN alicia_conversations.id is missing, must be text"],
    ),
    "parent without unique id": (
        0,
        f"{NO_PARENT} CREATE TABLE alicia_conversations (id TEXT, day DATE, PRIMARY KEY (id, day))",
        ["CONSTRAINT alicia_conversations_pkey ON alicia_conversations is PRIMARY KEY (id, day), must be PRIMARY KEY (id)"],
    ),
    "parent a view": (
        0,
        f"{NO_PARENT} CREATE VIEW alicia_conversations AS SELECT id FROM users",
        ["TABLE alicia_conversations is", "must be permanent table"],
    ),
    "indexes on other columns": (
        1000,
        f"{NO_INDEXES} CREATE INDEX {BY_CONVERSATION} ON alicia_session_stats USING HASH (conversation_id);"
        f"CREATE INDEX {BY_TIME} ON alicia_session_stats (created_at) WHERE message_count > 0",
        [f"INDEX {BY_CONVERSATION} is CREATE INDEX", "USING hash", f"INDEX {BY_TIME} is CREATE INDEX", "WHERE message_count > 0"],
    ),
    "a check and a trigger that do something else": (
        1000,
        altered("ADD CONSTRAINT session_stats_counts_and_duration_not_negative CHECK (session_duration_seconds < 1000000)")
        + """
        CREATE FUNCTION audit() RETURNS TRIGGER LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        DROP TRIGGER touch_session_stats ON alicia_session_stats; CREATE TRIGGER update_session_stats_updated_at
        AFTER UPDATE ON alicia_session_stats FOR EACH ROW EXECUTE FUNCTION audit();
        """,
        [
            "CONSTRAINT session_stats_counts_and_duration_not_negative ON",
            "TRIGGER update_session_stats_updated_at ON alicia_session_stats is",
        ],
    ),
    "a table that the package would create": (
        0,
        "CREATE TABLE alicia_session_stats_rollup (n INTEGER)",
        ["this database has relations that the package would create: alicia_session_stats_rollup", "Rename or drop them"],
    ),
}


@pytest.mark.parametrize(("sessions", "sql", "said"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_named_before_anything_changed(build: Build, sessions: int, sql: str, said: list[str]) -> None:
    assert_refused(build(sessions, sql), *said)


# An application that uses yoyo too


@pytest.fixture
def yoyo(tmp_path: Path) -> Callable[..., None]:
    """Runs yoyo's command on a migration of the application's own."""
    (tmp_path / "0001_create_invoices.sql").write_text("CREATE TABLE invoices (id TEXT PRIMARY KEY);\n")
    (tmp_path / "0001_create_invoices.rollback.sql").write_text("DROP TABLE invoices;\n")

    def run(connection: Connection, command: str) -> None:
        url = "postgresql+psycopg://?" + urlencode(conninfo_to_dict(conninfo_of(connection)))
        program = Path(sys.executable).with_name("yoyo")
        done = subprocess.run(
            [program, command, "--batch", "--no-config-file", "--database", url, tmp_path],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    return run


def test_an_application_that_uses_yoyo_keeps_its_migrations_or_finds_the_tables_made_again(
    build: Build, yoyo: Callable[..., None]
) -> None:
    application = build(1000)
    yoyo(application, "apply")
    applied = "SELECT migration_id, applied_at_utc FROM _yoyo_migration ORDER BY 1"
    before = application.execute(applied.encode()).fetchall()
    assert_adopted_and_given_back(application)
    assert application.execute(applied.encode()).fetchall() == before

    stats.migrate(conninfo_of(application))
    assert {row["migration"] for row in stats.status(conninfo_of(application))} == set(MIGRATIONS)
    yoyo(application, "rollback")
    stats.rollback(conninfo_of(application), steps=None)
    assert scalar(application, "SELECT COUNT(*) FROM _yoyo_log WHERE migration_id = '0001_create_invoices'") == 2
    application.execute("DELETE FROM _yoyo_log WHERE migration_id = '0001_create_invoices'")
    stats.rollback(conninfo_of(application), steps=None)
    assert scalar(application, "SELECT TO_REGCLASS('_yoyo_migration') IS NULL")
    yoyo(application, "apply")
    assert scalar(application, "SELECT COUNT(*) FROM invoices") == 0


def test_yoyo_tables_in_another_schema_of_the_search_path_are_not_used(build: Build, yoyo: Callable[..., None]) -> None:
    application = build(0)
    yoyo(application, "apply")
    application.execute("CREATE SCHEMA stats")
    conninfo = make_conninfo(conninfo_of(application), options="-csearch_path=stats,public")
    before = pg_dump(conninfo_of(application))
    stats.migrate(conninfo)
    assert scalar(application, "SELECT TO_REGCLASS('stats.alicia_session_stats') IS NOT NULL")
    assert scalar(application, "SELECT COUNT(*) FROM public._yoyo_migration") == 1
    stats.rollback(conninfo, steps=None)
    assert pg_dump(conninfo_of(application)) == before
    assert scalar(application, "SELECT COUNT(*) FROM public._yoyo_migration") == 1
