"""The schema is the specification's: no object more, none less."""

from typing import Any

import psycopg


def test_columns_are_exactly_the_specifications(db: psycopg.Connection[Any]) -> None:
    columns = db.execute(
        "SELECT a.attname, FORMAT_TYPE(atttypid, atttypmod), attnotnull, PG_GET_EXPR(adbin, adrelid) FROM pg_attribute AS a "
        "LEFT JOIN pg_attrdef AS d ON d.adrelid = attrelid AND d.adnum = attnum "
        "WHERE attrelid = 'alicia_session_stats'::REGCLASS AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    ).fetchall()
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
