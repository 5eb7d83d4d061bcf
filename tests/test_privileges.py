"""The least that each role needs, in any schema; and a password is never shown, whatever form it came in."""

import logging
import os
import re
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
import pytest
from conftest import EMBEDDED, PASSWORD, ROOT, SERVER, cli, conninfo_of, pg_dump, psql, scalar
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import runner

Connection = psycopg.Connection[Any]
Login = Callable[..., Connection]
SAMPLES = {"text": "ac_1", "integer": "7", "numeric": "1", "date": "2024-01-01", "timestamp": "2024-01-01", "boolean": "true"}
READS = {name: query for name, query in runner.named_queries().items() if not query.writes}


def required(query: runner.Query) -> list[str]:
    """A value for each parameter that has no default, as psql takes them."""
    return [f"{param.name}={SAMPLES[param.type]}" for param in query.params if param.default is None]


def url_of(connection: Connection) -> str:
    return make_conninfo(connection.info.dsn, password=PASSWORD)


HOST = """
CREATE FUNCTION generate_random_id(prefix TEXT) RETURNS TEXT LANGUAGE sql RETURN prefix || '_' || MD5(RANDOM()::TEXT);
CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY DEFAULT generate_random_id('ac'), title TEXT NOT NULL DEFAULT 'x');
INSERT INTO alicia_conversations (id) VALUES ('ac_1');
REVOKE ALL ON SCHEMA public FROM PUBLIC;
"""
MIGRATES = ("GRANT USAGE, CREATE ON SCHEMA public TO", "GRANT REFERENCES (id) ON alicia_conversations TO")


def test_migrate_needs_usage_and_create_on_the_schema_and_references_on_the_parents_id(bare: Connection, login: Login) -> None:
    bare.execute(HOST.encode())
    before = pg_dump(conninfo_of(bare))
    migrator = login("alicia_migrator", *MIGRATES)
    granted = pg_dump(conninfo_of(bare))
    assert scalar(migrator, "SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = CURRENT_USER") is False
    done = cli("migrate", "--database", url_of(migrator))
    assert done.returncode == 0, done.stderr
    assert cli("status", "--database", url_of(migrator)).returncode == 0
    with pytest.raises(errors.InsufficientPrivilege):
        migrator.execute("SELECT FROM alicia_conversations")
    migrator.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1')")
    with pytest.raises(errors.CheckViolation):
        migrator.execute("UPDATE alicia_session_stats SET message_count = -1")
    bare.execute("DELETE FROM alicia_conversations WHERE id = 'ac_1'")
    assert scalar(migrator, "SELECT COUNT(*) FROM alicia_session_stats") == 0
    done = cli("rollback", "--all", "--database", url_of(migrator))
    assert done.returncode == 0, done.stderr
    assert pg_dump(conninfo_of(bare)) == granted
    assert granted != before


@pytest.mark.parametrize(
    ("grants", "denied"),
    [
        (["GRANT USAGE ON SCHEMA public TO", MIGRATES[1]], "permission denied for schema public"),
        (MIGRATES[:1], "permission denied for table alicia_conversations"),
    ],
    ids=["without CREATE", "without REFERENCES"],
)
def test_one_right_less_is_not_enough_and_leaves_nothing(bare: Connection, login: Login, grants: list[str], denied: str) -> None:
    bare.execute(HOST.encode())
    migrator = login("alicia_migrator", *grants)
    before = pg_dump(conninfo_of(bare))
    refused = cli("migrate", "--database", url_of(migrator))
    assert refused.returncode == 1
    assert denied in refused.stderr
    assert pg_dump(conninfo_of(bare)) == before


def test_without_usage_on_the_schema_migrate_says_what_is_wrong(bare: Connection, login: Login) -> None:
    bare.execute(HOST.encode())
    refused = cli("migrate", "--database", url_of(login("alicia_migrator")))
    assert refused.returncode == 1
    assert "names no schema that exists and that this role may use" in refused.stderr


