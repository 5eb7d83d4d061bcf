-- Compute sessions from the host's messages, and bring alicia_session_stats in line with them.
--
-- Purpose: operations
-- Mode: writes
-- Param gap_minutes (integer, default 30): messages of a conversation further apart than this are in different
--     sessions; exactly this far apart, they are in the same.
-- Param since_days (integer, default 36500): look only at conversations with a message sent or deleted, or a session
--     begun, in so many days of 24 hours. Each is computed whole, so that no session is cut. A century is all.
-- Returns: one row of counts of sessions. inserted: new. updated: counted or lasting otherwise than before. deleted:
--     made by an earlier rebuild, and no longer in the messages, since a late one joined two, or it was deleted.
--     unchanged: as they should be, and not written. orphaned: left out, since alicia_conversations lacks their
--     conversation. A session starts at its first message and lasts to its last, in whole seconds; it counts its
--     messages, the tool uses of these, and the distinct memories retrieved for these. Soft-deleted rows, those
--     with a deleted_at, do not count. Times are UTC.
-- Reads: idx_session_stats_created_at, idx_session_stats_conversation, alicia_session_stats_pkey
--
-- The host's tables, with timestamps without time zone in UTC: alicia_messages (id, conversation_id, created_at,
-- deleted_at), alicia_tool_uses (id, message_id, created_at, deleted_at) and alicia_memory_used (id, conversation_id,
-- message_id, memory_id, created_at, deleted_at).
--
-- A rebuilt row is told by its id: ass_ and 22 characters of the SHA-256 of its own conversation_id and created_at.
-- So the same messages always give the same ids, and no other row is ever touched: the id that the application's
-- own row drew is random, not the hash of the row. When the application changes the counts of a rebuilt row, the
-- next rebuild puts them right; when it changes the conversation or the start, the row is its own from then on, and
-- that session is not made again. A session that is both recorded and rebuilt stands in two rows: do one or the other.
--
-- psql -v gap_minutes=60 -v since_days=7 -f queries/rebuild_sessions.sql
\if :{?gap_minutes}
\else
\set gap_minutes 30
\endif
\if :{?since_days}
\else
\set since_days 36500
\endif
WITH alone AS (
    -- Two rebuilds that write the same rows in different orders would stop each other. So the second waits for the
    -- first to end; what it then cannot see, being begun before, the next one mends.
    SELECT PG_ADVISORY_XACT_LOCK(HASHTEXT('rebuild_sessions'), 'alicia_session_stats'::REGCLASS::OID::INTEGER)
),

looked_at AS (
    SELECT m.conversation_id
    FROM alone
    CROSS JOIN alicia_messages AS m
    WHERE
        m.created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'since_days')
        OR m.deleted_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'since_days')
    UNION
    SELECT conversation_id
    FROM alicia_session_stats
    WHERE created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'since_days')
),

spaced_messages AS (
    SELECT
        m.id,
        m.conversation_id,
        m.created_at,
        COALESCE(m.created_at > LAG(m.created_at) OVER conversation + MAKE_INTERVAL(mins => :'gap_minutes'), TRUE) AS opens
    FROM alicia_messages AS m
    WHERE m.deleted_at IS NULL AND m.conversation_id IN (SELECT conversation_id FROM looked_at)
    WINDOW conversation AS (PARTITION BY m.conversation_id ORDER BY m.created_at)
),

-- A message is in the session that opened last. Messages of the same instant are peers, and so together.
messages AS (
    SELECT
        id,
        conversation_id,
        created_at,
        MAX(created_at) FILTER (WHERE opens) OVER (PARTITION BY conversation_id ORDER BY created_at) AS started_at
    FROM spaced_messages
),

-- What there is to add up, in one list.
events (conversation_id, started_at, last_at, messages, tool_calls, memories) AS (
    SELECT conversation_id, started_at, created_at, 1, 0, 0
    FROM messages
    UNION ALL
    SELECT m.conversation_id, m.started_at, NULL, 0, 1, 0
    FROM messages AS m
    INNER JOIN alicia_tool_uses AS t ON m.id = t.message_id
    WHERE t.deleted_at IS NULL
    UNION ALL
    SELECT conversation_id, started_at, NULL, 0, 0, 1
    FROM (
        SELECT DISTINCT m.conversation_id, m.started_at, u.memory_id
        FROM messages AS m
        INNER JOIN alicia_memory_used AS u ON m.id = u.message_id
        WHERE u.deleted_at IS NULL AND u.memory_id IS NOT NULL
    ) AS retrieved
    UNION ALL
    -- The sessions in the table, with nothing: where nothing is added to it, the messages know no such session. By
    -- BETWEEN, since with = the planner reads the whole table each time where outdated statistics know few conversations.
    SELECT l.conversation_id, started_at, NULL, 0, 0, 0
    FROM looked_at AS l
    CROSS JOIN LATERAL UNNEST((
        SELECT ARRAY_AGG(s.created_at)
        FROM alicia_session_stats AS s
        WHERE s.conversation_id BETWEEN l.conversation_id AND l.conversation_id
    )) AS started_at
),

