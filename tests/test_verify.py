"""verify names whatever was tampered with, and the statement it gives mends it."""

from typing import Any

import psycopg
import pytest
from conftest import cli, conninfo_of

import runner

Connection = psycopg.Connection[Any]
SESSIONS = "alicia_session_stats"
# What is done to a migrated database, the object that verify names, and what it finds there.
TAMPERED = {
    "column added": (f"ALTER TABLE {SESSIONS} ADD extra INTEGER", "column extra", "integer"),
    "column dropped": (f"ALTER TABLE {SESSIONS} DROP memories_used CASCADE", "column memories_used", "missing"),
    "type": (f"ALTER TABLE {SESSIONS} ALTER message_count TYPE BIGINT", "column message_count", "bigint"),
    "time zone in the type": (
        f"ALTER TABLE {SESSIONS} ALTER created_at TYPE TIMESTAMPTZ",
        "column created_at",
        "timestamp with time zone",
    ),
    "nullable": (f"ALTER TABLE {SESSIONS} ALTER tool_call_count DROP NOT NULL", "column tool_call_count", "nullable"),
    "default dropped": (f"ALTER TABLE {SESSIONS} ALTER id DROP DEFAULT", "column id", "no default"),
    "default added": (
        f"ALTER TABLE {SESSIONS} ALTER conversation_id SET DEFAULT 'x'",
        "column conversation_id",
        "default 'x'::text",
    ),
    "default changed": (f"ALTER TABLE {SESSIONS} ALTER memories_used SET DEFAULT 1", "column memories_used", "default 1"),
    "column comment": (f"COMMENT ON COLUMN {SESSIONS}.id IS NULL", "column id", "no comment"),
    "table comment": (f"COMMENT ON TABLE {SESSIONS} IS 'mine'", f"table {SESSIONS}", "comment: mine"),
    "parent's comment": ("COMMENT ON TABLE alicia_conversations IS NULL", "table alicia_conversations", "no comment"),
    "primary key": (f"ALTER TABLE {SESSIONS} DROP CONSTRAINT {SESSIONS}_pkey", f"constraint {SESSIONS}_pkey", "missing"),
    "foreign key without cascade": (
        f"ALTER TABLE {SESSIONS} DROP CONSTRAINT {SESSIONS}_conversation_id_fkey, "
        f"ADD CONSTRAINT {SESSIONS}_conversation_id_fkey FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id)",
        f"constraint {SESSIONS}_conversation_id_fkey",
        "FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id)",
    ),
    "foreign key off": (
        f"ALTER TABLE {SESSIONS} DISABLE TRIGGER ALL; ALTER TABLE {SESSIONS} ENABLE TRIGGER USER",
        f"constraint {SESSIONS}_conversation_id_fkey",
        "its triggers are disabled",
    ),
    "check dropped": (
        f"ALTER TABLE {SESSIONS} DROP CONSTRAINT session_stats_message_count_not_negative",
        "constraint session_stats_message_count_not_negative",
        "missing",
    ),
    "check changed": (
        f"ALTER TABLE {SESSIONS} DROP CONSTRAINT session_stats_duration_not_negative, "
        "ADD CONSTRAINT session_stats_duration_not_negative CHECK (session_duration_seconds > -9)",
        "constraint session_stats_duration_not_negative",
        "CHECK ((session_duration_seconds > '-9'::integer))",
    ),
    "check not validated": (
        f"ALTER TABLE {SESSIONS} DROP CONSTRAINT session_stats_memories_used_not_negative, "
        "ADD CONSTRAINT session_stats_memories_used_not_negative CHECK (memories_used >= 0) NOT VALID",
        "constraint session_stats_memories_used_not_negative",
        "not validated",
    ),
    "check's comment": (
        f"COMMENT ON CONSTRAINT session_stats_tool_call_count_not_negative ON {SESSIONS} IS NULL",
        "constraint session_stats_tool_call_count_not_negative",
        "no comment",
    ),
    "index dropped": ("DROP INDEX idx_session_stats_created_at", "index idx_session_stats_created_at", "missing"),
    "index changed": (
        f"DROP INDEX idx_session_stats_created_at; CREATE INDEX idx_session_stats_created_at ON {SESSIONS} (created_at)",
        "index idx_session_stats_created_at",
        f"CREATE INDEX idx_session_stats_created_at ON public.{SESSIONS} USING btree (created_at)",
    ),
    "index partial": (
        "DROP INDEX idx_session_stats_conversation;"
        f"CREATE INDEX idx_session_stats_conversation ON {SESSIONS} (conversation_id) WHERE message_count > 0",
        "index idx_session_stats_conversation",
        f"CREATE INDEX idx_session_stats_conversation ON public.{SESSIONS} USING btree (conversation_id) "
        "WHERE (message_count > 0)",
    ),
    "index invalid": (
        "UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'idx_session_stats_conversation'::REGCLASS",
        "index idx_session_stats_conversation",
        "INVALID, left by an interrupted build",
    ),
    "index's comment": (
        "COMMENT ON INDEX idx_session_stats_created_at IS NULL",
        "index idx_session_stats_created_at",
        "no comment",
    ),
    "trigger dropped": (
        f"DROP TRIGGER update_session_stats_updated_at ON {SESSIONS}",
        "trigger update_session_stats_updated_at",
        "missing",
    ),
    "trigger disabled": (
        f"ALTER TABLE {SESSIONS} DISABLE TRIGGER update_session_stats_updated_at",
        "trigger update_session_stats_updated_at",
        "disabled",
    ),
    "trigger for replicas only": (
        f"ALTER TABLE {SESSIONS} ENABLE REPLICA TRIGGER update_session_stats_updated_at",
        "trigger update_session_stats_updated_at",
        "disabled",
    ),
    "trigger on every update": (
        f"CREATE OR REPLACE TRIGGER update_session_stats_updated_at BEFORE UPDATE ON {SESSIONS} FOR EACH ROW "
        "EXECUTE FUNCTION update_session_stats_updated_at()",
        "trigger update_session_stats_updated_at",
        f"CREATE TRIGGER update_session_stats_updated_at BEFORE UPDATE ON {SESSIONS} FOR EACH ROW "
        "EXECUTE FUNCTION update_session_stats_updated_at()",
    ),
    "trigger's comment": (
        f"COMMENT ON TRIGGER update_session_stats_updated_at ON {SESSIONS} IS NULL",
        "trigger update_session_stats_updated_at",
        "no comment",
    ),
    "function's body": (
        "CREATE OR REPLACE FUNCTION generate_random_id(prefix TEXT) RETURNS TEXT LANGUAGE sql RETURN prefix",
        "function generate_random_id(text)",
        "another body",
    ),
    "function's search_path": (
        "ALTER FUNCTION update_session_stats_updated_at() RESET ALL",
        "function update_session_stats_updated_at()",
        "no settings",
    ),
    "function's comment": (
        "COMMENT ON FUNCTION generate_random_id(TEXT) IS NULL",
        "function generate_random_id(text)",
        "no comment",
    ),
}
NOT_BY_ONE_STATEMENT = {"function's body"}


