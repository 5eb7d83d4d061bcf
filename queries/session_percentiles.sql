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
-- Reads: idx_session_stats_created_at
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
WITH measured AS (
    SELECT
        m.metric,
        m.value
    FROM alicia_session_stats AS s
    CROSS JOIN LATERAL (
        VALUES
        ('messages', s.message_count),
        ('tool_calls', s.tool_call_count),
        ('memories', s.memories_used),
        ('seconds', s.session_duration_seconds)
    ) AS m (metric, value)
    WHERE
        s.created_at >= alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days')
        AND s.created_at < alicia_session_stats_window_end(:'until')
)

SELECT
    n.metric,
    COUNT(m.value) AS sessions,
    ROUND(AVG(m.value), 2) AS mean,
    ROUND(PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY m.value)::NUMERIC, 2) AS p50,
    ROUND(PERCENTILE_CONT(0.9) WITHIN GROUP (ORDER BY m.value)::NUMERIC, 2) AS p90,
    ROUND(PERCENTILE_CONT(0.95) WITHIN GROUP (ORDER BY m.value)::NUMERIC, 2) AS p95,
    ROUND(PERCENTILE_CONT(0.99) WITHIN GROUP (ORDER BY m.value)::NUMERIC, 2) AS p99,
    MAX(m.value) AS max
FROM (VALUES (1, 'messages'), (2, 'tool_calls'), (3, 'memories'), (4, 'seconds')) AS n (position, metric)
LEFT JOIN measured AS m ON n.metric = m.metric
GROUP BY n.position, n.metric
ORDER BY n.position;
