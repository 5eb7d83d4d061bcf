-- Each measure of usage in a trailing window, in the window of equal length before it, and the change.
--
-- Purpose: usage analytics
-- Param days (integer, default 7): length of each of the two windows, in days of 24 hours.
-- Param until (timestamp, default now): end of the later window; UTC unless it carries an offset. What is later than now is
--     left out.
-- Param conversations (boolean, default true): false leaves out the conversations. Counting them reads every session
--     of both windows; everything else is read from the rollup, at the same cost for any number of sessions.
-- Returns: one row per metric.
--     metric                        sessions that begin in the window; conversations with such a session, NULL when
--                                   left out; messages, tool_calls, memories and seconds of these sessions
--     this_period, previous_period  the metric in the later and in the earlier window
--     change                        this_period - previous_period
--     change_pct                    change in percent of previous_period; NULL when that is 0
-- Reads: idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v days=30 -f queries/usage_change.sql
\if :{?days}
\else
\set days 7
\endif
\if :{?until}
\else
\set until now
\endif
\if :{?conversations}
\else
\set conversations true
\endif
WITH this_period AS (
    SELECT
        COALESCE(SUM(sessions), 0)::BIGINT AS sessions,
        COALESCE(SUM(messages), 0)::BIGINT AS messages,
        COALESCE(SUM(tool_calls), 0)::BIGINT AS tool_calls,
        COALESCE(SUM(memories), 0)::BIGINT AS memories,
        COALESCE(SUM(seconds), 0)::BIGINT AS seconds
    FROM alicia_session_stats_between(
        alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days'),
        alicia_session_stats_window_end(:'until')
    )
),

previous_period AS (
    SELECT
        COALESCE(SUM(sessions), 0)::BIGINT AS sessions,
        COALESCE(SUM(messages), 0)::BIGINT AS messages,
        COALESCE(SUM(tool_calls), 0)::BIGINT AS tool_calls,
        COALESCE(SUM(memories), 0)::BIGINT AS memories,
        COALESCE(SUM(seconds), 0)::BIGINT AS seconds
    FROM alicia_session_stats_between(
        alicia_session_stats_utc(:'until') - 2 * MAKE_INTERVAL(days => :'days'),
        LEAST(
            alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days'),
            alicia_session_stats_window_end(:'until')
        )
    )
),

-- No row when conversations are left out, so that they are NULL below. Two scans, because one would sort the sessions of both
-- windows twice.
conversations AS (
    SELECT
        (
            SELECT COUNT(DISTINCT conversation_id)
            FROM alicia_session_stats
            WHERE
                created_at >= alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days')
                AND created_at < alicia_session_stats_window_end(:'until')
        ) AS this_period,
        (
            SELECT COUNT(DISTINCT conversation_id)
            FROM alicia_session_stats
            WHERE
                created_at >= alicia_session_stats_utc(:'until') - 2 * MAKE_INTERVAL(days => :'days')
                AND created_at < LEAST(
                    alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days'),
                    alicia_session_stats_window_end(:'until')
                )
        ) AS previous_period
    WHERE :'conversations'::BOOLEAN
)

SELECT
    m.metric,
    m.this_period,
    m.previous_period,
    m.this_period - m.previous_period AS change,
    ROUND(100.0 * (m.this_period - m.previous_period) / NULLIF(m.previous_period, 0), 2) AS change_pct
FROM this_period AS t
CROSS JOIN previous_period AS p
LEFT JOIN conversations AS c ON TRUE
CROSS JOIN LATERAL (
    VALUES
    (1, 'sessions', t.sessions, p.sessions),
    (2, 'conversations', c.this_period, c.previous_period),
    (3, 'messages', t.messages, p.messages),
    (4, 'tool_calls', t.tool_calls, p.tool_calls),
    (5, 'memories', t.memories, p.memories),
    (6, 'seconds', t.seconds, p.seconds)
) AS m (position, metric, this_period, previous_period)
ORDER BY m.position;
