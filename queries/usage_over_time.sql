-- Sessions, conversations, messages, tool calls, memories and seconds of every hour, day, week or month.
--
-- Purpose: usage analytics
-- Param unit (text, default day): hour, day, week (from Monday) or month.
-- Param days (integer, default 30): number of calendar days, that of until included. A week or month that has one of
--     these days begins on its own first day.
-- Param until (timestamp, default now): where the last period ends; in tz unless it carries an offset. What is later than
--     now is left out.
-- Param tz (text, default UTC): time zone of the periods, an IANA name such as Europe/Berlin.
-- Param conversations (boolean, default true): false leaves out the conversations. Counting them reads every session
--     of the window; everything else is read from the rollup, at the same cost for any number of sessions.
-- Returns: one row per period, oldest first, also for a period without sessions.
--     period_start                 first hour of the period, in tz. Where clocks go back, the hour that comes twice has
--                                  one row; an hour or day that is skipped has none
--     sessions                     sessions that begin in the period; the other columns sum over these
--     conversations                conversations with a session in the period; NULL when left out
--     seconds                      summed duration of the sessions
--     sessions_7d_mean             mean sessions per day over that day and the six days before it; NULL for a day that
--                                  is not over, and for every other unit
--     is_partial                   true for a period that is not over, at until or now
--     bar                          sessions, as a bar of at most 9 blocks; NULL when no period has a session
-- Reads: idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v unit=week -v days=84 -v tz=Asia/Kathmandu -f queries/usage_over_time.sql
\if :{?unit}
\else
\set unit day
\endif
\if :{?days}
\else
\set days 30
\endif
\if :{?until}
\else
\set until now
\endif
\if :{?tz}
\else
\set tz UTC
\endif
\if :{?conversations}
\else
\set conversations true
\endif
WITH ends AS (
    SELECT
        CASE
            WHEN :'unit' IN ('hour', 'day', 'week', 'month') THEN :'unit'
            ELSE alicia_session_stats_raise('22023', 'unit must be hour, day, week or month')
        END AS unit,
        -- A microsecond is the resolution of created_at: where until is a midnight, the last day is the one before it.
        alicia_session_stats_utc(:'until', :'tz') - INTERVAL '1 microsecond' AS last_at,
        alicia_session_stats_window_end(:'until', :'tz') AS window_end
    WHERE alicia_session_stats_is_time_zone(:'tz')
),

asked AS (
    SELECT
        unit,
        DATE_TRUNC(
            unit,
            DATE_TRUNC('day', (last_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz')
            - MAKE_INTERVAL(days => :'days'::INTEGER - 1)
        ) AS first_period,
        DATE_TRUNC(unit, (LEAST(last_at, window_end) AT TIME ZONE 'UTC') AT TIME ZONE :'tz') AS last_period,
        DATE_TRUNC(unit, (window_end AT TIME ZONE 'UTC') AT TIME ZONE :'tz') AS unfinished_period,
        window_end
    FROM ends
    WHERE :'days'::INTEGER > 0
),

-- Both scans begin before the first period does in any time zone.
sums AS (
    SELECT
        DATE_TRUNC(a.unit, (b.bucket_start AT TIME ZONE 'UTC') AT TIME ZONE :'tz') AS period_start,
        SUM(b.sessions)::BIGINT AS sessions,
        SUM(b.messages)::BIGINT AS messages,
        SUM(b.tool_calls)::BIGINT AS tool_calls,
        SUM(b.memories)::BIGINT AS memories,
        SUM(b.seconds)::BIGINT AS seconds,
        RANGE_AGG(TSRANGE(b.bucket_start, b.bucket_start + INTERVAL '15 minutes')) AS spans
    FROM asked AS a
    CROSS JOIN alicia_session_stats_between(
        alicia_session_stats_utc(:'until', :'tz')
        - MAKE_INTERVAL(days => :'days'::INTEGER + CASE :'unit' WHEN 'month' THEN 32 ELSE 8 END),
        alicia_session_stats_window_end(:'until', :'tz')
    ) AS b
    GROUP BY period_start
),

-- Six more days, for the mean of the first one. Where clocks go forward, a local time that is skipped moves to a later
-- period.
periods AS (
    SELECT
        p.period_start,
        p.period_start >= a.unfinished_period AS is_partial
    FROM asked AS a
    CROSS JOIN LATERAL GENERATE_SERIES(
        a.first_period - CASE a.unit WHEN 'day' THEN INTERVAL '6 days' ELSE INTERVAL '0' END,
        -- Where clocks have just gone back, sessions may have a later local time than the end of the window.
        GREATEST(a.last_period, (SELECT MAX(period_start) FROM sums)),
        ('1 ' || a.unit)::INTERVAL
    ) AS p (period_start)
    WHERE DATE_TRUNC(a.unit, (p.period_start AT TIME ZONE :'tz') AT TIME ZONE :'tz') = p.period_start
),

usage AS (
    SELECT
        p.period_start,
        p.is_partial,
        COALESCE(s.sessions, 0) AS sessions,
        COALESCE(s.spans, '{}') AS spans,
        COALESCE(s.messages, 0) AS messages,
        COALESCE(s.tool_calls, 0) AS tool_calls,
        COALESCE(s.memories, 0) AS memories,
        COALESCE(s.seconds, 0) AS seconds,
        AVG(COALESCE(s.sessions, 0)) OVER (
            ORDER BY p.period_start RANGE BETWEEN INTERVAL '6 days' PRECEDING AND CURRENT ROW
        ) AS sessions_7d_mean
    FROM periods AS p
    LEFT JOIN sums AS s ON p.period_start = s.period_start
)

SELECT
    u.period_start,
    u.sessions,
    CASE
        WHEN :'conversations'::BOOLEAN
            THEN alicia_session_stats_conversations(u.spans * TSMULTIRANGE(TSRANGE(NULL, a.window_end)))
    END AS conversations,
    u.messages,
    u.tool_calls,
    u.memories,
    u.seconds,
    CASE WHEN a.unit = 'day' AND NOT u.is_partial THEN ROUND(u.sessions_7d_mean, 2) END AS sessions_7d_mean,
    u.is_partial,
    REPEAT('█', CEIL(9.0 * u.sessions / NULLIF(MAX(u.sessions) OVER (), 0))::INTEGER) AS bar
FROM usage AS u
CROSS JOIN asked AS a
WHERE u.period_start >= a.first_period
ORDER BY u.period_start;
