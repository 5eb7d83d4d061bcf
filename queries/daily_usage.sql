-- Sessions, conversations, messages, tool calls, memories and active minutes of every calendar day.
--
-- Purpose: usage analytics
-- Param days (integer, default 30): how many calendar days, today included.
-- Param tz (text, default UTC): the time zone whose days they are, an IANA name such as Europe/Berlin.
-- Param conversations (boolean, default true): whether to count conversations, for which every session of the
--     window is read. Without, the answer costs the same however many sessions there are.
-- Returns: a row for each day, oldest first, days without a session too. A day runs from midnight up to, not
--     including, the next midnight in tz; a session belongs, whole, to the day in which it starts, and today
--     still grows. conversations: those with a session on that day, NULL if not asked for. tools: tool calls.
--     minutes: active minutes, the summed length of the sessions. avg_7d: mean sessions a day over that day and
--     the six before it, which may lie before the first row; a day without a session counts as 0. bar: sessions,
--     9 blocks for the busiest day, and at least one for any session; NULL when no day has one.
-- Reads: idx_session_stats_counters, idx_session_stats_created_at
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
\if :{?conversations}
\else
\set conversations true
\endif
-- For the index: no zone's day begins longer ago. Days are told apart by days_ago, also in an hour that comes twice.
WITH sums AS (
    SELECT
        (NOW() AT TIME ZONE :'tz')::DATE - ((quarter_hour AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS days_ago,
        SUM(sessions)::BIGINT AS sessions,
        SUM(messages)::BIGINT AS messages,
        SUM(tool_calls)::BIGINT AS tools,
        SUM(memories)::BIGINT AS memories,
        SUM(active_seconds)::BIGINT AS active_seconds
    FROM alicia_session_stats_quarter_hours
    WHERE quarter_hour >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'::INTEGER + 7)
    GROUP BY days_ago
),

counts AS (
    SELECT
        (NOW() AT TIME ZONE :'tz')::DATE - ((created_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS days_ago,
        COUNT(DISTINCT conversation_id) AS conversations
    FROM alicia_session_stats
    WHERE
        created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'::INTEGER + 7)
        AND :'conversations'::BOOLEAN
    GROUP BY days_ago
),

daily AS (
    SELECT
        d.days_ago,
        COALESCE(s.sessions, 0) AS sessions,
        CASE WHEN :'conversations'::BOOLEAN THEN COALESCE(c.conversations, 0) END AS conversations,
        COALESCE(s.messages, 0) AS messages,
        COALESCE(s.tools, 0) AS tools,
        COALESCE(s.memories, 0) AS memories,
        COALESCE(s.active_seconds, 0) / 60.0 AS minutes,
        AVG(COALESCE(s.sessions, 0)) OVER (ORDER BY d.days_ago DESC ROWS 6 PRECEDING) AS avg_7d
    -- Six days more than are shown, for the mean of the first one.
    FROM GENERATE_SERIES(0, :'days'::INTEGER + 5) AS d (days_ago)
    LEFT JOIN sums AS s ON d.days_ago = s.days_ago
    LEFT JOIN counts AS c ON d.days_ago = c.days_ago
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
