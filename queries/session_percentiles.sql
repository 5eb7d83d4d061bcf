-- Mean, percentiles and maximum of messages, tool calls, memories and seconds per session, over a trailing window.
--
-- Purpose: performance monitoring
-- Param days (integer, default 30): length of the window, in days of 24 hours.
-- Param until (timestamp, default now): end of the window; UTC unless it carries an offset. What is later than now is
--     left out.
-- Returns: one row per metric.
--     metric                       messages, tool_calls, memories, seconds: each of a single session
--     sessions                     sessions that begin in the window, the same in every row
--     mean, p50, …, p99, max       over all of these, zeros included; NULL when there is no session. Percentiles are
--                                  interpolated (PERCENTILE_CONT)
-- Reads: alicia_session_stats_summaries_pkey, idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v days=7 -f queries/session_percentiles.sql
\if :{?days}
\else
\set days 30
\endif
\if :{?until}
\else
\set until now
\endif
SELECT
    m.metric,
    c.sessions,
    ROUND(c.total / NULLIF(c.sessions, 0), 2) AS mean,
    ROUND(alicia_session_stats_percentile(0.5, c.counted_values, c.sessions_up_to)::NUMERIC, 2) AS p50,
    ROUND(alicia_session_stats_percentile(0.9, c.counted_values, c.sessions_up_to)::NUMERIC, 2) AS p90,
    ROUND(alicia_session_stats_percentile(0.95, c.counted_values, c.sessions_up_to)::NUMERIC, 2) AS p95,
    ROUND(alicia_session_stats_percentile(0.99, c.counted_values, c.sessions_up_to)::NUMERIC, 2) AS p99,
    c.counted_values[CARDINALITY(c.counted_values)] AS max
FROM (VALUES (1, 'messages'), (2, 'tool_calls'), (3, 'memories'), (4, 'seconds')) AS m (position, metric)
CROSS JOIN
    LATERAL alicia_session_stats_value_counts(
        m.metric,
        alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days'),
        alicia_session_stats_window_end(:'until')
    ) AS c
ORDER BY m.position;
