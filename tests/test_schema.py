"""The schema is the specification's: no object more, none less."""

import re
from collections.abc import Callable
from typing import Any, LiteralString

import psycopg
import pytest
from conftest import scalar
from psycopg import errors

Connection = psycopg.Connection[Any]
COUNTERS = ["message_count", "tool_call_count", "memories_used", "session_duration_seconds"]
CHECKS = {
    "message_count": "session_stats_message_count_not_negative",
    "tool_call_count": "session_stats_tool_call_count_not_negative",
    "memories_used": "session_stats_memories_used_not_negative",
    "session_duration_seconds": "session_stats_duration_not_negative",
}
# The specification's Fields, and what the catalog must add to each: the unit of a count, the zone of a time.
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
# Every object of the schema that can carry a comment, as (catalog, oid, column number, name).
COMMENTABLE = """
    SELECT 'pg_class', oid, 0, relname::TEXT FROM pg_class WHERE relnamespace = 'public'::REGNAMESPACE
    UNION ALL
    SELECT 'pg_class', attrelid, attnum, FORMAT('%s.%s', attrelid::REGCLASS, attname)
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = 'public'::REGNAMESPACE AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT 'pg_proc', oid, 0, oid::REGPROCEDURE::TEXT FROM pg_proc WHERE pronamespace = 'public'::REGNAMESPACE
    UNION ALL
    SELECT 'pg_trigger', oid, 0, tgname::TEXT FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT 'pg_constraint', oid, 0, conname::TEXT
    FROM pg_constraint WHERE connamespace = 'public'::REGNAMESPACE AND contype = 'c'
"""


def rows_of(db: Connection, sql: LiteralString) -> list[tuple[Any, ...]]:
    return db.execute(sql).fetchall()


def plan_nodes(db: Connection, sql: LiteralString) -> list[dict[str, Any]]:
    """The nodes of the plan that the server would choose if reading the whole table were dear."""

    def flat(node: dict[str, Any]) -> list[dict[str, Any]]:
        return [node, *(inner for child in node.get("Plans", []) for inner in flat(child))]

    with db.transaction():
        db.execute("SET LOCAL enable_seqscan = off")
        return flat(scalar(db, f"EXPLAIN (FORMAT JSON) {sql}")[0]["Plan"])


