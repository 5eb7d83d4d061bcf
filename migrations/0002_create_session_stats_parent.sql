-- Create generate_random_id(text) and alicia_conversations, where the host has none.
--
-- Why: the table's default and foreign key need them. In production both belong to the application, and
--      what it has is left as it is; alone, the package makes the smallest that will do.
-- Locks: none on anything that exists.
-- Rollback: drops what this file created, and refuses while conversations are in it.
SET LOCAL lock_timeout = '500ms';

DO $migration$
BEGIN
    -- A host that has both tables has its own ids too.
    IF (TO_REGCLASS('alicia_conversations') IS NULL OR TO_REGCLASS('alicia_session_stats') IS NULL)
        AND NOT EXISTS (SELECT FROM pg_proc WHERE proname = 'generate_random_id' AND PG_FUNCTION_IS_VISIBLE(oid))
    THEN
        -- The body is parsed now, once: no search_path of a later caller can change what it means.
        CREATE FUNCTION generate_random_id(prefix TEXT) RETURNS TEXT
        LANGUAGE sql VOLATILE PARALLEL SAFE
        RETURN prefix || '_' || TRANSLATE(ENCODE(UUID_SEND(GEN_RANDOM_UUID()), 'base64'), '+/=', '-_');

        COMMENT ON FUNCTION generate_random_id(TEXT) IS
        'Random id: the prefix, an underscore and 22 URL-safe characters that carry 122 random bits';
        INSERT INTO alicia_session_stats_created VALUES ('FUNCTION generate_random_id(text)');
    END IF;

    IF TO_REGCLASS('alicia_conversations') IS NULL THEN
        CREATE TABLE alicia_conversations (
            id TEXT DEFAULT generate_random_id('ac') CONSTRAINT alicia_conversations_pkey PRIMARY KEY
        );

        COMMENT ON TABLE alicia_conversations IS
        'Conversations: the smallest parent that alicia_session_stats needs';
        COMMENT ON COLUMN alicia_conversations.id IS
        'Primary key with ac_ prefix';
        INSERT INTO alicia_session_stats_created VALUES ('TABLE alicia_conversations');
    END IF;
END
$migration$;
