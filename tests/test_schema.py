"""The schema is the specification's, every object says what it is, and the server enforces what the columns promise."""

import re
from collections.abc import Callable
from typing import Any, LiteralString

import psycopg
import pytest
from conftest import scalar
from psycopg import errors

Connection = psycopg.Connection[Any]
Insert = Callable[..., str]
# The specification's fields, and what the catalog adds to each: the unit of a count, the zone of a time.
FIELDS = {
    "id": ("Primary key with `ass_` prefix", ""),
    "conversation_id": ("FK to alicia_conversations", ""),
    "message_count": ("Total messages in session", "messages"),
    "tool_call_count": ("Total tool calls made", "calls"),
    "memories_used": ("Unique memories retrieved", "memories"),
    "session_duration_seconds": ("Session duration", "seconds"),
    "created_at": ("Session start timestamp", "UTC"),
    "updated_at": ("Last update timestamp", "UTC"),
}
NOT_NEGATIVE = "session_stats_counts_and_duration_not_negative"
# Every object in the schema that can carry a comment, but for keys: catalog, oid, column number, name.
COMMENTABLE = """
    SELECT 'pg_class', oid, 0, relname::TEXT FROM pg_class WHERE relnamespace = 'public'::REGNAMESPACE
    UNION ALL
    SELECT 'pg_class', attrelid, attnum, FORMAT('%s.%s', attrelid::REGCLASS, attname)
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = 'public'::REGNAMESPACE AND relkind IN ('r', 'v') AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT 'pg_proc', oid, 0, oid::REGPROCEDURE::TEXT FROM pg_proc WHERE pronamespace = 'public'::REGNAMESPACE
    UNION ALL
    SELECT 'pg_trigger', oid, 0, tgname::TEXT FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT 'pg_constraint', oid, 0, conname::TEXT
    FROM pg_constraint WHERE connamespace = 'public'::REGNAMESPACE AND contype IN ('c', 'f')
"""


def rows_of(db: Connection, sql: LiteralString) -> list[tuple[Any, ...]]:
    return db.execute(sql).fetchall()


# What is there --------------------------------------------------------------------------------------------


def test_relations_are_exactly_the_documented_ones(db: Connection) -> None:
    relations = rows_of(
        db,
        "SELECT relname, relkind::TEXT FROM pg_class "
        "WHERE relnamespace = 'public'::REGNAMESPACE AND relkind <> 'i' AND relname !~ 'yoyo' ORDER BY relname COLLATE \"C\"",
    )
    assert relations == [
        ("alicia_conversations", "r"),
        ("alicia_session_stats", "r"),
        ("alicia_session_stats_lowerings", "S"),
        ("alicia_session_stats_owned_objects", "r"),
        ("alicia_session_stats_parts", "v"),
        ("alicia_session_stats_quarter_hours", "v"),
        ("alicia_session_stats_rollup", "r"),
        ("alicia_session_stats_stamps", "v"),
        ("alicia_session_stats_summaries", "r"),
        ("alicia_session_stats_top_candidates", "r"),
        ("alicia_session_stats_top_cutoff", "r"),
        ("alicia_session_stats_top_sessions", "v"),
        ("alicia_session_stats_value_summaries", "v"),
    ]


