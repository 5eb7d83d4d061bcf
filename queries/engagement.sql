-- Session lengths, one-message sessions and conversations that came back, over a trailing window.
--
-- Purpose: user engagement
-- Param days (integer, default 30): length of the window, in days of 24 hours, that ends now.
-- Returns: a row for each metric, over all_sessions of the window and again over its nonzero_sessions alone, those
--     that lasted a second or more. sessions: how many. conversations: those with such a session.
--     sessions_per_conversation: their ratio. median_seconds and p90_seconds: the length that half, and nine in
--     ten, of the sessions do not exceed, interpolated between neighbours (PERCENTILE_CONT). one_message_pct: the
--     bounce rate, the share of sessions with exactly one message. came_back_pct: the share of conversations with
--     two or more such sessions in the window; what was before it does not count. All but the two counts are
--     NULL when there is no session. A session begun exactly that many days ago is inside the window, one that
--     begins at this instant is not.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=7 -f queries/engagement.sql
\if :{?days}
\else
\set days 30
\endif
WITH sessions AS (
    SELECT
        a.min_seconds,
        s.message_count,
        s.session_duration_seconds,
        -- A conversation has one first session, and one second session if it came back.
        ROW_NUMBER() OVER (PARTITION BY a.min_seconds, s.conversation_id) AS nth
    FROM alicia_session_stats AS s
    INNER JOIN (VALUES (0), (1)) AS a (min_seconds) ON s.session_duration_seconds >= a.min_seconds
    WHERE
        s.created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')
        AND s.created_at < NOW() AT TIME ZONE 'UTC'
),

-- Both rows, also when there is no session.
measures AS (
    SELECT
        a.min_seconds,
        COUNT(s.nth) AS sessions,
        COUNT(*) FILTER (WHERE s.nth = 1) AS conversations,
        COUNT(*) FILTER (WHERE s.nth = 2) AS came_back,
        COUNT(*) FILTER (WHERE s.message_count = 1) AS one_message,
        PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY s.session_duration_seconds)::NUMERIC AS median_seconds,
        PERCENTILE_CONT(0.9) WITHIN GROUP (ORDER BY s.session_duration_seconds)::NUMERIC AS p90_seconds
    FROM (VALUES (0), (1)) AS a (min_seconds)
    LEFT JOIN sessions AS s ON a.min_seconds = s.min_seconds
    GROUP BY a.min_seconds
)

SELECT
    m.metric,
    m.all_sessions,
    m.nonzero_sessions
FROM measures AS a
INNER JOIN measures AS n ON a.min_seconds = 0 AND n.min_seconds = 1
CROSS JOIN LATERAL (
    VALUES
    (1, 'sessions', a.sessions, n.sessions),
    (2, 'conversations', a.conversations, n.conversations),
    (
        3, 'sessions_per_conversation',
        1.0 * a.sessions / NULLIF(a.conversations, 0), 1.0 * n.sessions / NULLIF(n.conversations, 0)
    ),
    (4, 'median_seconds', a.median_seconds, n.median_seconds),
    (5, 'p90_seconds', a.p90_seconds, n.p90_seconds),
    (6, 'one_message_pct', 100.0 * a.one_message / NULLIF(a.sessions, 0), 100.0 * n.one_message / NULLIF(n.sessions, 0)),
    (7, 'came_back_pct', 100.0 * a.came_back / NULLIF(a.conversations, 0), 100.0 * n.came_back / NULLIF(n.conversations, 0))
) AS m (position, metric, all_sessions, nonzero_sessions)
ORDER BY m.position;
