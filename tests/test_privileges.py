"""The rights that each role needs, in any schema; and a password is never shown, whatever form it came in."""

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
from conftest import APPLICATION, EMBEDDED, MIGRATIONS, PASSWORD, ROOT, SERVER, cli, conninfo_of, pg_dump, scalar
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import alicia_session_stats as stats
import runner

Connection = psycopg.Connection[Any]
Login = Callable[..., Connection]
# The specification's tables, in a schema that is closed to others.
ADOPTED = f"{APPLICATION} INSERT INTO alicia_conversations VALUES ('ac_1'); REVOKE ALL ON SCHEMA public FROM PUBLIC;"
NEW = f"{ADOPTED} DROP TABLE alicia_session_stats;"
WITHOUT_KEY = f"""
    {ADOPTED} INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1');
    ALTER TABLE alicia_session_stats DROP CONSTRAINT alicia_session_stats_conversation_id_fkey;
"""
USAGE = "GRANT USAGE ON SCHEMA public TO"
OWNS_SESSIONS = "ALTER TABLE alicia_session_stats OWNER TO"


def url_of(connection: Connection) -> str:
    return make_conninfo(connection.info.dsn, password=PASSWORD)


# The migrator


def test_migrate_and_rollback_need_create_on_the_schema_and_references_on_the_parents_id(bare: Connection, login: Login) -> None:
    bare.execute(NEW.encode())
    grants = ("GRANT USAGE, CREATE ON SCHEMA public TO", "GRANT REFERENCES (id) ON alicia_conversations TO")
    migrator = login("alicia_migrator", *grants)
    before = pg_dump(conninfo_of(bare))
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
    bare.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_1')")
    done = cli("rollback", "--all", "--database", url_of(migrator))
    assert done.returncode == 0, done.stderr
    assert pg_dump(conninfo_of(bare)) == before


def grant_until_it_works(admin: Connection, role: Connection, *command: str) -> list[str]:
    """Run a command as a role, and execute each GRANT that it asks for. Returns these, up to the role's name."""
    grants: list[str] = []
    while True:
        before = pg_dump(conninfo_of(admin))
        done = cli(*command, "--database", url_of(role))
        if done.returncode == 0:
            return grants
        said = re.fullmatch(
            r"alicia-session-stats: .*permission denied.*: ((GRANT .+) TO .+;)\n", done.stderr.splitlines(True)[-1]
        )
        assert said, done.stderr
        assert said[2] not in grants, done.stderr
        assert pg_dump(conninfo_of(admin)) == before
        grants.append(said[2])
        admin.execute(said[1].encode())


SCHEMA = "GRANT USAGE, CREATE ON SCHEMA public"


@pytest.mark.parametrize(
    ("tables", "rights", "grants"),
    [
        (NEW, [USAGE], [SCHEMA, "GRANT REFERENCES ON alicia_conversations"]),
        (WITHOUT_KEY, [USAGE, OWNS_SESSIONS], [SCHEMA, "GRANT REFERENCES, SELECT ON alicia_conversations"]),
        (ADOPTED, [USAGE, OWNS_SESSIONS], [SCHEMA]),
        (ADOPTED, [USAGE], [SCHEMA, "GRANT postgres"]),
    ],
    ids=["new table", "adopted table", "adopted table with its key", "adopted table of another role"],
)
def test_migrate_asks_for_each_right_that_it_lacks_and_changes_nothing_before(
    bare: Connection, login: Login, tables: str, rights: list[str], grants: list[str]
) -> None:
    bare.execute(tables.encode())
    migrator = login("alicia-Migrator", *rights)
    owner = scalar(bare, "SELECT CURRENT_USER")
    assert grant_until_it_works(bare, migrator, "migrate") == [grant.replace("postgres", owner) for grant in grants]
    assert cli("status", "--database", url_of(migrator)).returncode == 0


@pytest.mark.parametrize("search_path", ["public", "nowhere"])
def test_a_schema_that_a_role_may_not_use_or_that_is_not_there_is_said(bare: Connection, login: Login, search_path: str) -> None:
    bare.execute(NEW.encode())
    migrator = make_conninfo(url_of(login("alicia_migrator")), options=f"-csearch_path={search_path}")
    for command in ("migrate", "status"):
        refused = cli(command, "--database", migrator)
        assert refused.returncode == 1
        assert "the search_path names no schema that exists and that this role may use" in refused.stderr


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
    "create": "CREATE TABLE mine (n INTEGER)",
    "trigger": "ALTER TABLE alicia_session_stats DISABLE TRIGGER update_session_stats_updated_at",
    "replace": "CREATE OR REPLACE FUNCTION generate_random_id(prefix TEXT) RETURNS TEXT LANGUAGE sql RETURN 'x'",
    "rollup": "DELETE FROM alicia_session_stats_rollup",
    "repair": "SELECT alicia_session_stats_repair()",
    "record": "DELETE FROM alicia_session_stats_owned_objects",
    "yoyo": "DELETE FROM _yoyo_migration",
}
ROLES = {
    "alicia_reader": (["GRANT SELECT ON alicia_session_stats TO"], {"SELECT", "SELECT id"}),
    "alicia_writer": (
        ["GRANT INSERT, UPDATE, SELECT (id) ON alicia_session_stats TO"],
        {"SELECT id", "INSERT", "UPDATE", "UPDATE one"},
    ),
    "alicia_inserter": (["GRANT INSERT ON alicia_session_stats TO"], {"INSERT"}),
    "alicia_keeper": (
        ["GRANT DELETE, SELECT (id, created_at) ON alicia_session_stats TO"],
        {"SELECT id", "DELETE", "DELETE one"},
    ),
    "alicia_stranger": ([], set[str]()),
}