sessions AS (
    SELECT
        'ass_' || TRANSLATE(ENCODE(SUBSTR(SHA256(CONVERT_TO(
            conversation_id || ' ' || EXTRACT(EPOCH FROM started_at), 'UTF8'
        )), 1, 16), 'base64'), '+/=', '-_') AS id,
        conversation_id,
        started_at,
        SUM(messages) AS message_count,
        SUM(tool_calls) AS tool_call_count,
        SUM(memories) AS memories_used,
        FLOOR(EXTRACT(EPOCH FROM COALESCE(MAX(last_at), started_at) - started_at)) AS session_duration_seconds
    FROM events
    GROUP BY conversation_id, started_at
),

compared AS (
    SELECT
        n.*,
        -- NULL where there is no such row. A subquery looks each one up by its key; a join that trusts outdated
        -- statistics may compare every session with every other. For the same reason, no join below.
        (
            SELECT
                CASE
                    WHEN s.conversation_id = n.conversation_id AND s.created_at = n.started_at
                        THEN
                            (s.message_count, s.tool_call_count, s.memories_used, s.session_duration_seconds)
                            <> (n.message_count, n.tool_call_count, n.memories_used, n.session_duration_seconds)
                END
            FROM alicia_session_stats AS s
            WHERE s.id = n.id
        ) AS differs,
        EXISTS(
            SELECT
            FROM alicia_conversations AS c
            WHERE c.id = n.conversation_id
        ) AS has_conversation
    FROM sessions AS n
),

inserted AS (
    INSERT INTO alicia_session_stats (
        id, conversation_id, message_count, tool_call_count, memories_used, session_duration_seconds, created_at, updated_at
    )
    SELECT
        id,
        conversation_id,
        message_count,
        tool_call_count,
        memories_used,
        session_duration_seconds,
        started_at,
        NOW() AT TIME ZONE 'UTC'
    FROM compared
    WHERE differs IS NULL AND message_count > 0 AND has_conversation
    -- In order of time, as if they had been recorded.
    ORDER BY started_at, id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
),

-- By ON CONFLICT, which finds each row by its key, and looks once more whether it still is the rebuild's own.
updated AS (
    INSERT INTO alicia_session_stats AS s (
        id, conversation_id, message_count, tool_call_count, memories_used, session_duration_seconds, created_at, updated_at
    )
    SELECT
        id,
        conversation_id,
        message_count,
        tool_call_count,
        memories_used,
        session_duration_seconds,
        started_at,
        NOW() AT TIME ZONE 'UTC'
    FROM compared
    WHERE differs AND message_count > 0
    ON CONFLICT (id) DO UPDATE
    SET
        message_count = excluded.message_count,
        tool_call_count = excluded.tool_call_count,
        memories_used = excluded.memories_used,
        session_duration_seconds = excluded.session_duration_seconds
    WHERE s.conversation_id = excluded.conversation_id AND s.created_at = excluded.created_at
    RETURNING id
),

deleted AS (
    DELETE FROM alicia_session_stats
    WHERE
        id = ANY((
            SELECT ARRAY_AGG(id)
            FROM compared
            WHERE differs IS NOT NULL AND message_count = 0
        )::TEXT[])
        AND id = 'ass_' || TRANSLATE(ENCODE(SUBSTR(SHA256(CONVERT_TO(
            conversation_id || ' ' || EXTRACT(EPOCH FROM created_at), 'UTF8'
        )), 1, 16), 'base64'), '+/=', '-_')
    RETURNING id
)

SELECT
    (SELECT COUNT(*) FROM inserted) AS inserted,
    (SELECT COUNT(*) FROM updated) AS updated,
    (SELECT COUNT(*) FROM deleted) AS deleted,
    COUNT(*) FILTER (WHERE has_conversation) - (SELECT COUNT(*) FROM inserted) - (SELECT COUNT(*) FROM updated) AS unchanged,
    COUNT(*) FILTER (WHERE NOT has_conversation) AS orphaned
FROM compared
WHERE message_count > 0;
