-- Add messages, tool calls, memories and seconds to a session; a repeated call adds twice.
--
-- Purpose: operations
-- Mode: writes
-- Param session_id (text): the session's id, as start_session returned it.
-- Param conversation_id (text): the session's conversation. It leads to the shard where the table is distributed.
-- Param messages (integer, default 0): messages to add.
-- Param tool_calls (integer, default 0): tool calls to add.
-- Param memories (integer, default 0): memories to add: those that the session has not retrieved before.
-- Param seconds (integer, default 0): seconds to add to the duration.
-- Returns: one row, the session with every column of the table as it is now. Concurrent calls add up. Where a call may
--     be repeated, record_totals counts nothing twice.
--     A session that the conversation does not have is an error (SQLSTATE 23503), as a missing conversation is in
--     start_session.
--     A negative number is an error (SQLSTATE 22023, or 23514 where the sum is negative), and nothing is changed.
--     A sum beyond the INTEGER maximum is an error (SQLSTATE 22003), and nothing is changed.
-- Reads: alicia_session_stats_pkey
--
-- psql -v session_id=ass_xxx -v conversation_id=ac_xxx -v messages=2 -v seconds=40 -f queries/record_activity.sql
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
        message_count = message_count + :'messages',
        tool_call_count = tool_call_count + :'tool_calls',
        memories_used = memories_used + :'memories',
        session_duration_seconds = session_duration_seconds + :'seconds'
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
