-- Usage of one metric per session: share, percentiles and rate, in a trailing window and in the one before it.
--
-- Purpose: performance monitoring
-- Param metric (text, default tool_calls): tool_calls, messages, memories or seconds.
-- Param days (integer, default 30): length of each of the two windows, in days of 24 hours.
-- Param until (timestamp, default now): end of the later window; UTC unless it carries an offset. What is later than now is
--     left out.
-- Returns: one row per statistic. A statistic other than sessions and total is NULL in a window without sessions.
--     statistic                     sessions: sessions that begin in the window;
--                                   total: sum of the metric over these sessions;
--                                   sessions_with_any_pct: percent of these sessions in which the metric is not 0;
--                                   per_session_p50, …, per_session_max: percentiles, interpolated (PERCENTILE_CONT),
--                                   and maximum, zeros included;
--                                   per_100_messages: total per 100 messages of these sessions
--     this_period, previous_period  the statistic in the later and in the earlier window
--     change                        this_period - previous_period
--     change_pct                    change in percent of previous_period; NULL when that is 0
-- Reads: idx_session_stats_created_at
--
-- psql -v metric=memories -v days=7 -f queries/metric_usage.sql
\if :{?metric}
\else
\set metric tool_calls
\endif
\if :{?days}
\else
\set days 30
\endif
\if :{?until}
\else
\set until now
\endif
WITH sessions AS (
    SELECT
        created_at >= alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days') AS is_recent,
        message_count AS messages,
        CASE :'metric'
            WHEN 'tool_calls' THEN tool_call_count
            WHEN 'messages' THEN message_count
            WHEN 'memories' THEN memories_used
            WHEN 'seconds' THEN session_duration_seconds
        END AS value
    FROM alicia_session_stats
    WHERE
        created_at >= alicia_session_stats_utc(:'until') - 2 * MAKE_INTERVAL(days => :'days')
        AND created_at < alicia_session_stats_window_end(:'until')
),

-- One row per window, also for a window without sessions.
periods AS (
    SELECT
        p.is_recent,
        COUNT(s.is_recent) AS sessions,
        COALESCE(SUM(s.value), 0) AS total,
        100.0 * COUNT(*) FILTER (WHERE s.value > 0) / NULLIF(COUNT(s.is_recent), 0) AS with_any_pct,
        PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY s.value)::NUMERIC AS p50,
        PERCENTILE_CONT(0.9) WITHIN GROUP (ORDER BY s.value)::NUMERIC AS p90,
        PERCENTILE_CONT(0.95) WITHIN GROUP (ORDER BY s.value)::NUMERIC AS p95,
        PERCENTILE_CONT(0.99) WITHIN GROUP (ORDER BY s.value)::NUMERIC AS p99,
        MAX(s.value) AS max,
        100.0 * SUM(s.value) / NULLIF(SUM(s.messages), 0) AS per_100_messages
    FROM (VALUES (TRUE), (FALSE)) AS p (is_recent)
    LEFT JOIN sessions AS s ON p.is_recent = s.is_recent
    GROUP BY p.is_recent
)

SELECT
    CASE
        WHEN :'metric' IN ('tool_calls', 'messages', 'memories', 'seconds') THEN m.statistic
        ELSE alicia_session_stats_raise('22023', 'metric must be tool_calls, messages, memories or seconds')
    END AS statistic,
    -- TRIM_SCALE, so that a count has no decimals.
    TRIM_SCALE(ROUND(m.this_period, 2)) AS this_period,
    TRIM_SCALE(ROUND(m.previous_period, 2)) AS previous_period,
    TRIM_SCALE(ROUND(m.this_period - m.previous_period, 2)) AS change,
    ROUND(100.0 * (m.this_period - m.previous_period) / NULLIF(m.previous_period, 0), 2) AS change_pct
FROM periods AS t
INNER JOIN periods AS p ON t.is_recent AND NOT p.is_recent
CROSS JOIN LATERAL (
    VALUES
    (1, 'sessions', t.sessions, p.sessions),
    (2, 'total', t.total, p.total),
    (3, 'sessions_with_any_pct', t.with_any_pct, p.with_any_pct),
    (4, 'per_session_p50', t.p50, p.p50),
    (5, 'per_session_p90', t.p90, p.p90),
    (6, 'per_session_p95', t.p95, p.p95),
    (7, 'per_session_p99', t.p99, p.p99),
    (8, 'per_session_max', t.max, p.max),
    (9, 'per_100_messages', t.per_100_messages, p.per_100_messages)
) AS m (position, statistic, this_period, previous_period)
ORDER BY m.position;
