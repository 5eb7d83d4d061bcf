"""verify names every object that was tampered with, and one run of the statements that it prints restores the schema."""

import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import APPLICATION, EMBEDDED, cli, conninfo_of, pg_dump, psql, scalar

import alicia_session_stats as stats

Connection = psycopg.Connection[Any]
TABLE = "alicia_session_stats"
ROLLUP = f"{TABLE}_rollup"
HOURS = f"{TABLE}_quarter_hours"
TOP = f"{TABLE}_top_sessions"
KEY = f"CONSTRAINT {TABLE}_conversation_id_fkey ON {TABLE}"
CHECK = f"CONSTRAINT session_stats_counts_and_duration_not_negative ON {TABLE}"
BY_TIME = "INDEX idx_session_stats_created_at"
STAMP = f"TRIGGER update_session_stats_updated_at ON {TABLE}"
COUNT = f"TRIGGER rollup_session_stats_update ON {TABLE}"
BUCKET = f"FUNCTION {TABLE}_bucket(timestamp without time zone)"
ON_UPDATE = f"FUNCTION {TABLE}_on_update()"
TRIM = f"FUNCTION {TABLE}_trim()"
SEQUENCE = f"SEQUENCE {TABLE}_lowerings"
RANDOM_ID = "FUNCTION generate_random_id(text)"
BY_TIME_AGAIN = "DROP INDEX idx_session_stats_created_at; CREATE INDEX idx_session_stats_created_at ON alicia_session_stats"
KEY_AGAIN = (
    f"ALTER TABLE {TABLE} DROP CONSTRAINT {TABLE}_conversation_id_fkey, "
    f"ADD CONSTRAINT {TABLE}_conversation_id_fkey FOREIGN KEY (conversation_id) REFERENCES alicia_conversations (id)"
)
CHECK_AGAIN = (
    f"ALTER TABLE {TABLE} DROP CONSTRAINT session_stats_counts_and_duration_not_negative, "
    "ADD CONSTRAINT session_stats_counts_and_duration_not_negative CHECK"
)
# Objects of each kind, each in the form that COMMENT ON takes.
COMMENTED = {
    "TABLE alicia_conversations",
    f"TABLE {ROLLUP}",
    SEQUENCE,
    f"COLUMN {TABLE}.id",
    f"COLUMN {ROLLUP}.cutoff",
    f"VIEW {TOP}",
    f"COLUMN {HOURS}.seconds",
    BY_TIME,
    CHECK,
    f"CONSTRAINT {TABLE}_pkey ON {TABLE}",  # Has no comment.
    COUNT,
    TRIM,
}

