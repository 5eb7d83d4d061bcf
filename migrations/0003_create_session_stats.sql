-- Create alicia_session_stats: one row per session of a conversation, counters only.
--
-- Why: session analytics read this one narrow table instead of every message. Rows are deleted for good
--      (there is no deleted_at) and follow their conversation. A host's own table is left as it is.
-- Locks: SHARE ROW EXCLUSIVE on alicia_conversations for an instant, for the foreign key.
-- Rollback: drops the table, if this file created it, and refuses while it holds rows.
SET LOCAL lock_timeout = '500ms';

DO $migration$
BEGIN
    IF TO_REGCLASS('alicia_session_stats') IS NOT NULL THEN
        RETURN;
    END IF;

    CREATE TABLE alicia_session_stats (
        id TEXT DEFAULT generate_random_id('ass') CONSTRAINT alicia_session_stats_pkey PRIMARY KEY,
        conversation_id TEXT NOT NULL
        CONSTRAINT alicia_session_stats_conversation_id_fkey REFERENCES alicia_conversations (id) ON DELETE CASCADE,
        message_count INTEGER NOT NULL DEFAULT 0,
        tool_call_count INTEGER NOT NULL DEFAULT 0,
        memories_used INTEGER NOT NULL DEFAULT 0,
        session_duration_seconds INTEGER NOT NULL DEFAULT 0,
        created_at TIMESTAMP NOT NULL DEFAULT NOW(),
        updated_at TIMESTAMP NOT NULL DEFAULT NOW()
    );

    COMMENT ON TABLE alicia_session_stats IS
    'Session-level analytics for conversations: one row per session, deleted for good. Times are UTC.';
    COMMENT ON COLUMN alicia_session_stats.id IS
    'Primary key with ass_ prefix';
    COMMENT ON COLUMN alicia_session_stats.conversation_id IS
    'FK to alicia_conversations';
    COMMENT ON COLUMN alicia_session_stats.message_count IS
    'Total messages in session (messages, 0 or more)';
    COMMENT ON COLUMN alicia_session_stats.tool_call_count IS
    'Total tool calls made (calls, 0 or more)';
    COMMENT ON COLUMN alicia_session_stats.memories_used IS
    'Unique memories retrieved (memories, 0 or more)';
    COMMENT ON COLUMN alicia_session_stats.session_duration_seconds IS
    'Session duration (seconds, 0 or more)';
    COMMENT ON COLUMN alicia_session_stats.created_at IS
    'Session start timestamp (UTC)';
    COMMENT ON COLUMN alicia_session_stats.updated_at IS
    'Last update timestamp (UTC), kept by the trigger update_session_stats_updated_at';
    INSERT INTO alicia_session_stats_created VALUES ('TABLE alicia_session_stats');
END
$migration$;
