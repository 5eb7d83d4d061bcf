"""Attach live recording to the application's tables, and detach it: run the files of live/ as psql does."""

from __future__ import annotations

import logging
import random
import re
import time

import psycopg

from alicia_session_stats.database import MIGRATING, READING, SessionStatsError, connect, describe, explain_error, server_errors
from alicia_session_stats.paths import LIVE
from alicia_session_stats.query_files import read_query

BUSY = ("55P03", "40P01")  # SQLSTATE: lock_timeout passed, deadlock.
PATIENCE = 300  # Seconds for which a file that does not get its locks is run again.
STATEMENT = re.compile(r"\s*((?:[^;'$]|'[^']*'|\$(\w*)\$.*?\$\2\$)+);?", re.S)
log = logging.getLogger(__name__)


def attach(conninfo: str | None = None, *, gap_minutes: int | str = 30) -> None:
    """Record sessions from the application's tables from now on, and fill in those of the messages that are there.

    Where it is attached already, attach compares every conversation again, and corrects what differs.

    Args:
        conninfo: the database, or None for the configured one.
        gap_minutes: a session ends when its conversation's next message is more than this many minutes later.

    Raises:
        SessionStatsError: the tables do not fit, belong to another role, or stay busy; or it is attached with another gap.
    """
    _run(conninfo, "attach", gap_minutes=str(gap_minutes))
    log.info("sessions are recorded live, with a gap of %s minutes", gap_minutes)


def detach(conninfo: str | None = None) -> None:
    """Stop recording: drop what attach created. The sessions stay. Where nothing is attached, nothing happens.

    Args:
        conninfo: the database, or None for the configured one.

    Raises:
        SessionStatsError: the tables belong to another role, or stay busy.
    """
    _run(conninfo, "detach")
    log.info("sessions are not recorded live")


def attached_gap(conninfo: str | None = None) -> int | None:
    """The gap in minutes with which sessions are recorded live; None where they are not."""
    with connect(conninfo) as connection, server_errors(connection, READING):
        [(gap,)] = connection.execute("SELECT alicia_session_stats_attached_gap()").fetchall()
        return gap


def _run(conninfo: str | None, name: str, **params: str) -> None:
    """Run a file, and again after a pause as long as it does not get its locks: each run continues what is left."""
    deadline = time.monotonic() + PATIENCE
    statements = [match[1].encode() for match in STATEMENT.finditer(read_query(LIVE / f"{name}.sql").statement)]
    while True:
        with connect(conninfo) as connection:
            log.info("%s: %s", name, describe(connection))
            try:
                for statement in statements:
                    connection.execute(statement, params)
                return
            except psycopg.Error as error:
                message = f"{name}: {explain_error(error, connection, MIGRATING)}"
                if error.sqlstate not in BUSY:
                    raise SessionStatsError(message, error.sqlstate) from error
                if time.monotonic() >= deadline:
                    message += f" (tried for {PATIENCE} s). Run it again when the tables are less busy"
                    raise SessionStatsError(message, error.sqlstate) from error
        pause = random.uniform(1, 3)
        log.info("%s: the tables are busy, trying again in %.1f s", name, pause)
        time.sleep(pause)