# What is done to a migrated database, and the objects that verify must name.
TAMPERED: dict[str, tuple[str, set[str]]] = {
    "type": (f"ALTER TABLE {TABLE} ALTER updated_at TYPE TIMESTAMPTZ", {f"COLUMN {TABLE}.updated_at"}),
    "type that a view reads": (
        f"DROP VIEW {TOP}; ALTER TABLE {TABLE} ALTER message_count TYPE BIGINT",
        {f"COLUMN {TABLE}.message_count", CHECK, f"VIEW {TOP}"},
    ),
    "private type": (f"ALTER TABLE {ROLLUP} ALTER padding TYPE VARCHAR(50)", {f"COLUMN {ROLLUP}.padding"}),
    "nullable": (f"ALTER TABLE {TABLE} ALTER tool_call_count DROP NOT NULL", {f"COLUMN {TABLE}.tool_call_count"}),
    "default dropped": (f"ALTER TABLE {TABLE} ALTER id DROP DEFAULT", {f"COLUMN {TABLE}.id"}),
    "default added": (f"ALTER TABLE {TABLE} ALTER conversation_id SET DEFAULT 'x'", {f"COLUMN {TABLE}.conversation_id"}),
    "default changed": (f"ALTER TABLE {TABLE} ALTER memories_used SET DEFAULT 1", {f"COLUMN {TABLE}.memories_used"}),
    "primary key dropped": (f"ALTER TABLE {TABLE} DROP CONSTRAINT {TABLE}_pkey", {f"CONSTRAINT {TABLE}_pkey ON {TABLE}"}),
    "parent's key dropped": (
        "ALTER TABLE alicia_conversations DROP CONSTRAINT alicia_conversations_pkey CASCADE",
        {"CONSTRAINT alicia_conversations_pkey ON alicia_conversations", KEY},
    ),
    "foreign key without cascade": (KEY_AGAIN, {KEY}),
    "foreign key not validated": (f"{KEY_AGAIN} ON DELETE CASCADE NOT VALID", {KEY}),
    "foreign key's triggers disabled": (
        f"ALTER TABLE {TABLE} DISABLE TRIGGER ALL; ALTER TABLE {TABLE} ENABLE TRIGGER USER",
        {KEY},
    ),
    "cascade's triggers disabled": ("ALTER TABLE alicia_conversations DISABLE TRIGGER ALL", {KEY}),
    "check dropped": (f"ALTER TABLE {TABLE} DROP CONSTRAINT session_stats_counts_and_duration_not_negative", {CHECK}),
    "check changed": (f"{CHECK_AGAIN} (session_duration_seconds > -9) NOT VALID", {CHECK}),
    "check not validated": (
        f"{CHECK_AGAIN} (LEAST(message_count, tool_call_count, memories_used, session_duration_seconds) >= 0) NOT VALID",
        {CHECK},
    ),
    "index dropped": ("DROP INDEX idx_session_stats_created_at", {BY_TIME}),
    "private index dropped": ("DROP INDEX idx_session_stats_rollup", {"INDEX idx_session_stats_rollup"}),
    "index in another order": (f"{BY_TIME_AGAIN} (created_at)", {BY_TIME}),
    "index on a part": (f"{BY_TIME_AGAIN} (created_at DESC) WHERE message_count > 0", {BY_TIME}),
    "index invalid": (
        "UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'idx_session_stats_created_at'::REGCLASS",
        {BY_TIME},
    ),
    "trigger dropped": (f"DROP {STAMP}", {STAMP}),
    "trigger disabled": (f"ALTER TABLE {TABLE} DISABLE TRIGGER rollup_session_stats_update", {COUNT}),
    "trigger for replicas only": (f"ALTER TABLE {TABLE} ENABLE REPLICA TRIGGER rollup_session_stats_update", {COUNT}),
    "trigger without its condition": (
        f"CREATE OR REPLACE TRIGGER update_session_stats_updated_at BEFORE UPDATE ON {TABLE} FOR EACH ROW "
        f"EXECUTE FUNCTION update_session_stats_updated_at(); ALTER TABLE {TABLE} DISABLE {STAMP.partition(' ON')[0]}",
        {STAMP},
    ),
    "function's body": (
        "CREATE OR REPLACE FUNCTION generate_random_id(prefix TEXT) RETURNS TEXT LANGUAGE sql RETURN prefix",
        {RANDOM_ID},
    ),
    "function dropped with defaults": (
        f"DROP {RANDOM_ID} CASCADE",
        {RANDOM_ID, f"COLUMN {TABLE}.id", "COLUMN alicia_conversations.id"},
    ),
    "function dropped with its trigger": (f"DROP {ON_UPDATE} CASCADE", {ON_UPDATE, COUNT}),
    "function and what it reads dropped": (
        f"DROP FUNCTION {TABLE}_between; DROP VIEW {HOURS}; DROP VIEW {TABLE}_parts; DROP {BUCKET}",
        {
            f"FUNCTION {TABLE}_between(timestamp without time zone,timestamp without time zone)",
            f"VIEW {HOURS}",
            f"VIEW {TABLE}_parts",
            BUCKET,
        },
    ),
    "function's rights": (f"ALTER {ON_UPDATE} SECURITY INVOKER", {ON_UPDATE}),
    "function's search_path": (f"ALTER {ON_UPDATE} RESET ALL", {ON_UPDATE}),
    "function's volatility": (f"ALTER {BUCKET} VOLATILE", {BUCKET}),
    "owners": (
        f"ALTER {TRIM} OWNER TO pg_monitor; ALTER TABLE {ROLLUP} OWNER TO pg_monitor; ALTER VIEW {HOURS} OWNER TO pg_monitor",
        {TRIM, f"TABLE {ROLLUP}", f"VIEW {HOURS}"},
    ),
    "grants": (
        f"GRANT EXECUTE ON {TRIM} TO pg_monitor; GRANT SELECT, INSERT ON {ROLLUP} TO pg_monitor, PUBLIC; "
        f"GRANT USAGE ON {SEQUENCE} TO pg_monitor",
        {TRIM, f"TABLE {ROLLUP}", SEQUENCE},
    ),
    "comments changed": ("; ".join(f"COMMENT ON {name} IS 'It''s mine'" for name in COMMENTED), COMMENTED),
    "comments removed": (
        "; ".join(f"COMMENT ON {name} IS NULL" for name in COMMENTED),
        COMMENTED - {f"CONSTRAINT {TABLE}_pkey ON {TABLE}"},
    ),
    "view dropped": (f"DROP VIEW {HOURS}", {f"VIEW {HOURS}"}),
    "view replaced": (
        f"CREATE OR REPLACE VIEW {HOURS} AS SELECT bucket_start, sessions, messages, tool_calls, memories, seconds FROM {ROLLUP}",
        {f"VIEW {HOURS}"},
    ),
    "view with another column": (
        f"CREATE OR REPLACE VIEW {HOURS} AS "
        f"SELECT bucket_start, sessions, messages, tool_calls, memories, seconds, 1 AS one FROM {TABLE}_parts",
        {f"VIEW {HOURS}"},
    ),
    "view's column renamed": (f"ALTER VIEW {TOP} RENAME id TO session_id", {f"VIEW {TOP}", f"COLUMN {TOP}.id"}),
}


