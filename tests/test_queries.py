"""Every query file keeps the contract of its header, and the specification's three queries answer what it says."""

import csv
import io
import re
import shlex
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from conftest import EVENTS, ROOT, SERVER, cli, conninfo_of, psql, scalar
from psycopg.conninfo import make_conninfo

import alicia_session_stats as stats

Connection = psycopg.Connection[Any]
Insert = Callable[..., str]
Rows = list[list[str]]

QUERIES = stats.queries()
READERS = [name for name, each in QUERIES.items() if not each.writes]
WRITERS = {"delete_sessions_before", "rebuild_sessions", "record_activity", "record_totals", "start_session", "summarize_days"}
SILENT = {"verify", "verify_rollup"}  # No row when there is no difference.
FORMATTING = {"verify", "verify_rollup"}  # May compose statements with FORMAT, which needs a percent sign.
MOVING = {"table_health"}  # The server's statistics change by themselves.
# A value for each required parameter, and one that is not the default for the others.
GIVEN = {
    "batch": "5",
    "conversations": "false",
    "conversation_id": "ac_sample",
    "days": "90",
    "gap_minutes": "60",
    "horizon": "7",
    "limit": "3",
    "memories": "1",
    "messages": "2",
    "min_messages": "2",
    "min_seconds": "30",
    "metric": "memories",
    "seconds": "40",
    "session_id": "ass_sample",
    "since_days": "7",
    "tool_calls": "3",
    "tz": "Asia/Kathmandu",
    "unit": "week",
    "until": "tomorrow",
    "weeks": "4",
}
OPTIONS = {"conninfo", "database", "explain", "format", "help", "name", "timeout"}  # The runner's own.

every_query = pytest.mark.parametrize("name", QUERIES)
every_reader = pytest.mark.parametrize("name", READERS)


def path_of(name: str) -> Path:
    return ROOT / "queries" / f"{name}.sql"


def header_of(name: str) -> list[str]:
    lines = path_of(name).read_text().splitlines()
    return lines[: next(number for number, line in enumerate(lines) if not line.startswith("--"))]


def field(name: str, label: str) -> list[str]:
    """The lines of a field of the header."""
    found = re.search(rf"^-- {label}: (.+(?:\n--  +.+)*)", "\n".join(header_of(name)), re.M)
    assert found, f"{name} has no {label}"
    return found[1].split("\n")


def declared(name: str) -> dict[str, str | None]:
    """The parameters that the header declares, and their defaults."""
    params = re.findall(r"^-- Param (\w+) \(\w+(?:, default (.+?))?\): \w", path_of(name).read_text(), re.M)
    return {param: default or None for param, default in params}


def body(name: str) -> str:
    """The file without psql's commands and comments."""
    return re.sub(r"^\\.*\n|--.*", "", path_of(name).read_text(), flags=re.M)


def values(name: str, given: dict[str, str]) -> dict[str, str]:
    """A value for every parameter: the given one, else the default, else one that the sample knows."""
    return {param: given.get(param) or default or GIVEN[param] for param, default in declared(name).items()}


# The header ---------------------------------------------------------------------------------------------


@every_query
def test_first_line_is_one_sentence(name: str) -> None:
    assert re.fullmatch(r"-- [A-Z](?:[^.]|\.(?! ))*\.", header_of(name)[0])
    assert header_of(name)[1] == "--"


@every_query
def test_header_has_its_fields_in_order(name: str) -> None:
    block = header_of(name)[2:]
    lines = block[: block.index("--")]
    labels = [re.match(r"-- (Purpose|Mode|Param|Returns|Model|Cost|Reads)\b|-- {2,}\S", line) for line in lines]
    assert all(labels), lines
    order = "".join(f"{label[1]} " for label in labels if label and label[1])
    assert re.fullmatch(r"Purpose (Mode )?(Param )*Returns (Model )?(Cost )?Reads ", order)


@every_query
def test_header_declares_the_parameters_that_the_sql_uses(name: str) -> None:
    assert len(declared(name)) == len(re.findall(r"^-- Param\b", path_of(name).read_text(), re.M))
    assert declared(name).keys() == set(re.findall(r":'(\w+)'", body(name)))
    assert declared(name) == {param.name: param.default for param in QUERIES[name].params}


