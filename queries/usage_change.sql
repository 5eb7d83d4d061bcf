-- Each measure of usage in a trailing window, in the window of equal length before it, and the change.
--
-- Purpose: usage analytics
-- Param days (integer, default 7): length of each of the two windows, in days of 24 hours; the later ends now.
-- Param conversations (boolean, default true): whether to count conversations, for which every session of the
--     windows is read. Without, the answer costs the same however many sessions there are.
-- Returns: a row for each metric: sessions; conversations, those with a session in the window, NULL if not asked for; messages,
--     tool_calls and memories of the sessions; active_seconds, the summed length of the sessions. change:
--     this_period less previous_period. change_pct: the change in percent of previous_period, NULL when that
--     is 0. A window includes its start and excludes its end; a session belongs, whole, to the one in which it
--     starts. A conversation with sessions in both windows counts in both.
-- Reads: idx_session_stats_counters, idx_session_stats_created_at
--
-- psql -v days=30 -f queries/usage_change.sql
\if :{?days}
\else
\set days 7
\endif
\if :{?conversations}
\else
\set conversations true
\endif
-- The quarters of an hour in which a window begins or ends: of these, the sessions one by one.
WITH edges AS (
    SELECT DISTINCT
        DATE_BIN('15 minutes', NOW() AT TIME ZONE 'UTC' - n * MAKE_INTERVAL(days => :'days'), '2000-01-01') AS quarter_hour
    FROM GENERATE_SERIES(0, 2) AS n
),

parts AS (
    SELECT
        quarter_hour AS created_at,
        sessions,
        messages,
        tool_calls,
        memories,
        active_seconds
    FROM alicia_session_stats_quarter_hours
    WHERE
        quarter_hour >= NOW() AT TIME ZONE 'UTC' - 2 * MAKE_INTERVAL(days => :'days')
        AND quarter_hour < NOW() AT TIME ZONE 'UTC'
        AND quarter_hour NOT IN (SELECT quarter_hour FROM edges)
    UNION ALL
    SELECT
        s.created_at,
        1 AS sessions,
        s.message_count,
        s.tool_call_count,
        s.memories_used,
        s.session_duration_seconds
    FROM edges AS e
    INNER JOIN alicia_session_stats AS s
        ON e.quarter_hour <= s.created_at AND e.quarter_hour + INTERVAL '15 minutes' > s.created_at
    WHERE
        s.created_at >= NOW() AT TIME ZONE 'UTC' - 2 * MAKE_INTERVAL(days => :'days')
        AND s.created_at < NOW() AT TIME ZONE 'UTC'
),

-- Both rows, also when there is no session.
sums AS (
    SELECT
        w.is_recent,
        COALESCE(SUM(p.sessions), 0)::BIGINT AS sessions,
        COALESCE(SUM(p.messages), 0)::BIGINT AS messages,
        COALESCE(SUM(p.tool_calls), 0)::BIGINT AS tool_calls,
        COALESCE(SUM(p.memories), 0)::BIGINT AS memories,
        COALESCE(SUM(p.active_seconds), 0)::BIGINT AS active_seconds
    FROM (VALUES (TRUE), (FALSE)) AS w (is_recent)
    LEFT JOIN parts AS p ON w.is_recent = (p.created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'))
    GROUP BY w.is_recent
),

counts AS (
    SELECT
        created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days') AS is_recent,
        COUNT(DISTINCT conversation_id) AS conversations
    FROM alicia_session_stats
    WHERE
        created_at >= NOW() AT TIME ZONE 'UTC' - 2 * MAKE_INTERVAL(days => :'days')
        AND created_at < NOW() AT TIME ZONE 'UTC'
        AND :'conversations'::BOOLEAN
    GROUP BY is_recent
),

periods AS (
    SELECT
        s.*,
        CASE WHEN :'conversations'::BOOLEAN THEN COALESCE(c.conversations, 0) END AS conversations
    FROM sums AS s
    LEFT JOIN counts AS c ON s.is_recent = c.is_recent
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
