-- The most sessions alive at one instant of every calendar day, and when.
--
-- Purpose: resource planning
-- Param days (integer, default 14): how many calendar days, today included.
-- Param tz (text, default UTC): the time zone whose days they are, an IANA name such as Europe/Berlin.
-- Returns: a row for each day, oldest first. A session is alive from its start up to, not including, its end,
--     so one of zero length never is, and one that ends as another starts does not add to it. It counts in
--     every day that it reaches, also when it began before the first. peak_sessions: 0 when nobody was alive.
--     peak_at: the first instant of the day with that many, in tz: midnight when they were alive as the day
--     began, NULL when nobody was. A day runs from midnight up to, not including, the next midnight in tz;
--     today still grows. bar: 20 blocks for the highest peak, at least one for any; NULL when there is none.
--     The index finds the sessions that can reach the window. How far back these begin is known from the
--     longest of the older ones, and to find that reads all older rows once: this grows with the table, unless
--     it has an index on session_duration_seconds, which the package does not make.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=7 -v tz=Asia/Kathmandu -f queries/peak_concurrency.sql
\if :{?days}
\else
\set days 14
\endif
\if :{?tz}
\else
\set tz UTC
\endif
WITH days AS (
    SELECT (NOW() AT TIME ZONE :'tz')::DATE - days_ago AS day
    FROM GENERATE_SERIES(0, :'days'::INTEGER - 1) AS d (days_ago)
),

-- From here on, the window is a day longer on both sides than what is shown: so it holds every zone's days.
longest AS (
    SELECT MAKE_INTERVAL(secs => COALESCE(MAX(session_duration_seconds), 0)) AS lasted
    FROM alicia_session_stats
    WHERE created_at < NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'::INTEGER + 1)
),

sessions AS (
    SELECT
        created_at AS started_at,
        created_at + MAKE_INTERVAL(secs => session_duration_seconds) AS ended_at
    FROM alicia_session_stats
    WHERE
        created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'::INTEGER + 1) - (SELECT lasted FROM longest)
        AND created_at < NOW() AT TIME ZONE 'UTC' + INTERVAL '2 days'
        -- One long session far back makes the range long; what has ended before the window need not be sorted.
        AND created_at + MAKE_INTERVAL(secs => session_duration_seconds)
        > NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'::INTEGER + 1)
),

changes AS (
    SELECT
        started_at AS changed_at,
        1 AS change
    FROM sessions
    UNION ALL
    SELECT
        ended_at,
        -1
    FROM sessions
    UNION ALL
    -- Nothing changes at midnight, but whoever is alive then counts in the day that begins. Where clocks go back
    -- over midnight, it begins an hour before the midnight that AT TIME ZONE knows.
    SELECT
        (d.day::TIMESTAMP AT TIME ZONE :'tz') AT TIME ZONE 'UTC' - MAKE_INTERVAL(hours => h.hours),
        0
    FROM days AS d
    CROSS JOIN (VALUES (0), (1)) AS h (hours)
),

-- The running sum takes all changes of an instant together: who ends is gone before who starts is there, and
-- who does both at once never is.
moments AS (
    SELECT
        changed_at,
        (changed_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz' AS local_at,
        SUM(change) OVER (ORDER BY changed_at) AS alive
    FROM changes
),

peaks AS (
    SELECT DISTINCT ON (local_at::DATE)
        local_at::DATE AS day,
        alive AS sessions,
        local_at AS peak_at
    FROM moments
    WHERE alive > 0
    ORDER BY local_at::DATE ASC, alive DESC, changed_at ASC
)

SELECT
    d.day,
    COALESCE(p.sessions, 0) AS peak_sessions,
    p.peak_at,
    REPEAT('█', CEIL(20.0 * COALESCE(p.sessions, 0) / MAX(p.sessions) OVER ())::INTEGER) AS bar
FROM days AS d
LEFT JOIN peaks AS p ON d.day = p.day
ORDER BY d.day;
