-- Mean, percentiles and maximum of messages, tool calls, memories and duration, over a trailing window.
--
-- Purpose: performance monitoring
-- Param days (integer, default 30): length of the window, in days of 24 hours, that ends now.
-- Returns: a row for each metric of a session. sessions: those of the window, the same in every row. mean, p50 to
--     p99 and max: of all of them, zeros included; half of the sessions, 90, 95 and 99 percent do not exceed
--     the percentile, which lies between neighbours (PERCENTILE_CONT). They are NULL when there is no session.
--     A session begun exactly that many days ago is inside the window, one that begins at this instant is not.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=7 -f queries/session_percentiles.sql
\if :{?days}
\else
\set days 30
\endif
WITH measured AS (
    SELECT
        m.position,
        m.value
    FROM alicia_session_stats AS s
    CROSS JOIN LATERAL (
        VALUES (1, s.message_count), (2, s.tool_call_count), (3, s.memories_used), (4, s.session_duration_seconds)
    ) AS m (position, value)
    WHERE
        s.created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')
        AND s.created_at < NOW() AT TIME ZONE 'UTC'
)

SELECT
    n.metric,
    COUNT(m.value) AS sessions,
    AVG(m.value) AS mean,
    PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY m.value)::NUMERIC AS p50,
    PERCENTILE_CONT(0.9) WITHIN GROUP (ORDER BY m.value)::NUMERIC AS p90,
    PERCENTILE_CONT(0.95) WITHIN GROUP (ORDER BY m.value)::NUMERIC AS p95,
    PERCENTILE_CONT(0.99) WITHIN GROUP (ORDER BY m.value)::NUMERIC AS p99,
    MAX(m.value) AS max
FROM (VALUES (1, 'messages'), (2, 'tool_calls'), (3, 'memories'), (4, 'duration_seconds')) AS n (position, metric)
LEFT JOIN measured AS m ON n.position = m.position
GROUP BY n.position, n.metric
ORDER BY n.position;
