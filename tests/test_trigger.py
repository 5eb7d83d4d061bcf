"""updated_at says when a row last changed, whatever the statement, the transaction, the time zone and the search_path."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from conftest import conninfo_of, scalar

Connection = psycopg.Connection[Any]
Insert = Callable[..., str]
LONG_AGO = datetime(2020, 1, 1)
MICROSECOND = timedelta(microseconds=1)


def stamps(db: Connection) -> list[datetime]:
    return [row[0] for row in db.execute("SELECT updated_at FROM alicia_session_stats ORDER BY id").fetchall()]


def utc(db: Connection) -> datetime:
    """The server's clock; its functions are named in full, so that nothing in the search_path can stand in for them."""
    return scalar(db, "SELECT pg_catalog.timezone('UTC', pg_catalog.clock_timestamp())")


def assert_stamped_now(db: Connection, sql: LiteralString) -> None:
    """Every row is stamped between the start and the end of the statement."""
    before = utc(db)
    db.execute(sql)
    after = utc(db)
    assert stamps(db)
    assert all(before <= stamp <= after for stamp in stamps(db))


def test_updated_at_is_stamped_on_one_row_and_no_other(db: Connection, insert: Insert) -> None:
    changed = insert(updated_at=LONG_AGO)
    untouched = insert(updated_at=LONG_AGO)
    before = utc(db)
    db.execute("UPDATE alicia_session_stats SET message_count = 1 WHERE id = %s", [changed])
    found = dict(db.execute("SELECT id, updated_at FROM alicia_session_stats").fetchall())
    assert before <= found[changed] <= utc(db)
    assert found[untouched] == LONG_AGO


def test_updated_at_is_stamped_on_every_row_of_one_statement(db: Connection, insert: Insert) -> None:
    for _ in range(50):
        insert(updated_at=LONG_AGO)
    assert_stamped_now(db, "UPDATE alicia_session_stats SET message_count = message_count + 1")
    assert len(stamps(db)) == 50


@pytest.mark.parametrize(
    "change",
    [
        "id = 'ass_renamed'",
        "conversation_id = 'ac_2'",
        "message_count = 1",
        "tool_call_count = 1",
        "memories_used = 1",
        "session_duration_seconds = 1",
        "created_at = '2021-01-01'",
    ],
)
def test_a_change_of_any_column_stamps_updated_at(db: Connection, insert: Insert, change: LiteralString) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_2')")
    insert("ac_1", created_at=LONG_AGO, updated_at=LONG_AGO)
    assert_stamped_now(db, f"UPDATE alicia_session_stats SET {change}")


def test_updated_at_advances_twice_in_one_transaction(db: Connection, insert: Insert) -> None:
    insert()
    with db.transaction():
        seen = stamps(db)
        for _ in range(3):
            db.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
            seen += stamps(db)
    assert seen == sorted(set(seen))
    assert len(seen) == 4


def test_updated_at_advances_in_the_transaction_that_inserts_the_row(db: Connection) -> None:
    with db.transaction():
        db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
        db.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1')")
        inserted = stamps(db)
        db.execute("UPDATE alicia_session_stats SET message_count = 1")
        assert stamps(db) > inserted


def test_updated_at_advances_in_a_transaction_older_than_the_last_update(db: Connection, insert: Insert) -> None:
    insert()
    with psycopg.connect(conninfo_of(db)) as early:
        early.execute("SELECT NOW()")  # Its transaction starts, and so NOW() stands, before the update below.
        db.execute("UPDATE alicia_session_stats SET message_count = 1")
        first = stamps(db)
        early.execute("UPDATE alicia_session_stats SET message_count = 2")
    assert stamps(db) > first


@pytest.mark.parametrize("written", ["1999-01-01", "2999-01-01", "infinity", "-infinity"])
def test_an_explicit_updated_at_is_overridden(db: Connection, insert: Insert, written: LiteralString) -> None:
    insert(updated_at=LONG_AGO)
    assert_stamped_now(db, f"UPDATE alicia_session_stats SET updated_at = '{written}'")
    assert_stamped_now(db, f"UPDATE alicia_session_stats SET message_count = 1, updated_at = '{written}'")


