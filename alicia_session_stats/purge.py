"""Delete old sessions batch by batch, so that no transaction is long and readers and writers are not blocked."""

from __future__ import annotations

import logging

from alicia_session_stats.database import SessionStatsError, connect
from alicia_session_stats.named_queries import query
from alicia_session_stats.wording import counted

BATCH_TIMEOUT = 600  # Seconds.
log = logging.getLogger(__name__)


def purge(conninfo: str | None = None, *, days: int | str, batch: int | str | None = None) -> int:
    """Delete the sessions that began more than so many days ago, each batch in a transaction of its own.

    Args:
        conninfo: the database, or None for the configured one.
        days: age in days of 24 hours.
        batch: how many sessions to delete at a time; None is the default of the query delete_sessions_before.

    Returns:
        How many sessions were deleted.

    Raises:
        SessionStatsError: the server refused a batch, or sessions remain that another transaction is writing.
    """
    total = 0
    with connect(conninfo) as connection:
        while True:
            [row] = query(connection, "delete_sessions_before", timeout=BATCH_TIMEOUT, days=days, batch=batch)
            total += row["deleted"]
            log.info("%s deleted", counted(total, "session"))
            if not (row["deleted"] and row["more_remain"]):
                break
    if row["more_remain"]:
        raise SessionStatsError("some old sessions remain, because another transaction is writing them: run purge again later")
    return total