def test_relations_are_exactly_yoyos_the_specifications_the_record_and_the_sums(db: Connection) -> None:
    relations = rows_of(
        db,
        "SELECT relname, relkind::TEXT FROM pg_class WHERE relnamespace = 'public'::REGNAMESPACE AND relkind <> 'i' "
        'ORDER BY relname COLLATE "C"',
    )
    assert relations == [
        ("_yoyo_log", "r"),
        ("_yoyo_migration", "r"),
        ("_yoyo_version", "r"),
        ("alicia_conversations", "r"),
        ("alicia_session_stats", "r"),
        ("alicia_session_stats_candidates", "r"),
        ("alicia_session_stats_counters", "r"),
        ("alicia_session_stats_created", "r"),
        ("alicia_session_stats_floor", "r"),
        ("alicia_session_stats_leaders", "v"),
        ("alicia_session_stats_quarter_hours", "v"),
        ("yoyo_lock", "r"),
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
    assert "deleted_at" not in {name for name, *_ in columns}


def test_the_parent_made_for_a_bare_database_is_only_an_id(db: Connection) -> None:
    columns = rows_of(
        db,
        "SELECT column_name, data_type, is_nullable, column_default "
        "FROM information_schema.columns WHERE table_name = 'alicia_conversations'",
    )
    assert columns == [("id", "text", "NO", "generate_random_id('ac'::text)")]


def test_constraints_are_exactly_these_and_all_validated(db: Connection) -> None:
    constraints = rows_of(
        db,  # PostgreSQL 18 lists NOT NULL here too, as 'n'.
        "SELECT conname, PG_GET_CONSTRAINTDEF(oid), convalidated FROM pg_constraint "
        "WHERE conrelid::REGCLASS::TEXT LIKE 'alicia%' AND contype <> 'n' "
        'ORDER BY conrelid::REGCLASS::TEXT COLLATE "C", conname',
    )
    assert constraints == [
        ("alicia_conversations_pkey", "PRIMARY KEY (id)", True),
        (
            "alicia_session_stats_conversation_id_fkey",
            "FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id) ON DELETE CASCADE",
            True,
        ),
        ("alicia_session_stats_pkey", "PRIMARY KEY (id)", True),
        ("session_stats_duration_not_negative", "CHECK ((session_duration_seconds >= 0))", True),
        ("session_stats_memories_used_not_negative", "CHECK ((memories_used >= 0))", True),
        ("session_stats_message_count_not_negative", "CHECK ((message_count >= 0))", True),
        ("session_stats_tool_call_count_not_negative", "CHECK ((tool_call_count >= 0))", True),
        ("alicia_session_stats_created_pkey", "PRIMARY KEY (object)", True),
    ]


def test_indexes_are_exactly_the_keys_and_the_specifications_two(db: Connection) -> None:
    indexes = rows_of(
        db,
        "SELECT PG_GET_INDEXDEF(indexrelid), indisvalid FROM pg_index "
        "WHERE indrelid::REGCLASS::TEXT LIKE 'alicia%' ORDER BY PG_GET_INDEXDEF(indexrelid) COLLATE \"C\"",
    )
    assert indexes == [
        (
            "CREATE INDEX idx_session_stats_candidates ON public.alicia_session_stats_candidates "
            "USING btree (message_count, created_at, id, conversation_id)",
            True,
        ),
        ("CREATE INDEX idx_session_stats_conversation ON public.alicia_session_stats USING btree (conversation_id)", True),
        ("CREATE INDEX idx_session_stats_created_at ON public.alicia_session_stats USING btree (created_at DESC)", True),
        ("CREATE UNIQUE INDEX alicia_conversations_pkey ON public.alicia_conversations USING btree (id)", True),
        (
            "CREATE UNIQUE INDEX alicia_session_stats_created_pkey ON public.alicia_session_stats_created USING btree (object)",
            True,
        ),
        ("CREATE UNIQUE INDEX alicia_session_stats_pkey ON public.alicia_session_stats USING btree (id)", True),
        (
            "CREATE UNIQUE INDEX idx_session_stats_counters ON public.alicia_session_stats_counters "
            "USING btree (quarter_hour, slot)",
            True,
        ),
        ("CREATE UNIQUE INDEX idx_session_stats_floor ON public.alicia_session_stats_floor USING btree ((true))", True),
    ]


def test_the_triggers_are_enabled_stamp_updated_at_and_count(db: Connection) -> None:
    triggers = rows_of(
        db,
        "SELECT REPLACE(PG_GET_TRIGGERDEF(oid), 'alicia_session_stats_', '..'), tgenabled::TEXT "
        "FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgname",
    )
    assert triggers == [
        (
            "CREATE TRIGGER count_session_stats_delete AFTER DELETE ON public.alicia_session_stats "
            "REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION ..deleted()",
            "O",
        ),
        (
            "CREATE TRIGGER count_session_stats_insert AFTER INSERT ON public.alicia_session_stats "
            "REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION ..inserted()",
            "O",
        ),
        (
            "CREATE TRIGGER count_session_stats_truncate AFTER TRUNCATE ON public.alicia_session_stats "
            "FOR EACH STATEMENT EXECUTE FUNCTION ..emptied()",
            "O",
        ),
        (
            "CREATE TRIGGER count_session_stats_update AFTER UPDATE ON public.alicia_session_stats "
            "FOR EACH ROW EXECUTE FUNCTION ..updated()",
            "O",
        ),
        (
            "CREATE TRIGGER update_session_stats_updated_at BEFORE UPDATE ON public.alicia_session_stats FOR EACH ROW "
            "WHEN ((old.* IS DISTINCT FROM new.*)) EXECUTE FUNCTION update_session_stats_updated_at()",
            "O",
        ),
    ]


def test_only_what_counts_runs_as_its_owner_and_for_nobody_else(db: Connection) -> None:
    functions = rows_of(
        db,
        "SELECT proname, PG_GET_FUNCTION_RESULT(oid), prosecdef, HAS_FUNCTION_PRIVILEGE('pg_monitor', oid, 'EXECUTE') "
        "FROM pg_proc WHERE pronamespace = 'public'::REGNAMESPACE ORDER BY proname",
    )
    assert functions == [
        ("alicia_session_stats_count", "integer", False, False),
        ("alicia_session_stats_deleted", "trigger", True, False),
        (
            "alicia_session_stats_differences",
            "TABLE(quarter_hour timestamp without time zone, sessions numeric, memories numeric, active_seconds numeric, "
            "messages numeric, tool_calls numeric)",
            False,
            True,
        ),
        ("alicia_session_stats_emptied", "trigger", True, False),
        ("alicia_session_stats_inserted", "trigger", True, False),
        ("alicia_session_stats_repair", "TABLE(object text, corrections bigint)", False, False),
        ("alicia_session_stats_trim", "void", False, False),
        ("alicia_session_stats_updated", "trigger", True, False),
        ("generate_random_id", "text", False, True),
        ("update_session_stats_updated_at", "trigger", False, True),
    ]


def test_nothing_but_core_postgresql_is_needed(db: Connection) -> None:
    assert rows_of(db, "SELECT extname FROM pg_extension") == [("plpgsql",)]


def test_everything_of_ours_has_a_comment(db: Connection) -> None:
    silent = rows_of(
        db,
        f"SELECT c.name FROM ({COMMENTABLE}) AS c (catalog, oid, number, name) "
        "WHERE COALESCE(CASE WHEN number > 0 THEN COL_DESCRIPTION(oid, number) ELSE OBJ_DESCRIPTION(oid, catalog) END, '') = '' "
        "AND name !~ '^_?yoyo_' AND name !~ '_pkey$'",
    )
    assert silent == []


def test_a_columns_comment_is_the_specifications_description_with_its_unit(db: Connection) -> None:
    comments = rows_of(
        db,
        "SELECT attname, COL_DESCRIPTION(attrelid, attnum) FROM pg_attribute "
        "WHERE attrelid = 'alicia_session_stats'::REGCLASS AND attnum > 0 AND NOT attisdropped",
    )
    for column, comment in comments:
        description, unit = FIELDS[column]
        assert comment.startswith(description.replace("`", ""))
        assert unit in comment.removeprefix(description)


@pytest.mark.parametrize("column", COUNTERS)
def test_a_counter_may_be_zero_or_the_largest_integer(insert: Callable[..., str], db: Connection, column: str) -> None:
    insert(**{column: 0})
    insert(**{column: 2**31 - 1})
    assert rows_of(db, "SELECT COUNT(*) FROM alicia_session_stats") == [(2,)]


@pytest.mark.parametrize("column", COUNTERS)
def test_a_negative_counter_is_refused_by_the_constraint_that_says_so(insert: Callable[..., str], column: str) -> None:
    with pytest.raises(errors.CheckViolation) as refused:
        insert(**{column: -1})
    assert refused.value.diag.constraint_name == CHECKS[column]


@pytest.mark.parametrize("column", COUNTERS)
def test_a_counter_cannot_be_updated_below_zero(insert: Callable[..., str], db: Connection, column: str) -> None:
    insert()
    with pytest.raises(errors.CheckViolation) as refused:
        db.execute(f"UPDATE alicia_session_stats SET {column} = {column} - 1".encode())
    assert refused.value.diag.constraint_name == CHECKS[column]


@pytest.mark.parametrize("column", COUNTERS)
def test_a_counter_beyond_integer_is_refused(insert: Callable[..., str], column: str) -> None:
    with pytest.raises(errors.NumericValueOutOfRange):
        insert(**{column: 2**31})


@pytest.mark.parametrize("column", [name for name in FIELDS if name != "conversation_id"])
def test_no_column_may_be_null(insert: Callable[..., str], column: str) -> None:
    with pytest.raises(errors.NotNullViolation) as refused:
        insert(**{column: None})
    assert refused.value.diag.column_name == column


def test_a_session_needs_a_conversation_id(db: Connection) -> None:
    with pytest.raises(errors.NotNullViolation) as refused:
        db.execute("INSERT INTO alicia_session_stats DEFAULT VALUES")
    assert refused.value.diag.column_name == "conversation_id"


def test_a_session_of_no_conversation_is_refused(db: Connection) -> None:
    with pytest.raises(errors.ForeignKeyViolation) as refused:
        db.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_none')")
    assert refused.value.diag.constraint_name == "alicia_session_stats_conversation_id_fkey"


def test_an_id_is_taken_once(insert: Callable[..., str]) -> None:
    taken = insert()
    with pytest.raises(errors.UniqueViolation) as refused:
        insert(id=taken)
    assert refused.value.diag.constraint_name == "alicia_session_stats_pkey"


def test_an_id_is_the_prefix_and_22_url_safe_characters(insert: Callable[..., str], db: Connection) -> None:
    assert re.fullmatch(r"ass_[A-Za-z0-9_-]{22}", insert())
    assert re.fullmatch(
        r"ac_[A-Za-z0-9_-]{22}", scalar(db, "INSERT INTO alicia_conversations (id) VALUES (DEFAULT) RETURNING id")
    )


def test_100000_ids_do_not_repeat_and_use_the_whole_alphabet(db: Connection) -> None:
    ids = [row[0] for row in rows_of(db, "SELECT generate_random_id('ass') FROM GENERATE_SERIES(1, 100000)")]
    assert len(set(ids)) == 100_000
    assert all(re.fullmatch(r"ass_[A-Za-z0-9_-]{22}", each) for each in ids)
    assert len(set("".join(each.removeprefix("ass_") for each in ids))) == 64


def test_sessions_are_deleted_with_their_conversation_and_no_other(insert: Callable[..., str], db: Connection) -> None:
    insert("ac_1")
    insert("ac_1")
    kept = insert("ac_2")
    db.execute("DELETE FROM alicia_conversations WHERE id = 'ac_1'")
    assert rows_of(db, "SELECT id FROM alicia_session_stats") == [(kept,)]


def test_a_conversation_outlives_its_sessions(insert: Callable[..., str], db: Connection) -> None:
    insert("ac_1")
    db.execute("DELETE FROM alicia_session_stats")
    assert rows_of(db, "SELECT id FROM alicia_conversations") == [("ac_1",)]


def test_times_default_to_the_transactions_start_in_utc(insert: Callable[..., str], db: Connection) -> None:
    db.execute("SET TimeZone = 'UTC'")
    with db.transaction():
        insert()
        found = rows_of(db, "SELECT created_at, updated_at, NOW() AT TIME ZONE 'UTC' FROM alicia_session_stats")
    ((created_at, updated_at, now),) = found
    assert created_at == updated_at == now


def test_counters_default_to_zero(insert: Callable[..., str], db: Connection) -> None:
    insert()
    counters = "SELECT message_count, tool_call_count, memories_used, session_duration_seconds FROM alicia_session_stats"
    assert rows_of(db, counters) == [(0, 0, 0, 0)]


def test_sessions_of_one_conversation_are_found_by_their_index(db: Connection) -> None:
    nodes = plan_nodes(db, "SELECT * FROM alicia_session_stats WHERE conversation_id = 'ac_1'")
    assert [node["Index Name"] for node in nodes if "Index Name" in node] == ["idx_session_stats_conversation"]


def test_sessions_of_a_window_are_found_by_their_index(db: Connection) -> None:
    nodes = plan_nodes(db, "SELECT * FROM alicia_session_stats WHERE created_at > NOW() - INTERVAL '30 days'")
    assert [node["Index Name"] for node in nodes if "Index Name" in node] == ["idx_session_stats_created_at"]


def test_the_newest_sessions_are_read_from_the_index_in_its_order(db: Connection) -> None:
    nodes = plan_nodes(db, "SELECT * FROM alicia_session_stats ORDER BY created_at DESC LIMIT 10")
    assert [node["Node Type"] for node in nodes] == ["Limit", "Index Scan"]
    assert (nodes[-1]["Index Name"], nodes[-1]["Scan Direction"]) == ("idx_session_stats_created_at", "Forward")
