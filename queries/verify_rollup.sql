-- Every difference between the rollup and the sessions themselves, with the statement that fixes it.
--
-- Purpose: operations
-- Returns: one row per kind of difference; no row when there is none.
--     object       the sums, the top sessions, or the summaries
--     found        what is wrong
--     expected     what the sessions say
--     fix          the statement to run, as the owner
--     Every session is read. Only writes that bypassed the triggers make a difference: while the triggers were disabled,
--     with session_replication_role = replica, or to the rollup itself. The top sessions also run short when most of
--     them were deleted; answers are exact all the same.
-- Reads: no index
--
-- psql -f queries/verify_rollup.sql
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
    missing || ' are missing' AS found,
    'every session from the cutoff up' AS expected,
    'SELECT * FROM alicia_session_stats_repair();' AS fix
FROM alicia_session_stats_missing_candidates() AS missing
WHERE missing > 0
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
FROM alicia_session_stats_wrong_summaries('-infinity', 'infinity')
HAVING COUNT(*) > 0
ORDER BY object, found;
