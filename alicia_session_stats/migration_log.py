"""What is applied, as yoyo's tables record it: read, written in the migration's own transaction, dropped when unused."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from alicia_session_stats.database import Connection, SessionStatsError
from alicia_session_stats.migration_files import sha256

if TYPE_CHECKING:
    from yoyo.backends.base import DatabaseBackend
    from yoyo.migrations import Migration

# The names of this package's migrations, for PostgreSQL. The application may keep its own in the same tables.
OURS = r"^\d{4}_\w*session_stats"

APPLIED = """
    SELECT m.migration_id, m.applied_at_utc, SUBSTRING(l.comment FROM '^sha256:([0-9a-f]{64})$')
    FROM _yoyo_migration AS m
    LEFT JOIN LATERAL (
        SELECT comment
        FROM _yoyo_log
        WHERE migration_id = m.migration_id AND operation IN ('apply', 'mark')
        ORDER BY created_at_utc DESC
        LIMIT 1
    ) AS l ON TRUE
    WHERE m.migration_id ~ %s
    ORDER BY m.migration_id
"""
ADD_TO_LOG = """
    INSERT INTO _yoyo_log (id, migration_hash, migration_id, operation, username, comment, created_at_utc)
    VALUES (GEN_RANDOM_UUID()::TEXT, %s, %s, %s, CURRENT_USER, %s, CLOCK_TIMESTAMP() AT TIME ZONE 'UTC')
"""
DROP_UNUSED = f"""
    DO $$
    BEGIN
        PERFORM SET_CONFIG('lock_timeout', '500ms', TRUE);
        PERFORM SET_CONFIG('search_path', QUOTE_IDENT(CURRENT_SCHEMA()), TRUE); -- Another schema's tables are not ours.
        IF NOT EXISTS (SELECT FROM _yoyo_migration) AND NOT EXISTS (SELECT FROM _yoyo_log WHERE migration_id !~ '{OURS}') THEN
            DROP TABLE IF EXISTS _yoyo_migration, _yoyo_log, _yoyo_version, yoyo_lock;
        END IF;
    END
    $$
"""


class Applied(NamedTuple):
    """When (UTC) a migration was applied, and the SHA-256 of its file then; None when the runner did not apply it."""

    at: datetime
    sha256: str | None


def current_schema(connection: Connection) -> str:
    """The schema that the migrations use: the first of the search_path."""
    [(schema,)] = connection.execute("SELECT CURRENT_SCHEMA()").fetchall()
    if schema is None:
        raise SessionStatsError("the search_path names no schema that exists and that this role may use")
    return schema


def read_applied(connection: Connection) -> dict[str, Applied]:
    """This package's applied migrations by name, oldest first. Does not need yoyo's tables."""
    schema = current_schema(connection)
    if connection.execute("SELECT TO_REGCLASS(FORMAT('%%I._yoyo_migration', %s::TEXT))", [schema]).fetchone() == (None,):
        return {}
    return {name: Applied(at, digest) for name, at, digest in connection.execute(APPLIED, [OURS]).fetchall()}


def open_backend(connection: Connection) -> DatabaseBackend:
    """yoyo's backend on an open connection, with yoyo's tables made where they are missing.

    No URL reaches yoyo, which shows passwords in some of its errors.
    """
    from yoyo import internalmigrations
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.connections import DatabaseURI
    from yoyo.migrations import default_migration_table

    class OpenBackend(PostgresqlPsycopgBackend):
        def connect(self, dburi: DatabaseURI) -> psycopg.Connection[Any]:  # noqa: ARG002
            return connection

    backend = OpenBackend(DatabaseURI("postgresql+psycopg", None, None, None, None, None, {}), default_migration_table)
    internalmigrations.upgrade(backend)
    return backend


def record_applied(backend: DatabaseBackend, migration: Migration) -> None:
    """Record in the open transaction that a migration is applied, with its SHA-256."""
    backend.mark_one(migration, log=False)
    _add_to_log(backend, migration, "apply", f"sha256:{sha256(migration)}")


def record_rolled_back(backend: DatabaseBackend, migration: Migration) -> None:
    """Record in the open transaction that a migration is rolled back."""
    backend.unmark_one(migration, log=False)
    _add_to_log(backend, migration, "rollback", None)


def drop_unused_tables(connection: Connection) -> None:
    """Drop yoyo's tables when no migration is applied and the application has none in them."""
    with suppress(psycopg.Error):  # They do not exist, are in use, or belong to another role; then they may stay.
        connection.execute(DROP_UNUSED.encode())


def _add_to_log(backend: DatabaseBackend, migration: Migration, operation: str, comment: str | None) -> None:
    # Not by yoyo's log_migration, which resolves the machine's name through DNS.
    backend.connection.execute(ADD_TO_LOG, [migration.hash, migration.id, operation, comment])
