"""Session analytics for conversational AI applications, on PostgreSQL.

    import alicia_session_stats as stats

    stats.migrate(conninfo)
    stats.query(conninfo, "average_session_metrics", days=7)

A conninfo is any libpq connection string or URL. None stands for the database that the environment configures:
DATABASE_URL, else the PG* environment variables, else the embedded server where it is installed.
"""

from alicia_session_stats.database import LockedError, SessionStatsError, UsageError, connect
from alicia_session_stats.migration_plan import plan, status
from alicia_session_stats.migrator import migrate, rollback
from alicia_session_stats.named_queries import query, query_async
from alicia_session_stats.query_files import Param, Query, queries
from alicia_session_stats.recording import attach, detach
from alicia_session_stats.verification import verify

__version__ = "0.1.0"

__all__ = [
    "LockedError",
    "Param",
    "Query",
    "SessionStatsError",
    "UsageError",
    "attach",
    "connect",
    "detach",
    "migrate",
    "plan",
    "queries",
    "query",
    "query_async",
    "rollback",
    "status",
    "verify",
]
