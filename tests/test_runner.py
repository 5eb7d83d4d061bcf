"""The command line and the Python API keep their contract: exit codes, streams, formats, and no secret told."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from conftest import ROOT, cli, conninfo_of, scalar
from psycopg.conninfo import make_conninfo

import runner

Done = subprocess.CompletedProcess[str]
Database = psycopg.Connection[Any]
NOWHERE = "postgresql://127.0.0.1:1/nowhere"
MIGRATIONS = sorted(path.stem for path in (ROOT / "migrations").glob("*.sql") if not path.stem.endswith(".rollback"))
QUERIES = sorted(path.stem for path in (ROOT / "queries").glob("*.sql"))
RELATIONS = "SELECT COUNT(*) FROM pg_class WHERE relnamespace = CURRENT_SCHEMA()::REGNAMESPACE"


def assert_one_line(done: Done, code: int, *said: str) -> None:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("alicia-session-stats: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert [text for text in said if text not in done.stderr] == [], done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the product, with a query file made of the statement and the header lines given; returns its runner.py."""

    def make(statement: str, *header: str) -> Path:
        if not (tmp_path / "runner.py").exists():
            for module in ROOT.glob("*.py"):
                shutil.copy(module, tmp_path)
            for folder in ("migrations", "queries"):
                shutil.copytree(ROOT / folder, tmp_path / folder)
        lines = ["-- A query of the tests.", "--", "-- Purpose: operations", *(f"-- {line}" for line in header), statement]
        (tmp_path / "queries" / "mine.sql").write_text("\n".join(lines) + ";\n")
        return tmp_path / "runner.py"

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


@pytest.mark.parametrize("order", [("--database", "{}", "status"), ("status", "--database", "{}")])
def test_database_may_stand_before_and_after_the_command(db: Database, order: tuple[str, ...]) -> None:
    assert cli(*(part.format(conninfo_of(db)) for part in order)).returncode == 0


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_database_url_takes_both_schemes(db: Database, scheme: str) -> None:
    assert cli("status", env={"DATABASE_URL": url_of(db, scheme)}).returncode == 0


def test_libpq_variables_are_the_last_resort(db: Database) -> None:
    info = db.info
    libpq = {"PGHOST": info.host, "PGPORT": str(info.port), "PGUSER": info.user, "PGDATABASE": info.dbname}
    assert cli("status", env={**libpq, "PGPASSWORD": info.password}).returncode == 0


def test_a_service_file_is_read(db: Database, tmp_path: Path) -> None:
    options = psycopg.conninfo.conninfo_to_dict(conninfo_of(db))
    (tmp_path / "services").write_text("[ours]\n" + "".join(f"{name}={value}\n" for name, value in options.items()))
    assert cli("status", env={"PGSERVICE": "ours", "PGSERVICEFILE": str(tmp_path / "services")}).returncode == 0


def test_database_goes_before_database_url_before_libpq_variables(db: Database) -> None:
    here = conninfo_of(db)
    assert cli("status", "--database", here, env={"DATABASE_URL": NOWHERE, "PGHOST": "/nowhere"}).returncode == 0
    assert cli("status", env={"DATABASE_URL": here, "PGHOST": "/nowhere", "PGDATABASE": "nowhere"}).returncode == 0
    assert_one_line(cli("status", "--database", NOWHERE, env={"DATABASE_URL": here}), 1, "127.0.0.1")


def test_psql_opens_the_same_database(db: Database) -> None:
    done = cli("psql", "--", "-XAtc", "SELECT CURRENT_DATABASE()", env={"DATABASE_URL": conninfo_of(db)})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{db.info.dbname}\n", "")


# No server, no entry


@pytest.mark.parametrize("conninfo", [NOWHERE, "host=/nonexistent"])
def test_no_server_is_one_line(conninfo: str) -> None:
    assert_one_line(cli("status", "--database", conninfo), 1, "cannot connect")


def test_a_missing_database_is_one_line(bare: Database) -> None:
    assert_one_line(cli("status", "--database", make_conninfo(conninfo_of(bare), dbname="missing")), 1, '"missing"')


