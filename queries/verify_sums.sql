-- Where the sums and leaders that the triggers keep differ from the sessions themselves, and what mends it.
--
-- Purpose: operations
-- Returns: a row for each that differs, none when all is well: object, what was found, what is expected and the
--     statement that mends it. Every session is read. Only writes that went past the triggers (while they were
--     disabled, in the role of a replica, or by hand) can make a difference; leaders are few when most were deleted.
-- Reads: no index
--
-- psql -f queries/verify_sums.sql
WITH missing AS (
    -- Complete from the top down to the last of them is what the leaders must be.
    SELECT s.id
    FROM alicia_session_stats AS s
    INNER JOIN (
        SELECT
            message_count,
            created_at,
            id
        FROM alicia_session_stats_leaders
        ORDER BY message_count, created_at, id
        LIMIT 1
    ) AS last ON (s.message_count, s.created_at, s.id) >= (last.message_count, last.created_at, last.id)
    LEFT JOIN alicia_session_stats_leaders AS l
        ON
            s.id = l.id
            AND s.message_count = l.message_count
            AND s.created_at = l.created_at
            AND s.conversation_id = l.conversation_id
    WHERE l.id IS NULL
)

SELECT
    'sums of ' || COUNT(*) || ' quarter hours' AS object,
    'others, first in that of ' || MIN(quarter_hour) AS found,
    'the sums of alicia_session_stats' AS expected,
    'SELECT * FROM alicia_session_stats_repair();' AS mend
FROM alicia_session_stats_differences()
HAVING COUNT(*) > 0
UNION ALL
SELECT
    'leaders' AS object,
    COUNT(*) || ' are missing' AS found,
    'every session with so many messages' AS expected,
    'SELECT * FROM alicia_session_stats_repair();' AS mend
FROM missing
HAVING COUNT(*) > 0
UNION ALL
SELECT
    'leaders' AS object,
    found.leaders || ' are left' AS found,
    'about a thousand: with too few, most_active_sessions reads every session' AS expected,
    'SELECT * FROM alicia_session_stats_repair();' AS mend
FROM (
    SELECT COUNT(DISTINCT s.id) AS leaders
    FROM alicia_session_stats_leaders AS l
    INNER JOIN alicia_session_stats AS s
        ON
            l.id = s.id
            AND l.message_count = s.message_count
            AND l.created_at = s.created_at
            AND l.conversation_id = s.conversation_id
) AS found
CROSS JOIN (SELECT COUNT(*) AS sessions FROM alicia_session_stats) AS counted
WHERE found.leaders < LEAST(500, counted.sessions);
