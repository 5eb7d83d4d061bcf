"""updated_at tells when a row last changed, whatever the statement, the transaction, the time zone and the search_path."""

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
    return [row[0] for row in db.execute("SELECT updated_at FROM public.alicia_session_stats ORDER BY id").fetchall()]


def utc(db: Connection) -> datetime:
    """The server's clock. Qualified, so that nothing in the search_path takes the place of the functions."""
    return scalar(db, "SELECT pg_catalog.timezone('UTC', pg_catalog.clock_timestamp())")


def assert_stamped_now(db: Connection, sql: LiteralString) -> None:
    """Every row is stamped between the start and the end of the statement."""
    before = utc(db)
    db.execute(sql)
    after = utc(db)
    assert stamps(db)
    assert all(before <= stamp <= after for stamp in stamps(db))


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
def test_change_of_any_column_is_stamped(db: Connection, insert: Insert, change: LiteralString) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_2')")
    insert("ac_1", created_at=LONG_AGO, updated_at=LONG_AGO)
    assert_stamped_now(db, f"UPDATE alicia_session_stats SET {change}")


def test_only_the_rows_that_a_statement_changes_are_stamped(db: Connection, insert: Insert) -> None:
    for count in (0, 5, 9):
        insert(message_count=count, created_at=LONG_AGO, updated_at=LONG_AGO)
    db.execute("UPDATE alicia_session_stats SET message_count = 5")
    unchanged = db.execute("SELECT COUNT(*) FROM alicia_session_stats WHERE updated_at = %s", [LONG_AGO]).fetchall()
    assert unchanged == [(1,)]
    assert scalar(db, "SELECT MAX(created_at) FROM alicia_session_stats") == LONG_AGO


@pytest.mark.parametrize(
    "nothing",
    [
        "UPDATE alicia_session_stats SET message_count = message_count",
        "UPDATE alicia_session_stats SET updated_at = updated_at",
        "UPDATE alicia_session_stats SET message_count = 1 WHERE FALSE",
        "INSERT INTO alicia_session_stats (id, conversation_id, message_count) VALUES ('ass_1', 'ac_1', 7) "
        "ON CONFLICT (id) DO UPDATE SET message_count = EXCLUDED.message_count",
    ],
)
def test_statement_that_changes_nothing_is_not_stamped(db: Connection, insert: Insert, nothing: LiteralString) -> None:
    insert(id="ass_1", message_count=7, updated_at=LONG_AGO)
    db.execute(nothing)
    assert stamps(db) == [LONG_AGO]


def test_column_of_a_type_without_equality_does_not_make_updates_fail(db: Connection, insert: Insert) -> None:
    """The application may have added one: JSON is such a type."""
    db.execute("ALTER TABLE alicia_session_stats ADD extra JSON")
    insert(extra="{}", updated_at=LONG_AGO)
    db.execute("UPDATE alicia_session_stats SET message_count = message_count")
    assert stamps(db) == [LONG_AGO]
    assert_stamped_now(db, "UPDATE alicia_session_stats SET extra = '[]'")


def test_stamp_advances_with_each_update_of_one_transaction(db: Connection) -> None:
    with db.transaction():
        db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
        db.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1')")
        seen = stamps(db)
        for _ in range(3):
            db.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
            seen += stamps(db)
    assert seen == sorted(set(seen))
    assert len(seen) == 4


def test_stamp_advances_in_a_transaction_that_began_before_the_last_update(db: Connection, insert: Insert) -> None:
    insert()
    with psycopg.connect(conninfo_of(db)) as early:
        early.execute("SELECT NOW()")
        db.execute("UPDATE alicia_session_stats SET message_count = 1")
        first = stamps(db)
        early.execute("UPDATE alicia_session_stats SET message_count = 2")
    assert stamps(db) > first


def test_stamp_in_the_future_advances_by_a_microsecond(db: Connection, insert: Insert) -> None:
    future = datetime(2999, 1, 1)
    insert(updated_at=future)
    for step in (1, 2):
        db.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
        assert stamps(db) == [future + step * MICROSECOND]


@pytest.mark.parametrize("written", ["'1999-01-01'", "'2999-01-01'", "'infinity'", "'-infinity'", "NULL"])
def test_value_that_an_update_writes_to_updated_at_is_replaced(db: Connection, insert: Insert, written: LiteralString) -> None:
    insert(updated_at=LONG_AGO)
    assert_stamped_now(db, f"UPDATE alicia_session_stats SET updated_at = {written}")
    assert_stamped_now(db, f"UPDATE alicia_session_stats SET message_count = 1, updated_at = {written}")


