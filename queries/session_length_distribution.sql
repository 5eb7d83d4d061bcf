-- Sessions by duration, from zero to an hour and more, over a trailing window.
--
-- Purpose: user engagement
-- Param days (integer, default 30): length of the window, in days of 24 hours.
-- Param until (timestamp, default now): end of the window; UTC unless it carries an offset. What is later than now is
--     left out.
-- Returns: one row per range of durations, shortest first, also for a range without sessions.
--     length, from_seconds         the range: from from_seconds up to, not including, the next row's
--     sessions                     sessions of that duration that begin in the window
--     share_pct                    percent of the window's sessions; NULL when there is none
--     cumulative_pct               share_pct of this row and all rows before it
--     bar                          sessions, as a bar of at most 20 blocks; NULL when there is none
-- Reads: alicia_session_stats_summaries_pkey, idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v days=7 -f queries/session_length_distribution.sql
\if :{?days}
\else
\set days 30
\endif
\if :{?until}
\else
\set until now
\endif
WITH ranges (number, from_seconds, length) AS (
    VALUES
    (1, 0, '0 s'),
    (2, 1, 'under 10 s'),
    (3, 10, '10 to 30 s'),
    (4, 30, '30 to 60 s'),
    (5, 60, '1 to 3 min'),
    (6, 180, '3 to 10 min'),
    (7, 600, '10 to 30 min'),
    (8, 1800, '30 to 60 min'),
    (9, 3600, '1 h or more')
),

-- The shorter sessions are those up to the greatest value below from_seconds. WIDTH_BUCKET finds it; 0 where there is none.
shorter AS (
    SELECT
        r.number,
        r.from_seconds,
        r.length,
        c.sessions AS all_sessions,
        COALESCE(c.sessions_up_to[WIDTH_BUCKET(r.from_seconds - 1, c.counted_values)], 0) AS sessions
    FROM ranges AS r
    CROSS JOIN
        alicia_session_stats_value_counts(
            'from_seconds',
            alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days'),
            alicia_session_stats_window_end(:'until')
        ) AS c
),

counts AS (
    SELECT
        number,
        from_seconds,
        length,
        all_sessions,
        LEAD(sessions, 1, all_sessions) OVER (ORDER BY number) AS sessions_up_to,
        LEAD(sessions, 1, all_sessions) OVER (ORDER BY number) - sessions AS sessions
    FROM shorter
)

SELECT
    length,
    from_seconds,
    sessions,
    ROUND(100.0 * sessions / NULLIF(all_sessions, 0), 2) AS share_pct,
    ROUND(100.0 * sessions_up_to / NULLIF(all_sessions, 0), 2) AS cumulative_pct,
    REPEAT('█', CEIL(20.0 * sessions / NULLIF(MAX(sessions) OVER (), 0))::INTEGER) AS bar
FROM counts
ORDER BY number;
