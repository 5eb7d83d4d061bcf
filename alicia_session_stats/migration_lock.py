"""One migrator at a time for each schema.

The lock is a transaction-level advisory lock on a connection of its own. It dies with that connection, and it works
through a pooler in transaction mode, which session-level locks do not.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Generator
from contextlib import closing, contextmanager

from psycopg import IsolationLevel

from alicia_session_stats.database import (
    MIGRATING,
    Connection,
    LockedError,
    connect,
    describe,
    server_errors,
)
from alicia_session_stats.migration_log import current_schema, drop_unused_tables

TRY_LOCK = "SELECT PG_TRY_ADVISORY_XACT_LOCK(HASHTEXT('alicia_session_stats'), HASHTEXT(CURRENT_SCHEMA()))"
HOLDER = """
    SELECT l.pid
    FROM pg_locks AS l
    INNER JOIN pg_database AS d ON d.oid = l.database AND d.datname = CURRENT_DATABASE()
    WHERE
        l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
        AND l.classid = (HASHTEXT('alicia_session_stats')::BIGINT & 4294967295)::OID
        AND l.objid = (HASHTEXT(CURRENT_SCHEMA())::BIGINT & 4294967295)::OID
"""
# Up to three transactions that use a table of ours, in any schema: writers before readers, then the oldest.
USERS = """
    SELECT STRING_AGG(name, ', ')
    FROM (
        SELECT
            COALESCE(
                'prepared transaction ' || QUOTE_LITERAL(p.gid),
                FORMAT('pid %s (%s)', l.pid, COALESCE(NULLIF(a.application_name, ''), a.usename))
            ) AS name
        FROM pg_locks AS l
        INNER JOIN pg_database AS d ON d.oid = l.database AND d.datname = CURRENT_DATABASE()
        INNER JOIN pg_class AS c ON c.oid = l.relation AND c.relkind IN ('r', 'v') AND c.relname LIKE 'alicia\\_%'
        LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
        LEFT JOIN pg_locks AS x ON l.pid IS NULL AND x.locktype = 'transactionid' AND x.virtualtransaction = l.virtualtransaction
        LEFT JOIN pg_prepared_xacts AS p ON p.transaction = x.transactionid
        WHERE l.granted AND l.pid IS DISTINCT FROM PG_BACKEND_PID()
        GROUP BY name
        ORDER BY BOOL_AND(l.mode = 'AccessShareLock'), MIN(COALESCE(p.prepared, a.xact_start))
        LIMIT 3
    ) AS users
"""
# A limit of the role's would end the transaction that holds the lock.
NO_TIMEOUTS = """
    SELECT SET_CONFIG(name, '0', TRUE)
    FROM pg_settings
    WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout', 'statement_timeout')
"""
log = logging.getLogger(__name__)


@contextmanager
def only_migrator(conninfo: str | None, doing: str, *, wait: float, lock_wait: float) -> Generator[tuple[Connection, Connection]]:
    """Hold the lock for as long as the block runs.

    Args:
        conninfo: the database, or None for the configured one.
        doing: the verb of the first log line: "migrating".
        wait: seconds to wait for a server that is still starting.
        lock_wait: seconds to wait for another migrator.

    Yields:
        A connection to work with, and the one that holds the lock. When the latter is gone, so is the lock.
    """
    with closing(connect(conninfo, wait=wait)) as guard, server_errors(guard, MIGRATING):
        log.info("%s %s", doing, describe(guard))
        current_schema(guard)  # Without one, there is no key to lock.
        _wait_for_lock(guard, lock_wait)
        guard.execute(NO_TIMEOUTS)
        with closing(connect(conninfo)) as connection:
            connection.isolation_level = IsolationLevel.READ_COMMITTED  # The role's default may be another.
            try:
                yield connection, guard
            finally:
                drop_unused_tables(connection)


def table_users(connection: Connection) -> str | None:
    """The sessions and prepared transactions that use the package's tables now, or None."""
    [(users,)] = connection.execute(USERS.encode()).fetchall()
    return users


def _wait_for_lock(guard: Connection, lock_wait: float) -> None:
    deadline = time.monotonic() + lock_wait
    is_waiting = False
    while not _try_lock(guard):
        holder = guard.execute(HOLDER).fetchone()
        if holder is None:
            continue  # It has just ended.
        if time.monotonic() >= deadline:
            raise LockedError(
                f"another migrator holds the lock (pid {holder[0]}). Nothing was changed. Retry, or raise --lock-wait"
            )
        if not is_waiting:
            log.info("waiting for another migrator (pid %s)", holder[0])
            is_waiting = True
        time.sleep(random.uniform(0.1, 0.3))


def _try_lock(guard: Connection) -> bool:
    """Take the lock in a transaction that stays open, unless another migrator holds it.

    Each attempt is a transaction of its own: CREATE INDEX CONCURRENTLY, in the migrator that holds the lock, would wait
    for a transaction that waits for the lock, a deadlock. READ COMMITTED, because an idle transaction at a higher
    isolation level keeps its snapshot, for which CREATE INDEX CONCURRENTLY waits too.
    """
    guard.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    [(is_locked,)] = guard.execute(TRY_LOCK).fetchall()
    if not is_locked:
        guard.execute("ROLLBACK")
    return is_locked