@pytest.fixture(scope="module")
def guarded() -> Generator[str]:
    """A server of its own that asks the role `locked` for a password; its conninfo, without one."""
    home = tempfile.mkdtemp(prefix="alicia-guarded-")
    environment = {"ALICIA_SESSION_STATS_HOME": home}
    conninfo = cli("embedded", env=environment).stdout.strip()
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("CREATE ROLE locked LOGIN PASSWORD 'right-password'")
            rules = Path(scalar(connection, "SHOW hba_file"))
            rules.write_text("local all locked scram-sha-256\n" + rules.read_text())
            connection.execute("SELECT PG_RELOAD_CONF()")
        yield make_conninfo(conninfo, user="locked")
    finally:
        cli("embedded", "--remove", env=environment)
        shutil.rmtree(home, ignore_errors=True)


def test_a_wrong_password_is_one_line_without_it(guarded: str) -> None:
    wrong = cli("status", "--database", make_conninfo(guarded, password="s3cret-canary"))
    assert_one_line(wrong, 1, "password authentication failed")
    assert "canary" not in wrong.stderr
    assert cli("status", "--database", make_conninfo(guarded, password="right-password")).returncode == 3


MALFORMED = [
    ("postgresql://u:s3cret@canary@127.0.0.1:1/db", 2),
    ("postgresql://u:s3cret/canary@127.0.0.1:1/db", 2),
    ("postgresql://u:5432/s3cret-canary@127.0.0.1:1/db", 2),
    ("postgresql://u:s3cret@x/canary@127.0.0.1:1/db", 2),
    ("postgresql://u:s3cret:canary@127.0.0.1:1/db", 1),
    ("postgresql://u:s3cret?canary@127.0.0.1:1/db", 1),
    ("postgresql://u:s3cret#canary@127.0.0.1:1/db", 1),
    ("postgresql://u:s3cret%canary@127.0.0.1:1/db", 2),
    ("postgresql://u:s3cret%zzcanary@127.0.0.1:1/db", 2),
    ("postgresql://u:s3cret canary@127.0.0.1:1/db", 2),
    ("postgresql://u:s3cret-canary@127.0.0.1:port/db", 2),
    ("postgresql://u:s3cret-canary@127.0.0.1:99999/db", 1),
    ("postgresql://u:s3cret-canary@127.0.0.1:1/db?sslmod=x", 2),
    ("postgresql://u:s3cret-canary@[::1/db", 2),
    ("mysql://u:s3cret-canary@127.0.0.1/db", 2),
    ("host=x password=s3cret-canary foo", 2),
    ("host=127.0.0.1 port=1 password=s3cret canary", 2),
    ("host=127.0.0.1 port=1 password='s3cret-canary", 2),
    ("s3cret-canary", 2),
]


@pytest.mark.parametrize(("url", "code"), MALFORMED)
def test_a_malformed_url_is_one_line_without_its_password(url: str, code: int) -> None:
    done = cli("status", "--database", url)
    assert "s3cret" not in done.stderr
    assert "canary" not in done.stderr
    assert_one_line(done, code)


@pytest.mark.parametrize("url", [url for url, _ in MALFORMED])
def test_no_exception_in_the_chain_tells_a_password(url: str) -> None:
    for function in (runner.status, runner.migrate, runner.rollback, runner.plan):
        with pytest.raises(runner.SessionStatsError) as caught:
            function(url)
        told, error = "", caught.value
        while error is not None:
            told += f"{error}\n{error!r}\n{''.join(traceback.format_exception(error))}"
            error = error.__cause__ or error.__context__
        assert "s3cret" not in told
        assert "canary" not in told


@pytest.mark.parametrize(
    "arguments",
    [("status", "{}"), ("{}",), ("--databse", "{}", "status"), ("status", "--databse={}"), ("query", "{}")],
)
def test_a_url_in_the_wrong_place_is_not_repeated(arguments: tuple[str, ...]) -> None:
    done = cli(*(part.format("postgresql://u:s3cret-canary@127.0.0.1:1/db") for part in arguments))
    assert_one_line(done, 2)
    assert "s3cret" not in done.stderr


# Usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "COMMAND"),
        ("statsu", "did you mean 'status'"),
        ("query", "QUERY"),
        ("query averge_session_metrics", "did you mean 'average_session_metrics'"),
        ("query nothing_like_it", "average_session_metrics"),
        ("query session_stats", "--conversation_id"),
        ("query session_stats --conversation ac_1", "--conversation"),
        ("query average_session_metrics --dayz 3", "--dayz"),
        ("query average_session_metrics --days abc", "'abc'"),
        ("query average_session_metrics --days 1.5", "'1.5'"),
        ("query average_session_metrics --days -1", "-1"),
        ("query average_session_metrics --days=", "--days"),
        ("query most_active_sessions --limit 99999999999999", "99999999999999"),
        ("query most_active_sessions --format cvs", "'json'"),
        ("query most_active_sessions --timeout soon", "'soon'"),
        ("rollback --steps 0", "'0'"),
        ("rollback --steps 1 --all", "--all"),
        ("rollback --all --steps 1", "--all"),
        ("migrate --lock-wait -1", "--lock-wait"),
        ("status --database", "--database"),
    ],
)
def test_a_wrong_usage_is_one_line_before_any_server_is_asked(arguments: str, said: str) -> None:
    assert_one_line(cli(*arguments.split(), env={"DATABASE_URL": NOWHERE}), 2, said)


def test_an_empty_database_is_not_taken_for_none() -> None:
    assert_one_line(cli("status", "--database", "", env={"DATABASE_URL": NOWHERE}), 2, "--database")


def test_more_days_than_time_has_is_one_line(db: Database) -> None:
    done = cli("query", "average_session_metrics", "--days", "2147483647", "--database", conninfo_of(db))
    assert_one_line(done, 2, "out of range")


@pytest.mark.parametrize("query", [("average_session_metrics",), ("session_stats", "--conversation_id", "ac_1")])
def test_a_query_on_a_database_never_migrated_says_to_migrate(bare: Database, query: tuple[str, ...]) -> None:
    assert_one_line(cli("query", *query, "--database", conninfo_of(bare)), 1, "migrate")


# Endings


@pytest.mark.parametrize("timeout", ["0.3", "0.0001"])
def test_a_statement_over_its_timeout_is_one_line(db: Database, copy: Callable[..., Path], timeout: str) -> None:
    assert_one_line(run_mine(copy("SELECT PG_SLEEP(2)"), db, "--timeout", timeout), 1, "--timeout")


def test_an_interrupt_is_one_line_and_ends_the_statement_on_the_server(db: Database, copy: Callable[..., Path]) -> None:
    running = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = CURRENT_DATABASE() AND query ~ '^SELECT PG_SLEEP'"

    def count_becomes(expected: int) -> bool:
        deadline = time.monotonic() + 10
        while scalar(db, running) != expected and time.monotonic() < deadline:
            time.sleep(0.05)
        return scalar(db, running) == expected

    slow = start(copy("SELECT PG_SLEEP(60)"), "query", "mine", "--timeout", "60", "--database", conninfo_of(db))
    assert count_becomes(1)
    slow.send_signal(signal.SIGINT)
    assert_one_line(finish(slow), 130, "interrupted")
    assert count_becomes(0)


@pytest.mark.parametrize("style", ["table", "csv", "json"])
def test_a_reader_that_has_seen_enough_is_no_error(db: Database, copy: Callable[..., Path], style: str) -> None:
    many = copy("SELECT n, REPEAT('x', 100) AS x FROM GENERATE_SERIES(1, 20000) AS s (n)")
    with start(many, "query", "mine", "--format", style, "--database", conninfo_of(db)) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 0)


@pytest.mark.parametrize("arguments", ["queries", "--help", "query session_stats --help"])
def test_a_reader_that_reads_nothing_is_no_error(arguments: str) -> None:
    with start(ROOT / "runner.py", *arguments.split()) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 0)