def test_columns_are_exactly_the_specifications(db: Connection) -> None:
    columns = rows_of(
        db,
        "SELECT a.attname, FORMAT_TYPE(atttypid, atttypmod), attnotnull, PG_GET_EXPR(adbin, adrelid) FROM pg_attribute AS a "
        "LEFT JOIN pg_attrdef AS d ON d.adrelid = attrelid AND d.adnum = attnum "
        "WHERE attrelid = 'alicia_session_stats'::REGCLASS AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    )
    assert columns == [
        ("id", "text", True, "generate_random_id('ass'::text)"),
        ("conversation_id", "text", True, None),
        ("message_count", "integer", True, "0"),
        ("tool_call_count", "integer", True, "0"),
        ("memories_used", "integer", True, "0"),
        ("session_duration_seconds", "integer", True, "0"),
        ("created_at", "timestamp without time zone", True, "now()"),
        ("updated_at", "timestamp without time zone", True, "now()"),
    ]


def test_conversations_created_for_an_empty_database_have_only_an_id(db: Connection) -> None:
    columns = rows_of(
        db,
        "SELECT column_name, data_type, is_nullable, column_default "
        "FROM information_schema.columns WHERE table_name = 'alicia_conversations'",
    )
    assert columns == [("id", "text", "NO", "generate_random_id('ac'::text)")]


def test_columns_of_the_public_views_keep_their_names_types_and_order(db: Connection) -> None:
    columns = rows_of(
        db,
        "SELECT table_name, STRING_AGG(column_name || ' ' || data_type, ', ' ORDER BY ordinal_position) "
        "FROM information_schema.columns "
        "WHERE table_name IN ('alicia_session_stats_quarter_hours', 'alicia_session_stats_top_sessions') GROUP BY 1 ORDER BY 1",
    )
    assert columns == [
        (
            "alicia_session_stats_quarter_hours",
            "bucket_start timestamp without time zone, sessions bigint, messages bigint, tool_calls bigint, memories bigint, "
            "seconds bigint",
        ),
        (
            "alicia_session_stats_top_sessions",
            "message_count integer, created_at timestamp without time zone, id text, conversation_id text, "
            "tool_call_count integer, memories_used integer, session_duration_seconds integer",
        ),
    ]


def test_constraints_of_the_specifications_table_are_exactly_these_and_validated(db: Connection) -> None:
    constraints = rows_of(
        db,  # PostgreSQL 18 lists NOT NULL here too, as 'n'.
        "SELECT conname, PG_GET_CONSTRAINTDEF(oid), convalidated FROM pg_constraint "
        "WHERE conrelid = 'alicia_session_stats'::REGCLASS AND contype <> 'n' ORDER BY conname",
    )
    assert constraints == [
        (
            "alicia_session_stats_conversation_id_fkey",
            "FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id) ON DELETE CASCADE",
            True,
        ),
        ("alicia_session_stats_pkey", "PRIMARY KEY (id)", True),
        (NOT_NEGATIVE, "CHECK ((LEAST(message_count, tool_call_count, memories_used, session_duration_seconds) >= 0))", True),
    ]


def test_indexes_of_the_specifications_table_are_its_key_and_the_specifications_two(db: Connection) -> None:
    indexes = rows_of(
        db,
        "SELECT PG_GET_INDEXDEF(indexrelid), indisvalid FROM pg_index "
        "WHERE indrelid = 'alicia_session_stats'::REGCLASS ORDER BY PG_GET_INDEXDEF(indexrelid) COLLATE \"C\"",
    )
    assert indexes == [
        ("CREATE INDEX idx_session_stats_conversation ON public.alicia_session_stats USING btree (conversation_id)", True),
        ("CREATE INDEX idx_session_stats_created_at ON public.alicia_session_stats USING btree (created_at DESC)", True),
        ("CREATE UNIQUE INDEX alicia_session_stats_pkey ON public.alicia_session_stats USING btree (id)", True),
    ]


def test_triggers_are_enabled_and_stamp_updated_at_and_keep_the_rollup(db: Connection) -> None:
    triggers = rows_of(
        db,
        "SELECT tgname, SUBSTRING(PG_GET_TRIGGERDEF(oid) FROM ' ((BEFORE|AFTER) .*) ON '), tgenabled::TEXT "
        "FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgname",
    )
    assert triggers == [
        ("restore_session_stats_rollup", "BEFORE INSERT", "O"),
        ("rollup_session_stats_delete", "AFTER DELETE", "O"),
        ("rollup_session_stats_insert", "AFTER INSERT", "O"),
        ("rollup_session_stats_truncate", "AFTER TRUNCATE", "O"),
        ("rollup_session_stats_update", "AFTER UPDATE", "O"),
        ("update_session_stats_updated_at", "BEFORE UPDATE", "O"),
    ]


def test_functions_with_the_owners_rights_are_known_and_fix_their_search_path(db: Connection) -> None:
    functions = rows_of(
        db,
        "SELECT proname, proconfig[1], HAS_FUNCTION_PRIVILEGE('pg_monitor', oid, 'EXECUTE') FROM pg_proc "
        "WHERE pronamespace = 'public'::REGNAMESPACE AND prosecdef ORDER BY proname",
    )
    search_path = "search_path=pg_catalog, public, pg_temp"
    assert functions == [
        ("alicia_session_stats_days_to_summarize", search_path, True),
        ("alicia_session_stats_differences", search_path, True),
        ("alicia_session_stats_on_insert_or_delete", search_path, False),
        ("alicia_session_stats_on_truncate", search_path, False),
        ("alicia_session_stats_on_update", search_path, False),
    ]


def test_no_extension_is_needed(db: Connection) -> None:
    assert rows_of(db, "SELECT extname FROM pg_extension") == [("plpgsql",)]


def test_every_object_has_a_comment(db: Connection) -> None:
    uncommented = rows_of(
        db,
        f"SELECT c.name FROM ({COMMENTABLE}) AS c (catalog, oid, number, name) "
        "WHERE COALESCE(CASE WHEN number > 0 THEN COL_DESCRIPTION(oid, number) ELSE OBJ_DESCRIPTION(oid, catalog) END, '') = '' "
        "AND name !~ '^_?yoyo_' AND name !~ '_pkey$'",
    )
    assert uncommented == []


def test_comment_of_a_column_is_the_specifications_description_with_its_unit(db: Connection) -> None:
    comments = rows_of(
        db,
        "SELECT attname, COL_DESCRIPTION(attrelid, attnum) FROM pg_attribute "
        "WHERE attrelid = 'alicia_session_stats'::REGCLASS AND attnum > 0 AND NOT attisdropped",
    )
    for column, comment in comments:
        description, unit = FIELDS[column]
        assert comment.startswith(description.replace("`", ""))
        assert unit in comment.removeprefix(description)


# What the server accepts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["message_count", "tool_call_count", "memories_used", "session_duration_seconds"])
def test_count_may_be_zero_or_the_largest_integer_but_not_negative(insert: Insert, db: Connection, column: str) -> None:
    insert(**{column: 2**31 - 1})
    insert(**{column: 0})
    for write in (
        lambda: insert(**{column: -1}),
        lambda: db.execute(f"UPDATE alicia_session_stats SET {column} = {column} - 1".encode()),
    ):
        with pytest.raises(errors.CheckViolation) as refused:
            write()
        assert refused.value.diag.constraint_name == NOT_NEGATIVE


@pytest.mark.parametrize("column", FIELDS)
def test_column_may_not_be_null(db: Connection, column: str) -> None:
    given = {"conversation_id": "'ac_1'", column: "NULL"}
    with pytest.raises(errors.NotNullViolation) as refused:
        db.execute(f"INSERT INTO alicia_session_stats ({', '.join(given)}) VALUES ({', '.join(given.values())})".encode())
    assert refused.value.diag.column_name == column


def test_session_of_an_unknown_conversation_is_refused(db: Connection) -> None:
    with pytest.raises(errors.ForeignKeyViolation) as refused:
        db.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_none')")
    assert refused.value.diag.constraint_name == "alicia_session_stats_conversation_id_fkey"


def test_id_can_be_used_only_once(insert: Insert) -> None:
    used = insert()
    with pytest.raises(errors.UniqueViolation):
        insert(id=used)


def test_sessions_are_deleted_with_their_conversation_and_no_other(insert: Insert, db: Connection) -> None:
    insert("ac_1")
    insert("ac_1")
    kept = insert("ac_2")
    db.execute("DELETE FROM alicia_conversations WHERE id = 'ac_1'")
    assert rows_of(db, "SELECT id FROM alicia_session_stats") == [(kept,)]
    db.execute("DELETE FROM alicia_session_stats")
    assert rows_of(db, "SELECT id FROM alicia_conversations") == [("ac_2",)]


# Defaults -------------------------------------------------------------------------------------------------


def test_defaults_are_zero_and_the_start_of_the_transaction_in_utc(insert: Insert, db: Connection) -> None:
    db.execute("SET TimeZone = 'UTC'")
    with db.transaction():
        insert()
        [row] = rows_of(
            db,
            "SELECT message_count, tool_call_count, memories_used, session_duration_seconds, "
            "created_at = NOW() AT TIME ZONE 'UTC', updated_at = created_at FROM alicia_session_stats",
        )
    assert row == (0, 0, 0, 0, True, True)


def test_ids_are_a_prefix_and_22_random_url_safe_characters(insert: Insert, db: Connection) -> None:
    conversation = scalar(db, "INSERT INTO alicia_conversations (id) VALUES (DEFAULT) RETURNING id")
    assert re.fullmatch(r"ac_[A-Za-z0-9_-]{22}", conversation)
    assert re.fullmatch(r"ass_[A-Za-z0-9_-]{22}", insert())
    ids = [row[0] for row in rows_of(db, "SELECT generate_random_id('ass') FROM GENERATE_SERIES(1, 100000)")]
    assert len(set(ids)) == 100_000
    assert all(re.fullmatch(r"ass_[A-Za-z0-9_-]{22}", each) for each in ids)
    assert len(set("".join(each.removeprefix("ass_") for each in ids))) == 64


# Indexes --------------------------------------------------------------------------------------------------

INDEXED: dict[str, tuple[LiteralString, list[str]]] = {
    "conversation": (
        "SELECT * FROM alicia_session_stats WHERE conversation_id = 'ac_1'",
        ["idx_session_stats_conversation"],
    ),
    "window": (
        "SELECT * FROM alicia_session_stats WHERE created_at > NOW() - INTERVAL '30 days'",
        ["idx_session_stats_created_at"],
    ),
    "newest": (
        "SELECT * FROM alicia_session_stats ORDER BY created_at DESC LIMIT 10",
        ["idx_session_stats_created_at"],
    ),
}


@pytest.mark.parametrize("name", INDEXED)
def test_index_serves_the_query_that_it_is_for(db: Connection, name: str) -> None:
    sql, indexes = INDEXED[name]
    with db.transaction():
        db.execute("SET LOCAL enable_seqscan = off")  # As if the table were large.
        plan = "\n".join(row[0] for row in db.execute(f"EXPLAIN {sql}"))
    assert re.findall(r"\bidx_\w+", plan) == indexes
    assert "Sort" not in plan
    assert "Backward" not in plan
