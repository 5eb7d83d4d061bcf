-- Sessions, conversations, messages, tool calls, memories and active minutes of every calendar day.
--
-- Purpose: usage analytics
-- Param days (integer, default 30): how many calendar days, today included.
-- Param tz (text, default UTC): the time zone whose days they are, an IANA name such as Europe/Berlin.
-- Returns: a row for each day, oldest first, days without a session too. A day runs from midnight up to, not
--     including, the next midnight in tz; a session belongs, whole, to the day in which it starts, and today
--     still grows. conversations: those with a session on that day. tools: tool calls. minutes: active minutes,
--     the summed length of the sessions. avg_7d: mean sessions a day over that day and the six before it,
--     which may lie before the first row; a day without a session counts as 0. bar: sessions, 9 blocks for the
--     busiest day, and at least one for any session; NULL when no day has one.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=7 -v tz=Asia/Kathmandu -f queries/daily_usage.sql
\if :{?days}
\else
\set days 30
\endif
\if :{?tz}
\else
\set tz UTC
\endif
WITH daily AS (
    SELECT
        d.days_ago,
        COUNT(s.id) AS sessions,
        COUNT(DISTINCT s.conversation_id) AS conversations,
        COALESCE(SUM(s.message_count), 0) AS messages,
        COALESCE(SUM(s.tool_call_count), 0) AS tools,
        COALESCE(SUM(s.memories_used), 0) AS memories,
        COALESCE(SUM(s.session_duration_seconds), 0) / 60.0 AS minutes,
        AVG(COUNT(s.id)) OVER (ORDER BY d.days_ago DESC ROWS 6 PRECEDING) AS avg_7d
    -- Six days more than are shown, for the mean of the first one.
    FROM GENERATE_SERIES(0, :'days'::INTEGER + 5) AS d (days_ago)
    LEFT JOIN alicia_session_stats AS s
        ON
            d.days_ago = (NOW() AT TIME ZONE :'tz')::DATE - ((s.created_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE
            -- For the index: no zone's day begins longer ago. The line above decides, also in an hour that comes twice.
            AND s.created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'::INTEGER + 7)
    GROUP BY d.days_ago
)

SELECT
    (NOW() AT TIME ZONE :'tz')::DATE - days_ago AS day,
    sessions,
    conversations,
    messages,
    tools,
    memories,
    minutes,
    avg_7d,
    REPEAT('█', CEIL(9.0 * sessions / NULLIF(MAX(sessions) OVER (), 0))::INTEGER) AS bar
FROM daily
WHERE days_ago < :'days'::INTEGER
ORDER BY day;
