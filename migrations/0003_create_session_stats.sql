-- Create alicia_session_stats, one row per session of a conversation, and what it needs.
--
-- Why: session analytics read this narrow table instead of every message. Rows are deleted for good (there is no
--      deleted_at) and with their conversation. What the application has is adopted as it is; where it has no
--      alicia_conversations, a table with an id only is created, and so is generate_random_id.
-- Locks: SHARE ROW EXCLUSIVE on alicia_conversations for an instant, for the foreign key.
-- Rollback: drops what this file created. Refused while the tables hold rows.
SET LOCAL lock_timeout = '500ms';

DO $migration$
BEGIN
    -- If both tables exist, no column default needs the function.
    IF (TO_REGCLASS('alicia_conversations') IS NULL OR TO_REGCLASS('alicia_session_stats') IS NULL)
        AND NOT EXISTS (SELECT FROM pg_proc WHERE proname = 'generate_random_id' AND PG_FUNCTION_IS_VISIBLE(oid))
    THEN
        CREATE FUNCTION generate_random_id(prefix TEXT) RETURNS TEXT
        LANGUAGE sql VOLATILE PARALLEL SAFE
        AS $function$
        SELECT pg_catalog.concat(prefix, '_', pg_catalog.translate(
            pg_catalog.encode(pg_catalog.uuid_send(pg_catalog.gen_random_uuid()), 'base64'::pg_catalog.text),
            '+/='::pg_catalog.text, '-_'::pg_catalog.text
        ))
        $function$;

        COMMENT ON FUNCTION generate_random_id(TEXT) IS
        'Random id: the prefix, an underscore and 22 URL-safe characters that carry 122 random bits';
        PERFORM alicia_session_stats_own('FUNCTION generate_random_id(text)');
    END IF;

    IF TO_REGCLASS('alicia_conversations') IS NULL THEN
        CREATE TABLE alicia_conversations (
            id TEXT DEFAULT generate_random_id('ac') CONSTRAINT alicia_conversations_pkey PRIMARY KEY
        );

        COMMENT ON TABLE alicia_conversations IS
        'Conversations: the smallest parent that alicia_session_stats needs';
        COMMENT ON COLUMN alicia_conversations.id IS
        'Primary key with ac_ prefix';
        PERFORM alicia_session_stats_own('TABLE alicia_conversations');
    END IF;

    IF TO_REGCLASS('alicia_session_stats') IS NULL THEN
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
        COMMENT ON CONSTRAINT alicia_session_stats_conversation_id_fkey ON alicia_session_stats IS
        'A session is deleted with its conversation';
        PERFORM alicia_session_stats_own('TABLE alicia_session_stats');
    END IF;
END
$migration$;
