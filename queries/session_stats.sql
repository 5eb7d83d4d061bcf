-- Messages, tool calls, memories and seconds of each session of one conversation, newest first.
--
-- Purpose: usage analytics
-- Param conversation_id (text): the conversation's id, as in alicia_conversations.
-- Returns: one row per session; none when the conversation has no session, or does not exist.
-- Reads: idx_session_stats_conversation
--
-- psql -v conversation_id=ac_xxx -f queries/session_stats.sql
SELECT
    message_count,
    tool_call_count,
    memories_used,
    session_duration_seconds
FROM alicia_session_stats
WHERE conversation_id = :'conversation_id'
ORDER BY created_at DESC, id DESC;
