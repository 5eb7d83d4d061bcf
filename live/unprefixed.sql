-- Make the package fit an application whose tables are conversations, messages, tool_uses and memory_uses, without a prefix.
--
-- Why: the package looks for alicia_conversations, alicia_messages, alicia_tool_uses and alicia_memory_used, with times of
--      type TIMESTAMP in UTC.
-- How: a schema, alicia, holds views of these names, and a table alicia_conversations that follows conversations through a
--      trigger and a foreign key. Everything of the package goes into that schema, too. Put it first on the search_path of
--      the role that migrates, attaches and queries: ALTER ROLE alicia_migrator SET search_path = alicia, public;
-- Locks: SHARE ROW EXCLUSIVE on conversations for an instant: writers wait, readers do not.
-- Back: live/unprefixed.rollback.sql, after the package's own rollback.
--
-- psql -v ON_ERROR_STOP=1 -f live/unprefixed.sql && alicia-session-stats migrate
BEGIN ISOLATION LEVEL READ COMMITTED;

SET LOCAL lock_timeout = '500ms';
SET LOCAL client_min_messages = warning;

CREATE SCHEMA IF NOT EXISTS alicia;

COMMENT ON SCHEMA alicia IS
'alicia-session-stats: the tables of the application under the names that the package looks for, and the package';

CREATE TABLE IF NOT EXISTS alicia.alicia_conversations (
    id TEXT CONSTRAINT alicia_conversations_pkey PRIMARY KEY
        CONSTRAINT alicia_conversations_id_fkey REFERENCES conversations (id) ON DELETE CASCADE ON UPDATE CASCADE,
    deleted_at TIMESTAMP
);

COMMENT ON TABLE alicia.alicia_conversations IS
'The rows of conversations, kept by the trigger follow_alicia_conversations. Sessions refer to them.';
COMMENT ON COLUMN alicia.alicia_conversations.id IS
'The conversation';
COMMENT ON COLUMN alicia.alicia_conversations.deleted_at IS
'When it was deleted softly (UTC)';

CREATE OR REPLACE FUNCTION alicia.follow_conversations() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    INSERT INTO alicia.alicia_conversations AS c
    VALUES (NEW.id, NEW.deleted_at AT TIME ZONE 'UTC'::TEXT)
    ON CONFLICT (id) DO UPDATE SET deleted_at = excluded.deleted_at
    WHERE c.deleted_at IS DISTINCT FROM excluded.deleted_at;
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION alicia.follow_conversations() IS
'Trigger function that gives alicia.alicia_conversations what a conversation has become';

REVOKE ALL ON FUNCTION alicia.follow_conversations() FROM PUBLIC;

CREATE OR REPLACE TRIGGER follow_alicia_conversations
AFTER INSERT OR UPDATE OF deleted_at ON conversations
FOR EACH ROW EXECUTE FUNCTION alicia.follow_conversations();

COMMENT ON TRIGGER follow_alicia_conversations ON conversations IS
'Gives alicia.alicia_conversations what a conversation has become';

CREATE OR REPLACE VIEW alicia.alicia_messages AS
SELECT
    id,
    conversation_id,
    created_at AT TIME ZONE 'UTC' AS created_at,
    deleted_at AT TIME ZONE 'UTC' AS deleted_at
FROM messages;

COMMENT ON VIEW alicia.alicia_messages IS
'messages, with times in UTC';

CREATE OR REPLACE VIEW alicia.alicia_tool_uses AS
SELECT
    message_id,
    NULL::TIMESTAMP AS deleted_at
FROM tool_uses;

COMMENT ON VIEW alicia.alicia_tool_uses IS
'tool_uses, which are not deleted softly';

CREATE OR REPLACE VIEW alicia.alicia_memory_used AS
SELECT
    message_id,
    memory_id,
    NULL::TIMESTAMP AS deleted_at
FROM memory_uses;

COMMENT ON VIEW alicia.alicia_memory_used IS
'memory_uses, which are not deleted softly';

COMMIT;

-- The trigger is in effect, so no conversation is missed.
INSERT INTO alicia.alicia_conversations
SELECT
    id,
    deleted_at AT TIME ZONE 'UTC'
FROM conversations
ON CONFLICT DO NOTHING;