def fix(db: Connection, rows: list[dict[str, Any]], folder: Path) -> None:
    """Run the statements of the column fix as a person would, in psql."""
    script = folder / "fix.sql"
    script.write_text("\n".join(row["fix"] for row in rows))
    done = psql(conninfo_of(db), "-f", script)
    assert done.returncode == 0, done.stderr


def test_migrated_database_has_no_difference(db: Connection) -> None:
    assert stats.verify(conninfo_of(db)) == []
    done = cli("verify", "--database", conninfo_of(db))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("tampered", TAMPERED)
def test_tampering_is_named_and_fixed_in_one_run(tampered: str, db: Connection, tmp_path: Path) -> None:
    statements, named = TAMPERED[tampered]
    schema = pg_dump(conninfo_of(db))
    db.execute(statements.encode())
    rows = stats.verify(conninfo_of(db))
    assert {row["object"] for row in rows} == named
    fix(db, rows, tmp_path)
    assert stats.verify(conninfo_of(db)) == []
    assert pg_dump(conninfo_of(db)) == schema


@pytest.mark.parametrize("holder", ["DATABASE {1}", "ROLE {0} IN DATABASE {1}"])
def test_default_time_zone_other_than_utc_is_named_and_fixed(holder: str, db: Connection, tmp_path: Path) -> None:
    db.execute(f"ALTER {holder.format(db.info.user, db.info.dbname)} SET TimeZone = 'Asia/Tokyo'".encode())
    [row] = stats.verify(conninfo_of(db))
    assert (row["object"].split(" ")[:3], row["found"]) == (["TimeZone", "of", holder.split()[0].lower()], "Asia/Tokyo")
    fix(db, [row], tmp_path)
    assert stats.verify(conninfo_of(db)) == []


@pytest.mark.skipif(not EMBEDDED, reason="the time zone of another server is not ours to change")
def test_time_zone_of_the_server_other_than_utc_is_named_and_fixed(db: Connection, tmp_path: Path) -> None:
    def configure(statement: str, zone: str) -> None:
        db.execute(statement.encode())
        db.execute("SELECT PG_RELOAD_CONF()")
        while scalar(db, "SHOW TimeZone") != zone:
            time.sleep(0.01)

    before = scalar(db, "SHOW TimeZone")
    configure("ALTER SYSTEM SET TimeZone = 'Asia/Tokyo'", "Asia/Tokyo")
    try:
        [row] = stats.verify(conninfo_of(db))
        assert (row["object"], row["found"]) == ("TimeZone of the server", "Asia/Tokyo")
        fix(db, [row], tmp_path)
        assert stats.verify(conninfo_of(db)) == []
    finally:
        configure("ALTER SYSTEM RESET TimeZone", before)


