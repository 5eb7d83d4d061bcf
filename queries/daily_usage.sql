-- Sessions, conversations, messages, tool calls, memories and seconds of every calendar day.
--
-- Purpose: usage analytics
-- Param days (integer, default 30): number of calendar days, that of until included.
-- Param until (timestamp, default now): where the last day ends; UTC unless it carries an offset. What is later than now
--     is left out.
-- Param tz (text, default UTC): time zone of the days, an IANA name such as Europe/Berlin.
-- Param conversations (boolean, default true): false leaves out the conversations. Counting them reads every session
--     of the window; everything else is read from the rollup, at the same cost for any number of sessions.
-- Returns: one row per day, oldest first, also for a day without sessions.
--     sessions                     sessions that begin on that day; the other columns sum over these
--     conversations                conversations with a session on that day; NULL when left out
--     seconds                      summed duration of the sessions
--     sessions_7d_mean             mean sessions per day over that day and the six days before it
--     is_partial                   true for a day that is not over, at until or now
--     bar                          sessions, as a bar of at most 9 blocks; NULL when no day has a session
-- Reads: idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v days=7 -v tz=Asia/Kathmandu -f queries/daily_usage.sql
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
-- Both scans begin days + 7 days before until: six days for the mean of the first day, one for the time zone. A
-- microsecond is the resolution of created_at: where until is a midnight, the last day is the one before it.
WITH asked AS (
    SELECT
        ((
            (alicia_session_stats_utc(:'until') - INTERVAL '1 microsecond') AT TIME ZONE 'UTC'
        ) AT TIME ZONE :'tz')::DATE AS last_day,
        ((alicia_session_stats_window_end(:'until') AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS unfinished_day
    WHERE alicia_session_stats_is_time_zone(:'tz')
),

sums AS (
    SELECT
        ((bucket_start AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS day,
        SUM(sessions)::BIGINT AS sessions,
        SUM(messages)::BIGINT AS messages,
        SUM(tool_calls)::BIGINT AS tool_calls,
        SUM(memories)::BIGINT AS memories,
        SUM(seconds)::BIGINT AS seconds
    FROM alicia_session_stats_between(
        alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days'::INTEGER + 7),
        alicia_session_stats_window_end(:'until')
    )
    GROUP BY day
),

active AS (
    SELECT
        ((created_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS day,
        COUNT(DISTINCT conversation_id) AS conversations
    FROM alicia_session_stats
    WHERE
        created_at >= alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days'::INTEGER + 7)
        AND created_at < alicia_session_stats_window_end(:'until')
        AND :'conversations'::BOOLEAN
    GROUP BY day
),

daily AS (
    SELECT
        d.days_ago,
        d.day,
        d.is_partial,
        COALESCE(s.sessions, 0) AS sessions,
        CASE WHEN :'conversations'::BOOLEAN THEN COALESCE(a.conversations, 0) END AS conversations,
        COALESCE(s.messages, 0) AS messages,
        COALESCE(s.tool_calls, 0) AS tool_calls,
        COALESCE(s.memories, 0) AS memories,
        COALESCE(s.seconds, 0) AS seconds,
        AVG(COALESCE(s.sessions, 0)) OVER (ORDER BY d.day ROWS 6 PRECEDING) AS sessions_7d_mean
    FROM (
        SELECT
            days_ago,
            last_day - days_ago AS day,
            last_day - days_ago = unfinished_day AS is_partial
        FROM asked
        CROSS JOIN GENERATE_SERIES(0, :'days'::INTEGER + 5) AS days_ago
        WHERE last_day - days_ago <= unfinished_day
    ) AS d
    LEFT JOIN sums AS s ON d.day = s.day
    LEFT JOIN active AS a ON d.day = a.day
)

SELECT
    day,
    sessions,
    conversations,
    messages,
    tool_calls,
    memories,
    seconds,
    ROUND(sessions_7d_mean, 2) AS sessions_7d_mean,
    is_partial,
    REPEAT('█', CEIL(9.0 * sessions / NULLIF(MAX(sessions) OVER (), 0))::INTEGER) AS bar
FROM daily
WHERE days_ago < :'days'::INTEGER
ORDER BY day;
