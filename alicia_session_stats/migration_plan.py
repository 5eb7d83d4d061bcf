"""Which migrations are applied, which come next, and which rollback would take back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from alicia_session_stats.database import READING, SessionStatsError, UsageError, connect, server_errors
from alicia_session_stats.migration_files import apply_path, read_migrations, rollback_path
from alicia_session_stats.migration_log import Applied, read_applied
from alicia_session_stats.verification import FIX_EDITED, edited_migrations

if TYPE_CHECKING:
    from yoyo.migrations import Migration


def status(conninfo: str | None = None) -> list[dict[str, Any]]:
    """List the migrations, oldest first.

    Args:
        conninfo: the database, or None for the configured one.

    Returns:
        One dict for each: migration (str), state ("applied", "pending", or "edited" when its file was edited after it
        was applied), applied_at (datetime in UTC, or None).

    Raises:
        SessionStatsError: the files or the database cannot be read.
    """
    migrations, applied = read_migrations(), _read_applied(conninfo)
    states = {migration.id: "pending" for migration in migrations}
    states |= dict.fromkeys(applied, "applied")
    states |= {migration.id: "edited" for migration in edited_migrations(migrations, applied)}
    return [
        {"migration": name, "state": states[name], "applied_at": applied[name].at if name in applied else None}
        for name in sorted(states)
    ]


def plan(conninfo: str | None = None, *, direction: Literal["migrate", "rollback"] = "migrate", steps: int | None = 1) -> str:
    """Show the SQL that would run now, and change nothing.

    Args:
        conninfo: the database, or None for the configured one.
        direction: whether to migrate or to roll back.
        steps: how many migrations to roll back; None is all.

    Returns:
        The files one after the other; empty when there is nothing to do.

    Raises:
        SessionStatsError: migrate or rollback would be refused, or the database cannot be read.
    """
    migrations, applied = read_migrations(), _read_applied(conninfo)
    if direction == "migrate":
        paths = [apply_path(migration) for migration in pending_migrations(migrations, applied)]
    else:
        paths = [rollback_path(migration) for migration in newest_migrations(migrations, applied, steps)]
    return "\n".join(f"-- {path.name}\n{path.read_text(encoding='utf-8')}" for path in paths)


def pending_migrations(migrations: Sequence[Migration], applied: Mapping[str, Applied]) -> list[Migration]:
    """The migrations to apply, oldest first.

    Raises:
        SessionStatsError: a newer release was here, an applied file was edited, or the order is not kept.
    """
    _refuse_newer_release(migrations, applied)
    for migration in edited_migrations(migrations, applied):
        raise SessionStatsError(f"migrations/{migration.id}.sql was edited after it was applied: {FIX_EDITED}")
    pending = [migration for migration in migrations if migration.id not in applied]
    newest = max(applied, default="")
    if pending and pending[0].id < newest:
        raise SessionStatsError(
            f"{pending[0].id} is pending, but the newer {newest} is applied: roll back the newer ones, then migrate"
        )
    return pending


def newest_migrations(migrations: Sequence[Migration], applied: Mapping[str, Applied], steps: int | None) -> list[Migration]:
    """The migrations to roll back, newest first; so many steps, or all when steps is None.

    Raises:
        SessionStatsError: a newer release was here. UsageError: steps is below 1.
    """
    if steps is not None and steps < 1:
        raise UsageError(f"steps must be 1 or more, not {steps}")
    _refuse_newer_release(migrations, applied)
    return [migration for migration in reversed(migrations) if migration.id in applied][:steps]


def _refuse_newer_release(migrations: Sequence[Migration], applied: Mapping[str, Applied]) -> None:
    unknown = applied.keys() - {migration.id for migration in migrations}
    if unknown:
        raise SessionStatsError(f"this database was migrated by a newer release, which has {max(unknown)}: use that release")


def _read_applied(conninfo: str | None) -> dict[str, Applied]:
    with connect(conninfo) as connection, server_errors(connection, READING):
        return read_applied(connection)