def test_time_zone_of_the_client_is_no_difference(db: Connection) -> None:
    done = cli("verify", "--database", conninfo_of(db), env={"PGTZ": "Asia/Tokyo"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no differences\n")


def test_verify_compares_the_sessions_of_a_window(db: Connection) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    db.execute(
        "SET session_replication_role = replica; "
        f"INSERT INTO {TABLE} (conversation_id, created_at) VALUES ('ac_1', NOW() AT TIME ZONE 'UTC' - INTERVAL '10 days')"
    )
    database = ("--format", "csv", "--database", conninfo_of(db))
    for window, found in (("--days 9", 0), ("--days 11", 2), ("--until yesterday", 2), ("--days 3 --until yesterday", 0)):
        done = cli("verify", *window.split(), *database)
        assert (done.returncode, done.stdout.count("repair()")) == (found > 0, found), window


@pytest.mark.parametrize("window", ["--days soon", "--days=-1", "--days 2000000000", "--until someday"])
def test_wrong_window_is_one_clear_line(window: str, db: Connection) -> None:
    done = cli("verify", *window.split(), "--database", conninfo_of(db))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_columns_that_the_application_adds_are_accepted_unless_an_insert_needs_them(db: Connection) -> None:
    db.execute(
        f"ALTER TABLE {TABLE} ADD note TEXT, ADD tag TEXT NOT NULL DEFAULT '', ADD extra JSON, "
        "ADD number INTEGER GENERATED ALWAYS AS IDENTITY, ADD twice INTEGER GENERATED ALWAYS AS (message_count * 2) STORED"
    )
    assert stats.verify(conninfo_of(db)) == []
    db.execute(f"ALTER TABLE {TABLE} ADD needed TEXT NOT NULL")
    [row] = stats.verify(conninfo_of(db))
    assert row["object"] == f"COLUMN {TABLE}.needed"
    assert "DROP COLUMN" not in row["fix"]


def test_objects_of_the_application_are_judged_by_what_they_do(bare: Connection, tmp_path: Path) -> None:
    bare.execute(
        f"""{APPLICATION};
        CREATE FUNCTION touch() RETURNS TRIGGER LANGUAGE plpgsql AS 'BEGIN NEW.updated_at := NOW(); RETURN NEW; END';
        CREATE TRIGGER touched BEFORE UPDATE ON {TABLE} FOR EACH ROW EXECUTE FUNCTION touch();
        CREATE INDEX idx_session_stats_conversation ON {TABLE} (conversation_id, created_at);
        CREATE INDEX idx_session_stats_created_at ON {TABLE} (created_at);
        ALTER TABLE {TABLE} ADD CONSTRAINT counts_ok
        CHECK (LEAST(message_count, tool_call_count, memories_used, session_duration_seconds) >= 0)""".encode()
    )
    stats.migrate(conninfo_of(bare))
    bare.execute("ALTER INDEX idx_session_stats_conversation RENAME TO by_conversation")
    assert stats.verify(conninfo_of(bare)) == []
    bare.execute(f"DROP INDEX by_conversation; ALTER TABLE {TABLE} DISABLE TRIGGER touched, DROP CONSTRAINT counts_ok")
    rows = stats.verify(conninfo_of(bare))
    assert {row["object"] for row in rows} == {"INDEX idx_session_stats_conversation", STAMP, CHECK}
    fix(bare, rows, tmp_path)
    assert [row["object"] for row in stats.verify(conninfo_of(bare))] == [STAMP]  # Only the application knows how.


def test_view_is_not_compared_after_an_upgrade_of_the_server(db: Connection) -> None:
    """PostgreSQL writes the text of a view differently in each major version."""
    db.execute(
        "UPDATE alicia_session_stats_owned_objects SET definition = 'SELECT', server_version = 14 WHERE object LIKE 'VIEW %'"
    )
    assert stats.verify(conninfo_of(db)) == []