def test_value_that_an_insert_writes_to_updated_at_is_kept(db: Connection, insert: Insert) -> None:
    insert(updated_at=LONG_AGO)
    assert stamps(db) == [LONG_AGO]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_stamp_is_utc_whatever_the_sessions_time_zone(db: Connection, insert: Insert, zone: LiteralString) -> None:
    insert(updated_at=LONG_AGO)
    db.execute(f"SET TimeZone = '{zone}'")
    assert_stamped_now(db, "UPDATE alicia_session_stats SET message_count = 1")


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO alicia_session_stats (id, conversation_id, message_count, updated_at) "
        "VALUES ('ass_1', 'ac_1', 7, '1999-01-01') "
        "ON CONFLICT (id) DO UPDATE SET message_count = EXCLUDED.message_count, updated_at = EXCLUDED.updated_at",
        "MERGE INTO alicia_session_stats AS s USING (VALUES ('ass_1', 7)) AS n (id, messages) ON n.id = s.id "
        "WHEN MATCHED THEN UPDATE SET message_count = n.messages",
    ],
    ids=["ON CONFLICT", "MERGE"],
)
def test_upsert_is_stamped(db: Connection, insert: Insert, statement: LiteralString) -> None:
    insert(id="ass_1", updated_at=LONG_AGO)
    assert_stamped_now(db, statement)
    assert scalar(db, "SELECT message_count FROM alicia_session_stats") == 7


# What the parts of our functions mean where another schema comes first in the search_path.
TRAPS = """
    CREATE SCHEMA evil;
    CREATE FUNCTION evil.clock_timestamp() RETURNS TIMESTAMPTZ LANGUAGE sql RETURN '1999-01-01 UTC'::TIMESTAMPTZ;
    CREATE FUNCTION evil.timezone(TEXT, TIMESTAMPTZ) RETURNS TIMESTAMP LANGUAGE sql RETURN '1999-01-01'::TIMESTAMP;
    CREATE FUNCTION evil.later(TIMESTAMP, INTERVAL) RETURNS TIMESTAMP LANGUAGE sql RETURN '2999-01-01'::TIMESTAMP;
    CREATE OPERATOR evil.+ (FUNCTION = evil.later, LEFTARG = TIMESTAMP, RIGHTARG = INTERVAL);
    CREATE FUNCTION evil.gen_random_uuid() RETURNS UUID LANGUAGE sql RETURN 'facade00-0000-4000-8000-000000000000'::UUID;
    CREATE FUNCTION evil.encode(BYTEA, TEXT) RETURNS TEXT LANGUAGE sql RETURN 'encoded';
    CREATE FUNCTION evil.translate(TEXT, TEXT, TEXT) RETURNS TEXT LANGUAGE sql RETURN 'translated';
    SET search_path = evil, public, pg_catalog;
"""
SPRUNG = {
    "CLOCK_TIMESTAMP() = pg_catalog.timestamptz '1999-01-01 UTC'": True,
    "CLOCK_TIMESTAMP() AT TIME ZONE 'UTC'": datetime(1999, 1, 1),
    "TIMESTAMP '2020-01-01' + INTERVAL '1 microsecond'": datetime(2999, 1, 1),
    "GEN_RANDOM_UUID()::TEXT": "facade00-0000-4000-8000-000000000000",
    "ENCODE(''::BYTEA, 'base64'::TEXT)": "encoded",
    "TRANSLATE('a'::TEXT, 'a'::TEXT, 'b'::TEXT)": "translated",
}


def test_hostile_search_path_changes_neither_stamp_nor_id(db: Connection, insert: Insert) -> None:
    insert(updated_at=LONG_AGO)
    db.execute(TRAPS)
    assert {expression: scalar(db, f"SELECT {expression}") for expression in SPRUNG} == SPRUNG
    assert_stamped_now(db, "UPDATE public.alicia_session_stats SET message_count = 1")
    assert_stamped_now(db, "UPDATE public.alicia_session_stats SET message_count = 2")
    ids = {insert(), insert()}
    assert len(ids) == 2
    assert all(re.fullmatch(r"ass_[A-Za-z0-9_-]{22}", each) for each in ids)
