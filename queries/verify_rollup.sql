-- Every difference between the rollup and the sessions themselves, with the statement that fixes it.
--
-- Purpose: operations
-- Returns: one row per kind of difference; no row when there is none.
--     object       the sums, or the top sessions
--     found        what is wrong
--     expected     what the sessions say
--     fix          the statement to run, as the owner
--     Every session is read. Only writes that bypassed the triggers make a difference: while the triggers were disabled,
--     with session_replication_role = replica, or to the rollup itself. The top sessions also run short when most of
--     them were deleted; answers are exact all the same.
-- Reads: no index
--
-- psql -f queries/verify_rollup.sql
WITH lowest AS (
    SELECT
        message_count,
        created_at,
        id
    FROM alicia_session_stats_top_sessions
    ORDER BY message_count, created_at, id
    LIMIT 1
),

counts AS (
    SELECT
        COUNT(*) AS sessions,
        COUNT(*) FILTER (WHERE (s.message_count, s.created_at, s.id) >= (l.message_count, l.created_at, l.id)) AS top,
        (SELECT COUNT(*) FROM alicia_session_stats_top_sessions) AS listed
    FROM alicia_session_stats AS s
    LEFT JOIN lowest AS l ON TRUE
)

SELECT
    'sums of ' || COUNT(*) || ' quarter hours' AS object,
    'wrong, the first at ' || MIN(bucket_start) AS found,
    'the sums of alicia_session_stats' AS expected,
    'SELECT * FROM alicia_session_stats_repair();' AS fix
FROM alicia_session_stats_differences()
HAVING COUNT(*) > 0
UNION ALL
SELECT
    'top sessions' AS object,
    top - listed || ' are missing' AS found,
    'every session down to the last one listed' AS expected,
    'SELECT * FROM alicia_session_stats_repair();' AS fix
FROM counts
WHERE top > listed
UNION ALL
SELECT
    'top sessions' AS object,
    'only ' || listed || ' are listed' AS found,
    'about a thousand; with too few, most_active_sessions reads every session' AS expected,
    'SELECT * FROM alicia_session_stats_repair();' AS fix
FROM counts
WHERE listed < LEAST(500, sessions)
ORDER BY object, found;
