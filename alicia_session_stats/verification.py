"""Compare a database with what the migrations promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alicia_session_stats.database import READING, Connection, SessionStatsError, connect, server_errors
from alicia_session_stats.migration_files import read_migrations, sha256
from alicia_session_stats.migration_log import Applied, read_applied
from alicia_session_stats.named_queries import query
from alicia_session_stats.wording import counted

if TYPE_CHECKING:
    from yoyo.migrations import Migration

UNDEFINED = ("42P01", "42703", "42883")  # SQLSTATE: no such table, column, function.
DENIED = "42501"
VERIFY_TIMEOUT = 30  # Seconds.
FIX_EDITED = "restore the released file, or roll it back and migrate again"


def verify(conninfo: str | None = None, *, days: int | str | None = None, until: object = None) -> list[dict[str, Any]]:
    """Compare a database with what the migrations promise: files, objects, and the rollup with the sessions.

    Args:
        conninfo: the database, or None for the configured one.
        days, until: the parameters of the query verify_rollup: the sessions to compare. Without them, every session.

    Returns:
        One dict for each difference, with object, found, expected and fix (str); empty when there is none.

    Raises:
        UsageError: days or until is wrong.
        SessionStatsError: the database cannot be read.
    """
    migrations = read_migrations()
    with connect(conninfo) as connection, server_errors(connection, READING):
        connection.read_only = True
        applied = read_applied(connection)
        rows = [_edited_row(migration, applied) for migration in edited_migrations(migrations, applied)]
        rows += query(connection, "verify", timeout=VERIFY_TIMEOUT)
        return rows + _verify_rollup(connection, days, until, has_differences=bool(rows))


def edited_migrations(migrations: Sequence[Migration], applied: Mapping[str, Applied]) -> list[Migration]:
    """The applied migrations whose file was edited since. What the runner did not apply is not compared."""
    recorded = {name: record.sha256 for name, record in applied.items() if record.sha256}
    return [migration for migration in migrations if recorded.get(migration.id, sha256(migration)) != sha256(migration)]


def check_objects(target: str | Connection | None) -> None:
    """Check that what the migrations created is still there, in a database where all of them are applied.

    An application that is reset drops the triggers with its table, while yoyo's tables stay.

    Args:
        target: the database, or an open connection. A role that may not read the catalog tables of the package passes.

    Raises:
        SessionStatsError: objects are gone, or the database cannot be read.
    """
    try:
        gone = [row["object"] for row in query(target, "verify", timeout=VERIFY_TIMEOUT) if row["found"] == "missing"]
    except SessionStatsError as error:
        if error.sqlstate == DENIED:
            return
        if error.sqlstate in UNDEFINED:
            raise SessionStatsError(
                f"what the migrations created is gone: {str(error.__cause__).splitlines()[0]}. To create it again, run "
                "DELETE FROM _yoyo_migration WHERE migration_id LIKE '%session_stats%'; and then migrate",
                error.sqlstate,
            ) from error
        raise
    if gone:
        verb = "is" if len(gone) == 1 else "are"
        raise SessionStatsError(
            f"{counted(len(gone), 'object')} that the migrations created {verb} gone (the first: {gone[0]}). "
            "Run verify for the fixes, or rollback --all and migrate again"
        )


def _edited_row(migration: Migration, applied: Mapping[str, Applied]) -> dict[str, Any]:
    return {
        "object": f"migration {migration.id}",
        "found": "the file was edited after it was applied",
        "expected": f"sha256 {(applied[migration.id].sha256 or '')[:12]}…",
        "fix": f"-- {FIX_EDITED}",
    }


def _verify_rollup(
    connection: Connection, days: int | str | None, until: object, *, has_differences: bool
) -> list[dict[str, Any]]:
    """The differences between the sessions and the rollup; none when missing objects leave nothing to compare."""
    try:
        return query(connection, "verify_rollup", timeout=3600, days=days, until=until)
    except SessionStatsError as error:
        if has_differences and error.sqlstate in (*UNDEFINED, DENIED):
            return []
        raise
