"""Every query file keeps the contract of its header; the specification's three answer what can be computed by hand."""

import csv
import io
import re
import shlex
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from conftest import EVENTS, ROOT, SERVER, conninfo_of, psql, scalar
from psycopg.conninfo import make_conninfo

from runner import connect, main, migrate, named_queries, query, read_query, run_query

Connection = psycopg.Connection[Any]
Insert = Callable[..., str]
Rows = list[list[str]]

QUERIES = named_queries()
READERS = [name for name, each in QUERIES.items() if not each.writes]
# A file that writes, and one that has nothing to say about a healthy sample, is so on purpose.
WRITERS = {"delete_sessions_before", "rebuild_sessions", "record_activity", "start_session"}
SILENT = {"verify", "verify_sums"}
# So is one that composes statements with FORMAT.
FORMATTING = {"verify"}
# The server's statistics move by themselves: of these answers, only the shape can be compared.
MOVING = {"table_health"}
# A value for each required parameter, and another one than the default for the rest.
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
    "seconds": "40",
    "session_id": "ass_sample",
    "since_days": "7",
    "tool_calls": "3",
    "tz": "Asia/Kathmandu",
    "weeks": "4",
}
RESERVED = {"conninfo", "database", "explain", "format", "help", "name", "timeout"}

every_query = pytest.mark.parametrize("name", QUERIES)
every_reader = pytest.mark.parametrize("name", READERS)
every_writer = pytest.mark.parametrize("name", sorted(WRITERS))


def path_of(name: str) -> Path:
    return ROOT / "queries" / f"{name}.sql"


def header_of(name: str) -> list[str]:
    lines = path_of(name).read_text().splitlines()
    return lines[: next(number for number, line in enumerate(lines) if not line.startswith("--"))]


def field(name: str, label: str) -> str:
    """The text of a header's field, its continuation lines included."""
    found = re.search(rf"^-- {label}: (.+(?:\n--  +.+)*)", "\n".join(header_of(name)), re.M)
    assert found, f"{name} has no {label}"
    return re.sub(r"\n-- +", " ", found[1])


def declared(name: str) -> dict[str, str | None]:
    """The parameters of the header, and their defaults."""
    params = re.findall(r"^-- Param (\w+) \(\w+(?:, default (.+?))?\): \w", path_of(name).read_text(), re.M)
    return {param: default or None for param, default in params}


def body(name: str) -> str:
    """What the server gets to see: no psql command, no comment."""
    return re.sub(r"^\\.*\n|--.*", "", path_of(name).read_text(), flags=re.M)


def values(name: str, given: dict[str, str]) -> dict[str, str]:
    """A value for every parameter: the given one, else the default, else the one it needs."""
    return {param: given.get(param) or default or GIVEN[param] for param, default in declared(name).items()}


# The header ---------------------------------------------------------------------------------------------


@every_query
def test_the_first_line_is_one_sentence(name: str) -> None:
    assert re.fullmatch(r"-- [A-Z](?:[^.]|\.(?! ))*\.", header_of(name)[0])
    assert header_of(name)[1] == "--"


@every_query
def test_the_fields_stand_in_their_order(name: str) -> None:
    block = header_of(name)[2:]
    lines = block[: block.index("--")]
    labels = [re.match(r"-- (Purpose|Mode|Param|Returns|Reads)\b|-- {2,}\S", line) for line in lines]
    assert all(labels), lines
    order = "".join(f"{label[1]} " for label in labels if label and label[1])
    assert re.fullmatch(r"Purpose (Mode )?(Param )*Returns Reads ", order)


@every_query
def test_every_param_has_a_type_and_a_description(name: str) -> None:
    assert len(declared(name)) == len(re.findall(r"^-- Param\b", path_of(name).read_text(), re.M))


@every_query
def test_the_declared_parameters_are_the_used_ones(name: str) -> None:
    assert set(re.findall(r":'(\w+)'", body(name))) == declared(name).keys()


@every_query
def test_psqls_defaults_are_the_headers(name: str) -> None:
    commands = re.findall(r"^\\.*", path_of(name).read_text(), re.M)
    expected: list[str] = []
    for param, default in declared(name).items():
        if default is not None:
            expected += [f"\\if :{{?{param}}}", "\\else", f"\\set {param} {default}", "\\endif"]
    assert commands == expected


@every_query
def test_the_runner_reads_the_same_parameters(name: str) -> None:
    assert {param.name: param.default for param in QUERIES[name].params} == declared(name)