def test_a_migrated_database_is_as_promised(db: Connection) -> None:
    assert runner.verify(conninfo_of(db)) == []
    done = cli("verify", "--database", conninfo_of(db))
    assert (done.returncode, "as the migrations promise" in done.stderr) == (0, True)


@pytest.mark.parametrize("tampered", TAMPERED)
def test_verify_names_what_was_tampered_with_and_mends_it(tampered: str, db: Connection) -> None:
    statements, named, found = TAMPERED[tampered]
    db.execute(statements.encode())
    differences = runner.verify(conninfo_of(db))
    assert (named, found) in [(row["object"], row["found"]) for row in differences]
    assert cli("verify", "--database", conninfo_of(db)).returncode == 1
    if tampered in NOT_BY_ONE_STATEMENT:
        return
    for _ in range(3):  # A column that is back still needs its default and its comment.
        for row in runner.verify(conninfo_of(db)):
            for statement in row["mend"].split("; "):
                db.execute(statement.encode())
    assert runner.verify(conninfo_of(db)) == []


@pytest.mark.parametrize("holder", ["DATABASE {}", "ROLE {} IN DATABASE {}"])
def test_verify_names_a_default_time_zone_other_than_utc(holder: str, db: Connection) -> None:
    named = holder.replace("ROLE {}", f"ROLE {db.info.user}").replace("DATABASE {}", f"DATABASE {db.info.dbname}")
    db.execute(f"ALTER {named} SET TimeZone = 'Asia/Tokyo'".encode())
    rows = runner.verify(conninfo_of(db))
    assert {row["object"].split(" of ")[0] for row in rows} == {"TimeZone"}
    assert {row["found"] for row in rows} == {"Asia/Tokyo"}
    for row in rows:
        db.execute(row["mend"].encode())
    assert runner.verify(conninfo_of(db)) == []


def test_verify_accepts_what_the_host_has_under_other_names(bare: Connection) -> None:
    bare.execute(
        "CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY);"
        "CREATE FUNCTION touch() RETURNS TRIGGER LANGUAGE plpgsql AS 'BEGIN NEW.updated_at := NOW(); RETURN NEW; END';"
        f"CREATE TABLE {SESSIONS} (id TEXT DEFAULT GEN_RANDOM_UUID()::TEXT PRIMARY KEY,"
        "conversation_id TEXT NOT NULL REFERENCES alicia_conversations ON DELETE CASCADE,"
        "message_count INTEGER NOT NULL DEFAULT 0 CONSTRAINT c1 CHECK (message_count >= 0),"
        "tool_call_count INTEGER NOT NULL DEFAULT 0 CONSTRAINT c2 CHECK (tool_call_count >= 0),"
        "memories_used INTEGER NOT NULL DEFAULT 0 CONSTRAINT c3 CHECK (memories_used >= 0),"
        "session_duration_seconds INTEGER NOT NULL DEFAULT 0 CONSTRAINT c4 CHECK (session_duration_seconds >= 0),"
        "created_at TIMESTAMP NOT NULL DEFAULT LOCALTIMESTAMP, updated_at TIMESTAMP NOT NULL DEFAULT LOCALTIMESTAMP);"
        f"CREATE TRIGGER touched BEFORE UPDATE ON {SESSIONS} FOR EACH ROW EXECUTE FUNCTION touch();"
    )
    runner.migrate(conninfo_of(bare))
    bare.execute("ALTER INDEX idx_session_stats_conversation RENAME TO by_conversation")
    bare.execute("DELETE FROM alicia_session_stats_created")  # As if the host had made all of it.
    assert runner.verify(conninfo_of(bare)) == []
    bare.execute(
        f"ALTER TABLE {SESSIONS} DISABLE TRIGGER touched; DROP INDEX by_conversation; ALTER TABLE {SESSIONS} DROP CONSTRAINT c4"
    )
    assert [row["object"] for row in runner.verify(conninfo_of(bare))] == [
        "constraint session_stats_duration_not_negative",
        "index idx_session_stats_conversation",
        "trigger update_session_stats_updated_at",
    ]
