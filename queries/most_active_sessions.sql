-- Conversation, messages and tool calls of the sessions with the most messages.
--
-- Purpose: usage analytics
-- Param limit (integer, default 10): number of sessions to return, at most.
-- Returns: one row per session, most messages first; of equals the newest first, then by id.
-- Reads: idx_session_stats_top_candidates
--
-- psql -v limit=3 -f queries/most_active_sessions.sql
\if :{?limit}
\else
\set limit 10
\endif
WITH top_sessions AS (
    SELECT
        conversation_id,
        message_count,
        tool_call_count,
        created_at,
        id
    FROM alicia_session_stats_top_sessions
    ORDER BY message_count DESC, created_at DESC, id DESC
    LIMIT :'limit'
),

-- Runs only where the view holds fewer sessions than asked for: it reads and sorts the whole table.
all_sessions AS (
    SELECT s.*
    FROM (SELECT COUNT(*) AS sessions FROM top_sessions) AS found
    CROSS JOIN LATERAL (
        SELECT
            conversation_id,
            message_count,
            tool_call_count,
            created_at,
            id
        FROM alicia_session_stats
        ORDER BY message_count DESC, created_at DESC, id DESC
        LIMIT :'limit'
    ) AS s
    WHERE found.sessions < :'limit'
),

found AS (
    SELECT * FROM top_sessions
    UNION
    SELECT * FROM all_sessions
)

SELECT
    conversation_id,
    message_count,
    tool_call_count
FROM found
ORDER BY message_count DESC, created_at DESC, id DESC;
