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
-- Reads: alicia_session_stats_summaries_pkey, idx_session_stats_rollup, idx_session_stats_created_at
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
WITH windows (is_recent, since, until) AS (
    VALUES
    (
        TRUE,
        alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days'),
        alicia_session_stats_window_end(:'until')
    ),
    (
        FALSE,
        alicia_session_stats_utc(:'until') - 2 * MAKE_INTERVAL(days => :'days'),
        LEAST(
            alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days'),
            alicia_session_stats_window_end(:'until')
        )
    )
),

periods AS (
    SELECT
        w.is_recent,
        c.sessions,
        c.total,
        -- Zero is the first value, if any session has it.
        c.sessions - CASE c.counted_values[1] WHEN 0 THEN c.sessions_up_to[1] ELSE 0 END AS with_any,
        alicia_session_stats_percentile(0.5, c.counted_values, c.sessions_up_to)::NUMERIC AS p50,
        alicia_session_stats_percentile(0.9, c.counted_values, c.sessions_up_to)::NUMERIC AS p90,
        alicia_session_stats_percentile(0.95, c.counted_values, c.sessions_up_to)::NUMERIC AS p95,
        alicia_session_stats_percentile(0.99, c.counted_values, c.sessions_up_to)::NUMERIC AS p99,
        c.counted_values[CARDINALITY(c.counted_values)] AS max,
        (SELECT SUM(b.messages) FROM alicia_session_stats_between(w.since, w.until) AS b) AS messages
    FROM windows AS w
    CROSS JOIN LATERAL alicia_session_stats_value_counts(:'metric', w.since, w.until) AS c
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
    (3, 'sessions_with_any_pct', 100.0 * t.with_any / NULLIF(t.sessions, 0), 100.0 * p.with_any / NULLIF(p.sessions, 0)),
    (4, 'per_session_p50', t.p50, p.p50),
    (5, 'per_session_p90', t.p90, p.p90),
    (6, 'per_session_p95', t.p95, p.p95),
    (7, 'per_session_p99', t.p99, p.p99),
    (8, 'per_session_max', t.max, p.max),
    (9, 'per_100_messages', 100.0 * t.total / NULLIF(t.messages, 0), 100.0 * p.total / NULLIF(p.messages, 0))
) AS m (position, statistic, this_period, previous_period)
ORDER BY m.position;
