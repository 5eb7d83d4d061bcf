-- Mean messages, tool calls and minutes per session, over the sessions begun in a trailing window.
--
-- Purpose: usage analytics
-- Param days (integer, default 30): length of the window, in days, that ends now.
-- Returns: one row. Every average is NULL when the window holds no session. A session begun exactly that
--     many days ago is outside. Times are UTC.
-- Reads: idx_session_stats_counters, idx_session_stats_created_at
--
-- psql -v days=7 -f queries/average_session_metrics.sql
\if :{?days}
\else
\set days 30
\endif
WITH parts AS (
    SELECT
        sessions,
        messages,
        tool_calls,
        active_seconds
    FROM alicia_session_stats_quarter_hours
    WHERE
        quarter_hour >= DATE_BIN(
            '15 minutes', NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'), '2000-01-01'
        ) + INTERVAL '15 minutes'
    UNION ALL
    -- The quarter of an hour in which the window begins: only the sessions that are inside.
    SELECT
        1 AS sessions,
        message_count,
        tool_call_count,
        session_duration_seconds
    FROM alicia_session_stats
    WHERE
        created_at > NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')
        AND created_at < DATE_BIN(
            '15 minutes', NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'), '2000-01-01'
        ) + INTERVAL '15 minutes'
)

SELECT
    SUM(messages) / NULLIF(SUM(sessions), 0) AS avg_messages,
    SUM(tool_calls) / NULLIF(SUM(sessions), 0) AS avg_tools,
    SUM(active_seconds) / NULLIF(SUM(sessions), 0) / 60.0 AS avg_duration_minutes
FROM parts;
