-- The sessions with the most messages, and the tool calls they made.
--
-- Purpose: usage analytics
-- Param limit (integer, default 10): how many sessions to return at most.
-- Returns: a row for each session, most messages first; between equals the newest first, then by id.
-- Reads: idx_session_stats_candidates
--
-- psql -v limit=3 -f queries/most_active_sessions.sql
\if :{?limit}
\else
\set limit 10
\endif
-- The leaders are every session above some floor; the duplicates and outdated copies among them drop out.
WITH leaders AS (
    SELECT DISTINCT
        s.conversation_id,
        s.message_count,
        s.tool_call_count,
        s.created_at,
        s.id
    FROM (
        SELECT *
        FROM alicia_session_stats_leaders
        ORDER BY message_count DESC, created_at DESC, id DESC
        LIMIT :'limit'::BIGINT + 20
    ) AS l
    INNER JOIN alicia_session_stats AS s
        ON
            l.conversation_id = s.conversation_id
            AND l.id = s.id
            AND l.message_count = s.message_count
            AND l.created_at = s.created_at
    ORDER BY s.message_count DESC, s.created_at DESC, s.id DESC
    LIMIT :'limit'
),

-- Not read, unless so many are asked for, or so many were deleted, that the leaders do not reach.
everybody AS (
    SELECT s.*
    FROM (SELECT COUNT(*) AS leaders FROM leaders) AS f
    CROSS JOIN LATERAL (
        SELECT
            conversation_id,
            message_count,
            tool_call_count,
            created_at,
            id
        FROM alicia_session_stats
        ORDER BY message_count DESC, created_at DESC, id DESC
        LIMIT :'limit'::BIGINT
    ) AS s
    WHERE f.leaders < :'limit'::BIGINT
),

found AS (
    SELECT * FROM leaders
    UNION
    SELECT * FROM everybody
)

SELECT
    conversation_id,
    message_count,
    tool_call_count
FROM found
ORDER BY message_count DESC, created_at DESC, id DESC;
