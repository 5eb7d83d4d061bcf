-- The sessions with the most messages, and the tool calls they made.
--
-- Purpose: usage analytics
-- Param limit (integer, default 10): how many sessions to return at most.
-- Returns: a row for each session, most messages first; between equals the newest first, then by id.
-- Reads: no index
--
-- psql -v limit=3 -f queries/most_active_sessions.sql
\if :{?limit}
\else
\set limit 10
\endif
SELECT
    conversation_id,
    message_count,
    tool_call_count
FROM alicia_session_stats
ORDER BY message_count DESC, created_at DESC, id DESC
LIMIT :'limit';
