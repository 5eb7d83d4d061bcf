-- Each measure of usage in a trailing window, in the window of equal length before it, and the change.
--
-- Purpose: usage analytics
-- Param days (integer, default 7): length of each of the two windows, in days of 24 hours; the later ends now.
-- Returns: a row for each metric: sessions; conversations, those with a session in the window; messages,
--     tool_calls and memories of the sessions; active_seconds, the summed length of the sessions. change:
--     this_period less previous_period. change_pct: the change in percent of previous_period, NULL when that
--     is 0. A window includes its start and excludes its end; a session belongs, whole, to the one in which it
--     starts. A conversation with sessions in both windows counts in both.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=30 -f queries/usage_change.sql
\if :{?days}
\else
\set days 7
\endif
WITH sessions AS (
    SELECT
        *,
        created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days') AS is_recent
    FROM alicia_session_stats
    WHERE
        created_at >= NOW() AT TIME ZONE 'UTC' - 2 * MAKE_INTERVAL(days => :'days')
        AND created_at < NOW() AT TIME ZONE 'UTC'
),

-- Both rows, also when there is no session.
periods AS (
    SELECT
        p.is_recent,
        COUNT(s.id) AS sessions,
        COUNT(DISTINCT s.conversation_id) AS conversations,
        COALESCE(SUM(s.message_count), 0) AS messages,
        COALESCE(SUM(s.tool_call_count), 0) AS tool_calls,
        COALESCE(SUM(s.memories_used), 0) AS memories,
        COALESCE(SUM(s.session_duration_seconds), 0) AS active_seconds
    FROM (VALUES (TRUE), (FALSE)) AS p (is_recent)
    LEFT JOIN sessions AS s ON p.is_recent = s.is_recent
    GROUP BY p.is_recent
)

SELECT
    m.metric,
    m.this_period,
    m.previous_period,
    m.this_period - m.previous_period AS change,
    100.0 * (m.this_period - m.previous_period) / NULLIF(m.previous_period, 0) AS change_pct
FROM periods AS t
INNER JOIN periods AS p ON t.is_recent AND NOT p.is_recent
CROSS JOIN LATERAL (
    VALUES
    (1, 'sessions', t.sessions, p.sessions),
    (2, 'conversations', t.conversations, p.conversations),
    (3, 'messages', t.messages, p.messages),
    (4, 'tool_calls', t.tool_calls, p.tool_calls),
    (5, 'memories', t.memories, p.memories),
    (6, 'active_seconds', t.active_seconds, p.active_seconds)
) AS m (position, metric, this_period, previous_period)
ORDER BY m.position;
