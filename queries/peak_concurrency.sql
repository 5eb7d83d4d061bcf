-- The most sessions open at one instant of every calendar day, and when.
--
-- Purpose: resource planning
-- Param days (integer, default 14): number of calendar days, that of until included.
-- Param until (timestamp, default now): where the last day ends; in tz unless it carries an offset. What is later than now is
--     left out.
-- Param tz (text, default UTC): time zone of the days, an IANA name such as Europe/Berlin.
-- Returns: one row per day, oldest first. A session is open from its start up to, not including, its end.
--     peak_sessions                the most sessions open at one instant, also those that began on an earlier day;
--                                  a session of 0 seconds is never open
--     peak_at                      first instant of the day with that many, in tz: midnight when they were open as
--                                  the day began, NULL when peak_sessions is 0
--     is_partial                   true for a day that is not over, at until or now
--     bar                          peak_sessions, as a bar of at most 20 blocks; NULL when all are 0
-- Reads: idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v days=7 -v tz=Asia/Kathmandu -f queries/peak_concurrency.sql
\if :{?days}
\else
\set days 14
\endif
\if :{?until}
\else
\set until now
\endif
\if :{?tz}
\else
\set tz UTC
\endif
-- A microsecond is the resolution of created_at: where until is a midnight, the last day is the one before it.
WITH asked AS (
    SELECT
        ((
            (alicia_session_stats_utc(:'until', :'tz') - INTERVAL '1 microsecond') AT TIME ZONE 'UTC'
        ) AT TIME ZONE :'tz')::DATE AS last_day,
        ((alicia_session_stats_window_end(:'until', :'tz') AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS unfinished_day
    WHERE alicia_session_stats_is_time_zone(:'tz')
),

days AS (
    SELECT
        a.last_day - n AS day,
        a.last_day - n = a.unfinished_day AS is_partial
    FROM asked AS a
    CROSS JOIN GENERATE_SERIES(0, :'days'::INTEGER - 1) AS n
    WHERE a.last_day - n <= a.unfinished_day
),

-- What is open as the window begins, a day before what is shown, so that it contains the days of every time zone.
sessions AS (
    SELECT
        started_at,
        ended_at
    FROM alicia_session_stats_open_at(alicia_session_stats_utc(:'until', :'tz') - MAKE_INTERVAL(days => :'days'::INTEGER + 1))
    UNION ALL
    SELECT
        created_at,
        created_at + MAKE_INTERVAL(secs => session_duration_seconds)
    FROM alicia_session_stats
    WHERE
        created_at >= alicia_session_stats_utc(:'until', :'tz') - MAKE_INTERVAL(days => :'days'::INTEGER + 1)
        AND created_at < alicia_session_stats_window_end(:'until', :'tz')
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
    -- Midnight, so that the sessions open then count in the day that begins. Where clocks go back over midnight, the
    -- day begins an hour before the midnight that AT TIME ZONE chooses: hence both.
    SELECT
        (d.day::TIMESTAMP AT TIME ZONE :'tz') AT TIME ZONE 'UTC' - MAKE_INTERVAL(hours => h.hours),
        0
    FROM days AS d
    CROSS JOIN (VALUES (0), (1)) AS h (hours)
),

-- At one instant, ends come before starts, so that a session that ends as another one starts does not overlap it.
instants AS (
    SELECT
        changed_at,
        change,
        SUM(change) OVER (ORDER BY changed_at, change ROWS UNBOUNDED PRECEDING) AS open_sessions
    FROM changes
),

-- Where a session only ends, there is no peak. The first instant of each count, so that few rows are sorted.
peaks AS (
    SELECT DISTINCT ON (day)
        ((changed_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS day,
        open_sessions,
        MIN(changed_at) AS changed_at
    FROM instants
    WHERE open_sessions > 0 AND change >= 0
    GROUP BY day, open_sessions
    ORDER BY day ASC, open_sessions DESC
)

SELECT
    d.day,
    COALESCE(p.open_sessions, 0) AS peak_sessions,
    (p.changed_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz' AS peak_at,
    d.is_partial,
    REPEAT('█', CEIL(20.0 * COALESCE(p.open_sessions, 0) / MAX(p.open_sessions) OVER ())::INTEGER) AS bar
FROM days AS d
LEFT JOIN peaks AS p ON d.day = p.day
ORDER BY d.day;