SESSIONS = """
CREATE TABLE alicia_session_stats (
    id TEXT PRIMARY KEY DEFAULT generate_random_id('ass'),
    conversation_id TEXT NOT NULL,
    message_count INTEGER NOT NULL DEFAULT 0,
    tool_call_count INTEGER NOT NULL DEFAULT 0,
    memories_used INTEGER NOT NULL DEFAULT 0,
    session_duration_seconds INTEGER NOT NULL DEFAULT 0,
    created_at TIMESTAMP NOT NULL DEFAULT NOW(),
    updated_at TIMESTAMP NOT NULL DEFAULT NOW()
);
INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1');
"""
CASCADES = "ALTER TABLE alicia_session_stats ADD FOREIGN KEY (conversation_id) REFERENCES alicia_conversations ON DELETE CASCADE;"


def test_adopting_a_table_with_its_foreign_key_needs_no_right_on_the_parent_but_the_table_itself(
    bare: Connection, login: Login
) -> None:
    bare.execute(f"{HOST}{SESSIONS}{CASCADES}".encode())
    migrator = login("alicia_migrator", MIGRATES[0], "ALTER TABLE alicia_session_stats OWNER TO")
    before = pg_dump(conninfo_of(bare))
    runner.migrate(url_of(migrator))
    runner.rollback(url_of(migrator), steps=None)
    assert pg_dump(conninfo_of(bare)) == before


def test_adopting_a_table_without_its_foreign_key_needs_select_on_the_parents_id_besides(bare: Connection, login: Login) -> None:
    bare.execute(f"{HOST}{SESSIONS}".encode())
    migrator = login("alicia_migrator", *MIGRATES, "ALTER TABLE alicia_session_stats OWNER TO")
    before = pg_dump(conninfo_of(bare))
    with pytest.raises(runner.SessionStatsError, match="permission denied for table alicia_conversations"):
        runner.migrate(url_of(migrator))
    assert pg_dump(conninfo_of(bare)) == before
    bare.execute("GRANT SELECT (id) ON alicia_conversations TO alicia_migrator")
    assert len(runner.migrate(url_of(migrator))) == len(UP)


def test_a_table_of_somebody_else_is_refused_before_anything_changed(bare: Connection, login: Login) -> None:
    bare.execute(f"{HOST}{SESSIONS}{CASCADES}GRANT SELECT ON alicia_session_stats TO PUBLIC".encode())
    migrator = login("alicia_migrator", *MIGRATES)
    before = pg_dump(conninfo_of(bare))
    with pytest.raises(runner.SessionStatsError, match="alicia_session_stats"):
        runner.migrate(url_of(migrator))
    assert pg_dump(conninfo_of(bare)) == before


def test_another_role_than_the_lock_holders_still_hears_who_holds_it(login: Login) -> None:
    first, second = (login(role, MIGRATES[0]) for role in ("alicia_migrator", "alicia_second"))
    with first.transaction():
        first.execute("SELECT PG_ADVISORY_XACT_LOCK(HASHTEXT('alicia_session_stats'), HASHTEXT(CURRENT_SCHEMA()))")
        refused = cli("migrate", "--lock-wait", "0", "--database", url_of(second))
    assert refused.returncode == 4
    assert f"pid {first.info.backend_pid}" in refused.stderr
    assert re.search("application ,|since [.,]", refused.stderr) is None, refused.stderr


# The roles of an application

