-- Sessions, tool calls and durations of the last hour and of the last 24 hours, beside the same time a week earlier.
--
-- Purpose: operations
-- Returns: one row per period, for a monitoring system.
--     period                       hour: the 60 minutes that end now; day: the 24 hours that end now
--     sessions, tool_calls         sessions that begin in the period, and the tool calls of these
--     p95_seconds                  95th percentile of their durations, interpolated (PERCENTILE_CONT); NULL when there
--                                  is no session
--     sessions_week_ago, tool_calls_week_ago, p95_seconds_week_ago
--                                  the same, of the period that ended 7 days ago
-- Reads: idx_session_stats_created_at
--
-- psql -f queries/recent_activity.sql
WITH sessions AS (
    SELECT
        tool_call_count,
        session_duration_seconds,
        FALSE AS is_week_ago,
        created_at >= NOW() AT TIME ZONE 'UTC' - INTERVAL '1 hour' AS is_in_hour
    FROM alicia_session_stats
    WHERE
        created_at >= NOW() AT TIME ZONE 'UTC' - INTERVAL '24 hours'
        AND created_at < NOW() AT TIME ZONE 'UTC'
    UNION ALL
    SELECT
        tool_call_count,
        session_duration_seconds,
        TRUE AS is_week_ago,
        created_at >= NOW() AT TIME ZONE 'UTC' - INTERVAL '169 hours' AS is_in_hour
    FROM alicia_session_stats
    WHERE
        created_at >= NOW() AT TIME ZONE 'UTC' - INTERVAL '192 hours'
        AND created_at < NOW() AT TIME ZONE 'UTC' - INTERVAL '168 hours'
)

SELECT
    p.period,
    COUNT(*) FILTER (WHERE NOT s.is_week_ago) AS sessions,
    COALESCE(SUM(s.tool_call_count) FILTER (WHERE NOT s.is_week_ago), 0)::BIGINT AS tool_calls,
    ROUND(
        (PERCENTILE_CONT(0.95) WITHIN GROUP (ORDER BY s.session_duration_seconds) FILTER (WHERE NOT s.is_week_ago))::NUMERIC, 2
    ) AS p95_seconds,
    COUNT(*) FILTER (WHERE s.is_week_ago) AS sessions_week_ago,
    COALESCE(SUM(s.tool_call_count) FILTER (WHERE s.is_week_ago), 0)::BIGINT AS tool_calls_week_ago,
    ROUND(
        (PERCENTILE_CONT(0.95) WITHIN GROUP (ORDER BY s.session_duration_seconds) FILTER (WHERE s.is_week_ago))::NUMERIC, 2
    ) AS p95_seconds_week_ago
FROM (VALUES ('hour'), ('day')) AS p (period)
LEFT JOIN sessions AS s ON s.is_in_hour OR p.period = 'day'
GROUP BY p.period
ORDER BY p.period DESC;