def test_a_stdout_closed_from_the_start_is_no_traceback() -> None:
    command = f'exec "{sys.executable}" "{ROOT / "runner.py"}" queries >&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        assert_one_line(finish(start(ROOT / "runner.py", "queries", stdout=full)), 1, "No space left")


def test_a_held_lock_is_exit_4(bare: Database) -> None:
    with bare.transaction():
        bare.execute("SELECT PG_ADVISORY_XACT_LOCK(HASHTEXT('alicia_session_stats'), HASHTEXT(CURRENT_SCHEMA()))")
        assert_one_line(cli("migrate", "--lock-wait", "0", "--database", conninfo_of(bare)), 4, "another migrator")


# Asking


def test_a_query_that_writes_is_refused(db: Database, copy: Callable[..., Path]) -> None:
    writing = copy("INSERT INTO alicia_conversations (id) VALUES ('ac_w')")
    assert_one_line(run_mine(writing, db), 1, "read-only transaction")
    assert scalar(db, "SELECT COUNT(*) FROM alicia_conversations") == 0


def test_mode_writes_lets_a_query_write_and_explain_does_not_run_it(db: Database, copy: Callable[..., Path]) -> None:
    writing = copy("INSERT INTO alicia_conversations (id) VALUES ('ac_w') RETURNING id", "Mode: writes")
    assert "Insert on alicia_conversations" in ask(writing, db, "--explain")
    assert scalar(db, "SELECT COUNT(*) FROM alicia_conversations") == 0
    assert "ac_w" in ask(writing, db)
    assert scalar(db, "SELECT COUNT(*) FROM alicia_conversations") == 1


def test_a_query_that_returns_no_columns_is_done(db: Database, copy: Callable[..., Path]) -> None:
    ask(copy("INSERT INTO alicia_conversations (id) VALUES ('ac_w')", "Mode: writes"), db)
    assert scalar(db, "SELECT COUNT(*) FROM alicia_conversations") == 1


VALUES = """SELECT * FROM (VALUES
    (123456789012345678901234567.891, 7, 0.1::FLOAT8, '0042', TIMESTAMP '2026-01-02 03:04:05.678', DATE '2026-01-02'),
    (2, 12, NULL, E'a "b", c\\nd', NULL, NULL)
) AS v (exact, whole, float, text, time, day)"""


def test_the_table_aligns_numbers_right_and_rounds_them(db: Database, copy: Callable[..., Path]) -> None:
    header, rule, first, second = ask(copy(VALUES.replace("E'a \"b\", c\\nd'", "'x'")), db).splitlines()
    assert [cell.strip() for cell in header.split("|")] == ["exact", "whole", "float", "text", "time", "day"]
    assert set(rule) == {"-", "+"}
    cells = [cell.strip() for cell in first.split("|")]
    assert cells == ["123456789012345678901234567.89", "7", "0.10", "0042", "2026-01-02 03:04:05", "2026-01-02"]
    for number, text in zip(second.split("|")[:2], ("2", "12"), strict=True):
        assert number.endswith(f" {text} ")
    assert second.split("|")[3].startswith(" x ")


