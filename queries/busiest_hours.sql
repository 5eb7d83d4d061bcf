-- Sessions by the hour of the day and the day of the week in which they begin, over a trailing window.
--
-- Purpose: usage analytics
-- Param days (integer, default 28): length of the window, in days of 24 hours; a multiple of 7 contains each hour
--     of the week equally often.
-- Param until (timestamp, default now): end of the window; in tz unless it carries an offset. What is later than now is
--     left out.
-- Param tz (text, default UTC): time zone of the hours, an IANA name such as Europe/Berlin.
-- Returns: one row per hour of the day, 0 to 23.
--     hour                         0 is from midnight up to, not including, 1:00
--     mon, …, sun                  sessions that begin in that hour, by weekday
--     sessions                     sum of the seven weekdays
--     bar                          sessions, as a bar of at most 20 blocks; NULL when the window holds no session
-- Reads: idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v days=7 -v tz=Asia/Kathmandu -f queries/busiest_hours.sql
\if :{?days}
\else
\set days 28
\endif
\if :{?until}
\else
\set until now
\endif
\if :{?tz}
\else
\set tz UTC
\endif
WITH starts AS (
    SELECT
        EXTRACT(HOUR FROM l.started_at) AS hour,
        EXTRACT(ISODOW FROM l.started_at) AS weekday,
        b.sessions
    FROM alicia_session_stats_between(
        alicia_session_stats_utc(:'until', :'tz') - MAKE_INTERVAL(days => :'days'),
        alicia_session_stats_window_end(:'until', :'tz')
    ) AS b
    -- In today's time zones an hour begins with a quarter of an hour.
    CROSS JOIN LATERAL (SELECT (b.bucket_start AT TIME ZONE 'UTC') AT TIME ZONE :'tz' AS started_at) AS l
),

hours AS (
    SELECT
        h.hour,
        COALESCE(SUM(s.sessions) FILTER (WHERE s.weekday = 1), 0)::BIGINT AS mon,
        COALESCE(SUM(s.sessions) FILTER (WHERE s.weekday = 2), 0)::BIGINT AS tue,
        COALESCE(SUM(s.sessions) FILTER (WHERE s.weekday = 3), 0)::BIGINT AS wed,
        COALESCE(SUM(s.sessions) FILTER (WHERE s.weekday = 4), 0)::BIGINT AS thu,
        COALESCE(SUM(s.sessions) FILTER (WHERE s.weekday = 5), 0)::BIGINT AS fri,
        COALESCE(SUM(s.sessions) FILTER (WHERE s.weekday = 6), 0)::BIGINT AS sat,
        COALESCE(SUM(s.sessions) FILTER (WHERE s.weekday = 7), 0)::BIGINT AS sun,
        COALESCE(SUM(s.sessions), 0)::BIGINT AS sessions
    FROM GENERATE_SERIES(0, 23) AS h (hour)
    LEFT JOIN starts AS s ON h.hour = s.hour
    GROUP BY h.hour
)

SELECT
    hour,
    mon,
    tue,
    wed,
    thu,
    fri,
    sat,
    sun,
    sessions,
    REPEAT('█', CEIL(20.0 * sessions / NULLIF(MAX(sessions) OVER (), 0))::INTEGER) AS bar
FROM hours
WHERE alicia_session_stats_is_time_zone(:'tz')
ORDER BY hour;
