"""What surrounds the table must not harm it: open snapshots, isolation levels, row-level security, collations, renamed
schemas, hostile overloads, times at infinity."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import APPLICATION, COUNTED, KEPT, PROGRAMS, ROOT, cli, conninfo_of, pg_dump, psql, scalar
from psycopg.conninfo import make_conninfo

import alicia_session_stats as stats

Connection = psycopg.Connection[Any]
SESSIONS = """
    INSERT INTO alicia_conversations VALUES ('ac_1'), ('ac_2') ON CONFLICT DO NOTHING;
    INSERT INTO alicia_session_stats (id, conversation_id, message_count, created_at)
    SELECT 'ass_' || n, 'ac_' || 1 + n % 2, n % 9, NOW() AT TIME ZONE 'UTC' - n * INTERVAL '5 minutes'
    FROM GENERATE_SERIES(1, {}) AS n
"""
CANDIDATES = "SELECT COUNT(*) FROM alicia_session_stats_top_candidates"
# How a writer finds the row of its slot.
NEWEST = """
    EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)
    SELECT ctid FROM alicia_session_stats_rollup WHERE bucket_start = %s AND writer_slot = 0
    ORDER BY bucket_start, writer_slot, opened_at DESC LIMIT 1
"""


@pytest.fixture
def another(db: Connection) -> Callable[..., Connection]:
    """Further connections to the same database, in autocommit mode."""
    return lambda **options: psycopg.connect(conninfo_of(db), autocommit=True, **options)


def assert_exact(db: Connection) -> None:
    assert sorted(db.execute(KEPT).fetchall()) == sorted(db.execute(COUNTED.encode()).fetchall())
    assert stats.query(db, "verify_rollup") == []


def test_update_during_an_open_snapshot_stays_fast(db: Connection, another: Callable[..., Connection]) -> None:
    db.execute(SESSIONS.format(1).encode())
    with another() as reader, reader.transaction():
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT FROM alicia_session_stats")
        for _ in range(3000):
            db.execute("UPDATE alicia_session_stats SET tool_call_count = tool_call_count + 1")
        bucket = scalar(db, "SELECT MAX(bucket_start) FROM alicia_session_stats_rollup")
        plan = scalar(db, NEWEST.replace("%s", f"'{bucket}'"))[0]["Plan"]
        dead = scalar(db, "SELECT PG_RELATION_SIZE('alicia_session_stats_rollup')") // 8192
    assert dead > 25  # Pages of dead versions, that the snapshot keeps.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 10
    assert_exact(db)


@pytest.mark.parametrize("analysed", [False, True])
def test_plan_made_for_a_small_rollup_does_not_read_a_large_one_as_a_whole(db: Connection, analysed: bool) -> None:
    db.execute(SESSIONS.format(1).encode())
    db.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
    if analysed:
        db.execute("ANALYZE alicia_session_stats_rollup")
    for _ in range(8):  # Until PL/pgSQL keeps its plans.
        db.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
    db.execute(SESSIONS.format(3000).replace("'ass_'", "'more_'").encode())
    with db.transaction():
        db.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
        read = "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'alicia_session_stats_rollup'"
        assert scalar(db, read) == 0
    assert_exact(db)


def test_writers_under_repeatable_read_do_not_flood_the_top_candidates(db: Connection) -> None:
    db.execute(SESSIONS.format(4000).encode())
    db.execute("SET default_transaction_isolation = 'repeatable read'")
    for n in range(3000):
        db.execute("INSERT INTO alicia_session_stats (conversation_id, message_count) VALUES ('ac_1', %s)", [n % 3])
    assert scalar(db, CANDIDATES) < 3000
    db.execute("RESET default_transaction_isolation")
    assert_exact(db)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_migrate_works_where_the_default_isolation_is_higher(bare: Connection, level: str) -> None:
    bare.execute(APPLICATION.encode())
    bare.execute(SESSIONS.format(50).encode())
    bare.execute(f"ALTER DATABASE {bare.info.dbname} SET default_transaction_isolation = '{level}'".encode())
    stats.migrate(conninfo_of(bare))
    assert sorted(bare.execute(KEPT).fetchall()) == sorted(bare.execute(COUNTED.encode()).fetchall())
    assert stats.rollback(conninfo_of(bare), steps=None)


def test_renamed_schema_is_told_and_its_fix_lets_writers_write(db: Connection) -> None:
    db.execute(SESSIONS.format(3).encode())
    db.execute("ALTER SCHEMA public RENAME TO analytics; SET search_path = analytics")
    rows = [row for row in stats.query(db, "verify") if row["object"].startswith("FUNCTION")]
    assert {row["found"] for row in rows} == {"its search_path lacks its schema"}
    for row in rows:
        db.execute(row["fix"].encode())
    assert stats.query(db, "verify") == []
    db.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
    assert_exact(db)


def test_owner_of_the_triggers_that_may_no_longer_read_the_table_is_told(bare: Connection) -> None:
    bare.execute("CREATE ROLE alicia_app; CREATE ROLE alicia_owner; GRANT ALL ON SCHEMA public TO alicia_app, alicia_owner")
    try:
        bare.execute("SET ROLE alicia_app")
        bare.execute(APPLICATION.encode())
        bare.execute("RESET ROLE; GRANT alicia_app TO alicia_owner")
        stats.migrate(make_conninfo(conninfo_of(bare), options="-c role=alicia_owner"))
        assert stats.query(bare, "verify") == []
        bare.execute("REVOKE alicia_app FROM alicia_owner")
        [row] = stats.query(bare, "verify")
        assert row["found"] == "not readable by alicia_owner"
        bare.execute(row["fix"].encode())
        assert stats.query(bare, "verify") == []
    finally:
        bare.execute("RESET ROLE; DROP OWNED BY alicia_app, alicia_owner CASCADE; DROP ROLE alicia_app, alicia_owner")


def test_truncate_waits_for_no_reader_of_the_sums(db: Connection, another: Callable[..., Connection]) -> None:
    db.execute(SESSIONS.format(20).encode())
    with another() as reader, reader.transaction():
        reader.execute("SELECT FROM alicia_session_stats_quarter_hours")
        db.execute("SET lock_timeout = '2s'")
        db.execute("TRUNCATE alicia_session_stats")
        assert scalar(reader, "SELECT COUNT(*) FROM alicia_session_stats") == 0
    assert_exact(db)


def test_truncate_works_while_a_cursor_on_the_sums_is_open(db: Connection) -> None:
    db.execute(SESSIONS.format(20).encode())
    with db.transaction():
        db.execute("DECLARE sums CURSOR FOR SELECT * FROM alicia_session_stats_quarter_hours")
        db.execute("FETCH 1 FROM sums")
        db.execute("TRUNCATE alicia_session_stats")
    assert_exact(db)


READERS = [query.name for query in stats.queries().values() if not query.writes]


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
@pytest.mark.parametrize("when", ["infinity", "-infinity", "294276-12-31 23:59", "4713-01-01 00:01 BC"])
def test_every_query_answers_whatever_time_the_table_holds(db: Connection, when: str, zone: str) -> None:
    db.execute(SESSIONS.format(20).encode())
    db.execute("INSERT INTO alicia_session_stats (conversation_id, created_at) VALUES ('ac_1', %s)", [when])
    db.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id TEXT DEFAULT 'user_1'")
    for name in READERS:
        params = {"tz": zone, "conversation_id": "ac_1"}
        known = [param.name for param in stats.queries()[name].params]
        stats.query(db, name, **{key: value for key, value in params.items() if key in known})


def test_second_repair_corrects_nothing_more(db: Connection, another: Callable[..., Connection]) -> None:
    db.execute(SESSIONS.format(20).encode())
    db.execute("SET session_replication_role = replica; DELETE FROM alicia_session_stats WHERE id = 'ass_3'; RESET ALL")
    with another() as first, another() as second:
        with first.transaction():
            first.execute("SELECT FROM alicia_session_stats_repair()")
            second.execute("SET lock_timeout = '300ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                second.execute("SELECT FROM alicia_session_stats_repair()")
        assert scalar(second, "SELECT SUM(corrections) FROM alicia_session_stats_repair()") == 0
    assert_exact(db)


def test_policy_shows_a_tenant_its_own_answers_in_every_query(bare: Connection, login: Callable[..., Connection]) -> None:
    stats.migrate(conninfo_of(bare))
    bare.execute(SESSIONS.format(500).encode())
    views = (
        "alicia_session_stats, alicia_session_stats_parts, alicia_session_stats_quarter_hours, alicia_session_stats_top_sessions"
    )
    tenant = login("alicia_tenant", f"GRANT SELECT ON {views} TO")
    bare.execute("ALTER TABLE alicia_session_stats ENABLE ROW LEVEL SECURITY")
    bare.execute("CREATE POLICY tenant ON alicia_session_stats USING (conversation_id = 'ac_1')")
    for view in ("parts", "quarter_hours", "top_sessions"):
        assert scalar(tenant, f"SELECT COUNT(*) FROM alicia_session_stats_{view}") == 0
        assert scalar(bare, f"SELECT COUNT(*) FROM alicia_session_stats_{view}") > 0
    alone = "SELECT SUM(message_count), COUNT(*) FROM alicia_session_stats WHERE conversation_id = 'ac_1'"
    window = "FROM alicia_session_stats_between(NOW()::TIMESTAMP - INTERVAL '9 days', 'infinity')"
    assert tenant.execute(f"SELECT SUM(messages), SUM(sessions) {window}".encode()).fetchone() == bare.execute(alone).fetchone()
    assert {row["conversation_id"] for row in stats.query(tenant, "most_active_sessions", limit=400)} == {"ac_1"}
    assert sum(row["sessions"] for row in stats.query(tenant, "usage_over_time", days=5)) == 250


def test_owner_under_forced_row_level_security_loses_no_top_session(bare: Connection, login: Callable[..., Connection]) -> None:
    owner = login("alicia_owner", "GRANT ALL ON SCHEMA public TO")
    conninfo = make_conninfo(conninfo_of(bare), user="alicia_owner", password=owner.info.password)
    stats.migrate(conninfo)
    owner.execute(SESSIONS.format(1500).encode())
    owner.execute("ALTER TABLE alicia_session_stats ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    owner.execute("CREATE POLICY tenant ON alicia_session_stats USING (conversation_id = CURRENT_SETTING('tenant.id', TRUE))")
    for n in range(1200):
        owner.execute("SELECT SET_CONFIG('tenant.id', %s, FALSE)", [f"ac_{1 + n % 2}"])
        owner.execute(
            "INSERT INTO alicia_session_stats (conversation_id, message_count) VALUES (%s, %s)", [f"ac_{1 + n % 2}", 10 + n]
        )
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        owner.execute("SELECT FROM alicia_session_stats_repair()")
    # A role that no policy binds gets the top sessions of all tenants, although the view reads as its owner.
    bare.execute("SET tenant.id = 'ac_1'")
    top = "SELECT message_count FROM alicia_session_stats ORDER BY 1 DESC, created_at DESC, id DESC LIMIT 10"
    answer = [row["message_count"] for row in stats.query(bare, "most_active_sessions", limit=10)]
    assert answer == [count for (count,) in bare.execute(top).fetchall()]
    owner.execute("ALTER TABLE alicia_session_stats NO FORCE ROW LEVEL SECURITY")
    assert_exact(bare)


def test_ties_follow_the_collation_of_an_adopted_id(bare: Connection) -> None:
    try:
        bare.execute(
            APPLICATION.replace("id TEXT PRIMARY KEY DEFAULT", 'id TEXT COLLATE "en-x-icu" PRIMARY KEY DEFAULT').encode()
        )
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedObject):
        pytest.skip("this server is built without ICU, and has no collation but that of bytes")
    stats.migrate(conninfo_of(bare))
    bare.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    for name in ("a", "B", "c", "D", "_", "é", "f"):
        bare.execute(
            "INSERT INTO alicia_session_stats (id, conversation_id, created_at) VALUES (%s, 'ac_1', '2026-01-01')", [name]
        )
    order = "ORDER BY message_count DESC, created_at DESC, id DESC"
    kept = bare.execute(f"SELECT id FROM alicia_session_stats_top_sessions {order}".encode()).fetchall()
    assert kept == bare.execute(f"SELECT id FROM alicia_session_stats {order}".encode()).fetchall()
    bare.execute("SELECT FROM alicia_session_stats_repair()")
    assert stats.query(bare, "verify_rollup") == []


# An overload wins over a function of pg_catalog where its types fit better: that of an untyped literal, or of operands
# of two types.
HOSTILE = [
    "date_bin(text, timestamp, text)", "date_bin(interval, timestamp, text)", "current_setting(varchar)",
    "timestamp_hash(varchar)", "array_agg(integer)", "date_trunc(varchar, timestamp)",
    "pg_try_advisory_xact_lock(integer, bigint)", "clock_timestamp(integer)", "row_security_active(varchar)", "nextval(text)",
    "nextval(varchar)", "timezone(varchar, timestamptz)", "now(integer)",
    "alicia_session_stats_add(timestamp, integer, bigint, bigint, bigint, bigint, boolean)",
    "alicia_session_stats_bucket(timestamptz)", "alicia_session_stats_forget(integer, timestamp, varchar, varchar)",
]  # fmt: skip
OPERATORS = [("+", "numeric", "bigint"), ("*", "bigint", "numeric"), ("<", "float8", "bigint"), ("<>", "numeric", "integer"),
             ("%", "integer", "bigint"), (">=", "integer", "bigint"), ("=", "text", "varchar"), ("-", "bigint", "numeric"),
             ("<>", "integer[]", "integer[]"), ("=", "tid", "text"), ("<", "bigint", "numeric"),
             (">", "numeric", "integer")]  # fmt: skip


def test_overload_in_public_is_not_called(db: Connection) -> None:
    body = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'an overload was called'; END $$"
    db.execute("CREATE ROLE alicia_attacker; GRANT CREATE ON SCHEMA public TO PUBLIC; SET ROLE alicia_attacker")
    try:
        for signature in HOSTILE:
            returns = (
                "bigint" if "nextval" in signature else "timestamp" if "bucket" in signature or "bin" in signature else "text"
            )
            db.execute(f"CREATE FUNCTION {signature} RETURNS {returns} {body}".encode())
        for symbol, left, right in OPERATORS:
            function = f"trap_{left}_{right}_{ord(symbol[0])}_{len(symbol)}".replace("[]", "s")
            returns = "numeric" if symbol in "+-*%" else "boolean"
            db.execute(f"CREATE FUNCTION {function}({left}, {right}) RETURNS {returns} {body}".encode())
            db.execute(f"CREATE OPERATOR {symbol} (FUNCTION = {function}, LEFTARG = {left}, RIGHTARG = {right})".encode())
        db.execute("RESET ROLE")
        [row] = stats.query(db, "verify")
        assert (row["object"], row["found"]) == ("SCHEMA public", "CREATE granted to PUBLIC")
        db.execute(row["fix"].encode())
        assert stats.query(db, "verify") == []
        with pytest.raises(psycopg.errors.RaiseException, match="an overload was called"):
            db.execute("SELECT DATE_BIN('15 minutes', NOW()::TIMESTAMP, '2000-01-01')")  # The traps work.
        db.execute("RESET ROLE")
        db.execute(SESSIONS.format(3000).encode())
        for n in range(120):
            db.execute("UPDATE alicia_session_stats SET message_count = message_count + 20 WHERE id = %s", [f"ass_{1 + n}"])
        db.execute("UPDATE alicia_session_stats SET created_at = created_at - INTERVAL '1 day', tool_call_count = 1")
        db.execute("DELETE FROM alicia_session_stats WHERE message_count < 3")
        db.execute("SELECT FROM alicia_session_stats_repair(), alicia_session_stats_summarize()")
        db.execute("SELECT FROM alicia_session_stats_differences('-infinity', 'infinity')")
        db.execute("SELECT FROM alicia_session_stats_days_to_summarize('infinity')")
        db.execute("TRUNCATE alicia_session_stats")
    finally:
        db.execute("RESET ROLE; DROP OWNED BY alicia_attacker CASCADE; DROP ROLE alicia_attacker")


def test_triggers_leave_the_random_numbers_of_the_session_alone(db: Connection) -> None:
    db.execute(SESSIONS.format(2500).encode())

    def draw(statement: str) -> list[float]:
        db.execute("SELECT SETSEED(0.5)")
        numbers: list[float] = []
        for n in range(30):
            db.execute(statement.format(100 + n).encode())
            numbers.append(scalar(db, "SELECT RANDOM()"))
        return numbers

    alone = draw("SELECT {}")
    assert draw("UPDATE alicia_session_stats SET message_count = {} WHERE id = 'ass_1'") == alone


def test_repair_does_not_wait_for_an_open_writer(db: Connection, another: Callable[..., Connection]) -> None:
    db.execute(SESSIONS.format(20).encode())
    with another() as writer, writer.transaction():
        writer.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
        db.execute("SET lock_timeout = '2s'")
        db.execute("SELECT FROM alicia_session_stats_repair()")
    assert_exact(db)


def test_update_of_what_is_not_counted_writes_nothing_to_the_rollup(db: Connection) -> None:
    db.execute(SESSIONS.format(20).encode())
    versions = "SELECT ARRAY_AGG(ctid ORDER BY ctid) FROM alicia_session_stats_rollup"
    before = scalar(db, versions)
    db.execute("ALTER TABLE alicia_session_stats ADD note TEXT")
    db.execute("UPDATE alicia_session_stats SET note = 'of the application', updated_at = NOW(), message_count = message_count")
    assert scalar(db, versions) == before
    db.execute("UPDATE alicia_session_stats SET id = 'other_' || id, conversation_id = 'ac_2'")
    assert_exact(db)


def test_no_view_can_be_written_to_whatever_is_granted(db: Connection) -> None:
    db.execute(SESSIONS.format(20).encode())
    db.execute("CREATE ROLE alicia_grantee; GRANT ALL ON ALL TABLES IN SCHEMA public TO alicia_grantee")
    db.execute("REVOKE ALL ON alicia_session_stats_rollup FROM alicia_grantee; SET ROLE alicia_grantee")
    try:
        for view in ("parts", "quarter_hours", "top_sessions"):
            for statement in ("INSERT INTO {} DEFAULT VALUES", "UPDATE {} SET created_at = NULL", "DELETE FROM {}"):
                write = statement.format(f"alicia_session_stats_{view}")
                with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
                    db.execute(write.replace("created_at", "created_at" if view == "top_sessions" else "messages").encode())
    finally:
        db.execute("RESET ROLE; DROP OWNED BY alicia_grantee; DROP ROLE alicia_grantee")


def restore(target: Connection, dump: Path, *options: str) -> str:
    """Run pg_restore, which goes on after an error; what it said."""
    command = [PROGRAMS / "pg_restore", "--data-only", *options, "-d", conninfo_of(target), dump]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stderr


@pytest.fixture
def dump(db: Connection, tmp_path: Path) -> Path:
    """A dump with more sessions than there are top candidates, with rows of each kind in the rollup."""
    db.execute(SESSIONS.format(3000).encode())
    db.execute("UPDATE alicia_session_stats SET message_count = message_count + 20 WHERE id LIKE '%1'")
    db.execute("SET session_replication_role = replica; DELETE FROM alicia_session_stats WHERE id LIKE '%77'; RESET ALL")
    db.execute("SELECT FROM alicia_session_stats_repair()")
    subprocess.run([PROGRAMS / "pg_dump", "-Fc", "-f", tmp_path / "alicia.dump", conninfo_of(db)], timeout=120, check=True)
    return tmp_path / "alicia.dump"


def test_data_only_restore_after_the_schema_counts_each_session_once(db: Connection, bare: Connection, dump: Path) -> None:
    schema = dump.with_name("schema.sql")
    schema.write_text(pg_dump(conninfo_of(db)))
    done = psql(conninfo_of(bare), "-q", "-f", schema)
    assert done.returncode == 0, done.stderr
    assert restore(bare, dump) == ""
    assert scalar(bare, "SELECT COUNT(*) FROM alicia_session_stats") == 2970
    assert_exact(bare)
    assert stats.verify(conninfo_of(bare)) == []
    assert [row["state"] for row in stats.status(conninfo_of(bare))] == ["applied"] * len(stats.status(conninfo_of(bare)))


@pytest.mark.parametrize("options", [["-t", "alicia_conversations", "-t", "alicia_session_stats"], []])
def test_data_only_restore_into_a_migrated_database_counts_each_session_once(
    bare: Connection, dump: Path, options: list[str]
) -> None:
    stats.migrate(conninfo_of(bare))
    said = restore(bare, dump, *options)
    # The records of the package are there already.
    assert ("duplicate key" in said) == (options == [])
    assert scalar(bare, "SELECT COUNT(*) FROM alicia_session_stats") == 2970
    assert_exact(bare)
    assert stats.verify(conninfo_of(bare)) == []


def test_data_only_restore_without_the_triggers_is_told_and_repaired(bare: Connection, dump: Path) -> None:
    stats.migrate(conninfo_of(bare))
    tables = ("-t", "alicia_conversations", "-t", "alicia_session_stats")
    assert restore(bare, dump, "--disable-triggers", *tables) == ""
    rows = stats.verify(conninfo_of(bare))
    assert {row["object"].split()[0] for row in rows} == {"sums", "top"}
    bare.execute(rows[0]["fix"].encode())
    assert_exact(bare)


@contextmanager
def prepared(connection: Connection, statement: str) -> Iterator[None]:
    """A prepared transaction that nobody ends."""
    if scalar(connection, "SHOW max_prepared_transactions") == "0":
        pytest.skip("the server that TEST_DATABASE_URL names allows no prepared transaction")
    connection.execute("BEGIN")
    connection.execute(statement.encode())
    connection.execute("PREPARE TRANSACTION 'forgotten'")
    try:
        yield
    finally:
        connection.execute("ROLLBACK PREPARED 'forgotten'")


def test_repair_names_the_transaction_that_it_cannot_wait_for(db: Connection, another: Callable[..., Connection]) -> None:
    db.execute(SESSIONS.format(3000).encode())
    write = "UPDATE alicia_session_stats SET tool_call_count = 1 WHERE id = 'ass_1'"
    db.execute("DELETE FROM alicia_session_stats WHERE id IN (SELECT id FROM alicia_session_stats_top_sessions)")
    with another() as writer:
        with prepared(writer, write), pytest.raises(psycopg.errors.LockNotAvailable, match="prepared transaction 'forgotten'"):
            db.execute("SELECT FROM alicia_session_stats_repair()")
        pid = writer.info.backend_pid
        writer.execute("SET application_name = 'nightly job'")
        with writer.transaction():
            writer.execute(write.encode())
            with pytest.raises(psycopg.errors.LockNotAvailable, match=rf"held by pid {pid} \(nightly job\)\n"):
                db.execute("SELECT FROM alicia_session_stats_repair()")
    db.execute("SELECT FROM alicia_session_stats_repair()")
    assert_exact(db)


def test_migrate_names_the_transaction_that_it_cannot_wait_for(
    db: Connection, another: Callable[..., Connection], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stats.rollback(conninfo_of(db), steps=4)
    db.execute(SESSIONS.format(20).encode())
    monkeypatch.setattr("alicia_session_stats.migrator.PATIENCE", 0)
    caplog.set_level("INFO")
    with (
        another() as writer,
        prepared(writer, "UPDATE alicia_session_stats SET message_count = 1 WHERE id = 'ass_1'"),
        pytest.raises(stats.SessionStatsError, match="prepared transaction 'forgotten'") as caught,
    ):
        stats.migrate(conninfo_of(db))
    assert "\n" not in str(caught.value)
    assert stats.migrate(conninfo_of(db))


def test_control_characters_of_a_stored_id_are_shown_as_psql_shows_them(db: Connection) -> None:
    """Raw, they could clear the terminal, or type into it."""
    controls = [chr(code) for code in (*range(1, 32), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"]
    stored = "ac_" + "".join(f"{control}." for control in controls)
    db.execute("INSERT INTO alicia_conversations VALUES (%s)", [stored])
    db.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES (%s)", [stored])
    shown = cli("query", "most_active_sessions", "--database", conninfo_of(db))
    assert shown.returncode == 0, shown.stderr
    assert not set(controls) & set(shown.stdout)
    escaped = shown.stdout.splitlines()[2].split("|")[0].strip()
    assert escaped in psql(conninfo_of(db), "-f", ROOT / "queries" / "most_active_sessions.sql").stdout
