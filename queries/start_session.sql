-- Start a session of a conversation now, with every count at 0.
--
-- Purpose: operations
-- Mode: writes
-- Param conversation_id (text): the conversation's id, as in alicia_conversations.
-- Returns: one row, the new session with every column of the table; created_at and updated_at are in UTC.
--     A conversation that does not exist is an error (SQLSTATE 23503).
-- Reads: no index
--
-- psql -v conversation_id=ac_xxx -f queries/start_session.sql
INSERT INTO alicia_session_stats (conversation_id, created_at, updated_at)
VALUES (:'conversation_id', NOW() AT TIME ZONE 'UTC', NOW() AT TIME ZONE 'UTC')
RETURNING
    id,
    conversation_id,
    message_count,
    tool_call_count,
    memories_used,
    session_duration_seconds,
    created_at,
    updated_at;
