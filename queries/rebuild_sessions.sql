-- Compute sessions from the application's messages, and bring the rebuilt rows of alicia_session_stats in line.
--
-- Purpose: operations
-- Mode: writes
-- Param gap_minutes (integer, default 30): a session ends when its conversation's next message is more than this many
--     minutes later.
-- Param since_days (integer, default 36500): rebuild only conversations with a message sent or deleted, or a session
--     begun, in the last so many days of 24 hours. Such a conversation is rebuilt whole, so that no session is cut.
-- Returns: one row.
--     inserted                     sessions that were not in the table
--     updated                      sessions whose counts or duration differed
--     deleted                      sessions of an earlier rebuild that the messages no longer have
--     unchanged                    sessions that were right, and were not written
--     orphaned                     sessions left out, because alicia_conversations lacks their conversation
-- Model: a session starts at its first message and ends at its last. It counts its messages, the tool uses of these and
--     the distinct memories used for these. Rows with a deleted_at do not count. Times are UTC.
-- Reads: idx_session_stats_created_at, idx_session_stats_conversation, alicia_session_stats_pkey
--
-- The application's tables: alicia_messages (id, conversation_id, created_at, deleted_at), alicia_tool_uses (message_id,
-- deleted_at) and alicia_memory_used (message_id, memory_id, deleted_at). Their times are TIMESTAMP in UTC.
--
-- The id of a rebuilt row is ass_ and 22 characters of the SHA-256 of its conversation_id and created_at. So the same
-- messages always give the same ids, and a row counts as rebuilt only while its id is the hash of its own conversation
-- and start. No other row is written. The next rebuild overwrites changed counts of a rebuilt row. A session that is
-- both recorded and rebuilt has two rows: do one or the other.
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
WITH locked AS (
    -- One rebuild at a time: two that write the same rows in different orders would deadlock. The second one waits for
    -- the first. Its snapshot is older than the wait, so it may miss messages; the next rebuild finds them.
    SELECT PG_ADVISORY_XACT_LOCK(HASHTEXT('rebuild_sessions'), 'alicia_session_stats'::REGCLASS::OID::INTEGER)
),

conversations AS (
    SELECT m.conversation_id
    FROM locked
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
        COALESCE(
            m.created_at > LAG(m.created_at) OVER conversation + MAKE_INTERVAL(mins => :'gap_minutes'), TRUE
        ) AS starts_session
    FROM alicia_messages AS m
    WHERE m.deleted_at IS NULL AND m.conversation_id IN (SELECT conversation_id FROM conversations)
    WINDOW conversation AS (PARTITION BY m.conversation_id ORDER BY m.created_at)
),

-- A message belongs to the session that started last. Messages of the same instant are peers, so they stay together.
messages AS (
    SELECT
        id,
        conversation_id,
        created_at,
        MAX(created_at) FILTER (WHERE starts_session) OVER (PARTITION BY conversation_id ORDER BY created_at) AS started_at
    FROM spaced_messages
),

-- One row for each thing to count.
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
    -- Existing sessions with zero counts, so that those that vanished are deleted. BETWEEN, because with = and outdated
    -- statistics the planner may read the whole table for each conversation.
    SELECT c.conversation_id, started_at, NULL, 0, 0, 0
    FROM conversations AS c
    CROSS JOIN LATERAL UNNEST((
        SELECT ARRAY_AGG(s.created_at)
        FROM alicia_session_stats AS s
        WHERE s.conversation_id BETWEEN c.conversation_id AND c.conversation_id
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
        -- NULL where there is no such row. A subquery looks each row up by its key. A join, here or below, may compare
        -- every session with every other when the statistics are outdated.
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
    -- In the order in which recording would have inserted them.
    ORDER BY started_at, id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
),

-- ON CONFLICT finds each row by its key, and its WHERE skips a row that is no longer a rebuilt one.
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
