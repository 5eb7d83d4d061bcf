"""A server for the tests: the embedded one, in a home of its own, or the one that TEST_DATABASE_URL names.

Every test that takes `db` gets a clone of a database that our own runner migrated; `bare` is a clone of
an empty one. The server, psql, pg_dump and the processes are real.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_postgresql import factories

import embedded
import runner

ROOT = Path(__file__).parents[1]

# Whatever database the developer has configured is none of the tests' business.
for variable in [name for name in os.environ if name.startswith("PG") and name != "PGSERVER_POSTGRES_VERSION"]:
    del os.environ[variable]
os.environ.pop("DATABASE_URL", None)
HOME = Path(tempfile.mkdtemp(prefix="alicia-tests-"))
HOME.chmod(0o755)
os.environ["ALICIA_SESSION_STATS_HOME"] = str(HOME)
EMBEDDED = "TEST_DATABASE_URL" not in os.environ
SERVER: dict[str, Any] = conninfo_to_dict(os.environ.get("TEST_DATABASE_URL") or embedded.start())

PROGRAMS = embedded.wheel_programs() or Path("/usr/bin")
PASSWORD = "Canary-7f3a9c"

# The host's tables that a query may read, as small as these can be.
EVENTS = """
    CREATE TABLE alicia_messages (id TEXT PRIMARY KEY, conversation_id TEXT, created_at TIMESTAMP, deleted_at TIMESTAMP);
    CREATE TABLE alicia_tool_uses (message_id TEXT, deleted_at TIMESTAMP);
    CREATE TABLE alicia_memory_used (message_id TEXT, memory_id TEXT, deleted_at TIMESTAMP);
"""
# The sums as the sessions have them, and as the triggers keep them.
COUNTED = """
    SELECT DATE_BIN('15 minutes', created_at, '2000-01-01'), COUNT(*), SUM(memories_used), SUM(session_duration_seconds),
        SUM(message_count), SUM(tool_call_count)
    FROM alicia_session_stats GROUP BY 1
"""
KEPT = """
    SELECT quarter_hour, SUM(sessions), SUM(memories), SUM(active_seconds), SUM(messages), SUM(tool_calls)
    FROM alicia_session_stats_quarter_hours GROUP BY 1
    HAVING (SUM(sessions), SUM(memories), SUM(active_seconds), SUM(messages), SUM(tool_calls)) <> (0, 0, 0, 0, 0)
"""


def pytest_configure() -> None:
    if EMBEDDED:
        with psycopg.connect(**SERVER, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")


def pytest_unconfigure() -> None:
    if EMBEDDED:
        embedded.stop()
    shutil.rmtree(HOME)


def pytest_report_header() -> str:
    with psycopg.connect(**SERVER) as connection:
        return f"server: PostgreSQL {connection.info.parameter_status('server_version')}"


def migrate(host: str, port: int, user: str, dbname: str, password: str | None, **_: object) -> None:
    runner.migrate(make_conninfo(host=host, port=port, user=user, dbname=dbname, password=password))


server = {name: SERVER.get(name) for name in ("host", "port", "user", "password")}
migrated_server = factories.postgresql_noproc(**server, dbname="alicia_migrated", load=[migrate])
bare_server = factories.postgresql_noproc(**server, dbname="alicia_bare", load=[lambda **_: None])
migrated_clone = factories.postgresql("migrated_server")
bare_clone = factories.postgresql("bare_server")


@pytest.fixture
def db(migrated_clone: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A connection, in autocommit mode, to a fresh migrated database of the test's own."""
    migrated_clone.autocommit = True
    return migrated_clone


@pytest.fixture
def bare(bare_clone: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """The same to a database without anything."""
    bare_clone.autocommit = True
    return bare_clone


def conninfo_of(connection: psycopg.Connection[Any]) -> str:
    return make_conninfo(connection.info.dsn, password=SERVER.get("password"))


def scalar(connection: psycopg.Connection[Any], sql: str, *values: object) -> Any:
    """The only value of a query's only row."""
    row = connection.execute(sql.encode(), values or None).fetchone()
    assert row is not None
    return row[0]


def cli(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, with the given changes to its environment."""
    environment = {**os.environ, **options.pop("env", {})}
    command = [sys.executable, str(ROOT / "runner.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False, **options)


def psql(conninfo: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run psql, stopping at the first error, without the user's psqlrc."""
    command = [PROGRAMS / "psql", conninfo, "-X", "-v", "ON_ERROR_STOP=1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def pg_dump(conninfo: str, *arguments: str) -> str:
    """The schema as SQL, the same text for the same schema."""
    command = [PROGRAMS / "pg_dump", "--schema-only", "--restrict-key=tests", *arguments, conninfo]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    # PostgreSQL 15.20 keeps a column's version among its options. A pg_dump that is older than that shows it.
    return re.sub(r"ALTER TABLE .* SET \(pg_attver=\d+\);\n", "", dump)


@pytest.fixture
def insert(db: psycopg.Connection[Any]) -> Callable[..., str]:
    """Insert a session with the given columns, and its conversation if it is new; returns the session's id."""

    def insert_session(conversation_id: str = "ac_1", **columns: object) -> str:
        db.execute("INSERT INTO alicia_conversations (id) VALUES (%s) ON CONFLICT DO NOTHING", [conversation_id])
        names = ["conversation_id", *columns]
        marks = ", ".join(["%s"] * len(names))
        return scalar(
            db,
            f"INSERT INTO alicia_session_stats ({', '.join(names)}) VALUES ({marks}) RETURNING id",
            conversation_id,
            *columns.values(),
        )

    return insert_session


@pytest.fixture
def login(bare: psycopg.Connection[Any]) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    """Makes a role without any right but to connect, and connects as it."""
    made: list[tuple[str, psycopg.Connection[Any]]] = []

    def connect(role: str, *grants: str) -> psycopg.Connection[Any]:
        bare.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD '{PASSWORD}'".encode())
        for grant in grants:
            bare.execute(f'{grant} "{role}"'.encode())
        made.append((role, psycopg.connect(make_conninfo(conninfo_of(bare), user=role, password=PASSWORD), autocommit=True)))
        return made[-1][1]

    yield connect
    for role, connection in made:
        connection.close()
        bare.execute(f'DROP OWNED BY "{role}" CASCADE; DROP ROLE "{role}"'.encode())
