-- Mean messages, tool calls and minutes per session, over the sessions begun in a trailing window.
--
-- Purpose: usage analytics
-- Param days (integer, default 30): length of the window, in days, that ends now.
-- Returns: one row. Every average is NULL when the window holds no session. A session begun exactly that
--     many days ago is outside. Times are UTC.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=7 -f queries/average_session_metrics.sql
\if :{?days}
\else
\set days 30
\endif
SELECT
    AVG(message_count) AS avg_messages,
    AVG(tool_call_count) AS avg_tools,
    AVG(session_duration_seconds) / 60.0 AS avg_duration_minutes
FROM alicia_session_stats
WHERE created_at > NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days');
