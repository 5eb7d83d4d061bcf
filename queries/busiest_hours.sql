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
-- Reads: idx_session_stats_counters, idx_session_stats_created_at
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
-- The quarters of an hour in which the window begins and ends: of these, only the sessions that are inside.
WITH edges AS (
    SELECT DISTINCT DATE_BIN('15 minutes', edge, '2000-01-01') AS quarter_hour
    FROM (
        VALUES (NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')), (NOW() AT TIME ZONE 'UTC')
    ) AS e (edge)
),

parts AS (
    SELECT
        quarter_hour AS created_at,
        sessions
    FROM alicia_session_stats_quarter_hours
    WHERE
        quarter_hour >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')
        AND quarter_hour < NOW() AT TIME ZONE 'UTC'
        AND quarter_hour NOT IN (SELECT quarter_hour FROM edges)
    UNION ALL
    SELECT
        s.created_at,
        1 AS sessions
    FROM edges AS e
    INNER JOIN alicia_session_stats AS s
        ON e.quarter_hour <= s.created_at AND e.quarter_hour + INTERVAL '15 minutes' > s.created_at
    WHERE
        s.created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')
        AND s.created_at < NOW() AT TIME ZONE 'UTC'
),

starts AS (
    SELECT
        EXTRACT(HOUR FROM l.started_at) AS hour,
        EXTRACT(ISODOW FROM l.started_at) AS weekday,
        p.sessions
    FROM parts AS p
    CROSS JOIN LATERAL (SELECT (p.created_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz' AS started_at) AS l
),

counts AS (
    SELECT
        h.hour,
        d.weekday,
        COALESCE(SUM(s.sessions), 0)::BIGINT AS sessions
    FROM GENERATE_SERIES(0, 23) AS h (hour)
    CROSS JOIN GENERATE_SERIES(1, 7) AS d (weekday)
    LEFT JOIN starts AS s ON h.hour = s.hour AND d.weekday = s.weekday
    GROUP BY h.hour, d.weekday
)

SELECT
    hour,
    MAX(sessions) FILTER (WHERE weekday = 1) AS mon,
    MAX(sessions) FILTER (WHERE weekday = 2) AS tue,
    MAX(sessions) FILTER (WHERE weekday = 3) AS wed,
    MAX(sessions) FILTER (WHERE weekday = 4) AS thu,
    MAX(sessions) FILTER (WHERE weekday = 5) AS fri,
    MAX(sessions) FILTER (WHERE weekday = 6) AS sat,
    MAX(sessions) FILTER (WHERE weekday = 7) AS sun,
    SUM(sessions)::BIGINT AS total,
    REPEAT('█', CEIL(20.0 * SUM(sessions) / NULLIF(MAX(SUM(sessions)) OVER (), 0))::INTEGER) AS bar
FROM counts
GROUP BY hour
ORDER BY hour;
