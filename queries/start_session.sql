-- Start a session of a conversation now, with every count at 0; with an id of the application's own, once.
--
-- Purpose: operations
-- Mode: writes
-- Param conversation_id (text): the conversation's id, as in alicia_conversations.
-- Param session_id (text, default new): the session's id, of the application's own choice; new generates one. With an
--     id of its own, an application can repeat the call: the second one changes nothing and returns the same session.
-- Returns: one row, the session with every column of the table; created_at and updated_at are in UTC.
--     A conversation that does not exist is an error (SQLSTATE 23503), and so is a session_id that belongs to another
--     conversation (SQLSTATE 23505).
-- Reads: no index
--
-- psql -v conversation_id=ac_xxx -v session_id=ass_xxx -f queries/start_session.sql
\if :{?session_id}
\else
\set session_id new
\endif
SELECT
    id,
    conversation_id,
    message_count,
    tool_call_count,
    memories_used,
    session_duration_seconds,
    created_at,
    updated_at
FROM alicia_session_stats_start(:'conversation_id', :'session_id');