EVERYTHING = {
    "SELECT": "SELECT message_count FROM alicia_session_stats",
    "SELECT id": "SELECT id FROM alicia_session_stats",
    "INSERT": "INSERT INTO alicia_session_stats (id, conversation_id) VALUES ('ass_new', 'ac_1')",
    "UPDATE": "UPDATE alicia_session_stats SET message_count = 1",
    "UPDATE one": "UPDATE alicia_session_stats SET message_count = 1 WHERE id = 'ass_1'",
    "DELETE": "DELETE FROM alicia_session_stats",
    "DELETE one": "DELETE FROM alicia_session_stats WHERE id = 'ass_1'",
    "TRUNCATE": "TRUNCATE alicia_session_stats",
    "conversations": "SELECT FROM alicia_conversations",
    "new conversation": "INSERT INTO alicia_conversations (id) VALUES ('ac_new')",
    "lock": "LOCK TABLE alicia_session_stats IN SHARE MODE",
    "create": "CREATE TABLE mine (n INTEGER)",
    "index": "CREATE INDEX ON alicia_session_stats (message_count)",
    "trigger": "ALTER TABLE alicia_session_stats DISABLE TRIGGER update_session_stats_updated_at",
    "drop": "DROP TABLE alicia_session_stats",
    "replace": "CREATE OR REPLACE FUNCTION generate_random_id(prefix TEXT) RETURNS TEXT LANGUAGE sql RETURN 'x'",
    "record": "DELETE FROM alicia_session_stats_created",
    "yoyo": "DELETE FROM _yoyo_migration",
}
UP = [path for path in (ROOT / "migrations").glob("*.sql") if not path.name.endswith(".rollback.sql")]
USAGE = "GRANT USAGE ON SCHEMA public TO"
READER = (
    "GRANT SELECT ON alicia_session_stats, alicia_session_stats_created, "
    "alicia_session_stats_quarter_hours, alicia_session_stats_leaders TO"
)
ROLES = {
    "alicia_reader": ([USAGE, READER], {"SELECT", "SELECT id"}),
    "alicia_writer": (
        [USAGE, "GRANT INSERT, UPDATE, SELECT (id) ON alicia_session_stats TO"],
        {"SELECT id", "INSERT", "UPDATE", "UPDATE one", "lock"},
    ),
    "alicia_inserter": ([USAGE, "GRANT INSERT ON alicia_session_stats TO"], {"INSERT"}),
    "alicia_keeper": (
        [USAGE, "GRANT DELETE, SELECT (id, created_at) ON alicia_session_stats TO"],
        {"SELECT id", "DELETE", "DELETE one", "lock"},
    ),
    "alicia_stranger": ([USAGE], set[str]()),
}


@pytest.fixture
def stats(bare: Connection) -> Connection:
    """A migrated database with a session, whose public schema is closed to others."""
    runner.migrate(conninfo_of(bare))
    bare.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC; INSERT INTO alicia_conversations VALUES ('ac_1')")
    bare.execute("INSERT INTO alicia_session_stats (id, conversation_id) VALUES ('ass_1', 'ac_1')")
    return bare


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_do_what_it_was_granted_and_nothing_else(stats: Connection, login: Login, role: str) -> None:
    grants, allowed = ROLES[role]
    connection = login(role, *grants)
    could: set[str] = set()
    for name, statement in EVERYTHING.items():
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(statement.encode())
            could.add(name)
        except errors.InsufficientPrivilege:
            pass
    assert could == allowed
    assert scalar(stats, "SELECT COUNT(*) FROM alicia_session_stats") == 1


def test_a_writer_records_returns_the_id_and_moves_updated_at(stats: Connection, login: Login) -> None:
    writer = login("alicia_writer", *ROLES["alicia_writer"][0])
    added = scalar(writer, "INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1') RETURNING id")
    before = scalar(stats, "SELECT updated_at FROM alicia_session_stats WHERE id = %s", added)
    writer.execute("UPDATE alicia_session_stats SET message_count = 2 WHERE id = %s", [added])
    assert scalar(stats, "SELECT updated_at > %s FROM alicia_session_stats WHERE id = %s", before, added)


@pytest.mark.parametrize("name", READS)
def test_a_reader_runs_every_query(stats: Connection, login: Login, name: str) -> None:
    reader = login("alicia_reader", *ROLES["alicia_reader"][0])
    values = required(READS[name])
    arguments = [part for value in values for part in ("--" + value.partition("=")[0], value.partition("=")[2])]
    assert scalar(stats, "SELECT COUNT(*) FROM alicia_session_stats") == 1
    done = cli("query", name, *arguments, "--database", url_of(reader))
    assert done.returncode == 0, done.stderr
    variables = [part for value in values for part in ("-v", value)]
    same = psql(url_of(reader), *variables, "-f", ROOT / "queries" / f"{name}.sql")
    assert same.returncode == 0, same.stderr


def test_a_role_without_rights_hears_so_in_one_line(stats: Connection, login: Login) -> None:
    stranger = login("alicia_stranger", USAGE)
    assert scalar(stats, "SELECT COUNT(*) FROM alicia_session_stats") == 1
    refused = cli("query", "average_session_metrics", "--database", url_of(stranger))
    assert refused.returncode == 1
    assert "permission denied for view alicia_session_stats_quarter_hours" in refused.stderr
    assert refused.stderr.count("\n") == 1


# Another schema than public


