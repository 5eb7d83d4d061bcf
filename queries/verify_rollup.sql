-- Every difference between the rollup and the sessions themselves, with the statement that fixes it.
--
-- Purpose: operations
-- Param days (text, default all): compare only the sessions that begin in the last so many days of 24 hours.
-- Param until (timestamp, default now): end of these days; UTC unless it carries an offset. Without it, sessions that begin
--     later than now are compared, too.
-- Returns: one row per kind of difference; no row when there is none.
--     object       the sums, the top sessions, or the summaries
--     found        what is wrong
--     expected     what the sessions say
--     fix          the statement to run, as the owner
--     A day (UTC) that the window cuts is compared whole. The sessions are read once. Only writes that bypassed the triggers
--     make a difference: while the triggers were disabled, with session_replication_role = replica, or to the rollup
--     itself. The top sessions also run short when most of them were deleted; answers are exact all the same.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=7 -f queries/verify_rollup.sql
\if :{?days}
\else
\set days all
\endif
\if :{?until}
\else
\set until now
\endif
WITH differences AS (
    SELECT
        d.kind,
        d.starts_at,
        d.sessions
    FROM alicia_session_stats_differences(
        CASE
            WHEN :'days' = 'all' THEN '-infinity'
            WHEN NULLIF(:'days', 'all')::INTEGER >= 0
                THEN alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => NULLIF(:'days', 'all')::INTEGER)
            -- A negative number would compare nothing, and find no difference.
            ELSE alicia_session_stats_raise('22023', 'days must not be negative')::TIMESTAMP
        END,
        CASE WHEN :'until' = 'now' THEN 'infinity' ELSE alicia_session_stats_utc(:'until') END
    ) AS d
)

SELECT
    'sums of ' || COUNT(*) || ' quarter hours' AS object,
    'wrong, the first at ' || MIN(starts_at) AS found,
    'the sums of alicia_session_stats' AS expected,
    'SELECT * FROM alicia_session_stats_repair();' AS fix
FROM differences
WHERE kind = 'quarter hours'
HAVING COUNT(*) > 0
UNION ALL
SELECT
    'top sessions' AS object,
    sessions || ' are missing' AS found,
    'every session from the cutoff up' AS expected,
    'SELECT * FROM alicia_session_stats_repair();' AS fix
FROM differences
WHERE kind = 'top sessions'
UNION ALL
SELECT
    'top sessions' AS object,
    'only ' || listed || ' are listed' AS found,
    'about a thousand; with too few, most_active_sessions reads every session' AS expected,
    'SELECT * FROM alicia_session_stats_repair();' AS fix
FROM (SELECT COUNT(*) AS listed FROM alicia_session_stats_top_sessions) AS top_sessions
-- By the sums: counting the sessions would read the table once more.
CROSS JOIN (SELECT COALESCE(SUM(sessions), 0) AS sessions FROM alicia_session_stats_parts) AS all_sessions
WHERE listed < LEAST(500, sessions)
UNION ALL
SELECT
    'summaries of ' || COUNT(*) || ' days or hours' AS object,
    'wrong, the first at ' || MIN(starts_at) AS found,
    'the value counts of alicia_session_stats' AS expected,
    'SELECT * FROM alicia_session_stats_repair();' AS fix
FROM differences
WHERE kind = 'summaries'
HAVING COUNT(*) > 0
ORDER BY object, found;
