-- Drop idx_session_stats_conversation, where this package created it.
--
-- Why: what the host had before stays.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats for an instant.
-- Rollback: no row is lost; queries by conversation_id read the whole table.

DO $migration$
BEGIN
    PERFORM SET_CONFIG('lock_timeout', '500ms', TRUE);
    DELETE FROM alicia_session_stats_created WHERE object = 'INDEX idx_session_stats_conversation';
    IF FOUND THEN
        DROP INDEX IF EXISTS idx_session_stats_conversation;
    END IF;
END
$migration$;
