"""The migration files: checked before any connection is opened, and identified by their SHA-256."""

from __future__ import annotations

import hashlib
from glob import escape
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING

from alicia_session_stats.database import SessionStatsError
from alicia_session_stats.paths import MIGRATIONS

if TYPE_CHECKING:
    from yoyo.migrations import Migration

RESTORE = "restore the released files"


def read_migrations() -> list[Migration]:
    """Read every migration, oldest first.

    Raises:
        SessionStatsError: a file is missing, or not as it should be named, or cannot be loaded.
    """
    from yoyo.migrations import read_migrations as read_by_yoyo

    _check_names()
    migrations: list[Migration] = list(read_by_yoyo(escape(str(MIGRATIONS))))
    for migration in migrations:
        try:
            migration.load()  # yoyo itself skips a file that it cannot load, without a word.
        except Exception as error:
            raise SessionStatsError(f"migrations/{migration.id}.sql cannot be loaded: {type(error).__name__}: {error}") from error
    return migrations


def apply_path(migration: Migration) -> Path:
    """The file that applies a migration."""
    return Path(migration.path)


def rollback_path(migration: Migration) -> Path:
    """The file that takes a migration back."""
    return Path(migration.path).with_suffix(".rollback.sql")


def statements(path: Path) -> list[bytes]:
    """The statements of a file, one by one."""
    from yoyo.migrations import read_sql_migration

    return [statement.encode() for statement in read_sql_migration(str(path))[2]]


def sha256(migration: Migration) -> str:
    """The SHA-256 of the file that applies a migration, whatever the line ends of the checkout."""
    return hashlib.sha256(apply_path(migration).read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _check_names() -> None:
    """Check that the numbers run without a gap, and that every migration has both of its files."""
    files = sorted(path.name for path in MIGRATIONS.glob("*") if path.suffix in (".sql", ".py"))
    for name in files:
        if not fullmatch(r"\d{4}_\w*session_stats\w*(\.rollback)?\.sql", name):
            raise SessionStatsError(f"migrations/{name} is not named NNNN_verb_session_stats_object.sql: rename or remove it")
    stems = sorted({name.removesuffix(".sql").removesuffix(".rollback") for name in files})
    if not stems:
        raise SessionStatsError(f"there are no migrations in {MIGRATIONS}: install the package again")
    for number, stem in enumerate(stems, 1):
        if int(stem[:4]) != number:
            raise SessionStatsError(f"migrations/{stem}.sql should be number {number:04}: {RESTORE}")
        for name in (f"{stem}.sql", f"{stem}.rollback.sql"):
            if name not in files:
                raise SessionStatsError(f"migrations/{name} is missing: {RESTORE}")
