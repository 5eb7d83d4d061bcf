"""The server that the tests use: an embedded one of their own, or the one that TEST_DATABASE_URL names.

A test that takes `db` gets a copy of a migrated database, one that takes `bare` a copy of an empty one. Nothing is
mocked: the server, psql, pg_dump and the processes are real.
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

import alicia_session_stats as stats
from alicia_session_stats import embedded

ROOT = Path(__file__).parents[1]

# The tests must not touch a database that the developer has configured.
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
MIGRATIONS = sorted(path.stem for path in (ROOT / "migrations").glob("*.sql") if not path.stem.endswith(".rollback"))

# The application's tables that some queries read, as small as they can be.
EVENTS = """
    CREATE TABLE alicia_messages (id TEXT PRIMARY KEY, conversation_id TEXT, created_at TIMESTAMP, deleted_at TIMESTAMP);
    CREATE TABLE alicia_tool_uses (message_id TEXT, deleted_at TIMESTAMP);
    CREATE TABLE alicia_memory_used (message_id TEXT, memory_id TEXT, deleted_at TIMESTAMP);
"""
# An application that has the specification's tables, and nothing else of the package.
APPLICATION = """
    CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY);
    CREATE TABLE alicia_session_stats (
        id TEXT PRIMARY KEY DEFAULT GEN_RANDOM_UUID()::TEXT,
        conversation_id TEXT NOT NULL REFERENCES alicia_conversations(id) ON DELETE CASCADE,
        message_count INTEGER NOT NULL DEFAULT 0,
        tool_call_count INTEGER NOT NULL DEFAULT 0,
        memories_used INTEGER NOT NULL DEFAULT 0,
        session_duration_seconds INTEGER NOT NULL DEFAULT 0,
        created_at TIMESTAMP NOT NULL DEFAULT NOW(),
        updated_at TIMESTAMP NOT NULL DEFAULT NOW()
    );
"""
# The sums of each quarter of an hour: as the sessions have them, and as the rollup keeps them.
COUNTED = """
    SELECT
        DATE_BIN('15 minutes', created_at, '2000-01-01') AS bucket_start, COUNT(*) AS sessions, SUM(message_count) AS messages,
        SUM(tool_call_count) AS tool_calls, SUM(memories_used) AS memories, SUM(session_duration_seconds) AS seconds
    FROM alicia_session_stats
    GROUP BY 1
"""
KEPT = "SELECT bucket_start, sessions, messages, tool_calls, memories, seconds FROM alicia_session_stats_quarter_hours"


def pytest_configure() -> None:
    if EMBEDDED:
        with psycopg.connect(**SERVER, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("ALTER SYSTEM SET max_prepared_transactions = 4")  # Needs a restart.
        embedded.stop()
        embedded.start()


def pytest_unconfigure() -> None:
    if EMBEDDED:
        embedded.stop()
    shutil.rmtree(HOME)


def pytest_report_header() -> str:
    with psycopg.connect(**SERVER) as connection:
        return f"server: PostgreSQL {connection.info.parameter_status('server_version')}"


def migrate(host: str, port: int, user: str, dbname: str, password: str | None, **_: object) -> None:
    stats.migrate(make_conninfo(host=host, port=port, user=user, dbname=dbname, password=password))


server = {name: SERVER.get(name) for name in ("host", "port", "user", "password")}
migrated_server = factories.postgresql_noproc(**server, dbname="alicia_migrated", load=[migrate])
bare_server = factories.postgresql_noproc(**server, dbname="alicia_bare", load=[lambda **_: None])
migrated_clone = factories.postgresql("migrated_server")
bare_clone = factories.postgresql("bare_server")


@pytest.fixture
def db(migrated_clone: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A connection, in autocommit mode, to a migrated database that only this test uses."""
    migrated_clone.autocommit = True
    return migrated_clone


@pytest.fixture
def bare(bare_clone: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A connection, in autocommit mode, to an empty database that only this test uses."""
    bare_clone.autocommit = True
    return bare_clone


def conninfo_of(connection: psycopg.Connection[Any]) -> str:
    """The conninfo for further connections to the same database."""
    return make_conninfo(connection.info.dsn, password=SERVER.get("password"))


def scalar(connection: psycopg.Connection[Any], sql: str, *values: object) -> Any:
    """The first value of a query's first row."""
    row = connection.execute(sql.encode(), values or None).fetchone()
    assert row is not None
    return row[0]


def copy_product(folder: Path) -> Path:
    """Copy all that runs into a folder, where a test may change it. Returns the copy's runner.py."""
    for name in ("alicia_session_stats", "live", "migrations", "queries"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return Path(shutil.copy(ROOT / "runner.py", folder))


def cli(*arguments: str, runner: Path = ROOT / "runner.py", **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own. env: environment variables to add; runner: that of a copy."""
    environment = {**os.environ, **options.pop("env", {})}
    command = [sys.executable, str(runner), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False, **options)


def psql(conninfo: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run psql without the user's psqlrc. It stops at the first error."""
    command = [PROGRAMS / "psql", conninfo, "-X", "-v", "ON_ERROR_STOP=1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def pg_dump(conninfo: str, *arguments: str) -> str:
    """The schema as SQL: the same text for the same schema."""
    command = [PROGRAMS / "pg_dump", "--schema-only", "--restrict-key=tests", *arguments, conninfo]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    # PostgreSQL 15.20 keeps a column's version among its options. A pg_dump that is older than that shows it.
    return re.sub(r"ALTER TABLE .* SET \(pg_attver=\d+\);\n", "", dump)


@pytest.fixture
def insert(db: psycopg.Connection[Any]) -> Callable[..., str]:
    """Inserts a session with the given columns, and its conversation where it is missing. Returns the session's id."""

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
    """Creates a role, runs each `grant` with its name appended, and connects as it to the database `bare`."""
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