@pytest.fixture
def migrated(bare: Connection) -> Connection:
    """A migrated database with a session, whose public schema is closed to others."""
    stats.migrate(conninfo_of(bare))
    bare.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC; INSERT INTO alicia_conversations VALUES ('ac_1')")
    bare.execute("INSERT INTO alicia_session_stats (id, conversation_id) VALUES ('ass_1', 'ac_1')")
    return bare


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_do_what_it_was_granted_and_nothing_else(migrated: Connection, login: Login, role: str) -> None:
    grants, allowed = ROLES[role]
    connection = login(role, USAGE, *grants)
    could: set[str] = set()
    for name, statement in EVERYTHING.items():
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(statement.encode())
            could.add(name)
        except errors.InsufficientPrivilege:
            pass
    assert could == allowed
    assert scalar(migrated, "SELECT COUNT(*) FROM alicia_session_stats") == 1


@pytest.mark.parametrize(
    ("command", "grants"),
    [
        (
            "query average_session_metrics",
            ["GRANT USAGE ON SCHEMA public", *(f"GRANT SELECT ON alicia_session_stats{of}" for of in ("_parts", ""))],
        ),
        (
            "query start_session --conversation-id ac_1",
            ["GRANT USAGE ON SCHEMA public", "GRANT SELECT, INSERT, UPDATE, DELETE ON alicia_session_stats"],
        ),
        ("status", ["GRANT USAGE ON SCHEMA public", *(f"GRANT SELECT ON _yoyo_{table}" for table in ("migration", "log"))]),
    ],
)
def test_a_command_asks_for_each_right_that_its_role_lacks(
    migrated: Connection, login: Login, command: str, grants: list[str]
) -> None:
    assert grant_until_it_works(migrated, login("alicia-Reader", USAGE), *command.split()) == grants[1:]


# Another schema than public


def test_another_schema_works_for_everything(bare: Connection) -> None:
    bare.execute('CREATE SCHEMA "My-Stats"')
    options = {"options": '-csearch_path="My-Stats",\\ public'}
    url = "postgresql://?" + urlencode({**conninfo_to_dict(conninfo_of(bare)), **options}, quote_via=quote)
    empty = pg_dump(conninfo_of(bare))
    assert cli("status", "--database", url).returncode == 3
    done = cli("migrate", "--database", url)
    assert done.returncode == 0, done.stderr
    assert cli("status", "--database", url).returncode == 0
    where = "SELECT ARRAY_AGG(DISTINCT relnamespace::REGNAMESPACE::TEXT) FROM pg_class WHERE relname ~ 'alicia|yoyo|idx_session'"
    assert scalar(bare, where) == ['"My-Stats"']
    with stats.connect(url) as application:
        application.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
        application.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1')")
        application.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id TEXT")
    for query in stats.queries().values():
        if not query.writes:
            stats.query(url, query.name, **{param.name: "ac_1" for param in query.params if param.default is None})
    assert stats.verify(url) == []
    done = cli("psql", "--database", url, "--", "-XAtc", "SELECT COUNT(*) FROM alicia_session_stats")
    assert done.stdout == "1\n"
    done = cli("rollback", "--all", "--allow-data-loss", "--database", url)
    assert done.returncode == 0, done.stderr
    assert pg_dump(conninfo_of(bare)) == empty


