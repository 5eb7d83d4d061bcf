-- Counts and durations are never negative, and a session belongs to a conversation.
--
-- Why: a negative count is a bug of the writer, and would poison every sum. NOT VALID: rows to come are
--      held to it at once, rows that are there are checked by the next migration, without blocking.
--      The foreign key is ours already, unless the host's table came without one.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats for an instant (with the foreign key, SHARE ROW
--        EXCLUSIVE on alicia_conversations too). No row is read.
-- Rollback: drops the constraints that this file created.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    fact RECORD;
BEGIN
    FOR fact IN
        SELECT * FROM (
            VALUES
            ('session_stats_message_count_not_negative', 'CHECK ((message_count >= 0))', 'Messages: 0 or more'),
            ('session_stats_tool_call_count_not_negative', 'CHECK ((tool_call_count >= 0))', 'Tool calls: 0 or more'),
            ('session_stats_memories_used_not_negative', 'CHECK ((memories_used >= 0))', 'Memories: 0 or more'),
            (
                'session_stats_duration_not_negative', 'CHECK ((session_duration_seconds >= 0))',
                'Duration in seconds: 0 or more'
            ),
            (
                'alicia_session_stats_conversation_id_fkey',
                'FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id) ON DELETE CASCADE',
                'A session is deleted with its conversation'
            )
        ) AS promised (name, definition, description)
        -- A constraint of the host's that says the same, under whatever name, is left as it is.
        WHERE NOT EXISTS (
            SELECT FROM pg_constraint
            WHERE conrelid = 'alicia_session_stats'::REGCLASS
                AND (
                    REPLACE(PG_GET_CONSTRAINTDEF(oid), ' NOT VALID', '') = definition
                    -- How the host's foreign key must look was settled by the first migration.
                    OR (contype = 'f' AND definition LIKE 'FOREIGN KEY%'
                        AND confrelid = 'alicia_conversations'::REGCLASS)
                )
        )
    LOOP
        EXECUTE FORMAT('ALTER TABLE alicia_session_stats ADD CONSTRAINT %I %s NOT VALID', fact.name, fact.definition);
        EXECUTE FORMAT('COMMENT ON CONSTRAINT %I ON alicia_session_stats IS %L', fact.name, fact.description);
        INSERT INTO alicia_session_stats_created VALUES ('CONSTRAINT ' || fact.name);
    END LOOP;
END
$migration$;
