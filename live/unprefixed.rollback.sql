-- Drop what live/unprefixed.sql created, and nothing else.
--
-- Why: restores the application's schema to what it was before. It fails while the package is installed. Run detach and
--      rollback --all first.
-- Locks: ACCESS EXCLUSIVE on conversations for an instant.
--
-- psql -v ON_ERROR_STOP=1 -f live/unprefixed.rollback.sql
BEGIN ISOLATION LEVEL READ COMMITTED;

SET LOCAL lock_timeout = '500ms';

DROP VIEW alicia.alicia_memory_used;
DROP VIEW alicia.alicia_tool_uses;
DROP VIEW alicia.alicia_messages;
DROP TRIGGER follow_alicia_conversations ON conversations;
DROP FUNCTION alicia.follow_conversations();
DROP TABLE alicia.alicia_conversations;
DROP SCHEMA alicia;

COMMIT;