def test_csv_is_rfc_4180(db: Database, copy: Callable[..., Path]) -> None:
    text = ask(copy(VALUES), db, "--format", "csv")
    assert text.split("\r\n") == [
        "exact,whole,float,text,time,day",
        "123456789012345678901234567.891,7,0.1,0042,2026-01-02 03:04:05.678000,2026-01-02",
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


def test_a_terminal_that_cannot_show_a_character_gets_no_traceback(db: Database, copy: Callable[..., Path]) -> None:
    asking = [sys.executable, str(copy("SELECT 'é' AS t")), "query", "mine", "--database", conninfo_of(db)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(asking, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("style", "printed"),
    [("json", "[]\n"), ("csv", "message_count,tool_call_count,memories_used,session_duration_seconds\n")],
)
def test_no_rows_is_no_error(db: Database, style: str, printed: str) -> None:
    done = cli("query", "session_stats", "--conversation_id", "ac_0", "--format", style, "--database", conninfo_of(db))
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


def test_explain_shows_the_plan(db: Database) -> None:
    asked = ("query", "session_stats", "--conversation_id", "ac_1", "--explain", "--database", conninfo_of(db))
    text = cli(*asked)
    assert (text.returncode, text.stderr) == (0, "")
    assert "alicia_session_stats" in text.stdout
    assert "Execution Time" in text.stdout
    [row] = json.loads(cli(*asked, "--format", "json").stdout)
    assert row["QUERY PLAN"][0]["Plan"]["Node Type"]


def test_queries_lists_every_file() -> None:
    listed = json.loads(cli("queries", "--format", "json").stdout)
    assert sorted(row["query"] for row in listed) == QUERIES
    for row in listed:
        query = runner.named_queries()[row["query"]]
        assert row["answers"] == query.summary
        assert all(f"{param.name} {param.type}" in row["parameters"] for param in query.params)


@pytest.mark.parametrize("name", QUERIES)
def test_help_of_a_query_documents_it_and_each_parameter(name: str) -> None:
    done = cli("query", name, "--help", env={"COLUMNS": "200"})
    assert (done.returncode, done.stderr) == (0, "")
    query = runner.named_queries()[name]
    assert query.documentation in done.stdout
    said = " ".join(done.stdout.split())
    for param in query.params:
        assert f"--{param.name} {param.type.upper()} {param.description}" in said
        assert f"({param.type}, {f'default {param.default}' if param.default else 'required'})" in said


# Migrating


def test_status_is_exit_3_until_migrated_and_migrating_again_applies_nothing(bare: Database) -> None:
    database = ("--database", conninfo_of(bare))
    before = cli("status", "--format", "json", *database)
    assert (before.returncode, before.stderr) == (3, "")
    assert json.loads(before.stdout) == [{"migration": name, "state": "pending", "applied_at": None} for name in MIGRATIONS]
    done = cli("migrate", *database)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "".join(f"applying {name}\n" for name in MIGRATIONS))
    after = cli("status", "--format", "json", *database)
    assert after.returncode == 0
    assert [(row["migration"], row["state"]) for row in json.loads(after.stdout)] == [(name, "applied") for name in MIGRATIONS]
    times = bare.execute("SELECT applied_at_utc FROM _yoyo_migration ORDER BY migration_id").fetchall()
    assert [datetime.fromisoformat(row["applied_at"]) for row in json.loads(after.stdout)] == [time for (time,) in times]
    again = cli("migrate", *database)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "nothing is pending\n")


def sql_of(names: list[str]) -> str:
    """The files, as --plan is to show them."""
    return "\n".join(f"-- {name}.sql\n{(ROOT / 'migrations' / f'{name}.sql').read_text()}" for name in names)


def test_plan_prints_the_pending_sql_and_changes_nothing(bare: Database) -> None:
    done = cli("migrate", "--plan", "--database", conninfo_of(bare))
    assert (done.returncode, done.stdout, done.stderr) == (0, sql_of(MIGRATIONS), "")
    assert scalar(bare, RELATIONS) == 0


def test_plan_leaves_out_what_is_applied(db: Database) -> None:
    database = ("--database", conninfo_of(db))
    nothing = cli("migrate", "--plan", *database)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "nothing to do\n")
    runner.rollback(conninfo_of(db), steps=2)
    assert cli("migrate", "--plan", *database).stdout == sql_of(MIGRATIONS[-2:])


def test_rollback_plan_prints_the_sql_and_changes_nothing(db: Database) -> None:
    database = ("--database", conninfo_of(db))
    newest = [f"{name}.rollback" for name in reversed(MIGRATIONS)]
    assert cli("rollback", "--plan", *database).stdout == sql_of(newest[:1])
    assert cli("rollback", "--plan", "--steps", "3", *database).stdout == sql_of(newest[:3])
    assert cli("rollback", "--plan", "--all", *database).stdout == sql_of(newest)
    assert cli("status", *database).returncode == 0