def test_an_update_to_null_is_overridden(db: Connection, insert: Insert) -> None:
    insert(updated_at=LONG_AGO)
    assert_stamped_now(db, "UPDATE alicia_session_stats SET updated_at = NULL")


@pytest.mark.parametrize(
    "nothing",
    [
        "UPDATE alicia_session_stats SET message_count = message_count",
        "UPDATE alicia_session_stats SET updated_at = updated_at",
        "UPDATE alicia_session_stats SET message_count = 1 WHERE FALSE",
    ],
)
def test_an_update_that_changes_nothing_leaves_updated_at_alone(db: Connection, insert: Insert, nothing: LiteralString) -> None:
    insert(updated_at=LONG_AGO)
    db.execute(nothing)
    assert stamps(db) == [LONG_AGO]


def test_of_many_rows_only_the_changed_ones_are_stamped(db: Connection, insert: Insert) -> None:
    for count in (0, 5, 9):
        insert(message_count=count, updated_at=LONG_AGO)
    db.execute("UPDATE alicia_session_stats SET message_count = 5")
    kept = db.execute("SELECT message_count FROM alicia_session_stats WHERE updated_at = %s", [LONG_AGO]).fetchall()
    assert kept == [(5,)]
    assert sum(stamp > LONG_AGO for stamp in stamps(db)) == 2


def test_an_insert_keeps_the_updated_at_it_is_given(db: Connection, insert: Insert) -> None:
    insert(updated_at=LONG_AGO)
    assert stamps(db) == [LONG_AGO]


def test_created_at_is_not_touched_by_an_update(db: Connection, insert: Insert) -> None:
    insert(created_at=LONG_AGO)
    db.execute("UPDATE alicia_session_stats SET message_count = 1")
    assert scalar(db, "SELECT created_at FROM alicia_session_stats") == LONG_AGO


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles", "Asia/Kathmandu"])
def test_updated_at_is_utc_whatever_the_sessions_time_zone(db: Connection, insert: Insert, zone: LiteralString) -> None:
    insert(updated_at=LONG_AGO)
    db.execute(f"SET TimeZone = '{zone}'")
    assert_stamped_now(db, "UPDATE alicia_session_stats SET message_count = 1")


def test_insert_on_conflict_do_update_stamps_updated_at(db: Connection, insert: Insert) -> None:
    insert(id="ass_1", updated_at=LONG_AGO)
    assert_stamped_now(
        db,
        "INSERT INTO alicia_session_stats (id, conversation_id, message_count, updated_at) "
        "VALUES ('ass_1', 'ac_1', 7, '1999-01-01') "
        "ON CONFLICT (id) DO UPDATE SET message_count = EXCLUDED.message_count, updated_at = EXCLUDED.updated_at",
    )
    assert scalar(db, "SELECT message_count FROM alicia_session_stats") == 7


def test_insert_on_conflict_that_changes_nothing_leaves_updated_at_alone(db: Connection, insert: Insert) -> None:
    insert(id="ass_1", message_count=7, updated_at=LONG_AGO)
    db.execute(
        "INSERT INTO alicia_session_stats (id, conversation_id, message_count) VALUES ('ass_1', 'ac_1', 7) "
        "ON CONFLICT (id) DO UPDATE SET message_count = EXCLUDED.message_count"
    )
    assert stamps(db) == [LONG_AGO]


def test_merge_stamps_updated_at(db: Connection, insert: Insert) -> None:
    insert(id="ass_1", updated_at=LONG_AGO)
    assert_stamped_now(
        db,
        "MERGE INTO alicia_session_stats AS s USING (VALUES ('ass_1', 7)) AS n (id, messages) ON n.id = s.id "
        "WHEN MATCHED THEN UPDATE SET message_count = n.messages",
    )


def test_an_updated_at_in_the_future_advances_by_the_smallest_step(db: Connection, insert: Insert) -> None:
    future = datetime(2999, 1, 1)
    insert(updated_at=future)
    db.execute("UPDATE alicia_session_stats SET message_count = 1")
    assert stamps(db) == [future + MICROSECOND]
    db.execute("UPDATE alicia_session_stats SET message_count = 2")
    assert stamps(db) == [future + 2 * MICROSECOND]


