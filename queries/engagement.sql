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
-- Reads: idx_session_stats_created_at
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
WITH sessions AS (
    SELECT
        g.min_seconds,
        s.message_count AS messages,
        s.session_duration_seconds AS seconds,
        -- Numbers a conversation's sessions: it is counted at number 1, and it came back if there is a number 2.
        ROW_NUMBER() OVER (PARTITION BY g.min_seconds, s.conversation_id) AS nth
    FROM alicia_session_stats AS s
    INNER JOIN (VALUES (0), (1)) AS g (min_seconds) ON s.session_duration_seconds >= g.min_seconds
    WHERE
        s.created_at >= alicia_session_stats_utc(:'until') - MAKE_INTERVAL(days => :'days')
        AND s.created_at < alicia_session_stats_window_end(:'until')
),

-- One row per group of sessions, also when there is no session.
measures AS (
    SELECT
        g.min_seconds,
        COUNT(s.nth) AS sessions,
        COUNT(*) FILTER (WHERE s.nth = 1) AS conversations,
        COUNT(*) FILTER (WHERE s.nth = 2) AS came_back,
        COUNT(*) FILTER (WHERE s.messages = 1) AS one_message,
        PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY s.seconds)::NUMERIC AS median_seconds,
        PERCENTILE_CONT(0.9) WITHIN GROUP (ORDER BY s.seconds)::NUMERIC AS p90_seconds
    FROM (VALUES (0), (1)) AS g (min_seconds)
    LEFT JOIN sessions AS s ON g.min_seconds = s.min_seconds
    GROUP BY g.min_seconds
)

SELECT
    m.metric,
    -- TRIM_SCALE, so that a count has no decimals.
    TRIM_SCALE(ROUND(MAX(m.value) FILTER (WHERE g.min_seconds = 0), 2)) AS all_sessions,
    TRIM_SCALE(ROUND(MAX(m.value) FILTER (WHERE g.min_seconds = 1), 2)) AS nonzero_sessions
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
