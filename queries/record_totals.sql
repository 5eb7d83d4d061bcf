-- Raise the messages, tool calls, memories and seconds of a session to what is given; a repeated call changes nothing.
--
-- Purpose: operations
-- Mode: writes
-- Param session_id (text): the session's id, as start_session returned it.
-- Param conversation_id (text): the session's conversation. It leads to the shard where the table is distributed.
-- Param messages (integer, default 0): messages of the session so far.
-- Param tool_calls (integer, default 0): tool calls of the session so far.
-- Param memories (integer, default 0): distinct memories that the session has retrieved so far.
-- Param seconds (integer, default 0): duration so far.
-- Returns: one row, the session with every column of the table as it is now. No count is lowered, so
--     a call that is late or repeated does no harm.
--     A session that the conversation does not have is an error (SQLSTATE 23503), as a missing conversation is in
--     start_session.
--     A negative number is an error (SQLSTATE 22023), and nothing is changed.
-- Reads: alicia_session_stats_pkey
--
-- psql -v session_id=ass_xxx -v conversation_id=ac_xxx -v messages=2 -v seconds=40 -f queries/record_totals.sql
\if :{?messages}
\else
\set messages 0
\endif
\if :{?tool_calls}
\else
\set tool_calls 0
\endif
\if :{?memories}
\else
\set memories 0
\endif
\if :{?seconds}
\else
\set seconds 0
\endif
WITH recorded AS (
    UPDATE alicia_session_stats
    SET
        message_count = GREATEST(message_count, :'messages'),
        tool_call_count = GREATEST(tool_call_count, :'tool_calls'),
        memories_used = GREATEST(memories_used, :'memories'),
        session_duration_seconds = GREATEST(session_duration_seconds, :'seconds')
    WHERE id = :'session_id' AND conversation_id = :'conversation_id'
    RETURNING *
)

SELECT
    CASE
        WHEN LEAST(0, :'messages', :'tool_calls', :'memories', :'seconds') < 0
            THEN alicia_session_stats_raise('22023', 'messages, tool_calls, memories and seconds must not be negative')
        WHEN r.id IS NULL
            THEN alicia_session_stats_raise(
                '23503', 'session ' || asked.session_id || ' does not exist in conversation ' || asked.conversation_id
            )
        ELSE r.id
    END AS id,
    r.conversation_id,
    r.message_count,
    r.tool_call_count,
    r.memories_used,
    r.session_duration_seconds,
    r.created_at,
    r.updated_at
FROM (VALUES (:'session_id', :'conversation_id')) AS asked (session_id, conversation_id)
LEFT JOIN recorded AS r ON asked.session_id = r.id;
