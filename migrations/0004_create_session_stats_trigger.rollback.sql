-- Drop the trigger that stamps updated_at, where this package created it, and its function.
--
-- Why: what the host had before stays.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats for an instant.
-- Rollback: no row is lost; updated_at is no longer kept.
SET LOCAL lock_timeout = '500ms';

DO $migration$
BEGIN
    DELETE FROM alicia_session_stats_created WHERE object = 'TRIGGER update_session_stats_updated_at';
    IF FOUND THEN
        DROP TRIGGER IF EXISTS update_session_stats_updated_at ON alicia_session_stats;
    END IF;

    DELETE FROM alicia_session_stats_created WHERE object = 'FUNCTION update_session_stats_updated_at()';
    IF FOUND THEN
        DROP FUNCTION IF EXISTS update_session_stats_updated_at();
    END IF;
END
$migration$;
