-- The sessions of a window with their conversation, start, end and counts, newest first: an export.
--
-- Purpose: usage analytics
-- Param days (integer, default 7): length of the window, in calendar days of tz.
-- Param until (timestamp, default now): end of the window; in tz unless it carries an offset. What is later than now is
--     left out.
-- Param conversation_id (text, default all): only the sessions of this conversation.
-- Param min_messages (integer, default 0): only sessions with so many messages or more.
-- Param min_seconds (integer, default 0): only sessions of this duration or longer.
-- Param limit (text, default all): number of sessions to return, at most.
-- Param tz (text, default UTC): time zone of the times, an IANA name such as Europe/Berlin.
-- Returns: one row per session that begins in the window, newest first; of equals the larger id first.
--     started_at, ended_at         first and last instant, in tz
--     messages, tool_calls, memories, seconds
--                                  as in the table
-- Cost: reads the index from the newest session back, until limit are found; with min_messages or min_seconds also the
--     sessions between that are not listed.
-- Reads: idx_session_stats_created_at
--
-- psql -v days=7 -v until=2026-11-23 -v tz=Asia/Kathmandu -f queries/list_sessions.sql
\if :{?days}
\else
\set days 7
\endif
\if :{?until}
\else
\set until now
\endif
\if :{?conversation_id}
\else
\set conversation_id all
\endif
\if :{?min_messages}
\else
\set min_messages 0
\endif
\if :{?min_seconds}
\else
\set min_seconds 0
\endif
\if :{?limit}
\else
\set limit all
\endif
\if :{?tz}
\else
\set tz UTC
\endif
WITH found AS (
    SELECT
        id,
        conversation_id,
        created_at,
        message_count,
        tool_call_count,
        memories_used,
        session_duration_seconds
    FROM alicia_session_stats
    WHERE
        created_at >= (
            ((alicia_session_stats_utc(:'until', :'tz') AT TIME ZONE 'UTC') AT TIME ZONE :'tz') - MAKE_INTERVAL(days => :'days')
        ) AT TIME ZONE :'tz' AT TIME ZONE 'UTC'
        AND created_at < alicia_session_stats_window_end(:'until', :'tz')
        AND (:'conversation_id' = 'all' OR conversation_id = :'conversation_id')
        AND message_count >= :'min_messages'
        AND session_duration_seconds >= :'min_seconds'
        AND alicia_session_stats_is_time_zone(:'tz')
    ORDER BY created_at DESC, id DESC
    LIMIT NULLIF(:'limit', 'all')::BIGINT
)

SELECT
    id,
    conversation_id,
    (created_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz' AS started_at,
    ((created_at + MAKE_INTERVAL(secs => session_duration_seconds)) AT TIME ZONE 'UTC') AT TIME ZONE :'tz' AS ended_at,
    message_count AS messages,
    tool_call_count AS tool_calls,
    memories_used AS memories,
    session_duration_seconds AS seconds
FROM found
ORDER BY created_at DESC, id DESC;