@every_query
def test_psql_uses_the_defaults_of_the_header(name: str) -> None:
    commands = re.findall(r"^\\.*", path_of(name).read_text(), re.M)
    expected: list[str] = []
    for param, default in declared(name).items():
        if default is not None:
            expected += [f"\\if :{{?{param}}}", "\\else", f"\\set {param} {default}", "\\endif"]
    assert commands == expected


@every_query
def test_only_the_quoted_form_of_a_parameter_is_used(name: str) -> None:
    without_literals = re.sub(r":'\w+'|'(?:[^']|'')*'|::", "", body(name))
    assert re.findall(r":\w+|:\"|:{", without_literals) == []


@every_query
def test_no_percent_sign_that_a_driver_would_have_to_double(name: str) -> None:
    assert "%" not in path_of(name).read_text() or name in FORMATTING


@every_query
def test_no_parameter_hides_an_option_of_the_command_line(name: str) -> None:
    assert not declared(name).keys() & OPTIONS


@every_query
def test_only_a_file_that_writes_is_marked_as_writing(name: str) -> None:
    assert re.findall(r"^-- Mode: (.+)", path_of(name).read_text(), re.M) == (["writes"] if name in WRITERS else [])


@every_reader
def test_example_in_the_header_runs_in_psql(name: str, sample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = shlex.split(header_of(name)[-1].removeprefix("-- "))
    assert command[0] == "psql"
    assert command[-2:] == ["-f", f"queries/{name}.sql"]
    given = [each.partition("=")[0] for each in command[1:-2] if each != "-v"]
    required = {param for param, default in declared(name).items() if default is None}
    assert required <= set(given) <= declared(name).keys()
    monkeypatch.chdir(ROOT)
    done = psql(sample, *command[1:])
    assert (done.returncode, done.stderr) == (0, "")


@every_query
def test_columns_that_the_header_explains_exist(name: str, sample: str) -> None:
    items = [re.match(r"--     (\S.*?)(?:  |$)", line) for line in field(name, "Returns")[1:]]
    explained = {column for item in items if item for column in item[1].split(", ") if re.fullmatch(r"\w+", column)}
    with stats.connect(sample) as connection, connection.transaction(force_rollback=True):
        columns = connection.execute(QUERIES[name].statement.encode(), values(name, {})).description or ()
    assert explained <= {column.name for column in columns}


# What every query answers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample() -> Iterator[str]:
    """A migrated database with a sample of 400 sessions, and a conversation and a session of known ids."""
    conninfo = make_conninfo(**{**SERVER, "dbname": "alicia_sample"})
    with psycopg.connect(**SERVER, autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS alicia_sample WITH (FORCE)")
        server.execute("CREATE DATABASE alicia_sample")
        stats.migrate(conninfo)
        psql(conninfo, "-v", "rows=400", "-v", "last=400", "-f", ROOT / "bench" / "sample.sql").check_returncode()
        with stats.connect(conninfo) as connection:
            connection.execute("INSERT INTO alicia_conversations VALUES ('ac_sample')")
            connection.execute(
                "UPDATE alicia_session_stats SET conversation_id = 'ac_sample' "
                "WHERE id IN (SELECT id FROM alicia_session_stats ORDER BY created_at DESC, id LIMIT 5)"
            )
            connection.execute("INSERT INTO alicia_session_stats (id, conversation_id) VALUES ('ass_sample', 'ac_sample')")
            connection.execute(EVENTS)
            connection.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id TEXT")
            connection.execute("UPDATE alicia_conversations SET user_id = 'user_' || ABS(HASHTEXT(id)) %% 9", [])
            connection.execute("ANALYZE")
        yield conninfo
        server.execute("DROP DATABASE alicia_sample WITH (FORCE)")


def answer_of_psql(conninfo: str, name: str, given: dict[str, str]) -> Rows:
    variables = [part for param, value in given.items() for part in ("-v", f"{param}={value}")]
    done = psql(conninfo, "--csv", "-q", *variables, "-c", "BEGIN", "-f", path_of(name), "-c", "ROLLBACK")
    assert (done.returncode, done.stderr) == (0, "")
    return list(csv.reader(io.StringIO(done.stdout)))


def answer_of_python(conninfo: str, name: str, given: dict[str, str]) -> Rows:
    with stats.connect(conninfo) as connection, connection.transaction(force_rollback=True):
        rows = stats.query(connection, name, **given)
    return [list(rows[0]) if rows else [], *([printed(value) for value in row.values()] for row in rows)]


def printed(value: object) -> str:
    """A value as psql prints it."""
    match value:
        case None:
            return ""
        case bool():
            return "t" if value else "f"
        case datetime(microsecond=microsecond):
            return value.isoformat(" ").rstrip("0") if microsecond else value.isoformat(" ")
        case _:
            return str(value)


@every_query
@pytest.mark.parametrize("with_parameters", [False, True], ids=["defaults", "parameters"])
def test_psql_and_python_answer_alike(name: str, with_parameters: bool, sample: str) -> None:
    given = {param: GIVEN[param] for param, default in declared(name).items() if with_parameters or default is None}
    by_psql, by_python = answer_of_psql(sample, name, given), answer_of_python(sample, name, given)
    if name in SILENT:
        assert by_python == [[]]
        assert len(by_psql) == 1
        return
    assert by_psql[0] == by_python[0]
    moving = {"id", "created_at", "updated_at"} if name in WRITERS else set(by_psql[0][1:]) if name in MOVING else set[str]()
    kept = [number for number, column in enumerate(by_psql[0]) if column not in moving]
    assert [[row[n] for n in kept] for row in by_psql] == [[row[n] for n in kept] for row in by_python]


@every_reader
def test_answer_does_not_depend_on_the_sessions_time_zone(name: str, sample: str) -> None:
    answers: list[str] = []
    with stats.connect(sample) as connection, connection.transaction():  # One transaction, one NOW().
        for zone in ("UTC", "Asia/Kathmandu", "America/Los_Angeles"):
            connection.execute("SELECT SET_CONFIG('TimeZone', %s, TRUE)", [zone])
            answers.append(repr(stats.query(connection, name, **values(name, {}))))
    assert len(set(answers)) == 1


@every_reader
def test_sample_gets_an_answer(name: str, sample: str) -> None:
    rows = stats.query(sample, name, **values(name, {}))
    assert (rows == []) == (name in SILENT)
    assert all(any(value is not None for value in row.values()) for row in rows)


@pytest.mark.parametrize("name", READERS)
def test_no_number_has_more_decimals_than_are_meaningful(name: str, sample: str) -> None:
    for row in stats.query(sample, name, **values(name, {})):
        for column, value in row.items():
            assert not isinstance(value, float), column
            if isinstance(value, Decimal):
                exponent = value.as_tuple().exponent
                assert isinstance(exponent, int)
                assert exponent >= (-3 if column.endswith("_r2") else -2), column


@every_query
def test_indexes_that_the_header_names_are_used(name: str, sample: str) -> None:
    named = set(", ".join(field(name, "Reads")).split(", ")) - {"no index"}
    with stats.connect(sample) as connection, connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL enable_seqscan = off")
        plan = connection.execute(f"EXPLAIN {QUERIES[name].statement}".encode(), values(name, {})).fetchall()
        in_functions = set[str]()
        if "Function Scan on alicia_session_stats_" in str(plan):  # EXPLAIN does not show what a function reads.
            connection.execute(QUERIES[name].statement.encode(), values(name, {}))
            scanned = "SELECT relname FROM pg_class WHERE relkind = 'i' AND PG_STAT_GET_XACT_NUMSCANS(oid) > 0"
            in_functions = {relname for (relname,) in connection.execute(scanned.encode()).fetchall()}
    # Only with a condition or for an order: without these, an index scan stands for the sequential scan.
    search = r"(?:using|Index Scan on) (\w+).*\n +Index Cond|Conflict Arbiter Indexes: (\w+)|Scan Backward using (\w+)"
    searched = {name for names in re.findall(search, "\n".join(line for (line,) in plan)) for name in names}
    assert named <= searched | in_functions


# The specification's three -------------------------------------------------------------------------------

SPECIFIED: dict[str, LiteralString] = {
    "session_stats": """
        SELECT message_count, tool_call_count, memories_used, session_duration_seconds
        FROM alicia_session_stats
        WHERE conversation_id = 'ac_xxx';
    """,
    "average_session_metrics": """
        SELECT
            AVG(message_count) as avg_messages,
            AVG(tool_call_count) as avg_tools,
            AVG(session_duration_seconds) / 60.0 as avg_duration_minutes
        FROM alicia_session_stats
        WHERE created_at > NOW() - INTERVAL '30 days';
    """,
    "most_active_sessions": """
        SELECT conversation_id, message_count, tool_call_count
        FROM alicia_session_stats
        ORDER BY message_count DESC
        LIMIT 10;
    """,
}


@pytest.mark.parametrize("name", SPECIFIED)
def test_answer_is_the_one_of_the_specifications_own_text(name: str, db: Connection, insert: Insert) -> None:
    db.execute("SET TimeZone = 'UTC'")
    now = scalar(db, "SELECT NOW()::TIMESTAMP")
    for n in range(24):  # Two sessions a conversation, one in four of ac_xxx; the last third is older than 30 days.
        conversation = "ac_xxx" if n % 4 == 0 else f"ac_{n % 8}"
        insert(
            conversation,
            message_count=n * 7 % 24,
            tool_call_count=n,
            memories_used=n % 3,
            session_duration_seconds=n * 61,
            created_at=now - timedelta(days=2 * n - 1, hours=1),
        )
    with db.transaction():
        specified = db.execute(SPECIFIED[name])
        ours = db.execute(QUERIES[name].statement.encode(), values(name, {"conversation_id": "ac_xxx"}))
        assert [column.name for column in ours.description or ()] == [column.name for column in specified.description or ()]
        # A mean is rounded to two decimals.
        cent = Decimal("0.01")
        expected = [tuple(v.quantize(cent, ROUND_HALF_UP) if isinstance(v, Decimal) else v for v in row) for row in specified]
        found = ours.fetchall()
    # The specification's first query has no order, so any will do.
    assert (sorted(found) if name == "session_stats" else found) == (sorted(expected) if name == "session_stats" else expected)
    assert len(found) == {"session_stats": 6, "average_session_metrics": 1, "most_active_sessions": 10}[name]


def test_session_stats_lists_the_sessions_of_its_conversation_newest_first(db: Connection, insert: Insert) -> None:
    insert("ac_1", message_count=3, tool_call_count=2, memories_used=1, session_duration_seconds=60, created_at="2025-01-01")
    insert("ac_1", message_count=5, tool_call_count=0, memories_used=4, session_duration_seconds=90, created_at="2025-01-02")
    insert("ac_2", message_count=9)
    assert stats.query(db, "session_stats", conversation_id="ac_1") == [
        {"message_count": 5, "tool_call_count": 0, "memories_used": 4, "session_duration_seconds": 90},
        {"message_count": 3, "tool_call_count": 2, "memories_used": 1, "session_duration_seconds": 60},
    ]


def test_session_stats_orders_sessions_of_the_same_instant_by_id(db: Connection, insert: Insert) -> None:
    for n in (2, 3, 1):
        insert(id=f"ass_{n}", message_count=n, created_at="2025-01-01")
    rows = stats.query(db, "session_stats", conversation_id="ac_1")
    assert [row["message_count"] for row in rows] == [3, 2, 1]


def test_session_stats_of_a_conversation_without_sessions_is_empty(db: Connection, insert: Insert) -> None:
    insert("ac_1")
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_silent')")
    assert stats.query(db, "session_stats", conversation_id="ac_silent") == []
    assert stats.query(db, "session_stats", conversation_id="ac_none") == []


# Ids that a client which pastes them into SQL, or into a format string, would get wrong.
UNUSUAL = ["it's", "' OR TRUE --", '"quoted"', "100%", "%s %(limit)s %%", "back\\slash", ":limit :'limit' ::", "$1 $$", "--limit"]
UNUSUAL += ["", "spaced  out ", "déjà 日本 🙂", "two\nlines"]


def test_unusual_conversation_id_finds_its_own_sessions(db: Connection, insert: Insert) -> None:
    conninfo, columns = conninfo_of(db), ["message_count", "tool_call_count", "memories_used", "session_duration_seconds"]
    for n, conversation_id in enumerate(UNUSUAL):
        insert(conversation_id, message_count=n)
    for n, conversation_id in enumerate(UNUSUAL):
        given, expected = {"conversation_id": conversation_id}, [columns, [str(n), "0", "0", "0"]]
        assert answer_of_psql(conninfo, "session_stats", given) == expected, conversation_id
        assert answer_of_python(conninfo, "session_stats", given) == expected, conversation_id


def test_average_session_metrics_are_means_over_the_window(db: Connection, insert: Insert) -> None:
    for messages, tools, seconds in [(1, 0, 60), (2, 1, 120), (6, 5, 90)]:
        insert(message_count=messages, tool_call_count=tools, session_duration_seconds=seconds)
    insert(message_count=1000, created_at="2020-01-01")
    assert stats.query(db, "average_session_metrics") == [
        {"avg_messages": Decimal(3), "avg_tools": Decimal(2), "avg_duration_minutes": Decimal("1.5")}
    ]


def test_average_session_metrics_without_sessions_are_null(db: Connection, insert: Insert) -> None:
    nothing = {"avg_messages": None, "avg_tools": None, "avg_duration_minutes": None}
    assert stats.query(db, "average_session_metrics") == [nothing]
    insert(message_count=1)
    assert stats.query(db, "average_session_metrics", days=0) == [nothing]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/Los_Angeles"])
def test_session_exactly_30_days_old_is_outside_and_one_a_microsecond_younger_inside(
    zone: str, db: Connection, insert: Insert
) -> None:
    with db.transaction():  # One transaction, one NOW().
        db.execute("SELECT SET_CONFIG('TimeZone', %s, TRUE)", [zone])
        edge = scalar(db, "SELECT NOW() AT TIME ZONE 'UTC' - INTERVAL '30 days'")
        found: list[Any] = []
        for created_at in (edge, edge + timedelta(microseconds=1)):
            insert(message_count=len(found) + 1, created_at=created_at)
            found += [row["avg_messages"] for row in stats.query(db, "average_session_metrics")]
    assert found == [None, 2]


def test_most_active_sessions_have_the_most_messages_first(db: Connection, insert: Insert) -> None:
    for n in range(12):
        insert(f"ac_{n}", message_count=n * 5 % 12, tool_call_count=n)
    rows = stats.query(db, "most_active_sessions")
    assert [row["message_count"] for row in rows] == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert rows[0] == {"conversation_id": "ac_7", "message_count": 11, "tool_call_count": 7}


def test_most_active_sessions_with_equal_messages_have_the_newest_first_then_the_larger_id(
    db: Connection, insert: Insert
) -> None:
    for n, day in [(1, "2025-01-01"), (2, "2025-01-03"), (4, "2025-01-02"), (3, "2025-01-02")]:
        insert(f"ac_{n}", id=f"ass_{n}", message_count=7, created_at=day)
    rows = stats.query(db, "most_active_sessions", limit=3)
    assert [row["conversation_id"] for row in rows] == ["ac_2", "ac_4", "ac_3"]


def test_most_active_sessions_list_a_conversation_once_per_session(db: Connection, insert: Insert) -> None:
    insert("ac_1", message_count=1)
    insert("ac_1", message_count=1)
    assert [row["conversation_id"] for row in stats.query(db, "most_active_sessions")] == ["ac_1", "ac_1"]


def test_most_active_sessions_beyond_the_top_list_come_from_the_table(db: Connection, insert: Insert) -> None:
    insert()
    db.execute(
        "INSERT INTO alicia_session_stats (conversation_id, message_count) SELECT 'ac_1', n FROM GENERATE_SERIES(1, 3000) AS n"
    )
    in_top_list = scalar(db, "SELECT COUNT(*) FROM alicia_session_stats_top_sessions")
    assert 500 <= in_top_list < 3000
    for limit in (in_top_list, in_top_list + 1, 3001, 9999):
        found = [row["message_count"] for row in stats.query(db, "most_active_sessions", limit=limit)]
        assert found == list(range(3000, -1, -1))[:limit]


@pytest.mark.parametrize(("limit", "found"), [(0, 0), (1, 1), (2, 2), (3, 2), (2**31 - 1, 2)])
def test_most_active_sessions_are_limited(limit: int, found: int, db: Connection, insert: Insert) -> None:
    insert("ac_1", message_count=1)
    insert("ac_2", message_count=2)
    assert len(stats.query(db, "most_active_sessions", limit=limit)) == found


def test_most_active_sessions_of_an_empty_table_are_none(db: Connection) -> None:
    assert stats.query(db, "most_active_sessions") == []


# Input that SQL alone would accept ------------------------------------------------------------------------


def test_unknown_metric_is_one_clear_line_in_psql_python_and_the_command_line(db: Connection) -> None:
    allowed = "metric must be tool_calls, messages, memories or seconds"
    done = psql(conninfo_of(db), "-v", "metric=tokens", "-f", path_of("metric_usage"))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[0].endswith(f"ERROR:  {allowed}")
    with pytest.raises(stats.UsageError, match=allowed) as raised:
        stats.query(db, "metric_usage", metric="tokens")
    assert raised.value.sqlstate == "22023"
    done = cli("query", "metric_usage", "--metric", "tokens", "--database", conninfo_of(db))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert allowed in done.stderr
