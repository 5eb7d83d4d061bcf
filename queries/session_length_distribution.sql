-- How long sessions last: the sessions of a trailing window, by length, from zero to over an hour.
--
-- Purpose: user engagement
-- Param days (integer, default 30): length of the window, in days of 24 hours, that ends now.
-- Returns: a row for each length, shortest first, lengths that no session has too. A session belongs to the
--     last row whose from_seconds it reaches: one of exactly 60 s is in "1 to 3 min". share_pct: of the window's
--     sessions. running_pct: the share of this row and all shorter ones. Both are NULL when the window holds
--     no session. bar: sessions, 20 blocks for the commonest length, and at least one for any session. A session
--     begun exactly that many days ago is inside the window, one that begins at this instant is not.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=7 -f queries/session_length_distribution.sql
\if :{?days}
\else
\set days 30
\endif
WITH buckets (from_seconds, length) AS (
    VALUES
    (0, '0 s'),
    (1, 'under 10 s'),
    (10, '10 to 30 s'),
    (30, '30 to 60 s'),
    (60, '1 to 3 min'),
    (180, '3 to 10 min'),
    (600, '10 to 30 min'),
    (1800, '30 to 60 min'),
    (3600, '1 h or more')
),

edges AS (
    SELECT ARRAY_AGG(from_seconds ORDER BY from_seconds) AS seconds
    FROM buckets
),

lengths AS (
    SELECT
        e.seconds[WIDTH_BUCKET(s.session_duration_seconds, e.seconds)] AS from_seconds,
        COUNT(*) AS sessions
    FROM alicia_session_stats AS s
    CROSS JOIN edges AS e
    WHERE
        s.created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')
        AND s.created_at < NOW() AT TIME ZONE 'UTC'
    GROUP BY e.seconds[WIDTH_BUCKET(s.session_duration_seconds, e.seconds)]
),

counted AS (
    SELECT
        b.length,
        b.from_seconds,
        COALESCE(l.sessions, 0) AS sessions
    FROM buckets AS b
    LEFT JOIN lengths AS l ON b.from_seconds = l.from_seconds
)

SELECT
    length,
    from_seconds,
    sessions,
    100.0 * sessions / NULLIF(SUM(sessions) OVER (), 0) AS share_pct,
    100.0 * SUM(sessions) OVER (ORDER BY from_seconds) / NULLIF(SUM(sessions) OVER (), 0) AS running_pct,
    REPEAT('█', CEIL(20.0 * sessions / NULLIF(MAX(sessions) OVER (), 0))::INTEGER) AS bar
FROM counted
ORDER BY from_seconds;