@pytest.mark.parametrize(("arguments", "count"), [((), 1), (("--steps", "3"), 3), (("--all",), len(MIGRATIONS))])
def test_rollback_takes_back_the_newest(db: Database, arguments: tuple[str, ...], count: int) -> None:
    done = cli("rollback", *arguments, "--database", conninfo_of(db))
    taken = list(reversed(MIGRATIONS))[:count]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "".join(f"took back {name}\n" for name in taken))
    pending = [row["migration"] for row in runner.status(conninfo_of(db)) if row["state"] == "pending"]
    assert pending == MIGRATIONS[len(MIGRATIONS) - count :]


def test_rollback_refuses_to_drop_rows_until_allowed(db: Database, insert: Callable[..., str]) -> None:
    for conversation in ("ac_1", "ac_1", "ac_2"):
        insert(conversation)
    database = ("--database", conninfo_of(db))
    assert_one_line(cli("rollback", "--all", *database), 1, "alicia_session_stats holds 3 rows", "--allow-data-loss")
    assert cli("status", *database).returncode == 0
    assert scalar(db, "SELECT COUNT(*) FROM alicia_session_stats") == 3
    assert cli("rollback", "--all", "--allow-data-loss", *database).returncode == 0
    assert scalar(db, RELATIONS) == 0


def test_verify_is_exit_1_when_the_database_differs(db: Database) -> None:
    database = ("--database", conninfo_of(db))
    same = cli("verify", "--format", "json", *database)
    assert (same.returncode, same.stdout) == (0, "[]\n")
    db.execute("DROP INDEX idx_session_stats_created_at")
    differs = cli("verify", "--format", "json", *database)
    assert differs.returncode == 1
    assert "idx_session_stats_created_at" in differs.stdout


# From Python


def test_python_migrates_and_rolls_back(bare: Database) -> None:
    conninfo = conninfo_of(bare)
    assert runner.plan(conninfo) == sql_of(MIGRATIONS)
    assert runner.migrate(conninfo) == MIGRATIONS
    assert runner.migrate(conninfo) == []
    assert runner.plan(conninfo) == ""
    assert [type(row["applied_at"]) for row in runner.status(conninfo)] == [datetime] * len(MIGRATIONS)
    assert runner.rollback(conninfo) == MIGRATIONS[-1:]
    assert runner.status(conninfo)[-1] == {"migration": MIGRATIONS[-1], "state": "pending", "applied_at": None}
    assert runner.rollback(conninfo, steps=None) == MIGRATIONS[-2::-1]
    assert runner.rollback(conninfo) == []


@pytest.mark.parametrize("days", [7, "7", None])
def test_python_queries_take_numbers_and_texts(db: Database, insert: Callable[..., str], days: object) -> None:
    insert(message_count=3)
    [row] = runner.query(conninfo_of(db), "average_session_metrics", days=days)
    assert row == {"avg_messages": 3, "avg_tools": 0, "avg_duration_minutes": 0}
    assert isinstance(row["avg_messages"], Decimal)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("nothing", {}),
        ("session_stats", {}),
        ("session_stats", {"conversation": "ac_1"}),
        ("average_session_metrics", {"days": "x"}),
        ("average_session_metrics", {"days": 1.5}),
        ("average_session_metrics", {"days": -1}),
        ("most_active_sessions", {"limit": 10**14}),
    ],
)
def test_python_raises_usage_error_before_any_server_is_asked(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(runner.UsageError):
        runner.query(NOWHERE, name, **params)


def test_python_raises_one_family_of_exceptions(bare: Database) -> None:
    assert issubclass(runner.UsageError, runner.SessionStatsError)
    assert issubclass(runner.LockedError, runner.SessionStatsError)
    with pytest.raises(runner.SessionStatsError, match="migrate"):
        runner.query(conninfo_of(bare), "most_active_sessions")
    for ask in (runner.migrate, runner.rollback, runner.status, runner.plan):
        with pytest.raises(runner.SessionStatsError, match="cannot connect"):
            ask(NOWHERE)