def test_a_disabled_trigger_stamps_nothing(db: Connection, insert: Insert) -> None:
    """The stamp is the trigger's doing, and nothing else's."""
    insert(updated_at=LONG_AGO)
    db.execute("ALTER TABLE alicia_session_stats DISABLE TRIGGER update_session_stats_updated_at")
    db.execute("UPDATE alicia_session_stats SET message_count = 1")
    assert stamps(db) == [LONG_AGO]


TRAPS = """
    CREATE SCHEMA evil;
    CREATE FUNCTION evil.clock_timestamp() RETURNS TIMESTAMPTZ LANGUAGE sql RETURN '1999-01-01 UTC'::TIMESTAMPTZ;
    CREATE FUNCTION evil.timezone(TEXT, TIMESTAMPTZ) RETURNS TIMESTAMP LANGUAGE sql RETURN '1999-01-01'::TIMESTAMP;
    CREATE FUNCTION evil.later(TIMESTAMP, INTERVAL) RETURNS TIMESTAMP LANGUAGE sql RETURN '2999-01-01'::TIMESTAMP;
    CREATE OPERATOR evil.+ (FUNCTION = evil.later, LEFTARG = TIMESTAMP, RIGHTARG = INTERVAL);
    CREATE FUNCTION evil.gen_random_uuid() RETURNS UUID LANGUAGE sql RETURN 'facade00-0000-4000-8000-000000000000'::UUID;
    CREATE FUNCTION evil.uuid_send(UUID) RETURNS BYTEA LANGUAGE sql RETURN 'bad'::BYTEA;
    CREATE FUNCTION evil.encode(BYTEA, TEXT) RETURNS TEXT LANGUAGE sql RETURN 'encoded';
    CREATE FUNCTION evil.translate(TEXT, TEXT, TEXT) RETURNS TEXT LANGUAGE sql RETURN 'translated';
    CREATE FUNCTION evil.glue(TEXT, TEXT) RETURNS TEXT LANGUAGE sql RETURN 'glued';
    CREATE OPERATOR evil.|| (FUNCTION = evil.glue, LEFTARG = TEXT, RIGHTARG = TEXT);
    SET search_path = evil, public, pg_catalog;
"""
# What the parts of our two functions mean in that search_path.
SPRUNG = {
    "CLOCK_TIMESTAMP() = pg_catalog.timestamptz '1999-01-01 UTC'": True,
    "CLOCK_TIMESTAMP() AT TIME ZONE 'UTC'": datetime(1999, 1, 1),
    "TIMESTAMP '2020-01-01' + INTERVAL '1 microsecond'": datetime(2999, 1, 1),
    "GEN_RANDOM_UUID()::TEXT": "facade00-0000-4000-8000-000000000000",
    "UUID_SEND(GEN_RANDOM_UUID())": b"bad",
    "ENCODE(''::BYTEA, 'base64'::TEXT)": "encoded",
    "TRANSLATE('a'::TEXT, 'a'::TEXT, 'b'::TEXT)": "translated",
    "'a'::TEXT || 'b'::TEXT": "glued",
}


def test_the_traps_of_a_hostile_schema_work(db: Connection) -> None:
    db.execute(TRAPS)
    assert {expression: scalar(db, f"SELECT {expression}") for expression in SPRUNG} == SPRUNG


def test_a_hostile_search_path_cannot_change_the_stamp(db: Connection, insert: Insert) -> None:
    insert(updated_at=LONG_AGO)
    db.execute(TRAPS)
    assert_stamped_now(db, "UPDATE public.alicia_session_stats SET message_count = 1")
    assert_stamped_now(db, "UPDATE public.alicia_session_stats SET message_count = 2")


def test_a_hostile_search_path_cannot_change_ids(db: Connection, insert: Insert) -> None:
    db.execute(TRAPS)
    ids = {insert(), insert()}
    assert len(ids) == 2
    assert all(re.fullmatch(r"ass_[A-Za-z0-9_-]{22}", each) for each in ids)
