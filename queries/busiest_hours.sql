-- Sessions by the hour of the day and the day of the week in which they start.
--
-- Purpose: usage analytics
-- Param days (integer, default 28): length of the window, in days of 24 hours, that ends now. A multiple of 7
--     counts every hour of the week equally often.
-- Param tz (text, default UTC): the time zone whose hours they are, an IANA name such as Europe/Berlin.
-- Returns: a row for each hour of the day, 0 (from midnight up to, not including, 1:00) to 23, and in mon to sun
--     the sessions that start in it on that day of the week, in tz. total: of all seven. bar: total, 20 blocks
--     for the busiest hour, and at least one for any session; NULL when there is none. A session begun exactly
--     that many days ago is inside the window, one that begins at this instant is not.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=7 -v tz=Asia/Kathmandu -f queries/busiest_hours.sql
\if :{?days}
\else
\set days 28
\endif
\if :{?tz}
\else
\set tz UTC
\endif
WITH local_times AS (
    SELECT (created_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz' AS started_at
    FROM alicia_session_stats
    WHERE
        created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')
        AND created_at < NOW() AT TIME ZONE 'UTC'
),

starts AS (
    SELECT
        EXTRACT(HOUR FROM started_at) AS hour,
        EXTRACT(ISODOW FROM started_at) AS weekday
    FROM local_times
)

SELECT
    h.hour,
    COUNT(*) FILTER (WHERE s.weekday = 1) AS mon,
    COUNT(*) FILTER (WHERE s.weekday = 2) AS tue,
    COUNT(*) FILTER (WHERE s.weekday = 3) AS wed,
    COUNT(*) FILTER (WHERE s.weekday = 4) AS thu,
    COUNT(*) FILTER (WHERE s.weekday = 5) AS fri,
    COUNT(*) FILTER (WHERE s.weekday = 6) AS sat,
    COUNT(*) FILTER (WHERE s.weekday = 7) AS sun,
    COUNT(s.hour) AS total,
    REPEAT('█', CEIL(20.0 * COUNT(s.hour) / NULLIF(MAX(COUNT(s.hour)) OVER (), 0))::INTEGER) AS bar
FROM GENERATE_SERIES(0, 23) AS h (hour)
LEFT JOIN starts AS s ON h.hour = s.hour
GROUP BY h.hour
ORDER BY h.hour;
