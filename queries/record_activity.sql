-- Add messages, tool calls, memories and seconds to a session.
--
-- Purpose: operations
-- Mode: writes
-- Param session_id (text): the session's id, as start_session returned it.
-- Param messages (integer, default 0): messages to add.
-- Param tool_calls (integer, default 0): tool calls to add.
-- Param memories (integer, default 0): memories to add, those that the session had not retrieved before.
-- Param seconds (integer, default 0): seconds to add to the duration.
-- Returns: the row as it is now, with every column of the table. Adding is atomic: of writers at the same time
--     none overwrites another. A session that does not exist, and a count beyond the INTEGER maximum, is an
--     error, and nothing changes.
-- Reads: alicia_session_stats_pkey
--
-- psql -v session_id=ass_xxx -v messages=2 -v seconds=40 -f queries/record_activity.sql
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
    WHERE id = :'session_id'
    RETURNING
        id,
        conversation_id,
        message_count,
        tool_call_count,
        memories_used,
        session_duration_seconds,
        created_at,
        updated_at
)

SELECT
    -- To SQL, an UPDATE of no row is no error. PARSE_IDENT refuses what is more than one word, and quotes it; CONCAT
    -- is there to keep the planner, which tries what is constant, from trying it.
    COALESCE(recorded.id, (PARSE_IDENT(CONCAT('no session ', asked.session_id)))[1]) AS id,
    recorded.conversation_id,
    recorded.message_count,
    recorded.tool_call_count,
    recorded.memories_used,
    recorded.session_duration_seconds,
    recorded.created_at,
    recorded.updated_at
FROM (VALUES (:'session_id')) AS asked (session_id)
LEFT JOIN recorded ON asked.session_id = recorded.id;
