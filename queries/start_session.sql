-- Start a session of a conversation now, with nothing in it yet.
--
-- Purpose: operations
-- Mode: writes
-- Param conversation_id (text): the conversation's id, as in alicia_conversations.
-- Returns: the new row, with every column of the table. Its counts are 0; created_at and updated_at are the
--     time in UTC, whatever the session's TimeZone. A conversation that does not exist is an error.
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
