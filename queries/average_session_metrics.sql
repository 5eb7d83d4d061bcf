-- Mean messages, tool calls and minutes per session, over a trailing window.
--
-- Purpose: usage analytics
-- Param days (integer, default 30): length of the window, in days of 24 hours.
-- Param until (timestamp, default now): end of the window; UTC unless it carries an offset. The default has no end: a
--     session that begins later than now counts, too.
-- Returns: one row. Every mean is NULL when the window holds no session.
--     A session that began exactly that many days before until is outside the window.
-- Reads: idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v days=7 -f queries/average_session_metrics.sql
\if :{?days}
\else
\set days 30
\endif
\if :{?until}
\else
\set until now
\endif
SELECT
    ROUND(SUM(messages) / NULLIF(SUM(sessions), 0), 2) AS avg_messages,
    ROUND(SUM(tool_calls) / NULLIF(SUM(sessions), 0), 2) AS avg_tools,
    ROUND(SUM(seconds) / NULLIF(SUM(sessions), 0) / 60.0, 2) AS avg_duration_minutes
-- A microsecond is the resolution of created_at: this is created_at > until - days.
FROM alicia_session_stats_between(
    alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days') + INTERVAL '1 microsecond',
    CASE WHEN :'until' = 'now' THEN TIMESTAMP 'infinity' ELSE alicia_session_stats_window_end(:'until') END
);
