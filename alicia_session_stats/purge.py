"""Delete old sessions batch by batch, so that no transaction is long and readers and writers are not blocked."""

from __future__ import annotations

import logging
import sys
import time

from alicia_session_stats.database import Connection, SessionStatsError, UsageError, connect
from alicia_session_stats.named_queries import fetch_text, query
from alicia_session_stats.query_files import find_query
from alicia_session_stats.wording import counted

BATCH_TIMEOUT = 600  # Seconds.
MOST_PCT = 50  # A purge of more of the table is taken for a mistake.
log = logging.getLogger(__name__)


def purge(
    conninfo: str | None = None, *, days: int | str, batch: int | str | None = None, dry_run: bool = False, yes: bool = False
) -> int:
    """Delete the sessions that began more than so many days ago, each batch in a transaction of its own.

    Says first what it would delete, and asks on the terminal, unless `yes` is given.

    Args:
        conninfo: the database, or None for the configured one.
        days: age in days of 24 hours.
        batch: how many sessions to delete at a time; None is the default of the query delete_sessions_before.
        dry_run: only say what would be deleted, on stdout.
        yes: do not ask, and delete also more than half of the sessions.

    Returns:
        How many sessions were deleted.

    Raises:
        UsageError: `yes` is needed, because there is no terminal or more than half of the sessions would go.
        SessionStatsError: the server refused a batch, or sessions remain that another transaction is writing.
    """
    with connect(conninfo) as connection:
        # As text, since no datetime holds -infinity.
        columns, [row] = fetch_text(connection, find_query("sessions_before"), {"days": days}, timeout=BATCH_TIMEOUT)
        old = {column.name: text or "" for column, text in zip(columns, row, strict=True)}
        sessions = int(old["sessions"])
        if not sessions:
            log.info("no session began more than %s days ago", days)
            return 0
        found = (
            f"{counted(sessions, 'session')}, {old['share_pct']} percent of all, began more than {days} days ago: "
            f"from {old['oldest'].split()[0]} to {old['newest'].split()[0]}"
        )
        if dry_run:
            print(found)
            return 0
        if yes:
            log.info("%s", found)
        else:
            _ask(found, float(old["share_pct"]))
        return _delete(connection, sessions, days, batch)


def _ask(found: str, share_pct: float) -> None:
    if share_pct > MOST_PCT:
        raise UsageError(f"{found}. To delete more than half of the table, pass --yes")
    if not sys.stdin.isatty():
        raise UsageError(f"{found}. There is no terminal to ask on: to delete them, pass --yes")
    print(f"{found}. Delete them? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise SessionStatsError("nothing was deleted")


def _delete(connection: Connection, expected: int, days: int | str, batch: int | str | None) -> int:
    total, told = 0, time.monotonic()
    while True:
        [row] = query(connection, "delete_sessions_before", timeout=BATCH_TIMEOUT, days=days, batch=batch)
        total += row["deleted"]
        if not (row["deleted"] and row["more_remain"]):
            break
        if time.monotonic() - told >= 1:
            told = time.monotonic()
            log.info("%d of %d sessions deleted (%d percent)", total, expected, 100 * total // max(total, expected))
    log.info("%s deleted", counted(total, "session"))
    if row["more_remain"]:
        raise SessionStatsError("some old sessions remain, because another transaction is writing them: run purge again later")
    return total
