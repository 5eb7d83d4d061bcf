"""Migrate and roll back: yoyo under one lock."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alicia_session_stats.database import MIGRATING, Connection, SessionStatsError, server_errors
from alicia_session_stats.migration_files import apply_path, read_migrations, rollback_path, statements
from alicia_session_stats.migration_lock import only_migrator, table_users
from alicia_session_stats.migration_log import open_backend, read_applied, record_applied, record_rolled_back
from alicia_session_stats.migration_plan import newest_migrations, pending_migrations
from alicia_session_stats.verification import check_objects
from alicia_session_stats.wording import counted

if TYPE_CHECKING:
    from yoyo.migrations import Migration

BUSY = ("55P03", "40P01")  # SQLSTATE: lock_timeout passed, deadlock.
PATIENCE = 300  # Seconds for which a step that does not get its locks is tried again.
log = logging.getLogger(__name__)


def migrate(conninfo: str | None = None, *, wait: float = 0, lock_wait: float = 60) -> list[str]:
    """Apply every pending migration. Each is one transaction with its record, but for the index that is built concurrently.

    Args:
        conninfo: the database, or None for the configured one.
        wait: seconds to wait for a server that is still starting.
        lock_wait: seconds to wait for another migrator.

    Returns:
        The names of the migrations applied, oldest first; empty when none was pending.

    Raises:
        LockedError: another migrator did not end in time.
        SessionStatsError: a migration was refused, or what an applied one created is gone.
    """
    migrations = read_migrations()
    with only_migrator(conninfo, "migrating", wait=wait, lock_wait=lock_wait) as (connection, guard):
        begun = time.monotonic()
        pending = pending_migrations(migrations, read_applied(connection))
        for migration in pending:
            guard.execute("SELECT 1")  # Fails when the lock is lost.
            step = time.monotonic()
            _retry(lambda migration=migration: _apply(connection, migration), connection, migration.id)
            log.info("applied %s (%.2f s)", migration.id, time.monotonic() - step)
        check_objects(connection)
        if pending:
            log.info("%s applied in %.1f s", counted(len(pending), "migration"), time.monotonic() - begun)
        else:
            log.info("nothing is pending")
    return [migration.id for migration in pending]


def rollback(
    conninfo: str | None = None,
    *,
    steps: int | None = 1,
    allow_data_loss: bool = False,
    wait: float = 0,
    lock_wait: float = 60,
) -> list[str]:
    """Take back the newest migrations in one transaction: all of them or none.

    Args:
        conninfo: the database, or None for the configured one.
        steps: how many; None is all.
        allow_data_loss: drop the package's tables although they hold rows.
        wait: seconds to wait for a server that is still starting.
        lock_wait: seconds to wait for another migrator.

    Returns:
        The names of the migrations taken back, newest first.

    Raises:
        LockedError: another migrator did not end in time.
        SessionStatsError: a step was refused, for example because rows would be lost.
    """
    migrations = read_migrations()
    with only_migrator(conninfo, "rolling back", wait=wait, lock_wait=lock_wait) as (connection, _):
        begun = time.monotonic()
        newest = newest_migrations(migrations, read_applied(connection), steps)
        if newest:
            _retry(lambda: _roll_back(connection, newest, allow_data_loss), connection, "rollback")
            log.info("%s rolled back in %.1f s", counted(len(newest), "migration"), time.monotonic() - begun)
        else:
            log.info("nothing is applied")
    return [migration.id for migration in newest]


def _apply(connection: Connection, migration: Migration) -> None:
    """Run a migration and record it, in one transaction where the file allows one."""
    backend = open_backend(connection)
    if not migration.use_transactions:
        _run(connection, migration, apply_path(migration))
    with connection.transaction():
        if migration.use_transactions:
            _run(connection, migration, apply_path(migration))
        record_applied(backend, migration)


def _roll_back(connection: Connection, migrations: Sequence[Migration], allow_data_loss: bool) -> None:
    """Take migrations back, in the order given, in one transaction."""
    backend = open_backend(connection)
    seconds: dict[str, float] = {}
    with connection.transaction():
        allowed = "on" if allow_data_loss else "off"
        connection.execute("SELECT SET_CONFIG('alicia_session_stats.allow_data_loss', %s, TRUE)", [allowed])
        for migration in migrations:
            step = time.monotonic()
            _run(connection, migration, rollback_path(migration))
            record_rolled_back(backend, migration)
            seconds[migration.id] = time.monotonic() - step
    for name, taken in seconds.items():
        log.info("rolled back %s (%.2f s)", name, taken)


def _run(connection: Connection, migration: Migration, path: Path) -> None:
    with server_errors(connection, MIGRATING, f"{migration.id}: "):
        for statement in statements(path):
            connection.execute(statement)


def _retry(step: Callable[[], None], connection: Connection, name: str) -> None:
    """Run a step, and again after a pause as long as it does not get its locks.

    A statement waits half a second at most for a lock (the files set lock_timeout), so writers behind it hardly
    notice. The pauses are random, so that retries do not keep step with another job.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with server_errors(connection, MIGRATING):
                return step()
        except SessionStatsError as error:
            if error.sqlstate not in BUSY:
                raise
            users = table_users(connection) or "others"
            if time.monotonic() >= deadline:
                message = f"{name}: the table is in use by {users} (tried for {PATIENCE} s). Run it again when they have ended"
                raise SessionStatsError(message, error.sqlstate) from error.__cause__
        pause = random.uniform(1, 3)
        log.info("%s: the table is busy, trying again in %.1f s (in use by %s)", name, pause, users)
        time.sleep(pause)
