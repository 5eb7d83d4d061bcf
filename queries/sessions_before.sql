-- How many sessions began more than so many days ago, and when the oldest and the newest of them began.
--
-- Purpose: operations
-- Param days (integer, default 365): age in days of 24 hours, as in delete_sessions_before.
-- Returns: one row. delete_sessions_before would delete these sessions.
--     sessions                     sessions that began before that instant
--     share_pct                    percent of all sessions; NULL when there is none
--     oldest, newest               when the oldest and the newest of them began (UTC), of those since the year 1; NULL when
--                                  there is none
-- Reads: idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v days=400 -f queries/sessions_before.sql
\if :{?days}
\else
\set days 365
\endif
WITH counted AS (
    SELECT
        (
            SELECT COALESCE(SUM(sessions), 0)::BIGINT
            FROM alicia_session_stats_between('-infinity', NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'))
        ) AS sessions,
        (SELECT SUM(sessions) FROM alicia_session_stats_between('-infinity', 'infinity')) AS all_sessions
)

SELECT
    sessions,
    ROUND(100.0 * sessions / NULLIF(all_sessions, 0), 2) AS share_pct,
    (
        SELECT MIN(created_at)
        FROM alicia_session_stats
        WHERE created_at >= '0001-01-01' AND created_at < NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')
    ) AS oldest,
    (
        SELECT MAX(created_at)
        FROM alicia_session_stats
        WHERE created_at >= '0001-01-01' AND created_at < NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')
    ) AS newest
FROM counted;
