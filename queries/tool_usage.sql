-- How much sessions use tools: share, percentiles and rate, in a trailing window and the one before it.
--
-- Purpose: performance monitoring
-- Param days (integer, default 30): length of each of the two windows, in days of 24 hours; the later ends now.
-- Returns: a row for each metric. sessions: those begun in the window. tool_calls: their sum.
--     sessions_with_any_pct: the share of sessions with one tool call or more. per_session_p50 to p99, and
--     max: the number of tool calls that half of the sessions, 90, 95 and 99 percent do not exceed, and the
--     most; sessions without any count as 0, and percentiles lie between neighbours (PERCENTILE_CONT).
--     per_100_messages: all tool calls over all messages. change: this_period less previous_period. change_pct: the
--     change in percent of previous_period, NULL when that is 0. All but the first two are NULL in a period
--     without sessions. A window includes its start and excludes its end.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=7 -f queries/tool_usage.sql
\if :{?days}
\else
\set days 30
\endif
WITH sessions AS (
    SELECT
        message_count,
        tool_call_count,
        created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days') AS is_recent
    FROM alicia_session_stats
    WHERE
        created_at >= NOW() AT TIME ZONE 'UTC' - 2 * MAKE_INTERVAL(days => :'days')
        AND created_at < NOW() AT TIME ZONE 'UTC'
),

-- Both rows, also when there is no session.
periods AS (
    SELECT
        p.is_recent,
        COUNT(s.is_recent) AS sessions,
        COALESCE(SUM(s.tool_call_count), 0) AS tool_calls,
        100.0 * COUNT(*) FILTER (WHERE s.tool_call_count > 0) / NULLIF(COUNT(s.is_recent), 0) AS with_any_pct,
        PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY s.tool_call_count)::NUMERIC AS p50,
        PERCENTILE_CONT(0.9) WITHIN GROUP (ORDER BY s.tool_call_count)::NUMERIC AS p90,
        PERCENTILE_CONT(0.95) WITHIN GROUP (ORDER BY s.tool_call_count)::NUMERIC AS p95,
        PERCENTILE_CONT(0.99) WITHIN GROUP (ORDER BY s.tool_call_count)::NUMERIC AS p99,
        MAX(s.tool_call_count) AS max,
        100.0 * SUM(s.tool_call_count) / NULLIF(SUM(s.message_count), 0) AS per_100_messages
    FROM (VALUES (TRUE), (FALSE)) AS p (is_recent)
    LEFT JOIN sessions AS s ON p.is_recent = s.is_recent
    GROUP BY p.is_recent
)

SELECT
    m.metric,
    m.this_period,
    m.previous_period,
    m.this_period - m.previous_period AS change,
    100.0 * (m.this_period - m.previous_period) / NULLIF(m.previous_period, 0) AS change_pct
FROM periods AS t
INNER JOIN periods AS p ON t.is_recent AND NOT p.is_recent
CROSS JOIN LATERAL (
    VALUES
    (1, 'sessions', t.sessions, p.sessions),
    (2, 'tool_calls', t.tool_calls, p.tool_calls),
    (3, 'sessions_with_any_pct', t.with_any_pct, p.with_any_pct),
    (4, 'per_session_p50', t.p50, p.p50),
    (5, 'per_session_p90', t.p90, p.p90),
    (6, 'per_session_p95', t.p95, p.p95),
    (7, 'per_session_p99', t.p99, p.p99),
    (8, 'per_session_max', t.max, p.max),
    (9, 'per_100_messages', t.per_100_messages, p.per_100_messages)
) AS m (position, metric, this_period, previous_period)
ORDER BY m.position;
