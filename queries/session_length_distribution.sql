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
-- Reads: idx_session_stats_created_at
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

counts AS (
    SELECT
        WIDTH_BUCKET(session_duration_seconds, (SELECT ARRAY_AGG(from_seconds ORDER BY number) FROM ranges)) AS number,
        COUNT(*) AS sessions
    FROM alicia_session_stats
    WHERE
        created_at >= alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days')
        AND created_at < alicia_session_stats_window_end(:'until')
    GROUP BY number
)

SELECT
    r.length,
    r.from_seconds,
    COALESCE(c.sessions, 0) AS sessions,
    ROUND(100.0 * COALESCE(c.sessions, 0) / SUM(c.sessions) OVER (), 2) AS share_pct,
    ROUND(100.0 * COALESCE(SUM(c.sessions) OVER (ORDER BY r.number), 0) / SUM(c.sessions) OVER (), 2) AS cumulative_pct,
    REPEAT('█', CEIL(20.0 * COALESCE(c.sessions, 0) / MAX(c.sessions) OVER ())::INTEGER) AS bar
FROM ranges AS r
LEFT JOIN counts AS c ON r.number = c.number
ORDER BY r.number;