@pytest.mark.parametrize("schema", ["stats", '"My-Stats"', "stats, public"])
def test_another_schema_works_for_everything(bare: Connection, schema: str) -> None:
    bare.execute('CREATE SCHEMA stats; CREATE SCHEMA "My-Stats"')
    options = "-csearch_path=" + schema.replace(" ", "\\ ")
    url = "postgresql://?" + urlencode({**conninfo_to_dict(conninfo_of(bare)), "options": options}, quote_via=quote)
    empty = pg_dump(conninfo_of(bare))
    assert cli("status", "--database", url).returncode == 3
    done = cli("migrate", "--database", url)
    assert done.returncode == 0, done.stderr
    assert cli("status", "--database", url).returncode == 0
    where = "SELECT ARRAY_AGG(DISTINCT relnamespace::REGNAMESPACE::TEXT) FROM pg_class WHERE relname ~ 'alicia|yoyo|idx_session'"
    assert scalar(bare, where) == [schema.partition(",")[0]]
    with psycopg.connect(url, autocommit=True) as application:
        application.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
        application.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1')")
    for name, query in READS.items():
        runner.query(url, name, **dict(value.split("=") for value in required(query)))
    assert len(runner.query(url, "session_stats", conversation_id="ac_1")) == 1
    done = cli("psql", "--database", url, "--", "-XAtc", "SELECT COUNT(*) FROM alicia_session_stats")
    assert done.stdout == "1\n"
    done = cli("rollback", "--all", "--allow-data-loss", "--database", url)
    assert done.returncode == 0, done.stderr
    assert pg_dump(conninfo_of(bare)) == empty


def test_two_schemas_of_one_database_do_not_know_of_each_other(bare: Connection) -> None:
    bare.execute("CREATE SCHEMA a; CREATE SCHEMA b")
    a, b = (make_conninfo(conninfo_of(bare), options=f"-csearch_path={name}") for name in "ab")
    assert len(runner.migrate(a)) == len(UP)
    with_a = pg_dump(conninfo_of(bare))
    assert {row["state"] for row in runner.status(b)} == {"pending"}
    assert len(runner.migrate(b)) == len(UP)
    runner.rollback(b, steps=None)
    assert pg_dump(conninfo_of(bare)) == with_a
    assert {row["state"] for row in runner.status(a)} == {"applied"}


def test_a_schema_that_does_not_exist_is_said(bare: Connection) -> None:
    refused = cli("migrate", "--database", make_conninfo(conninfo_of(bare), options="-csearch_path=nowhere"))
    assert refused.returncode == 1
    assert "the search_path names no schema" in refused.stderr


# The password


@pytest.fixture(scope="module")
def asks_for_passwords() -> Iterator[None]:
    """The embedded server trusts everybody; make it ask this role for its password."""
    if not EMBEDDED:
        yield
        return
    with psycopg.connect(**SERVER, autocommit=True) as admin:
        hba = Path(scalar(admin, "SHOW hba_file"))
        trusting = hba.read_text()
        hba.write_text(f"local all alicia_canary scram-sha-256\n{trusting}")
        admin.execute("SELECT pg_reload_conf()")
        yield
        hba.write_text(trusting)
        admin.execute("SELECT pg_reload_conf()")


@pytest.fixture
def canary(asks_for_passwords: None, login: Login) -> dict[str, Any]:
    """How to reach the database as a role that needs its password, without the password."""
    assert asks_for_passwords is None
    info = login("alicia_canary", "GRANT USAGE, CREATE ON SCHEMA public TO").info
    return {"host": info.host, "port": info.port, "user": info.user, "dbname": info.dbname}


def assert_silent(*ran: subprocess.CompletedProcess[str]) -> None:
    for done in ran:
        assert PASSWORD not in done.stdout + done.stderr
        assert PASSWORD not in quote(done.stdout + done.stderr)