def test_two_schemas_of_one_database_do_not_know_of_each_other(bare: Connection) -> None:
    bare.execute("CREATE SCHEMA a; CREATE SCHEMA b")
    a, b = (make_conninfo(conninfo_of(bare), options=f"-csearch_path={name}") for name in "ab")
    assert stats.migrate(a) == MIGRATIONS
    with_a = pg_dump(conninfo_of(bare))
    assert {row["state"] for row in stats.status(b)} == {"pending"}
    assert stats.migrate(b) == MIGRATIONS
    assert stats.verify(a) == stats.verify(b) == []
    stats.rollback(b, steps=None)
    assert pg_dump(conninfo_of(bare)) == with_a
    assert {row["state"] for row in stats.status(a)} == {"applied"}


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
    """The forms that libpq takes a password in: the arguments and the environment."""
    given = {name: str(value) for name, value in where.items()}
    passfile, service = folder / "pgpass", folder / "pg_service.conf"
    passfile.write_text(f"*:*:*:*:{password}\n")
    passfile.chmod(stat.S_IRUSR | stat.S_IWUSR)
    service.write_text(
        "\n".join(["[canary]", *(f"{name}={value}" for name, value in {**given, "password": password}.items()), ""])
    )
    rest = urlencode({name: given[name] for name in ("host", "port")})
    url = f"postgresql://{given['user']}:{quote(password)}@/{given['dbname']}?{rest}"
    variables = {"PGHOST": given["host"], "PGPORT": given["port"], "PGUSER": given["user"], "PGDATABASE": given["dbname"]}
    return {
        "URL": (["--database", url], {}),
        "DATABASE_URL": ([], {"DATABASE_URL": url.replace("postgresql", "postgres")}),
        "conninfo": (["--database", make_conninfo(**{**where, "password": password})], {}),
        "PGPASSFILE": (["--database", make_conninfo(**where)], {"PGPASSFILE": str(passfile)}),
        "PGSERVICE": ([], {"PGSERVICE": "canary", "PGSERVICEFILE": str(service)}),
        "PGPASSWORD": ([], {**variables, "PGPASSWORD": password}),
    }


def test_every_form_of_password_works_and_none_is_shown(canary: dict[str, Any], tmp_path: Path) -> None:
    for arguments, environment in forms(canary, tmp_path, PASSWORD).values():
        done = cli("migrate", *arguments, env=environment)
        assert done.returncode == 0, done.stderr
        asked = cli("psql", *arguments, "--", "-XAtc", "SELECT CURRENT_USER", env=environment)
        assert asked.stdout == "alicia_canary\n", asked.stderr
        assert_silent(done, asked)


@pytest.mark.skipif(not EMBEDDED, reason="whether another server asks for passwords is not ours to say")
def test_a_wrong_password_is_refused_and_not_shown(canary: dict[str, Any], tmp_path: Path) -> None:
    for form in ("URL", "conninfo", "PGSERVICE"):
        arguments, environment = forms(canary, tmp_path, f"wrong {PASSWORD}")[form]
        refused = cli("status", *arguments, env=environment)
        assert refused.returncode == 1
        assert "password authentication failed" in refused.stderr
        assert_silent(refused)
    assert "no password supplied" in cli("status", "--database", make_conninfo(**canary)).stderr


def test_no_command_shows_the_password_also_when_it_fails(canary: dict[str, Any], bare: Connection) -> None:
    given = make_conninfo(**{**canary, "password": PASSWORD})
    expected = {
        "status": 3,
        "migrate --plan": 0,
        "query average_session_metrics": 1,
        "migrate": 0,
        "verify": 0,
        "query session_stats --conversation-id x --explain": 0,
        "query most_active_sessions --limit many": 2,
        "purge --days 400": 0,
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


# An at sign, a slash and a percent sign in a password; a wrong parameter; a wrong scheme; a conninfo that is cut off.
MALFORMED = (
    f"postgresql://user:x@{PASSWORD}@host/db",
    f"postgresql://user:123/{PASSWORD}@host/db",
    f"postgresql://user:%zz{PASSWORD}@host/db",
    f"postgresql://user@host/db?pasword={PASSWORD}",
    f"mysql://user:{PASSWORD}@host/db",
    f"host=x password='{PASSWORD}",
)


def test_every_malformed_url_has_the_same_line_and_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    said = set[tuple[str, str]]()
    for given in MALFORMED:
        assert runner.main(["status", "--database", given]) == 2
        said.add(capsys.readouterr())
    [(out, err)] = said
    assert (out, err.count("\n")) == ("", 1)
    assert "percent-encode its password" in err


URL = f"postgresql://user:{PASSWORD}@/db?host=/nowhere"


@pytest.mark.parametrize(
    "arguments",
    [
        "migrate {}",
        "{}",
        "--databse {} migrate",
        "migrate --databse={}",
        "migrate --wait {}",
        "query {}",
        "status DATABASE_URL={}",
    ],
)
def test_a_url_in_the_wrong_place_is_not_shown(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(arguments.format(URL).split()) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert PASSWORD not in shown.err


def test_no_exception_and_no_log_record_holds_the_password(canary: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    given = make_conninfo(**{**canary, "password": PASSWORD})
    stats.migrate(given)
    shown: list[str] = []
    for wrong in (given.replace(PASSWORD, f"wrong{PASSWORD}"), make_conninfo(given, host="/nowhere"), *MALFORMED):
        for call in (stats.migrate, stats.rollback, stats.status, stats.plan):
            try:
                call(wrong)
            except stats.SessionStatsError as error:
                told: BaseException | None = error
                shown += traceback.format_exception(error)
                while told is not None:
                    shown.append(repr(told))
                    told = told.__cause__ or told.__context__
    stats.rollback(given, steps=None)
    assert EMBEDDED is False or len(shown) > 4 * len(MALFORMED)
    assert PASSWORD not in "".join(shown)
    assert PASSWORD not in caplog.text


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads the process list where Linux keeps it")
@pytest.mark.parametrize("form", ["URL", "conninfo"])
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
