-- How much sessions use memories: share, percentiles and rate, in a trailing window and the one before.
--
-- Purpose: performance monitoring
-- Param days (integer, default 30): length of each of the two windows, in days of 24 hours; the later ends now.
-- Returns: a row for each metric. sessions: those begun in the window. memories: their sum.
--     sessions_with_any_pct: the share of sessions with one memory or more. per_session_p50 to p99, and
--     max: the number of memories that half of the sessions, 90, 95 and 99 percent do not exceed, and the
--     most; sessions without any count as 0, and percentiles lie between neighbours (PERCENTILE_CONT).
--     per_100_messages: all memories over all messages. change: this_period less previous_period. change_pct: the
--     change in percent of previous_period, NULL when that is 0. All but the first two are NULL in a period
--     without sessions. A window includes its start and excludes its end.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=7 -f queries/memory_usage.sql
\if :{?days}
\else
\set days 30
\endif
WITH sessions AS (
    SELECT
        message_count,
        memories_used,
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
        COALESCE(SUM(s.memories_used), 0) AS memories,
        100.0 * COUNT(*) FILTER (WHERE s.memories_used > 0) / NULLIF(COUNT(s.is_recent), 0) AS with_any_pct,
        PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY s.memories_used)::NUMERIC AS p50,
        PERCENTILE_CONT(0.9) WITHIN GROUP (ORDER BY s.memories_used)::NUMERIC AS p90,
        PERCENTILE_CONT(0.95) WITHIN GROUP (ORDER BY s.memories_used)::NUMERIC AS p95,
        PERCENTILE_CONT(0.99) WITHIN GROUP (ORDER BY s.memories_used)::NUMERIC AS p99,
        MAX(s.memories_used) AS max,
        100.0 * SUM(s.memories_used) / NULLIF(SUM(s.message_count), 0) AS per_100_messages
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
    (2, 'memories', t.memories, p.memories),
    (3, 'sessions_with_any_pct', t.with_any_pct, p.with_any_pct),
    (4, 'per_session_p50', t.p50, p.p50),
    (5, 'per_session_p90', t.p90, p.p90),
    (6, 'per_session_p95', t.p95, p.p95),
    (7, 'per_session_p99', t.p99, p.p99),
    (8, 'per_session_max', t.max, p.max),
    (9, 'per_100_messages', t.per_100_messages, p.per_100_messages)
) AS m (position, metric, this_period, previous_period)
ORDER BY m.position;
