"""The command line and the Python API keep their contract: exit codes, streams, formats, and one line for each mistake."""

import asyncio
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from conftest import MIGRATIONS, ROOT, cli, conninfo_of, copy_product, psql, scalar
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

import alicia_session_stats as stats
import runner

Done = subprocess.CompletedProcess[str]
Database = psycopg.Connection[Any]
NOWHERE = "postgresql://127.0.0.1:1/nowhere"
QUERIES = sorted(path.stem for path in (ROOT / "queries").glob("*.sql"))


def assert_one_line(done: Done, code: int, *said: str) -> None:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("alicia-session-stats: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert [text for text in said if text not in done.stderr] == [], done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the product, with a query file `mine` of the statement and the header lines given; returns its runner.py."""

    def make(statement: str, *header: str) -> Path:
        runner_file = tmp_path / "runner.py" if (tmp_path / "runner.py").exists() else copy_product(tmp_path)
        lines = ["-- A query of the tests.", "--", "-- Purpose: operations", *(f"-- {line}" for line in header), statement]
        (tmp_path / "queries" / "mine.sql").write_text("\n".join(lines) + ";\n")
        return runner_file

    return make


def start(runner_file: Path, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command line of a copy; buffered, as for users, and interruptible, also where the tests are not."""
    return subprocess.Popen(
        [sys.executable, str(runner_file), *arguments],
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **{"stdout": subprocess.PIPE, **options},
    )


def finish(process: subprocess.Popen[bytes]) -> Done:
    out, err = process.communicate(timeout=60)
    return Done(process.args, process.returncode, (out or b"").decode(), err.decode())


def run_mine(runner_file: Path, db: Database, *arguments: str) -> Done:
    """Run the query of the tests; line ends are as it wrote them."""
    return finish(start(runner_file, "query", "mine", *arguments, "--database", conninfo_of(db)))


def ask(runner_file: Path, db: Database, *arguments: str) -> str:
    done = run_mine(runner_file, db, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# Which database


def url_of(db: Database, scheme: str) -> str:
    host, user, name = (quote(text, safe="") for text in (db.info.host, db.info.user, db.info.dbname))
    return f"{scheme}://{user}:{quote(db.info.password, safe='')}@/{name}?host={host}&port={db.info.port}"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_database_url_takes_every_scheme(db: Database, scheme: str) -> None:
    assert cli("status", env={"DATABASE_URL": url_of(db, scheme)}).returncode == 0


def test_option_goes_before_database_url_before_libpq_variables(db: Database) -> None:
    here, info = conninfo_of(db), db.info
    libpq = {"PGHOST": info.host, "PGPORT": str(info.port), "PGUSER": info.user, "PGDATABASE": info.dbname}
    for order in (("--database", here, "status"), ("status", "--database", here)):
        assert cli(*order, env={"DATABASE_URL": NOWHERE, "PGHOST": "/nowhere"}).returncode == 0
    assert cli("status", env={"DATABASE_URL": here, "PGHOST": "/nowhere", "PGDATABASE": "nowhere"}).returncode == 0
    assert cli("status", env={**libpq, "PGPASSWORD": info.password}).returncode == 0
    assert_one_line(cli("status", "--database", NOWHERE, env={"DATABASE_URL": here}), 1, "127.0.0.1")
    assert_one_line(cli("status", "--database", "", env={"DATABASE_URL": here}), 2, "--database is empty")


def test_psql_opens_the_same_database(db: Database) -> None:
    done = cli("psql", "--", "-XAtc", "SELECT CURRENT_DATABASE()", env={"DATABASE_URL": conninfo_of(db)})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{db.info.dbname}\n", "")


def test_no_server_and_no_database_are_one_line(bare: Database) -> None:
    assert_one_line(cli("status", "--database", NOWHERE), 1, "cannot connect")
    assert_one_line(cli("status", "--database", "host=/nonexistent"), 1, "cannot connect")
    assert_one_line(cli("status", "--database", make_conninfo(conninfo_of(bare), dbname="missing")), 1, '"missing"')


# Usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "COMMAND"),
        ("statsu", "unknown command 'statsu': did you mean 'status'?"),
        ("frobnicate", "unknown command 'frobnicate': expected migrate, rollback, status"),
        ("query", "QUERY"),
        ("query averge_session_metrics", "unknown query 'averge_session_metrics': did you mean 'average_session_metrics'?"),
        ("query nothing_like_it", "average_session_metrics"),
        ("query session_stats", "session_stats needs --conversation-id: "),
        ("query average_session_metrics --dayz 3", "unknown argument '--dayz': did you mean '--days'?"),
        ("query session_stats --conversation ac_1", "did you mean '--conversation-id'?"),
        ("query average_session_metrics --days 1.5", "--days must be a whole number, 0 or more, not '1.5'"),
        ("query average_session_metrics --days -1", "-1"),
        ("query average_session_metrics --days=", "--days"),
        ("query most_active_sessions --format cvs", "json"),
        ("query most_active_sessions --timeout soon", "expected seconds, 0 or more, not 'soon'"),
        ("rollback --steps 0", "expected a whole number, 1 or more, not '0'"),
        ("rollback --steps 1 --all", "--all"),
        ("migrate --lock-wait -1", "--lock-wait"),
        ("migrate --paln", "did you mean '--plan'?"),
        ("purge", "--days"),
        ("query average_session_metrics -v", "-v"),
        ("query average_session_metrics -v days", "expected NAME=VALUE, not 'days'"),
        ("query average_session_metrics -v dayz=3", "did you mean 'days'?"),
        ("query average_session_metrics -v days=1.5", "--days must be a whole number, 0 or more, not '1.5'"),
        ("query average_session_metrics --explain --format prometheus", "leave out --explain or --format"),
        ("status --format prometheus", "prometheus"),
        ("status --quite", "did you mean '--quiet'?"),
        ("status --database", "--database"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name_before_any_server_is_asked(
    arguments: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", NOWHERE)
    code = runner.main(arguments.split())
    assert_one_line(Done(arguments, code, *capsys.readouterr()), 2, said)


def test_options_take_hyphens_and_underscores_alike(db: Database, insert: Callable[..., str]) -> None:
    insert("ac_1", message_count=3)
    for option in ("--conversation-id", "--conversation_id", "--conversation_id=ac_1"):
        value = [] if "=" in option else ["ac_1"]
        done = cli("query", "session_stats", option, *value, "--format", "csv", "--database", conninfo_of(db))
        assert done.stdout.splitlines()[1:] == ["3,0,0,0"], done.stderr
    assert cli("rollback", "--allow_data_loss", "--lock_wait=1", "--database", conninfo_of(db)).returncode == 0


def test_v_takes_parameters_as_psql_does(db: Database, insert: Callable[..., str]) -> None:
    insert("ac_1", message_count=3)
    here = ("--format", "csv", "--database", conninfo_of(db))
    for name in ("conversation_id", "conversation-id"):
        done = cli("query", "session_stats", "-v", f"{name}=ac_1", *here)
        assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["3,0,0,0"]), done.stderr
    assert cli("query", "usage_change", "-v", "days=3", "-v", "conversations=false", *here).stdout.splitlines()[1] == (
        "sessions,1,0,1,"
    )


def test_quiet_says_nothing_but_errors(bare: Database) -> None:
    database = ("--database", conninfo_of(bare))
    for arguments in (("-q", "migrate"), ("migrate", "--quiet"), ("verify", "-q"), ("purge", "--days", "1", "-q")):
        done = cli(*arguments, *database)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr
    assert_one_line(cli("query", "session_stats", "-q", *database), 2, "--conversation-id")


def test_a_value_that_only_the_server_refuses_is_one_line(db: Database) -> None:
    for name, option in (
        ("average_session_metrics", "--days=2147483647"),
        ("most_active_sessions", "--limit=99999999999999999999"),
    ):
        assert_one_line(cli("query", name, option, "--database", conninfo_of(db)), 2, "out of range")


@pytest.mark.parametrize("query", [("average_session_metrics",), ("session_stats", "--conversation-id", "ac_1")])
def test_a_query_on_a_database_never_migrated_says_to_migrate(bare: Database, query: tuple[str, ...]) -> None:
    assert_one_line(cli("query", *query, "--database", conninfo_of(bare)), 1, "run migrate")


def test_version_is_the_packages_also_with_python_m_in_a_checkout() -> None:
    assert cli("--version").stdout == f"alicia-session-stats {stats.__version__}\n"
    as_module = [sys.executable, "-m", "alicia_session_stats", "--version"]
    assert subprocess.run(as_module, cwd=ROOT, capture_output=True, text=True, check=True).stdout == cli("--version").stdout


# Endings


@pytest.mark.parametrize("timeout", ["0.3", "0.0001"])
def test_a_query_over_its_timeout_is_one_line(db: Database, copy: Callable[..., Path], timeout: str) -> None:
    assert_one_line(
        run_mine(copy("SELECT PG_SLEEP(2)"), db, "--timeout", timeout), 1, f"longer than {timeout} s: raise --timeout"
    )


def test_timeout_0_is_no_limit(db: Database, copy: Callable[..., Path]) -> None:
    db.execute(f"ALTER DATABASE {db.info.dbname} SET statement_timeout = '100ms'".encode())
    assert ask(copy("SELECT PG_SLEEP(0.5), CURRENT_SETTING('statement_timeout') AS t"), db, "--timeout", "0", "--format", "csv")


def becomes(db: Database, query: str, expected: int) -> bool:
    """Whether a query gives a number within ten seconds."""
    deadline = time.monotonic() + 10
    while scalar(db, query) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return scalar(db, query) == expected


def test_ctrl_c_is_one_line_and_ends_the_query_on_the_server(db: Database, copy: Callable[..., Path]) -> None:
    running = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = CURRENT_DATABASE() AND query ~ '^SELECT PG_SLEEP'"
    slow = start(copy("SELECT PG_SLEEP(60)"), "query", "mine", "--timeout", "60", "--database", conninfo_of(db))
    assert becomes(db, running, 1)
    slow.send_signal(signal.SIGINT)
    assert_one_line(finish(slow), 130, "interrupted\n")
    assert becomes(db, running, 0)


def test_ctrl_c_during_migrate_says_how_to_go_on(bare: Database) -> None:
    bare.execute("CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY)")
    bare.execute("BEGIN; LOCK TABLE alicia_conversations")
    migrate = start(ROOT / "runner.py", "migrate", "--database", conninfo_of(bare))
    assert migrate.stderr is not None
    assert any(b"the table is busy" in line for line in migrate.stderr)
    migrate.send_signal(signal.SIGINT)
    done = finish(migrate)
    assert done.returncode == 130
    last = "alicia-session-stats: interrupted. Every completed step is recorded; run migrate again to continue"
    assert done.stderr.splitlines()[-1] == last
    bare.execute("ROLLBACK")
    assert cli("migrate", "--database", conninfo_of(bare)).returncode == 0


@pytest.mark.parametrize("style", ["table", "csv", "json"])
def test_a_reader_that_has_seen_enough_is_no_error(db: Database, copy: Callable[..., Path], style: str) -> None:
    many = copy("SELECT n, REPEAT('x', 100) AS x FROM GENERATE_SERIES(1, 20000) AS s (n)")
    with start(many, "query", "mine", "--format", style, "--database", conninfo_of(db)) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 0)


@pytest.mark.parametrize("arguments", ["queries", "query session_stats --help"])
def test_a_reader_that_reads_nothing_is_no_error(arguments: str) -> None:
    with start(ROOT / "runner.py", *arguments.split()) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 0)


def test_stdout_closed_from_the_start_is_no_traceback() -> None:
    command = f'exec "{sys.executable}" "{ROOT / "runner.py"}" queries >&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        assert_one_line(finish(start(ROOT / "runner.py", "queries", stdout=full)), 1, "No space left")


# Queries


def test_a_query_writes_only_if_its_file_says_so_and_explain_does_not_run_it(db: Database, copy: Callable[..., Path]) -> None:
    count, writing = "SELECT COUNT(*) FROM alicia_conversations", "INSERT INTO alicia_conversations (id) VALUES ('ac_w')"
    assert_one_line(run_mine(copy(writing), db), 1, "read-only transaction")
    assert "Insert on alicia_conversations" in ask(copy(writing, "Mode: writes"), db, "--explain")
    assert scalar(db, count) == 0
    ask(copy(writing, "Mode: writes"), db)
    assert scalar(db, count) == 1


VALUES = """SELECT * FROM (VALUES
    (123456789012345678901234567.891, 7, 0.1::FLOAT8, '0042', TIMESTAMP '2026-01-02 03:04:05.678', DATE '2026-01-02'),
    (2, 12, NULL, E'a "b", c\\nd', NULL, NULL)
) AS v (exact, whole, float, text, time, day)"""


def test_table_aligns_numbers_right_and_shows_what_psql_shows(db: Database, copy: Callable[..., Path]) -> None:
    header, rule, first, second = ask(copy(VALUES.replace("E'a \"b\", c\\nd'", "'x'")), db).splitlines()
    assert [cell.strip() for cell in header.split("|")] == ["exact", "whole", "float", "text", "time", "day"]
    assert set(rule) == {"-", "+"}
    cells = [cell.strip() for cell in first.split("|")]
    assert cells == ["123456789012345678901234567.891", "7", "0.1", "0042", "2026-01-02 03:04:05.678", "2026-01-02"]
    for number, text in zip(second.split("|")[:2], ("2", "12"), strict=True):
        assert number.endswith(f" {text} ")
    assert second.split("|")[3].startswith(" x ")


def test_csv_is_rfc_4180(db: Database, copy: Callable[..., Path]) -> None:
    text = ask(copy(VALUES), db, "--format", "csv")
    assert text.split("\r\n") == [
        "exact,whole,float,text,time,day",
        "123456789012345678901234567.891,7,0.1,0042,2026-01-02 03:04:05.678,2026-01-02",
        '2,12,,"a ""b"", c\nd",,',
        "",
    ]
    assert list(csv.reader(io.StringIO(text, newline=""), strict=True))[2][3] == 'a "b", c\nd'


def test_json_is_exact(db: Database, copy: Callable[..., Path]) -> None:
    first, second = json.loads(ask(copy(VALUES), db, "--format", "json"), parse_float=Decimal)
    assert first["exact"] == Decimal("123456789012345678901234567.891")
    assert (first["whole"], first["float"], first["text"]) == (7, Decimal("0.1"), "0042")
    assert datetime.fromisoformat(first["time"]) == datetime(2026, 1, 2, 3, 4, 5, 678000)
    assert date.fromisoformat(first["day"]) == date(2026, 1, 2)
    assert second == {"exact": 2, "whole": 12, "float": None, "text": 'a "b", c\nd', "time": None, "day": None}


def test_csv_and_json_leave_out_the_bar(db: Database, copy: Callable[..., Path]) -> None:
    statement = copy("SELECT 0.12 AS share, TRUE AS is_partial, 'NaN'::FLOAT8 AS odd, '##' AS bar")
    assert ask(statement, db, "--format", "csv") == "share,is_partial,odd\r\n0.12,t,NaN\r\n"
    assert json.loads(ask(statement, db, "--format", "json")) == [{"share": 0.12, "is_partial": True, "odd": "NaN"}]
    assert "##" in ask(statement, db)


def test_infinite_times_and_a_roles_datestyle_change_no_answer(db: Database, copy: Callable[..., Path]) -> None:
    db.execute(f"ALTER DATABASE {db.info.dbname} SET DateStyle = 'SQL, DMY'".encode())
    statement = copy("SELECT TIMESTAMP 'infinity' AS until, TIMESTAMP '2026-02-01 10:00' AS at")
    assert ask(statement, db, "--format", "csv") == "until,at\r\ninfinity,2026-02-01 10:00:00\r\n"
    assert json.loads(ask(statement, db, "--format", "json")) == [{"until": "infinity", "at": "2026-02-01T10:00:00"}]


# Times, NULL, booleans and bars; texts and decimals.
@pytest.mark.parametrize("name", ["usage_over_time", "session_percentiles"])
def test_psql_and_runner_show_the_same_text(db: Database, name: str) -> None:
    db.execute("INSERT INTO alicia_conversations (id) SELECT 'ac_' || n FROM GENERATE_SERIES(0, 9) AS n")
    db.execute("""
        INSERT INTO alicia_session_stats (conversation_id, message_count, tool_call_count, session_duration_seconds, created_at)
        SELECT 'ac_' || n % 10, n % 7, n % 3, n * 7, NOW() AT TIME ZONE 'UTC' - n * INTERVAL '31 hours'
        FROM GENERATE_SERIES(1, 60) AS n
    """)
    by_psql = psql(conninfo_of(db), "--csv", "-f", ROOT / "queries" / f"{name}.sql")
    assert by_psql.returncode == 0, by_psql.stderr
    header, *expected = csv.reader(io.StringIO(by_psql.stdout))
    done = cli("query", name, "--database", conninfo_of(db))
    assert done.returncode == 0, done.stderr
    names, _, *rows = ([cell.strip() for cell in re.split(r"[|+](?= |-|$)", line)] for line in done.stdout.splitlines())
    assert (names, rows) == (header, [[cell.strip() for cell in row] for row in expected])


def test_a_terminal_that_cannot_show_a_character_gets_no_traceback(db: Database, copy: Callable[..., Path]) -> None:
    done = cli("query", "mine", "--database", conninfo_of(db), runner=copy("SELECT 'é' AS t"), env={"PYTHONIOENCODING": "ascii"})
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("style", "printed"),
    [("json", "[]\n"), ("csv", "message_count,tool_call_count,memories_used,session_duration_seconds\n")],
)
def test_no_rows_is_no_error(db: Database, style: str, printed: str) -> None:
    done = cli("query", "session_stats", "--conversation-id", "ac_0", "--format", style, "--database", conninfo_of(db))
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


def test_explain_shows_the_plan(db: Database) -> None:
    asked = ("query", "session_stats", "--conversation-id", "ac_1", "--explain", "--database", conninfo_of(db))
    text = cli(*asked)
    assert (text.returncode, text.stderr) == (0, "")
    assert "Execution Time" in text.stdout
    [row] = json.loads(cli(*asked, "--format", "json").stdout)
    assert row["QUERY PLAN"][0]["Plan"]["Node Type"]


def test_queries_lists_every_file_and_help_documents_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["queries", "--format", "json"]) == 0
    listed = {row["query"]: row for row in json.loads(capsys.readouterr().out)}
    assert runner.main(["queries"]) == 0
    shown = re.findall(r"^  (\w+)", capsys.readouterr().out, re.M)
    assert sorted(listed) == sorted(shown) == QUERIES
    for name, query in stats.queries().items():
        assert (listed[name]["answers"], listed[name]["purpose"]) == (query.summary, query.purpose)
        with pytest.raises(SystemExit, match="0"):
            runner.main(["query", name, "--help"])
        documented = capsys.readouterr().out
        assert query.documentation in documented
        for param in query.params:
            assert f"{param.name} ({param.type}" in listed[name]["parameters"]
            assert f"--{param.name.replace('_', '-')} {param.type.upper()}" in documented


def test_an_unreadable_query_file_stops_only_that_query(db: Database, tmp_path: Path) -> None:
    runner_file = copy_product(tmp_path)

    def run(*arguments: str) -> Done:
        return cli(*arguments, "--database", conninfo_of(db), runner=runner_file)

    for content in (b"", b"-- No parameters.\nSELECT :'undocumented';\n", b"-- caf\xe9\nSELECT 1;\n"):
        (tmp_path / "queries" / "engagement.sql").write_bytes(content)
        assert_one_line(run("query", "engagement"), 1, "engagement.sql")
    assert run("migrate").returncode == 0
    assert run("query", "average_session_metrics").returncode == 0
    listed = run("queries", "--format", "csv")
    assert (listed.returncode, listed.stderr.count("\n")) == (0, 1)
    assert "engagement.sql" in listed.stderr
    assert len(listed.stdout.splitlines()) == len(QUERIES)


# Migrating


def untimed(stderr: str) -> list[str]:
    """The lines, without how long each step took."""
    assert all(re.search(r" \(\d+\.\d\d s\)$", line) for line in stderr.splitlines()[1:-1])
    return [re.sub(r" \(\d+\.\d\d s\)$| in \d+\.\d s$", "", line) for line in stderr.splitlines()]


def test_migrate_and_rollback_name_the_database_each_steps_time_and_a_sum(bare: Database) -> None:
    database = ("--database", conninfo_of(bare))
    info = bare.info
    place = f"database {info.dbname} on {info.host if info.host.startswith('/') else f'{info.host}:{info.port}'}"
    done = cli("migrate", *database)
    assert (done.returncode, done.stdout) == (0, "")
    steps = [f"applied {name}" for name in MIGRATIONS]
    assert untimed(done.stderr) == [f"migrating {place}", *steps, f"{len(MIGRATIONS)} migrations applied"]
    again = cli("migrate", *database)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", f"migrating {place}\nnothing is pending\n")

    def roll_back(*arguments: str) -> list[str]:
        done = cli("rollback", *arguments, *database)
        assert (done.returncode, done.stdout) == (0, "")
        return untimed(done.stderr)

    steps = [f"rolled back {name}" for name in reversed(MIGRATIONS)]
    assert roll_back() == [f"rolling back {place}", steps[0], "1 migration rolled back"]
    assert roll_back("--steps", "2") == [f"rolling back {place}", *steps[1:3], "2 migrations rolled back"]
    assert roll_back("--all") == [f"rolling back {place}", *steps[3:], f"{len(steps) - 3} migrations rolled back"]
    assert roll_back() == [f"rolling back {place}", "nothing is applied"]


def test_status_is_exit_3_until_migrated_and_makes_no_table(bare: Database) -> None:
    database = ("--database", conninfo_of(bare))
    before = cli("status", "--format", "json", *database)
    assert (before.returncode, before.stderr) == (3, "")
    assert json.loads(before.stdout) == [{"migration": name, "state": "pending", "applied_at": None} for name in MIGRATIONS]
    assert scalar(bare, "SELECT COUNT(*) FROM pg_class WHERE relnamespace = 'public'::REGNAMESPACE") == 0
    stats.migrate(conninfo_of(bare))
    after = cli("status", "--format", "json", *database)
    assert (after.returncode, after.stderr) == (0, "")
    assert [(row["migration"], row["state"]) for row in json.loads(after.stdout)] == [(name, "applied") for name in MIGRATIONS]
    times = bare.execute("SELECT applied_at_utc FROM _yoyo_migration ORDER BY migration_id").fetchall()
    assert [datetime.fromisoformat(row["applied_at"]) for row in json.loads(after.stdout)] == [time for (time,) in times]


def sql_of(names: list[str]) -> str:
    """The files, as --plan is to show them."""
    return "\n".join(f"-- {name}.sql\n{(ROOT / 'migrations' / f'{name}.sql').read_text()}" for name in names)


def test_plan_prints_the_sql_that_would_run_and_changes_nothing(bare: Database, db: Database) -> None:
    def plan(database: Database, *arguments: str) -> str:
        done = cli(*arguments, "--plan", "--database", conninfo_of(database))
        assert (done.returncode, done.stderr) == (0, "" if done.stdout else "nothing to do\n")
        return done.stdout

    newest = [f"{name}.rollback" for name in reversed(MIGRATIONS)]
    assert plan(bare, "migrate") == sql_of(MIGRATIONS)
    assert plan(bare, "rollback", "--all") == ""
    assert plan(db, "migrate") == ""
    assert plan(db, "rollback") == sql_of(newest[:1])
    assert plan(db, "rollback", "--steps", "3") == sql_of(newest[:3])
    assert plan(db, "rollback", "--all") == sql_of(newest)
    assert cli("status", "--database", conninfo_of(db)).returncode == 0
    assert cli("status", "--database", conninfo_of(bare)).returncode == 3
    stats.rollback(conninfo_of(db), steps=2)
    assert plan(db, "migrate") == sql_of(MIGRATIONS[-2:])


def test_verify_is_exit_1_when_the_database_differs(db: Database) -> None:
    database = ("--database", conninfo_of(db))
    same = cli("verify", "--format", "json", *database)
    assert (same.returncode, same.stdout, same.stderr) == (0, "[]\n", "no differences\n")
    db.execute("DROP INDEX idx_session_stats_created_at")
    differs = cli("verify", "--format", "json", *database)
    assert (differs.returncode, differs.stderr) == (1, "1 difference\n")
    assert [row["object"] for row in json.loads(differs.stdout)] == ["INDEX idx_session_stats_created_at"]


# From Python


def test_importing_the_package_imports_nothing_that_only_one_command_needs() -> None:
    heavy = {"argparse", "yoyo", "tabulate", "simplejson", "jinja2", "vl_convert", "tqdm"}
    code = f"import sys, alicia_session_stats; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_documented() -> None:
    assert [name for name in stats.__all__ if not getattr(stats, name).__doc__] == []


@pytest.mark.parametrize("days", [7, "7", None])
def test_python_queries_take_numbers_and_texts(db: Database, insert: Callable[..., str], days: object) -> None:
    insert(message_count=3)
    [row] = stats.query(conninfo_of(db), "average_session_metrics", days=days)
    assert row["avg_messages"] == 3
    assert isinstance(row["avg_messages"], Decimal)


def test_query_on_an_open_connection_joins_its_transaction_and_changes_none_of_its_settings(
    db: Database, insert: Callable[..., str]
) -> None:
    session = insert("ac_1")
    with psycopg.connect(conninfo_of(db), row_factory=dict_row) as connection:
        connection.execute("SET LOCAL statement_timeout = '7s'")
        stats.query(connection, "record_activity", session_id=session, conversation_id="ac_1", messages=2, timeout=9)
        [row] = stats.query(connection, "session_stats", conversation_id="ac_1")
        assert row["message_count"] == 2
        assert connection.execute("SHOW jit").fetchone() == {"jit": "on"}
        assert connection.execute("SHOW statement_timeout").fetchone() == {"statement_timeout": "7s"}
        connection.rollback()
    assert scalar(db, "SELECT SUM(message_count) FROM alicia_session_stats") == 0
    stats.query(db, "record_activity", session_id=session, conversation_id="ac_1", messages=2)
    assert scalar(db, "SELECT SUM(message_count) FROM alicia_session_stats") == 2
    stats.query(db, "record_activity", session_id=session, conversation_id="ac_1", messages=2, timeout=9)
    assert scalar(db, "SELECT SUM(message_count) FROM alicia_session_stats") == 4
    assert [scalar(db, f"SHOW {name}") for name in ("statement_timeout", "jit", "DateStyle")] == ["0", "on", "ISO, MDY"]


def test_query_on_an_open_connection_sends_the_statement_and_nothing_else(db: Database, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with psycopg.connect(conninfo_of(db), autocommit=True) as connection, trace.open("w") as file:
        connection.pgconn.trace(file.fileno())
        stats.query(connection, "average_session_metrics")
        connection.pgconn.untrace()
    sent = re.findall(r"^(?:[\d :.-]+\t)?F\t\d+\t(\w+)", trace.read_text(), re.M)
    assert sent == ["Parse", "Bind", "Describe", "Execute", "Sync"]


def test_statement_timeout_of_an_open_connection_is_kept_and_explained(db: Database, insert: Callable[..., str]) -> None:
    insert("ac_1")
    db.execute("SET statement_timeout = '100ms'")
    with psycopg.connect(conninfo_of(db)) as other:
        other.execute("UPDATE alicia_session_stats SET message_count = 1")
        [session] = db.execute("SELECT id FROM alicia_session_stats").fetchone() or [None]
        with pytest.raises(stats.SessionStatsError, match="longer than the connection's statement_timeout") as caught:
            stats.query(db, "record_activity", session_id=session, conversation_id="ac_1")
    assert caught.value.sqlstate == "57014"


def test_query_async_does_the_same_on_an_async_connection(db: Database, insert: Callable[..., str]) -> None:
    session = insert("ac_1")

    async def record(*, commits: bool) -> list[dict[str, Any]]:
        async with await psycopg.AsyncConnection.connect(conninfo_of(db)) as connection:
            await stats.query_async(connection, "record_activity", session_id=session, conversation_id="ac_1", messages=2)
            rows = await stats.query_async(connection, "session_stats", conversation_id="ac_1")
            await (connection.commit() if commits else connection.rollback())
            with pytest.raises(stats.UsageError, match="needs --conversation-id"):
                await stats.query_async(connection, "session_stats")
            return rows

    for commits in (False, True):
        [row] = asyncio.run(record(commits=commits))
        assert row["message_count"] == 2
        assert scalar(db, "SELECT SUM(message_count) FROM alicia_session_stats") == (2 if commits else 0)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("nothing", {}),
        ("session_stats", {}),
        ("session_stats", {"conversation": "ac_1"}),
        ("average_session_metrics", {"days": 1.5}),
        ("average_session_metrics", {"days": -1}),
        ("session_stats", {"conversation_id": "a\0b"}),
    ],
)
def test_python_raises_usage_error_before_any_server_is_asked(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(stats.UsageError):
        stats.query(NOWHERE, name, **params)


def test_python_raises_one_family_of_errors_with_the_servers_state_and_cause(bare: Database) -> None:
    assert issubclass(stats.UsageError, stats.SessionStatsError)
    assert issubclass(stats.LockedError, stats.SessionStatsError)
    with pytest.raises(stats.SessionStatsError, match="run migrate") as caught:
        stats.query(conninfo_of(bare), "most_active_sessions")
    assert caught.value.sqlstate == "42P01"
    assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedTable)
    for call in (stats.migrate, stats.rollback, stats.status, stats.plan, stats.verify):
        with pytest.raises(stats.SessionStatsError, match="cannot connect"):
            call(NOWHERE)


def test_a_missing_session_and_a_missing_conversation_are_the_same_error(db: Database) -> None:
    for name in ("start_session", "record_activity"):
        given = {param.name: "nothing" for param in stats.queries()[name].params if param.default is None}
        asked = [f"--{param}=nothing" for param in given]
        done = cli("query", name, *asked, "--database", conninfo_of(db))
        assert_one_line(done, 1, "nothing")
        for timeout in (None, 5):
            with pytest.raises(stats.SessionStatsError) as caught:
                stats.query(db, name, timeout=timeout, **given)
            assert (type(caught.value), caught.value.sqlstate) == (stats.SessionStatsError, "23503")
            assert isinstance(caught.value.__cause__, psycopg.errors.ForeignKeyViolation)


def test_a_lost_or_closed_connection_is_an_error_of_the_family(db: Database) -> None:
    with psycopg.connect(conninfo_of(db), autocommit=True) as other:
        db.execute("SELECT PG_TERMINATE_BACKEND(%s)", [other.info.backend_pid])
        for state in ("57P01", None):
            with pytest.raises(stats.SessionStatsError) as caught:
                stats.query(other, "average_session_metrics")
            assert (caught.value.sqlstate, type(caught.value)) == (state, stats.SessionStatsError)
            assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    closed = psycopg.connect(conninfo_of(db), autocommit=True)
    closed.close()
    for timeout in (None, 5):
        with pytest.raises(stats.SessionStatsError, match="the connection is closed"):
            stats.query(closed, "average_session_metrics", timeout=timeout)
    with pytest.raises(stats.SessionStatsError, match="cannot connect") as caught:
        stats.connect(NOWHERE)
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)


def test_a_target_of_another_type_is_told(db: Database) -> None:
    wrong: Any = object()
    with pytest.raises(stats.UsageError, match="From a pool"):
        stats.query(wrong, "average_session_metrics")
    with pytest.raises(stats.UsageError, match="AsyncConnection"):
        asyncio.run(stats.query_async(db, "average_session_metrics"))  # pyright: ignore[reportArgumentType]
