-- Session durations, one-message sessions and conversations that came back, over a trailing window.
--
-- Purpose: user engagement
-- Param days (integer, default 30): length of the window, in days of 24 hours.
-- Param until (timestamp, default now): end of the window; UTC unless it carries an offset. What is later than now is
--     left out.
-- Returns: one row per metric. A metric other than sessions and conversations is NULL when there is no session.
--     metric                       sessions: sessions that begin in the window;
--                                  conversations: conversations with such a session;
--                                  sessions_per_conversation: ratio of the two;
--                                  median_seconds, p90_seconds: duration, interpolated (PERCENTILE_CONT);
--                                  one_message_pct: percent of the sessions with exactly one message (bounce rate);
--                                  came_back_pct: percent of the conversations with two or more such sessions
--     all_sessions                 the metric over all sessions
--     nonzero_sessions             the metric over the sessions that last a second or more
-- Reads: alicia_session_stats_summaries_pkey, idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v days=7 -f queries/engagement.sql
\if :{?days}
\else
\set days 30
\endif
\if :{?until}
\else
\set until now
\endif
-- Sorted first, because hashing so many conversations takes longer.
WITH conversations AS NOT MATERIALIZED (
    SELECT
        HASHTEXT(conversation_id) < 0 AS is_first_half,
        COUNT(*) AS sessions,
        COUNT(*) FILTER (WHERE seconds > 0) AS nonzero,
        COUNT(*) FILTER (WHERE messages = 1) AS one_message,
        COUNT(*) FILTER (WHERE messages = 1 AND seconds > 0) AS nonzero_one_message
    FROM (
        SELECT
            conversation_id,
            message_count AS messages,
            session_duration_seconds AS seconds
        FROM alicia_session_stats
        WHERE
            created_at >= alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days')
            AND created_at < alicia_session_stats_window_end(:'until')
        ORDER BY conversation_id
    ) AS sessions
    GROUP BY conversation_id
),

-- In two halves, so that two processes can count them.
counts AS (
    SELECT
        SUM(conversations) AS conversations,
        SUM(nonzero_conversations) AS nonzero_conversations,
        SUM(came_back) AS came_back,
        SUM(nonzero_came_back) AS nonzero_came_back,
        SUM(one_message) AS one_message,
        SUM(nonzero_one_message) AS nonzero_one_message
    FROM (
        SELECT
            COUNT(*) AS conversations,
            COUNT(*) FILTER (WHERE nonzero > 0) AS nonzero_conversations,
            COUNT(*) FILTER (WHERE sessions > 1) AS came_back,
            COUNT(*) FILTER (WHERE nonzero > 1) AS nonzero_came_back,
            SUM(one_message) AS one_message,
            SUM(nonzero_one_message) AS nonzero_one_message
        FROM conversations
        WHERE is_first_half
        UNION ALL
        SELECT
            COUNT(*) AS conversations,
            COUNT(*) FILTER (WHERE nonzero > 0) AS nonzero_conversations,
            COUNT(*) FILTER (WHERE sessions > 1) AS came_back,
            COUNT(*) FILTER (WHERE nonzero > 1) AS nonzero_came_back,
            SUM(one_message) AS one_message,
            SUM(nonzero_one_message) AS nonzero_one_message
        FROM conversations
        WHERE NOT is_first_half
    ) AS halves
),

durations AS (
    SELECT
        sessions,
        counted_values,
        sessions_up_to,
        -- Zero is the first value, if any session has it.
        CASE counted_values[1] WHEN 0 THEN sessions_up_to[1] ELSE 0 END AS zero_sessions
    FROM alicia_session_stats_value_counts(
        'seconds',
        alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days'),
        alicia_session_stats_window_end(:'until')
    )
),

-- One row per group of sessions.
measures AS (
    SELECT
        d.sessions,
        c.conversations,
        c.came_back,
        c.one_message,
        alicia_session_stats_percentile(0.5, d.counted_values, d.sessions_up_to)::NUMERIC AS median_seconds,
        alicia_session_stats_percentile(0.9, d.counted_values, d.sessions_up_to)::NUMERIC AS p90_seconds,
        FALSE AS is_nonzero
    FROM durations AS d
    CROSS JOIN counts AS c
    UNION ALL
    SELECT
        d.sessions - d.zero_sessions,
        c.nonzero_conversations,
        c.nonzero_came_back,
        c.nonzero_one_message,
        alicia_session_stats_percentile(0.5, d.counted_values, d.sessions_up_to, d.zero_sessions)::NUMERIC,
        alicia_session_stats_percentile(0.9, d.counted_values, d.sessions_up_to, d.zero_sessions)::NUMERIC,
        TRUE
    FROM durations AS d
    CROSS JOIN counts AS c
)

SELECT
    m.metric,
    -- TRIM_SCALE, so that a count has no decimals.
    TRIM_SCALE(ROUND(MAX(m.value) FILTER (WHERE NOT g.is_nonzero), 2)) AS all_sessions,
    TRIM_SCALE(ROUND(MAX(m.value) FILTER (WHERE g.is_nonzero), 2)) AS nonzero_sessions
FROM measures AS g
CROSS JOIN LATERAL (
    VALUES
    (1, 'sessions', g.sessions),
    (2, 'conversations', g.conversations),
    (3, 'sessions_per_conversation', 1.0 * g.sessions / NULLIF(g.conversations, 0)),
    (4, 'median_seconds', g.median_seconds),
    (5, 'p90_seconds', g.p90_seconds),
    (6, 'one_message_pct', 100.0 * g.one_message / NULLIF(g.sessions, 0)),
    (7, 'came_back_pct', 100.0 * g.came_back / NULLIF(g.conversations, 0))
) AS m (position, metric, value)
GROUP BY m.position, m.metric
ORDER BY m.position;