@every_query
def test_the_only_parameter_form_is_the_quoted_one(name: str) -> None:
    bare = re.sub(r":'\w+'|'(?:[^']|'')*'|::", "", body(name))  # psql looks for variables outside of literals only.
    assert re.findall(r":\w+|:\"|:{", bare) == []


@every_query
def test_no_percent_sign(name: str) -> None:
    assert ("%" in path_of(name).read_text()) == (name in FORMATTING)


@every_query
def test_no_parameter_hides_an_option_of_the_runner(name: str) -> None:
    assert not declared(name).keys() & RESERVED


@every_query
def test_mode_is_writes_or_not_there(name: str) -> None:
    assert re.findall(r"^-- Mode: (.+)", path_of(name).read_text(), re.M) == (["writes"] if name in WRITERS else [])


@every_reader
def test_the_headers_psql_command_runs(name: str, sample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = shlex.split(header_of(name)[-1].removeprefix("-- "))
    assert command[0] == "psql"
    assert command[-2:] == ["-f", f"queries/{name}.sql"]
    given = [each.partition("=")[0] for each in command[1:-2] if each != "-v"]
    required = {param for param, default in declared(name).items() if default is None}
    assert required <= set(given) <= declared(name).keys()
    monkeypatch.chdir(ROOT)
    done = psql(sample, *command[1:])
    assert (done.returncode, done.stderr) == (0, "")


# What every query answers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample() -> Iterator[str]:
    """A migrated database with a sample of 400 sessions, and a conversation and a session of known ids."""
    conninfo = make_conninfo(**{**SERVER, "dbname": "alicia_sample"})
    with psycopg.connect(**SERVER, autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS alicia_sample WITH (FORCE)")
        server.execute("CREATE DATABASE alicia_sample")
        migrate(conninfo)
        run_query(conninfo, read_query(ROOT / "bench" / "sample.sql"), {"rows": 400, "last": 400})
        with connect(conninfo) as connection:
            connection.execute("INSERT INTO alicia_conversations VALUES ('ac_sample')")
            connection.execute(
                "UPDATE alicia_session_stats SET conversation_id = 'ac_sample' "
                "WHERE id IN (SELECT id FROM alicia_session_stats ORDER BY created_at DESC, id LIMIT 5)"
            )
            connection.execute("INSERT INTO alicia_session_stats (id, conversation_id) VALUES ('ass_sample', 'ac_sample')")
            connection.execute(EVENTS)
            connection.execute("ANALYZE")
        yield conninfo
        server.execute("DROP DATABASE alicia_sample WITH (FORCE)")


def rows_of(text: str) -> Rows:
    """CSV, taken apart; of a time, psql prints no trailing zeros."""
    return [[re.sub(r"(:\d\d\.\d+?)0+$", r"\1", cell) for cell in row] for row in csv.reader(io.StringIO(text))]


def answer_of_psql(conninfo: str, name: str, given: dict[str, str]) -> Rows:
    variables = [part for param, value in given.items() for part in ("-v", f"{param}={value}")]
    done = psql(conninfo, "--csv", "-q", *variables, "-c", "BEGIN", "-f", path_of(name), "-c", "ROLLBACK")
    assert (done.returncode, done.stderr) == (0, "")
    return rows_of(done.stdout)


def answer_of_runner(conninfo: str, name: str, given: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Rows:
    options = [f"--{param}={value}" for param, value in given.items()]
    code = main(["query", name, *options, "--format", "csv", "--database", conninfo])
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    return rows_of(said.out)


@every_reader
@pytest.mark.parametrize("with_parameters", [False, True], ids=["defaults", "parameters"])
def test_psql_and_the_runner_answer_alike(
    name: str, with_parameters: bool, sample: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {param: GIVEN[param] for param, default in declared(name).items() if with_parameters or default is None}
    by_psql, by_runner = answer_of_psql(sample, name, given), answer_of_runner(sample, name, given, capsys)
    if name in MOVING:
        by_psql, by_runner = ([rows[0], *([row[0]] for row in rows[1:])] for rows in (by_psql, by_runner))
    assert by_psql == by_runner


@pytest.fixture
def written(sample: str) -> Iterator[str]:
    """A copy of the sample, to write in."""
    with psycopg.connect(**SERVER, autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS alicia_written WITH (FORCE)")
        server.execute("CREATE DATABASE alicia_written TEMPLATE alicia_sample")
        yield make_conninfo(sample, dbname="alicia_written")
        server.execute("DROP DATABASE alicia_written WITH (FORCE)")


@every_writer
@pytest.mark.parametrize("with_parameters", [False, True], ids=["defaults", "parameters"])
def test_psql_and_the_runner_write_alike(
    name: str, with_parameters: bool, written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {param: GIVEN[param] for param, default in declared(name).items() if with_parameters or default is None}
    by_psql, by_runner = answer_of_psql(written, name, given), answer_of_runner(written, name, given, capsys)
    assert by_psql[0] == by_runner[0]
    # Ids and times are new each time.
    told = [n for n, column in enumerate(by_psql[0]) if column not in {"id", "created_at", "updated_at"}]
    assert [[row[n] for n in told] for row in by_psql] == [[row[n] for n in told] for row in by_runner]


@every_reader
def test_the_answer_does_not_depend_on_the_time_zone(name: str, sample: str) -> None:
    answers: list[str] = []
    with connect(sample) as connection, connection.transaction():  # One transaction, one NOW().
        for zone in ("UTC", "Asia/Kathmandu", "America/Los_Angeles"):
            connection.execute("SELECT SET_CONFIG('TimeZone', %s, TRUE)", [zone])
            answers.append(repr(connection.execute(QUERIES[name].statement.encode(), values(name, {})).fetchall()))
    assert len(set(answers)) == 1


@every_reader
def test_the_sample_gives_an_answer_that_is_not_empty(name: str, sample: str) -> None:
    rows = query(sample, name, **values(name, {}))
    assert (rows == []) == (name in SILENT)
    assert all(any(value is not None for value in row.values()) for row in rows)


@every_query
def test_the_index_that_the_header_names_is_searched(name: str, sample: str) -> None:
    named = set() if field(name, "Reads") == "no index" else set(field(name, "Reads").split(", "))
    with connect(sample) as connection, connection.transaction():
        connection.execute("SET LOCAL enable_seqscan = off")
        plan = connection.execute(f"EXPLAIN {QUERIES[name].statement}".encode(), values(name, {})).fetchall()
    # With a condition: without one, an index is only read where the table would be.
    search = r"(?:using|Index Scan on) (\w+).*\n +Index Cond|Conflict Arbiter Indexes: (\w+)|Scan Backward using (\w+)"
    searched = {name for names in re.findall(search, "\n".join(line for (line,) in plan)) for name in names}
    assert named <= searched


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
def test_a_specified_query_answers_what_the_specifications_own_text_does(name: str, db: Connection, insert: Insert) -> None:
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
        expected, found = specified.fetchall(), ours.fetchall()
    # The specification's first query has no order, so any will do.
    assert (sorted(found) if name == "session_stats" else found) == (sorted(expected) if name == "session_stats" else expected)
    assert len(found) == {"session_stats": 6, "average_session_metrics": 1, "most_active_sessions": 10}[name]


def test_session_stats_lists_the_sessions_of_its_conversation_newest_first(db: Connection, insert: Insert) -> None:
    insert("ac_1", message_count=3, tool_call_count=2, memories_used=1, session_duration_seconds=60, created_at="2025-01-01")
    insert("ac_1", message_count=5, tool_call_count=0, memories_used=4, session_duration_seconds=90, created_at="2025-01-02")
    insert("ac_2", message_count=9)
    assert query(conninfo_of(db), "session_stats", conversation_id="ac_1") == [
        {"message_count": 5, "tool_call_count": 0, "memories_used": 4, "session_duration_seconds": 90},
        {"message_count": 3, "tool_call_count": 2, "memories_used": 1, "session_duration_seconds": 60},
    ]


def test_session_stats_orders_sessions_of_the_same_instant_by_id(db: Connection, insert: Insert) -> None:
    for n in (2, 3, 1):
        insert(id=f"ass_{n}", message_count=n, created_at="2025-01-01")
    rows = query(conninfo_of(db), "session_stats", conversation_id="ac_1")
    assert [row["message_count"] for row in rows] == [3, 2, 1]


def test_session_stats_of_a_conversation_without_sessions_is_empty(db: Connection, insert: Insert) -> None:
    insert("ac_1")
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_silent')")
    assert query(conninfo_of(db), "session_stats", conversation_id="ac_silent") == []
    assert query(conninfo_of(db), "session_stats", conversation_id="ac_none") == []


UNUSUAL = [
    "it's",
    "''",
    "' OR TRUE --",
    '"quoted"',
    "100%",
    "%s %(limit)s %%",
    "back\\slash",
    "\\'",
    ":limit :'limit' ::",
    "a:b",
    "$1 $$",
    "{}",
    "; SELECT 1",
    "spaced  out ",
    "--limit",
    "",
    "déjà 日本 🙂",
    "two\nlines",
]


def test_session_stats_finds_the_most_unusual_conversation_id_and_no_other(
    db: Connection, insert: Insert, capsys: pytest.CaptureFixture[str]
) -> None:
    conninfo, columns = conninfo_of(db), ["message_count", "tool_call_count", "memories_used", "session_duration_seconds"]
    for n, conversation_id in enumerate(UNUSUAL):
        insert(conversation_id, message_count=n)
    for n, conversation_id in enumerate(UNUSUAL):
        given, expected = {"conversation_id": conversation_id}, [columns, [str(n), "0", "0", "0"]]
        assert answer_of_psql(conninfo, "session_stats", given) == expected, conversation_id
        assert answer_of_runner(conninfo, "session_stats", given, capsys) == expected, conversation_id


def test_average_session_metrics_are_means_over_the_window(db: Connection, insert: Insert) -> None:
    for messages, tools, seconds in [(1, 0, 60), (2, 1, 120), (6, 5, 90)]:
        insert(message_count=messages, tool_call_count=tools, session_duration_seconds=seconds)
    insert(message_count=1000, created_at="2020-01-01")
    assert query(conninfo_of(db), "average_session_metrics") == [
        {"avg_messages": Decimal(3), "avg_tools": Decimal(2), "avg_duration_minutes": Decimal("1.5")}
    ]


def test_average_session_metrics_of_no_session_are_null(db: Connection, insert: Insert) -> None:
    nothing = {"avg_messages": None, "avg_tools": None, "avg_duration_minutes": None}
    assert query(conninfo_of(db), "average_session_metrics") == [nothing]
    insert(message_count=1)
    assert query(conninfo_of(db), "average_session_metrics", days=0) == [nothing]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/Los_Angeles"])
def test_a_session_exactly_30_days_old_is_outside_and_one_a_microsecond_younger_inside(
    zone: str, db: Connection, insert: Insert
) -> None:
    with db.transaction():  # One transaction, one NOW().
        db.execute("SELECT SET_CONFIG('TimeZone', %s, TRUE)", [zone])
        edge = scalar(db, "SELECT NOW() AT TIME ZONE 'UTC' - INTERVAL '30 days'")
        found: list[Any] = []
        for created_at in (edge, edge + timedelta(microseconds=1)):
            insert(message_count=len(found) + 1, created_at=created_at)
            averages = db.execute(QUERIES["average_session_metrics"].statement.encode(), {"days": "30"}).fetchone()
            found.append(averages and averages[0])
    assert found == [None, 2]


def test_most_active_sessions_have_the_most_messages_first(db: Connection, insert: Insert) -> None:
    for n in range(12):
        insert(f"ac_{n}", message_count=n * 5 % 12, tool_call_count=n)
    rows = query(conninfo_of(db), "most_active_sessions")
    assert [row["message_count"] for row in rows] == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert rows[0] == {"conversation_id": "ac_7", "message_count": 11, "tool_call_count": 7}


def test_most_active_sessions_put_the_newer_first_and_then_the_larger_id(db: Connection, insert: Insert) -> None:
    for n, day in [(1, "2025-01-01"), (2, "2025-01-03"), (4, "2025-01-02"), (3, "2025-01-02")]:
        insert(f"ac_{n}", id=f"ass_{n}", message_count=7, created_at=day)
    rows = query(conninfo_of(db), "most_active_sessions", limit=3)
    assert [row["conversation_id"] for row in rows] == ["ac_2", "ac_4", "ac_3"]


def test_most_active_sessions_list_a_conversation_once_for_each_session(db: Connection, insert: Insert) -> None:
    insert("ac_1", message_count=1)
    insert("ac_1", message_count=2)
    assert [row["conversation_id"] for row in query(conninfo_of(db), "most_active_sessions")] == ["ac_1", "ac_1"]


@pytest.mark.parametrize(("limit", "found"), [(0, 0), (1, 1), (2, 2), (3, 2), (2**31 - 1, 2)])
def test_most_active_sessions_are_limited(limit: int, found: int, db: Connection, insert: Insert) -> None:
    insert("ac_1", message_count=1)
    insert("ac_2", message_count=2)
    assert len(query(conninfo_of(db), "most_active_sessions", limit=limit)) == found


def test_most_active_sessions_of_no_session_are_none(db: Connection) -> None:
    assert query(conninfo_of(db), "most_active_sessions") == []