def forms(where: dict[str, Any], folder: Path, password: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Every form that libpq takes a password in: the arguments and the environment."""
    bare = make_conninfo(**where)
    given = {name: str(value) for name, value in where.items()}
    rest = {name: given[name] for name in ("host", "port")}
    passfile = folder / "pgpass"
    passfile.write_text(f"*:*:*:*:{password}\n")
    passfile.chmod(stat.S_IRUSR | stat.S_IWUSR)
    service = folder / "pg_service.conf"
    lines = [f"{name}={value}" for name, value in {**given, "password": password}.items()]
    service.write_text("\n".join(["[canary]", *lines, ""]))
    url = f"postgresql://{given['user']}:{quote(password)}@/{given['dbname']}?{urlencode(rest)}"
    return {
        "URL": (["--database", url], {}),
        "DATABASE_URL": ([], {"DATABASE_URL": url.replace("postgresql", "postgres")}),
        "URL parameter": (["--database", "postgresql://?" + urlencode({**given, "password": password})], {}),
        "conninfo": (["--database", make_conninfo(bare, password=password)], {}),
        "PGPASSWORD": (["--database", bare], {"PGPASSWORD": password}),
        "PGPASSFILE": (["--database", bare], {"PGPASSFILE": str(passfile)}),
        "passfile": (["--database", make_conninfo(bare, passfile=str(passfile))], {}),
        "PGSERVICE": ([], {"PGSERVICE": "canary", "PGSERVICEFILE": str(service)}),
        "service": (["--database", "service=canary"], {"PGSERVICEFILE": str(service)}),
        "PGHOST": (
            [],
            {f"PG{name.upper()}": value for name, value in given.items() if name != "dbname"}
            | {"PGDATABASE": given["dbname"], "PGPASSWORD": password},
        ),
    }


FORMS = ["URL", "DATABASE_URL", "URL parameter", "conninfo", "PGPASSWORD", "PGPASSFILE", "passfile", "PGSERVICE", "service"]
FORMS += ["PGHOST"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_password_works_and_none_is_shown(canary: dict[str, Any], tmp_path: Path, form: str) -> None:
    arguments, environment = forms(canary, tmp_path, PASSWORD)[form]
    done = cli("migrate", *arguments, env=environment)
    assert done.returncode == 0, done.stderr
    asked = cli("psql", *arguments, "--", "-XAtc", "SELECT CURRENT_USER", env=environment)
    assert asked.stdout == "alicia_canary\n", asked.stderr
    assert_silent(done, asked)


@pytest.mark.skipif(not EMBEDDED, reason="whether another server asks for passwords is not ours to say")
@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_password_is_not_shown(canary: dict[str, Any], tmp_path: Path, form: str) -> None:
    arguments, environment = forms(canary, tmp_path, f"wrong {PASSWORD}")[form]
    refused = cli("status", *arguments, env=environment)
    assert refused.returncode == 1
    assert "password authentication failed" in refused.stderr
    assert_silent(refused)


@pytest.mark.skipif(not EMBEDDED, reason="whether another server asks for passwords is not ours to say")
def test_the_server_really_asks(canary: dict[str, Any]) -> None:
    refused = cli("status", "--database", make_conninfo(**canary))
    assert "no password supplied" in refused.stderr


def test_no_command_shows_the_password_also_when_it_fails(canary: dict[str, Any], bare: Connection) -> None:
    given = make_conninfo(**{**canary, "password": PASSWORD})
    expected = {
        "status": 3,
        "migrate --plan": 0,
        "query average_session_metrics": 1,
        "migrate": 0,
        "verify": 0,
        "query session_stats --conversation_id x --explain": 0,
        "query most_active_sessions --limit many": 2,
        "rollback --plan": 0,
        "rollback --all": 0,
        "queries": 0,
        "query nothing_known": 2,
        "psql -- -Xc nonsense": 1,
    }
    ran = {command: cli(*command.split(" ", 1)[:1], "--database", given, *command.split()[1:]) for command in expected}
    assert_silent(*ran.values())
    assert {command: done.returncode for command, done in ran.items()} == expected
    bare.execute("CREATE TABLE alicia_conversations (id UUID)")
    unfit = cli("migrate", "--database", given)
    nowhere = cli("migrate", "--database", make_conninfo(given, dbname="nowhere"))
    unreachable = cli("migrate", "--database", make_conninfo(given, host="/nowhere"))
    assert_silent(unfit, nowhere, unreachable)
    assert [done.returncode for done in (unfit, nowhere, unreachable)] == [1, 1, 1]


MALFORMED = (
    f"postgresql://user:{PASSWORD}/x@host/db",
    f"postgresql://user:123/{PASSWORD}@host/db",
    f"postgresql://user:{PASSWORD}@x@host/db",
    f"postgresql://user:x@{PASSWORD}@host/db",
    f"postgresql://user:x:{PASSWORD}@host:1:2/db",
    f"postgresql://user:%zz{PASSWORD}@host/db",
    f"postgresql://user:1?{PASSWORD}@host/db",
    f"postgresql://user:1#{PASSWORD}@host:x/db",
    f"postgresql://user:[{PASSWORD}@host/db",
    f"postgresql://[{PASSWORD}",
    f"postgresql://user@host/db?password={PASSWORD}&bogus=1",
    f"postgresql://user@host/db?password={PASSWORD}=1",
    f"postgresql://user@host/db?pasword={PASSWORD}",
    f"postgresql://user@host:{PASSWORD}/db",
    f"postgresql:/user:{PASSWORD}@host/db",
    f"postgres//user:{PASSWORD}@host/db",
    f"postgresql+psycopg://user:{PASSWORD}@host/db",
    f"mysql://user:{PASSWORD}@host/db",
    f"user:{PASSWORD}@host/db",
    f"host=x password='{PASSWORD}",
    f"host=x password=my {PASSWORD}",
    f"host=x password=my {PASSWORD}=x",
    f"host=x pasword={PASSWORD}",
    f"dbname=postgresql://user:{PASSWORD}@host/db host=/nowhere",
)


@pytest.mark.parametrize("given", MALFORMED)
def test_a_malformed_url_is_not_shown(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["status", "--database", given]) in (1, 2)
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert PASSWORD not in shown.out + shown.err


URL = f"postgresql://user:{PASSWORD}@/db?host=/nowhere"


@pytest.mark.parametrize(
    "arguments",
    [
        ["migrate", URL],
        [URL, "migrate"],
        [URL],
        ["--databse", URL, "migrate"],
        ["migrate", "--databse", URL],
        ["migrate", f"--databse={URL}"],
        ["migrate", "--wait", URL],
        ["rollback", "--steps", URL],
        ["query", URL],
        ["query", "session_stats", "--conversation_id", "x", URL],
        ["status", "--format", URL],
        ["status", f"DATABASE_URL={URL}"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(URL, "URL"),
)
def test_a_url_in_the_wrong_place_is_not_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(arguments) == 2
    shown = capsys.readouterr()
    assert PASSWORD not in shown.out + shown.err


def test_no_exception_and_no_log_record_holds_the_password(canary: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    given = make_conninfo(**{**canary, "password": PASSWORD})
    runner.migrate(given)
    shown: list[str] = []
    for wrong in (given.replace(PASSWORD, f"wrong{PASSWORD}"), make_conninfo(given, host="/nowhere"), *MALFORMED):
        for call in (runner.migrate, runner.rollback, runner.status, runner.plan):
            try:
                call(wrong)
            except runner.SessionStatsError as error:
                shown += [repr(error), *traceback.format_exception(error)]
    runner.rollback(given, steps=None)
    assert EMBEDDED is False or len(shown) > 4 * len(MALFORMED)
    assert PASSWORD not in "".join(shown)
    assert PASSWORD not in caplog.text


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads the process list where Linux keeps it")
@pytest.mark.parametrize("form", ["URL", "DATABASE_URL", "URL parameter", "conninfo", "PGSERVICE"])
def test_the_process_list_does_not_show_the_password_while_psql_runs(
    canary: dict[str, Any], bare: Connection, tmp_path: Path, form: str
) -> None:
    arguments, environment = forms(canary, tmp_path, PASSWORD)[form]
    command = [sys.executable, str(ROOT / "runner.py"), "psql", *arguments, "--", "-XAtc", "SELECT pg_sleep(30)"]
    asleep = "FROM pg_stat_activity WHERE usename = 'alicia_canary' AND query ~ 'pg_sleep'"
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 20
            while scalar(bare, f"SELECT COUNT(*) {asleep}") == 0:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            family = [process.pid, *map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())]
            listed = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family]
        finally:
            bare.execute(f"SELECT PG_TERMINATE_BACKEND(pid) {asleep}".encode())
    assert b"psql" in listed[0]
    assert PASSWORD.encode() not in b"".join(listed)
